typedef struct {
    int64_t steps, batch, d, n;
    int32_t delta;
    int32_t output;
    int32_t surrogate;
    int32_t threads;
    int32_t thresholds;
    double slope;
    int64_t inputs;
    const void *in, *q, *x, *weight[5], *bias[5];
    const double *threshold, *start;
    double *checkpoints, *end;
    void *y;
    const void *dy;
    const double *dend;
    void *din, *dq, *dx, *dweight[5], *dbias[5];
    double *dthreshold, *dstart;
    void *area;
} sd_memory;

int64_t sd_memory_segment(int64_t d, int64_t n);
void sd_memory_announce(void *start, int64_t bytes);
int64_t sd_memory_area_f32(const sd_memory *m, int backward);
int64_t sd_memory_area_f64(const sd_memory *m, int backward);
void sd_memory_forward_f32(const sd_memory *m);
void sd_memory_forward_f64(const sd_memory *m);
void sd_memory_backward_f32(const sd_memory *m);
void sd_memory_backward_f64(const sd_memory *m);
