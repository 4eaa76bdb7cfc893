/* Leaky neurons, forward and backward over a whole sequence: sequential in time, vectorised over batch x channel.

   x is read once, membrane and spikes are written once; a block of lanes keeps its state near, and goes on by a cache line of lanes and two steps
   at a time, so that asking for what comes, arithmetic and writing alternate finely enough to overlap. Parameter gradients are summed per
   lane over time in double, then over the lanes of a channel in order, so that every bit is independent of the number of threads. */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "denormal.inc"
#include "gen1.h"
#include "huge.inc"
#include "stream.inc"
#include "vectors.inc"

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 1024 /* lanes; the arrays of a block fit the L1 cache */
#define LINE ((int)(64 / sizeof(IO))) /* lanes in a cache line: what is worked on, asked for and written at a time */
#define LANES ((int)(SD_VECTOR / sizeof(IO))) /* in a vector of the arrays; a line is one or more */
#define GROUP 2 /* steps worked on at a time, so that a lane's state is read and written once for both; divides TERMS */
#define STEPS _Pragma("GCC unroll 2")
#define PI 3.141592653589793
#define ROW __attribute__((aligned(64)))
#define TERMS 16 /* of a parameter's gradient that are summed in the width of the arrays before they join the sum in double */
#define PARALLEL_FROM 32768 /* cells; below, a parallel region costs more than it saves */

enum { RESET_NONE, RESET_SUBTRACT, RESET_ZERO };
enum { SURROGATE_ZERO, SURROGATE_ATAN, SURROGATE_FAST_SIGMOID, SURROGATE_SIGMOID, SURROGATE_STRAIGHT, SURROGATE_TRIANGULAR, SURROGATE_SIGN };

INLINE size_t array_bytes(const sd_leaky *job) { return (size_t)(job->steps * job->lanes) * (job->wide_io ? 8 : 4); }

/* Whether rows of `row` bytes of a result bypass the caches: it is too large to be found there later, and its rows lie well. */
INLINE int streams(const sd_leaky *job, uintptr_t to, int64_t first, size_t row) {
    const int64_t size = job->wide_io ? 8 : 4;
    return can_stream((void *)(to + (uintptr_t)(first * size)), row, job->lanes * size, array_bytes(job));
}

/* A parameter's values for the lanes [first, first + n), as double. */
static void load(double *to, uintptr_t from, int wide, int64_t period, int64_t first, int64_t n, double missing) {
    int64_t at = from ? first % period : 0;
    for (int64_t i = 0; i < n; i++) {
        to[i] = !from ? missing : wide ? ((const double *)from)[at] : ((const float *)from)[at];
        if (from && ++at == period) at = 0;
    }
}

static void load_decay(double *to, const sd_leaky *job, int64_t first, int64_t n) {
    load(to, job->decay, job->decay_wide, job->decay_period, first, n, 0);
    for (int64_t i = 0; i < n && job->clamped; i++) to[i] = to[i] < 0 ? 0 : to[i] > 1 ? 1 : to[i];
    if (!job->is_tau) return;
    for (int64_t i = 0; i < n; i++) to[i] = i >= job->decay_period ? to[i - job->decay_period] : exp(-1 / to[i]);
}

static void load_amplitude(double *to, const sd_leaky *job, int64_t first, int64_t n) {
    load(to, job->graded, job->graded_wide, job->graded_period, first, n, 1);
    for (int64_t i = 0; i < n && job->power == 2; i++) to[i] *= to[i];
}

static void load_threshold(double *to, const sd_leaky *job, int64_t first, int64_t n) {
    load(to, job->threshold, job->threshold_wide, job->threshold_period, first, n, INFINITY);
}

/* Sums a lane's partial gradients over the lanes of each parameter value, always in the same order. */
static void store_gradient(uintptr_t to, int wide, int64_t period, int64_t lanes, double *partial) {
    for (int64_t i = period; i < lanes; i++) partial[i % period] += partial[i];
    for (int64_t i = 0; i < period; i++)
        if (wide) ((double *)to)[i] = partial[i];
        else ((float *)to)[i] = (float)partial[i];
}

static int threads(const sd_leaky *job, int64_t blocks) {
    if (job->steps * job->lanes < PARALLEL_FROM) return 1;
    return job->threads < blocks ? job->threads : (int)blocks;
}

/* Lanes per block: at most `most`, fewer when threads would idle; whole vectors. */
static int64_t block_lanes(const sd_leaky *job, int64_t most) {
    int64_t share = (job->lanes + job->threads - 1) / job->threads;
    share = (share + 31) / 32 * 32;
    return job->steps * job->lanes < PARALLEL_FROM || share > most ? most : share;
}

/* Lines after which the parameters repeat; at most `most`. */
static int64_t kinds(const sd_leaky *job, int64_t line, int64_t most) {
    int64_t count = 1;
    while (count < most && (count * line % job->decay_period || count * line % job->threshold_period || count * line % job->graded_period)) count++;
    return count;
}

typedef struct {
    double *decay, *threshold, *graded; /* one partial sum per lane, or NULL */
} sd_partials;

