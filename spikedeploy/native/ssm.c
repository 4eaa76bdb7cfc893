/* The diagonal state-space layer as a scan over time, forward and backward.
 *
 *   h_t = a h_{t-1} + x_t        y_t = Re sum_m c_m h_{t,m} + d x_t                     (c holds the factor 2)
 *   l_t = conj(c) gy_t + conj(a) l_{t+1}       gx_t = sum_m Re l_{t,m} + d gy_t
 *   ga = sum_t l_t conj(h_{t-1})               gc = sum_t gy_t conj(h_t)                gd = sum_t gy_t x_t
 *
 * x, y (T, B, H). par and gpar hold a_re, a_im, c_re, c_im (M, H) each, then d (H): channels innermost, so that they are the vector lanes.
 * A tile of channels of one sample runs through all of time, its states in L1. States are kept at the start of every segment only
 * (marks: (B, segments, 2, M, H)); backward recomputes one segment after the other, last first, into a buffer that fits L2.
 * The small functions take restrict pointers as parameters: only there does the compiler believe them.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "clones.inc"

#define INLINE static inline __attribute__((always_inline))
enum { TILE = 64 };

#define REAL float
#define NAME(x) x##_f32
#include "ssm_body.inc"
#undef REAL
#undef NAME

#define REAL double
#define NAME(x) x##_f64
#include "ssm_body.inc"
