/* One leaky neuron over a whole sequence. Addresses are integers so that a caller passes `tensor.data_ptr()` as it is; 0 is "not given".
   Arrays over time are (steps, lanes) with `*_stride` elements from one step to the next (0: the same row at every step) and contiguous lanes.
   A parameter of `*_period` values is repeated over the lanes; `*_wide` says that it is double. */
typedef struct {
    int64_t steps, lanes;
    int32_t wide_io;    /* x, mem, spk and their gradients are double, else float */
    int32_t wide_state; /* the state (initial, final and in between) is double; always so when wide_io */
    int32_t reset;      /* 0 none, 1 subtract, 2 zero */
    int32_t delayed;    /* the reset acts one step later */
    int32_t strict;     /* fires at u > threshold, else u >= threshold */
    int32_t is_tau;     /* decay = exp(-1/tau), and `decay` holds tau */
    int32_t clamped;    /* decay is brought into [0, 1] first, and has no gradient outside */
    int32_t power;      /* amplitude = graded^power */
    int32_t surrogate;
    int32_t threads;
    int32_t decay_wide, threshold_wide, graded_wide;
    int64_t decay_period, threshold_period, graded_period;
    uintptr_t decay, threshold, graded;
    double slope;
    int64_t x_stride;
    uintptr_t x, initial, mem, spk, final;
    int64_t grad_mem_stride, grad_spk_stride;
    uintptr_t grad_mem, grad_spk, grad_final;
    uintptr_t grad_x, grad_initial, grad_decay, grad_threshold, grad_graded;
} sd_leaky;

int sd_leaky_forward(const sd_leaky *job);
int sd_leaky_backward(const sd_leaky *job);
