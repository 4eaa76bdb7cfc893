/* The diagonal state-space layer as a scan over time, forward and backward.
 *
 *   h_t = a h_{t-1} + x_t        y_t = Re sum_m c_m h_{t,m} + d x_t                     (c holds the factor 2)
 *   l_t = conj(c) gy_t + conj(a) l_{t+1}       gx_t = sum_m Re l_{t,m} + d gy_t
 *   ga = sum_t l_t conj(h_{t-1})               gc = sum_t gy_t conj(h_t)                gd = sum_t gy_t x_t
 *
 * x, y (T, B, H). par and gpar hold a_re, a_im, c_re, c_im (M, H) each, then d (H): channels innermost, so that they are the vector lanes.
 * A tile of channels of one sample runs through all of time, segment by segment; within a segment one mode of two vectors of channels at a
 * time, its state and parameters in registers. States are kept at the start of every segment only (marks: (B, segments, 2, M, H)); backward
 * goes through the segments last first and computes the states in between again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "huge.inc"
#include "vectors.inc"

#define INLINE static inline __attribute__((always_inline))

#define REAL float
#define LOAD(p) (*(const vec_f32 *)(p))
#define STORE(p, v) (*(vec_f32 *)(p) = (v))
#define NAME(x) x##_f32
#include "ssm_body.inc"
#undef REAL
#undef LOAD
#undef STORE
#undef NAME

#define REAL double
#define LOAD(p) (*(const vec_f64 *)(p))
#define STORE(p, v) (*(vec_f64 *)(p) = (v))
#define NAME(x) x##_f64
#include "ssm_body.inc"
