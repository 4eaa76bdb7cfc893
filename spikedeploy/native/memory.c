/* Gen2 and Gen3: matrix-state memories over a whole sequence, forward and backward, S never held in RAM.
 *
 *   Gen2   S_t = S_{t-1} Diag(alpha_t) + v_t k_t^T
 *   Gen3   K = S_{t-1} Diag(alpha_t),  r = K k_t,  S_t = K + beta_t (v_t - r) k_t^T
 *   P_t = 1[S_t > threshold],  y_t = S_t | P_t | P_t Q_t
 *
 * A step is written by v (d), k (n), the logits of alpha (n) and for Gen3 that of beta (1): maps of x, which are taken in float64, since what they
 * lose in float32 a steep surrogate gradient multiplies; or `in`, where the layer has made them itself, side by side. The sigmoids are taken
 * here, and Gen3's k is brought to length 1.
 *
 * Time is cut into segments, each with a checkpoint of S before it, what writes in it, and its spikes. Inside a segment a tile of ROWS x COLS cells
 * (Gen2) or a block of ROWS rows (Gen3) stays in registers or L1 for all steps. The backward recomputes S over a segment from its checkpoint;
 * dalpha_t = sum_i G_t * S_{t-1} needs no division and no logarithm.
 *
 * State, decay and the adjoint G are float64: over many steps near alpha = 1 float32 would lose 1e-5. Inputs and outputs are float32
 * or float64 (REAL). A thread takes a segment of a batch element at a time, in one order of all of them. It waits for two things only, the state
 * that the segment before leaves, block of rows by block of rows, and in the backward its turn to add to the sums over time and batch; so results
 * do not depend on the threads.
 *
 * Arrays: x (T, B, inputs), weight (rows, inputs) and bias (rows) of each map, in the order v, k, alpha, beta, Q; instead of the first four
 * `in` (T, B, d + 2n [+ 1]), instead of the last q (T, B, n, d); a gradient is dx for x, and so on; thresholds: 1 or d * n; start and end
 * (B, d, n), dend the gradient that reaches the end; kept: what the backward needs again; y (T, B, d, n) or (T, B, d, d) with a query;
 * dthreshold (B, d, n). 0 where a gradient is not wanted, and for a dend of zeros. Addresses are numbers here: so a caller fills them in fastest.
 */
#include <math.h>
#include <omp.h>
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "denormal.inc"
#include "events_math.inc"
#include "huge.inc"
#include "memory.h"
#include "stream.inc"
#include "vectors.inc"

enum { ROWS = 4, LANES = 8, COLS = 16, SPIKES_HELD = 64, HELD = 64 };
enum { KEEP_EACH = 16, TOGETHER = 8 }; /* segments of dW_q, and columns of dx, that are summed in REAL before they join a sum in float64 */
enum { AT_ONCE = 4, SHARES = 4, APART = 8 }; /* threads of use to one batch element; shares of the sums; numbers from one count to the next */
enum { WIDTH = SD_VECTOR / 8, PIECES = LANES / WIDTH }; /* numbers in a vec; vecs that hold LANES of them */
enum { TALL = SD_VECTOR == 64 ? 8 : 4 }; /* rows of a product's tile, which fits the registers with two vectors of each */
enum { TO_V, TO_K, TO_ALPHA, TO_BETA, TO_Q, MAPS }; /* the maps of x */
enum { OUT_STATE = 0, OUT_SPIKES = 1, OUT_READ = 2 };
enum { ZERO, ATAN, FAST_SIGMOID, SIGMOID, STRAIGHT, TRIANGULAR, SIGN }; /* the surrogates, as numbered in nn/surrogate.py */

typedef double vec __attribute__((vector_size(SD_VECTOR)));
typedef int64_t vec_mask __attribute__((vector_size(SD_VECTOR)));
typedef unsigned char vec_bytes __attribute__((vector_size(8), may_alias));

#define VEC(p) (*(vec *)(p))
#define CVEC(p) (*(const vec *)(p))
#define CHOOSE(where, a, b) ((vec)(((vec_mask)(a) & (where)) | ((vec_mask)(b) & ~(where))))
/* Only in gradients may a product and a sum be fused: their last bit is nobody's promise. */
#if defined(__GNUC__) && !defined(__clang__)
#define FUSED __attribute__((optimize("fp-contract=fast")))
#else
#define FUSED
#endif
#define HOT static inline __attribute__((always_inline))
/* Where the spike of row r, column 8 h + l of a tile is in byte l of its word. */
#define BIT_HALF 4
#define BIT(r, h) (1 << ((h) * BIT_HALF + (r)))

/* The bit of row r at lane `lane` of half h and the WIDTH - 1 lanes after it, as fires() collects it and word() lays it out. */
HOT vec_mask bit(int r, int h, int lane) {
#if SD_VECTOR == 64
    (void)lane;
    return (vec_mask){0} + (int64_t)BIT(r, h);
#elif SD_VECTOR == 32
    return ((vec_mask){0} + (int64_t)BIT(r, h)) << ((vec_mask){0, 8, 16, 24} + (int64_t)(8 * lane));
#else
    return ((vec_mask){0} + (int64_t)BIT(r, h)) << ((vec_mask){0, 8} + (int64_t)(8 * lane));
#endif
}

