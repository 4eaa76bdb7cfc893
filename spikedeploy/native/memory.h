typedef struct {
    int64_t steps, batch, d, n;
    int32_t delta;
    int32_t output;
    int32_t surrogate;
    int32_t threads;
    int32_t thresholds;
    double slope;
    int64_t inputs;
    intptr_t in, q, x, weight[5], bias[5];
    intptr_t threshold, start, kept, end;
    intptr_t y, dy, dend;
    intptr_t din, dq, dx, dweight[5], dbias[5];
    intptr_t dthreshold, dstart;
    intptr_t area;
} sd_memory;

int64_t sd_memory_kept_f32(const sd_memory *m);
int64_t sd_memory_kept_f64(const sd_memory *m);
int64_t sd_memory_area_f32(const sd_memory *m, int backward);
int64_t sd_memory_area_f64(const sd_memory *m, int backward);
void sd_memory_forward_f32(const sd_memory *m);
void sd_memory_forward_f64(const sd_memory *m);
void sd_memory_backward_f32(const sd_memory *m);
void sd_memory_backward_f64(const sd_memory *m);
