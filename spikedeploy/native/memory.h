typedef struct {
    int64_t steps, batch, d, n;
    int32_t delta;
    int32_t output;
    int32_t surrogate;
    int32_t threads;
    double slope;
    const void *v, *k, *q;
    const double *alpha, *beta, *threshold, *start;
    double *checkpoints, *end;
    void *y;
    const void *dy;
    const double *dend;
    void *dv, *dk, *dq;
    double *dalpha, *dbeta, *dthreshold, *dstart;
    void *area;
} sd_memory;

int sd_memory_segment(void);
int64_t sd_memory_area_f32(const sd_memory *m, int backward);
int64_t sd_memory_area_f64(const sd_memory *m, int backward);
int sd_memory_forward_f32(const sd_memory *m);
int sd_memory_forward_f64(const sd_memory *m);
int sd_memory_backward_f32(const sd_memory *m);
int sd_memory_backward_f64(const sd_memory *m);
