/* A convolution over events and the neurons behind it: each event is scattered over its kernel. Inside, outputs lie channels-last, (pixel, channel), so that
   one tap is one vector; an output still receives its terms in ascending input order because the events come in that order.
   n: 0 C, 1 H, 2 W, 3 O, 4 H', 5 W', 6 kh, 7 kw, 8..9 stride, 10..11 padding, 12..13 dilation, 14 groups, 15 padded channels of a pixel. */
#include "events_common.inc"

/* The output positions that see input coordinate `at` through tap k, or -1. */
SD_INLINE int64_t target(int64_t at, int64_t k, int64_t stride, int64_t padding, int64_t dilation, int64_t size) {
    int64_t place = at + padding - k * dilation;
    if (place < 0 || place % stride) return -1;
    place /= stride;
    return place < size ? place : -1;
}

#define SCATTER(NAME, TYPE, VECTOR)                                                                                                        \
    SD_INLINE void NAME(const sd_event_op *op, TYPE *acc, const TYPE *weight, uint32_t index, TYPE x) {                                    \
        const int64_t *n = op->n, area = n[1] * n[2], c = index / area, h = index % area / n[2], w = index % n[2];                         \
        const int64_t group = n[3] / n[14], offset = c / (n[0] / n[14]) * group, whole = n[14] == 1 ? n[15] / 16 : 0;                      \
        for (int64_t i = 0; i < n[6]; i++) {                                                                                               \
            int64_t y = target(h, i, n[8], n[10], n[12], n[4]);                                                                            \
            if (y < 0) continue;                                                                                                           \
            for (int64_t j = 0; j < n[7]; j++) {                                                                                           \
                int64_t z = target(w, j, n[9], n[11], n[13], n[5]);                                                                        \
                if (z < 0) continue;                                                                                                       \
                TYPE *to = acc + (y * n[5] + z) * n[15] + offset;                                                                          \
                const TYPE *from = weight + ((c * n[6] + i) * n[7] + j) * n[15];                                                           \
                for (int64_t v = 0; v < whole; v++) ((VECTOR *)to)[v] += x * ((const VECTOR *)from)[v];                                    \
                if (!whole)                                                                                                                \
                    for (int64_t o = 0; o < group; o++) to[o] += x * from[o];                                                              \
            }                                                                                                                              \
        }                                                                                                                                  \
    }
SCATTER(scatter, float, v16)
SCATTER(scatter_integer, int32_t, m16)

SD_INLINE void currents(const sd_event_op *op, int64_t row, float *acc, int32_t *total) {
    const sd_wire *in = op->source[0];
    const int64_t pixels = op->n[4] * op->n[5], wide = op->n[15];
    const int ones = in->value ? in->ones[row] : 1;
    if (op->integer && ones) {
        memset(total, 0, (size_t)(pixels * wide) * sizeof(int32_t));
        for (int64_t e = in->start[row]; e < in->start[row + 1]; e++) scatter_integer(op, total, (const int32_t *)op->integer, in->index[e], 1);
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t o = 0; o < wide; o++) acc[p * wide + o] = (float)total[p * wide + o] * op->scale[o] + op->bias[o];
        return;
    }
    for (int64_t p = 0; p < pixels; p++) memcpy(acc + p * wide, op->bias, (size_t)wide * sizeof(float));
    for (int64_t e = in->start[row]; e < in->start[row + 1]; e++) scatter(op, acc, op->weight, in->index[e], in->value ? in->value[e] : in->amplitude);
}

/* (pixel, channel) to the wire's (channel, pixel). */
SD_INLINE void turn(const sd_event_op *op, const float *from, const sd_wire *to, int64_t row) {
    const int64_t pixels = op->n[4] * op->n[5], wide = op->n[15];
    float *y = to->dense + row * to->stride;
    for (int64_t o = 0; o < op->n[3]; o++)
        for (int64_t p = 0; p < pixels; p++) y[o * pixels + p] = from[p * wide + o];
}

SD_INLINE void spike_bits(const sd_event_op *op, int64_t row, int64_t at, uint32_t mask) {
    const int64_t pixels = op->n[4] * op->n[5], wide = op->n[15];
    uint64_t *bits = op->out->bits + row * op->out->words;
    for (; mask; mask &= mask - 1) {
        int64_t place = at + __builtin_ctz(mask), to = place % wide * pixels + place / wide;
        bits[to / 64] |= (uint64_t)1 << (to % 64);
    }
}

SD_INLINE void conv_neurons(const sd_event_op *op, int64_t row, float *acc, float *u) {
    const int64_t size = op->n[4] * op->n[5] * op->n[15];
    const int mode = op->mode, strict = op->flags & FLAG_STRICT;
    if (op->out->bits) memset(op->out->bits + row * op->out->words, 0, (size_t)op->out->words * 8);
    for (int64_t at = 0; at < size; at += 16) {
        m16 above = {};
        v16 zero = {}, d = op->decay ? *(const v16 *)(op->decay + at) : zero, theta = op->theta ? *(const v16 *)(op->theta + at) : zero;
        v16 reset = op->reset ? *(const v16 *)(op->reset + at) : zero;
        m16 fired = sd_neuron(mode, strict, *(const v16 *)(acc + at), u ? (v16 *)(u + at) : &zero, d, theta, reset, &above);
        if (mode == NEURON_LEAK) continue;
        if (op->out->bits) {
            uint32_t mask = sd_mask(fired);
            if (mask) spike_bits(op, row, at, mask);
        }
        if (op->out->dense) *(v16 *)(acc + at) = *(const v16 *)(op->amplitude + at) * sd_select(fired, sd_splat(1.0f), (v16){});
    }
}

SD_CLONES void sd_event_conv(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    const int64_t size = op->n[4] * op->n[5] * op->n[15];
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = first; b < last; b++) {
            int64_t row = t * batch + b;
            float *acc = op->scratch + 2 * b * size, *u = op->state ? op->state + b * size : NULL;
            currents(op, row, acc, (int32_t *)(acc + size));
            if (op->current) turn(op, acc, op->current, row);
            if (op->mode == NEURON_NONE) {
                if (!op->current) turn(op, acc, op->out, row);
                continue;
            }
            conv_neurons(op, row, acc, u);
            if (op->mem) turn(op, u, op->mem, row);
            if (op->mode != NEURON_LEAK && op->out->dense) turn(op, acc, op->out, row);
        }
}

/* Sums over windows, from events. n: 0 C, 1 H, 2 W, 3 H', 4 W', 5..6 kernel, 7..8 stride, 9..10 padding. */
SD_CLONES void sd_event_pool(const sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t *n = op->n;
    const sd_wire *in = op->source[0];
    for (int64_t row = 0; row < steps * batch; row++) {
        float *y = op->out->dense + row * op->out->stride;
        memset(y, 0, (size_t)(n[0] * n[3] * n[4]) * sizeof(float));
        for (int64_t e = in->start[row]; e < in->start[row + 1]; e++) {
            int64_t c = in->index[e] / (n[1] * n[2]), h = in->index[e] / n[2] % n[1], w = in->index[e] % n[2];
            float x = in->value ? in->value[e] : in->amplitude;
            for (int64_t i = 0; i < n[5]; i++)
                for (int64_t j = 0; j < n[6]; j++) {
                    int64_t a = target(h, i, n[7], n[9], 1, n[3]), z = target(w, j, n[8], n[10], 1, n[4]);
                    if (a >= 0 && z >= 0) y[(c * n[3] + a) * n[4] + z] += x;
                }
        }
    }
}
