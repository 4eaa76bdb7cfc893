int sd_ssm_forward_f32(const float *x, const float *par, float *y, float *marks, int64_t steps, int64_t batch, int64_t features, int64_t modes, int64_t segment, int threads);
int sd_ssm_forward_f64(const double *x, const double *par, double *y, double *marks, int64_t steps, int64_t batch, int64_t features, int64_t modes, int64_t segment, int threads);
int sd_ssm_backward_f32(const float *x, const float *par, const float *marks, const float *gy, float *gx, double *gpar, int64_t steps, int64_t batch, int64_t features, int64_t modes, int64_t segment, int threads);
int sd_ssm_backward_f64(const double *x, const double *par, const double *marks, const double *gy, double *gx, double *gpar, int64_t steps, int64_t batch, int64_t features, int64_t modes, int64_t segment, int threads);