/* The word of all bits: by bytes where one vector holds all lanes, else every lane has them in its place. */
HOT uint64_t word(vec_mask fired) {
#if SD_VECTOR == 64
    return (uint64_t)__builtin_convertvector(fired, vec_bytes);
#elif SD_VECTOR == 32
    return (uint64_t)((fired[0] | fired[1]) | (fired[2] | fired[3]));
#else
    return (uint64_t)(fired[0] | fired[1]);
#endif
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vec_mask){__VA_ARGS__})
#endif

/* total: the sum of LANES numbers, by halves, in one order for all widths. totals: those of ROWS vecs; a total at a time would leave most of a
   vector idle. */
#if SD_VECTOR == 64
HOT double total(const vec *x) { return (((*x)[0] + (*x)[4]) + ((*x)[2] + (*x)[6])) + (((*x)[1] + (*x)[5]) + ((*x)[3] + (*x)[7])); }

HOT void totals(const vec *x, double *to) {
    vec a = SHUFFLE(x[0], x[1], 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(x[0], x[1], 1, 9, 3, 11, 5, 13, 7, 15);
    vec b = SHUFFLE(x[2], x[3], 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(x[2], x[3], 1, 9, 3, 11, 5, 13, 7, 15);
    vec c = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    for (int r = 0; r < ROWS; r++) to[r] = c[r] + c[r + ROWS];
}
#elif SD_VECTOR == 32
HOT double total(const vec *x) {
    vec a = x[0] + x[1];
    return (a[0] + a[2]) + (a[1] + a[3]);
}

HOT void totals(const vec *x, double *to) {
    vec a = SHUFFLE(x[0], x[1], 0, 4, 2, 6) + SHUFFLE(x[0], x[1], 1, 5, 3, 7);
    vec b = SHUFFLE(x[2], x[3], 0, 4, 2, 6) + SHUFFLE(x[2], x[3], 1, 5, 3, 7);
    VEC(to) = SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
}
#else
HOT double total(const vec *x) {
    vec a = (x[0] + x[2]) + (x[1] + x[3]);
    return a[0] + a[1];
}

HOT void totals(const vec *x, double *to) {
    for (int r = 0; r < ROWS; r++) to[r] = x[r][0] + x[r][1];
}
#endif

HOT int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
HOT int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Steps from one checkpoint to the next, at most 255: a segment's gradients of all cells should stay in the L2 cache, and there should be segments
   for all threads. */
HOT int64_t segment_of(int64_t d, int64_t n) { return d * n > 8192 ? 32 : d * n > 512 ? 64 : 128; }

/* 1 / (1 + exp(-z)), NaN for NaN: sd_sigmoid64 of events_math.inc for WIDTH numbers at a time. */
HOT vec sigmoid(vec z) {
    const vec zero = {0}, magic = zero + 6755399441055744.0, least_x = zero - 700, most_x = zero + 700;
    vec x = -z;
    x = CHOOSE(x < least_x, least_x, x);
    x = CHOOSE(x > most_x, most_x, x);
    vec shifted = x * 1.4426950408889634 + magic, n = shifted - magic;
    vec r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10, e = zero + SD_EXP[13];
    for (int k = 12; k >= 0; k--) e = e * r + SD_EXP[k];
    vec_mask power = (((vec_mask)shifted - (vec_mask)magic) << 52) + ((int64_t)1023 << 52);
    return 1 / (1 + e * (vec)power);
}

/* Of `count` numbers, a multiple of WIDTH, in place; several at a time, since each is a long chain. */
HOT void sigmoids(double *z, int64_t count) {
    int64_t i = 0;
    for (; i + 4 * WIDTH <= count; i += 4 * WIDTH)
        for (int h = 0; h < 4; h++) VEC(z + i + h * WIDTH) = sigmoid(CVEC(z + i + h * WIDTH));
    for (; i < count; i += WIDTH) VEC(z + i) = sigmoid(CVEC(z + i));
}

/* A row of numbers that a spike adds to another. */
typedef struct {
    char *to;
    const char *from;
} addition;

/* One of several that share some work. */
typedef struct {
    int64_t member, count;
} sharer;

/* The part of 0..n, in whole units, that is one's own. */
HOT int64_t share(sharer my, int64_t n, int64_t unit, int64_t *end) {
    int64_t units = (n + unit - 1) / unit;
    *end = least(n, units * (my.member + 1) / my.count * unit);
    return units * my.member / my.count * unit;
}

/* Waits until `count` things are done. There may be fewer processors than threads: after a while others get theirs. */
static void await(const int64_t *done, int64_t count) {
    enum { PATIENCE = 4096 };
    for (int64_t looks = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < count; looks++) {
#if defined(__SSE2__)
        __builtin_ia32_pause();
#endif
#if defined(__unix__) || defined(__APPLE__)
        if (looks > PATIENCE) sched_yield();
#endif
    }
}

static void publish(int64_t *done, int64_t count) { __atomic_store_n(done, count, __ATOMIC_RELEASE); }

/* Rows of an array: number list[c], or c where there is no list. */
typedef struct {
    const unsigned char *list;
    int64_t count;
} chosen;

HOT int64_t chosen_row(const chosen *rows, int64_t c) { return rows->list ? rows->list[c] : c; }

#define REAL double
#define NAME(f) f##_f64
#include "memory_product.inc"
#undef REAL
#undef NAME

#define REAL float
#define NAME(f) f##_f32
#include "memory_product.inc"
#include "memory_body.inc"
#undef REAL
#undef NAME

#define REAL double
#define NAME(f) f##_f64
#include "memory_body.inc"
