void sd_hard_reset_forward_f32(const float *x, float *membrane, float *spikes, int64_t steps, int64_t lanes, float tau, int threads);
void sd_hard_reset_forward_f64(const double *x, double *membrane, double *spikes, int64_t steps, int64_t lanes, double tau, int threads);
void sd_hard_reset_backward_f32(const float *membrane, const float *g_spikes, const float *g_membrane, float *g_x, int64_t steps, int64_t lanes, float tau, int threads);
void sd_hard_reset_backward_f64(const double *membrane, const double *g_spikes, const double *g_membrane, double *g_x, int64_t steps, int64_t lanes, double tau, int threads);