INLINE float exp_minus_float(float x) { /* exp(-x), x >= 0, to 2 units in the last place; vectorises where expf does not */
    if (x > 87.0f) x = 87.0f;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* nearest whole number, ties to even */
    float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;   /* in [-ln2/2, ln2/2] */
    float g = -f;
    float p = 1.9875691500e-4f;
    p = p * g + 1.3981999507e-3f;
    p = p * g + 8.3334519073e-3f;
    p = p * g + 4.1665795894e-2f;
    p = p * g + 1.6666665459e-1f;
    p = p * g + 5.0000001201e-1f;
    p = p * g * g + g + 1.0f;
    int32_t bits = (127 - (int32_t)n) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* The largest number below a threshold, where denormals are kept and, a normal one, where they are flushed. */
static float exactly_below_float(float x) { return nextafterf(x, -INFINITY); }
static float below_float(float x) { return x > -FLT_MIN && x <= FLT_MIN ? (x > 0 ? 0 : -FLT_MIN) : nextafterf(x, -INFINITY); }
static double below_double(double x) { return x > -DBL_MIN && x <= DBL_MIN ? (x > 0 ? 0 : -DBL_MIN) : nextafter(x, -INFINITY); }

INLINE double exp_minus_double(double x) { return exp(-x); }

#define NAME(base) base##_float_float
#define IO float
#define BITS int32_t
#define STATE float
#define EXP_MINUS exp_minus_float
#define FABS fabsf
#define BELOW exactly_below_float
#define EXACT_DENORMALS
#include "gen1_kernel.inc"
#undef NAME
#undef STATE
#undef BELOW
#undef EXACT_DENORMALS

#define NAME(base) base##_float_double
#define STATE double
#define BELOW below_float
#include "gen1_kernel.inc"
#undef NAME
#undef IO
#undef BITS
#undef EXP_MINUS
#undef FABS
#undef BELOW

#define NAME(base) base##_double_double
#define IO double
#define BITS int64_t
#define EXP_MINUS exp_minus_double
#define FABS fabs
#define BELOW below_double
#include "gen1_kernel.inc"

/* Whether some threshold is so small that denormal membranes decide. */
static int near_zero(const sd_leaky *job) {
    for (int64_t i = 0; i < job->threshold_period; i++) {
        double value;
        load(&value, job->threshold, job->threshold_wide, job->threshold_period, i, 1, INFINITY);
        if (fabs(value) <= 2 * (double)FLT_MIN) return 1;
    }
    return 0;
}

typedef void forward_block(const sd_leaky *job, int64_t first, int64_t n);
typedef void backward_block(const sd_leaky *job, const sd_partials *sums, int64_t first, int64_t n);

int sd_leaky_forward(const sd_leaky *job) {
    forward_block *run = job->wide_io ? forward_double_double : job->wide_state ? forward_float_double : forward_float_float;
    announce((void *)job->mem, array_bytes(job));
    announce((void *)job->spk, array_bytes(job));
    int64_t width = block_lanes(job, BLOCK), blocks = (job->lanes + width - 1) / width;
#pragma omp parallel for schedule(static) num_threads(threads(job, blocks)) if (threads(job, blocks) > 1)
    for (int64_t b = 0; b < blocks; b++) {
        unsigned before = run == forward_float_float ? keep_denormals() : flush_denormals();
        run(job, b * width, b + 1 < blocks ? width : job->lanes - b * width);
        stream_end();
        restore_denormals(before);
    }
    return 0;
}

int sd_leaky_backward(const sd_leaky *job) {
    backward_block *run = job->wide_io ? backward_double_double : job->wide_state ? backward_float_double : backward_float_float;
    const int keep = run == backward_float_float && near_zero(job);
    announce((void *)job->grad_x, array_bytes(job));
    int64_t width = block_lanes(job, BLOCK), blocks = (job->lanes + width - 1) / width;
    int wanted = !!job->grad_decay + !!job->grad_threshold + !!job->grad_graded;
    double *memory = wanted ? calloc((size_t)wanted * (size_t)job->lanes, sizeof(double)) : NULL, *next = memory;
    if (wanted && !memory) return -1;
    sd_partials sums = {NULL, NULL, NULL};
    if (job->grad_decay) sums.decay = next, next += job->lanes;
    if (job->grad_threshold) sums.threshold = next, next += job->lanes;
    if (job->grad_graded) sums.graded = next;
#pragma omp parallel for schedule(static) num_threads(threads(job, blocks)) if (threads(job, blocks) > 1)
    for (int64_t b = 0; b < blocks; b++) {
        unsigned before = keep ? keep_denormals() : flush_denormals();
        run(job, &sums, b * width, b + 1 < blocks ? width : job->lanes - b * width);
        stream_end();
        restore_denormals(before);
    }
    if (job->grad_decay) store_gradient(job->grad_decay, job->decay_wide, job->decay_period, job->lanes, sums.decay);
    if (job->grad_threshold) store_gradient(job->grad_threshold, job->threshold_wide, job->threshold_period, job->lanes, sums.threshold);
    if (job->grad_graded) store_gradient(job->grad_graded, job->graded_wide, job->graded_period, job->lanes, sums.graded);
    free(memory);
    return 0;
}
