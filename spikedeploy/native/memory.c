/* Gen2 and Gen3: matrix-state memories over a whole sequence, forward and backward, S never held in RAM.
 *
 *   Gen2   S_t = S_{t-1} Diag(alpha_t) + v_t k_t^T
 *   Gen3   K = S_{t-1} Diag(alpha_t),  r = K k_t,  S_t = K + beta_t (v_t - r) k_t^T
 *   P_t = 1[S_t > threshold],  y_t = S_t | P_t | P_t Q_t
 *
 * Time is cut into segments of SEG steps with one checkpoint of S each. Inside a segment a tile of ROWS x COLS cells (Gen2) or a
 * block of ROWS rows (Gen3) stays in registers or L1 for all SEG steps. The backward recomputes a segment from its checkpoint, by the
 * same operations in the same order, so it sees the same spikes; dalpha_t = sum_i G_t * S_{t-1} needs no division and no logarithm.
 *
 * State, decay and the adjoint G are float64: over many steps near alpha = 1 float32 would lose 1e-5. Inputs and outputs are float32
 * or float64 (REAL). A batch element is run by one thread from beginning to end, so results do not depend on how many there are.
 *
 * Arrays: v (T, B, d), k and alpha (T, B, n), beta (T, B), q (T, B, n, d), threshold (d, n), start and end (B, d, n),
 * checkpoints (B, ceil(T / SEG), d, n), y (T, B, d, n) or (T, B, d, d) with q; gradients like what they belong to, dthreshold (B, d, n).
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "clones.inc"
#include "denormal.inc"
#include "memory.h"

enum { SEG = 64, ROWS = 4, LANES = 8, COLS = 16 };
enum { OUT_STATE = 0, OUT_SPIKES = 1, OUT_READ = 2 };
enum { ZERO, ATAN, FAST_SIGMOID, SIGMOID, STRAIGHT, TRIANGULAR, SIGN }; /* the surrogates, as numbered in nn/surrogate.py */

typedef double vec __attribute__((vector_size(64)));
typedef int64_t vec_mask __attribute__((vector_size(64)));
typedef unsigned char vec_bytes __attribute__((vector_size(8)));

#define VEC(p) (*(vec *)(p))
#define CVEC(p) (*(const vec *)(p))
/* Only in dP = dY Q^T may a product and a sum be fused: a gradient, whose last bit is nobody's promise, and most of the work. */
#if defined(__GNUC__) && !defined(__clang__)
#define FUSED __attribute__((optimize("fp-contract=fast")))
#else
#define FUSED
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (order){__VA_ARGS__})
#endif
#define HOT static inline __attribute__((always_inline))

HOT double total(const vec *x) { return (((*x)[0] + (*x)[4]) + ((*x)[2] + (*x)[6])) + (((*x)[1] + (*x)[5]) + ((*x)[3] + (*x)[7])); }
HOT int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int sd_memory_segment(void) { return SEG; }

#define REAL float
#define NAME(f) f##_f32
#define INDEX int32_t
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#include "memory_body.inc"
#undef REAL
#undef NAME
#undef INDEX
#undef LOW
#undef HIGH

#define REAL double
#define NAME(f) f##_f64
#define INDEX int64_t
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#include "memory_body.inc"
