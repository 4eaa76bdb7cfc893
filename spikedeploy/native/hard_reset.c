/* The neuron of the spiking state-space model, threshold 1, forward and backward, fused over time.
 *
 *   u'_t = tau * u_{t-1} + x_t     s_t = 1[u'_t >= 1]     u_t = u'_t (1 - s_t)
 *   g_t = gs_t max(0, 1 - |u'_t - 1|) + tau (1 - s_t) g_{t+1} + gu_t
 *
 * Memory-bound: every array is read or written once. Lanes are independent, so a block of them runs through all of time with its state in
 * L1. All arithmetic is in the precision of the arrays and in the order of the loop above, so the pure torch form gives the same bits.
 * The reset is detached, as in training by backpropagation through time: the gradient passes tau * (1 - s_t) from step to step.
 */
#include <stdint.h>
#include <string.h>
#include "huge.inc"
#include "stream.inc"

#define INLINE static inline __attribute__((always_inline))
#define ROW __attribute__((aligned(64)))
enum { BLOCK = 2048, CHUNK = 128 };

#define REAL float
#define NAME(x) x##_f32
#include "hard_reset_body.inc"
#undef REAL
#undef NAME

#define REAL double
#define NAME(x) x##_f64
#include "hard_reset_body.inc"
