/* A convolution over events and the neurons behind it: each event is scattered over its kernel. Inside, outputs lie channels-last, (pixel, channel), so that
   one tap is one vector; an output still receives its terms in ascending input order because the events come in that order.
   n: 0 C, 1 H, 2 W, 3 O, 4 H', 5 W', 6 kh, 7 kw, 8..9 stride, 10..11 padding, 12..13 dilation, 14 groups, 15 padded channels of a pixel,
   16..17 integers per input row and column in `taps`, 18 numbers in all, padded to whole vectors. */
#include "events_common.inc"

typedef float v8 __attribute__((vector_size(32), may_alias));
typedef int32_t m8 __attribute__((vector_size(32), may_alias));

/* `taps` holds, for each of H input rows and then W input columns, a count and that many pairs (output row or column, tap), ascending; n[16] and n[17]
   are the numbers of integers per row and per column. */
#define SCATTER(NAME, TYPE, WIDE, NARROW)                                                                                                  \
    SD_INLINE void NAME(const sd_event_op *op, TYPE *acc, const TYPE *weight, uint32_t index, TYPE x) {                                    \
        const int64_t *n = op->n;                                                                                                          \
        const uint32_t area = (uint32_t)(n[1] * n[2]), c = index / area, place = index % area, h = place / (uint32_t)n[2];                 \
        const uint32_t w = place % (uint32_t)n[2];                                                                                         \
        const int64_t group = n[3] / n[14], offset = n[14] == 1 ? 0 : c / (n[0] / n[14]) * group, wide = n[15];                            \
        const int32_t *row = op->taps + h * n[16], *columns = op->taps + n[1] * n[16] + w * n[17];                                         \
        for (int32_t i = 0; i < row[0]; i++) {                                                                                             \
            TYPE *line = acc + row[1 + 2 * i] * n[5] * wide + offset;                                                                      \
            const TYPE *kernel = weight + (c * n[6] + row[2 + 2 * i]) * n[7] * wide;                                                       \
            for (int32_t j = 0; j < columns[0]; j++) {                                                                                     \
                TYPE *to = line + columns[1 + 2 * j] * wide;                                                                               \
                const TYPE *from = kernel + columns[2 + 2 * j] * wide;                                                                     \
                if (n[14] != 1) for (int64_t o = 0; o < group; o++) to[o] += x * from[o];                                                  \
                else if (wide == 8) *(NARROW *)to += x * *(const NARROW *)from;                                                            \
                else if (wide == 16) *(WIDE *)to += x * *(const WIDE *)from;                                                               \
                else for (int64_t v = 0; v < wide / 8; v++) ((NARROW *)to)[v] += x * ((const NARROW *)from)[v];                            \
            }                                                                                                                              \
        }                                                                                                                                  \
    }
SCATTER(scatter, float, v16, v8)
SCATTER(scatter_integer, int32_t, m16, m8)

SD_INLINE void currents(const sd_event_op *op, int64_t row, float *acc, int32_t *total, int64_t size) {
    const sd_wire *in = op->source[0];
    const int64_t wide = op->n[15];
    const int ones = in->value ? in->ones[row] : 1;
    if (op->integer && ones) {
        memset(total, 0, (size_t)size * sizeof(int32_t));
        for (int64_t e = in->start[row]; e < in->start[row + 1]; e++) scatter_integer(op, total, (const int32_t *)op->integer, in->index[e], 1);
        for (int64_t p = 0; p < size; p += wide)
            for (int64_t o = 0; o < wide; o++) acc[p + o] = (float)total[p + o] * op->scale[o] + op->bias[p + o];
        return;
    }
    memcpy(acc, op->bias, (size_t)size * sizeof(float));
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
        uint32_t place = (uint32_t)at + (uint32_t)__builtin_ctz(mask), to = place % (uint32_t)wide * (uint32_t)pixels + place / (uint32_t)wide;
        bits[to / 64] |= (uint64_t)1 << (to % 64);
    }
}

SD_INLINE void conv_neurons(const sd_event_op *op, const int mode, int64_t row, float *acc, float *u, int64_t size) {
    const int strict = op->flags & FLAG_STRICT;
    sd_wire *out = op->out;
    if (out->bits) memset(out->bits + row * out->words, 0, (size_t)out->words * 8);
    for (int64_t base = 0; base < size; base += 64) {
        m16 fired[4] = {}, any = {};
        const int64_t end = size - base < 64 ? (size - base) / 16 : 4;
        for (int64_t i = 0; i < end; i++) {
            const int64_t at = base + 16 * i;
            m16 above = {};
            v16 zero = {}, d = op->decay ? *(const v16 *)(op->decay + at) : zero, theta = op->theta ? *(const v16 *)(op->theta + at) : zero;
            v16 reset = mode == NEURON_VALUE ? *(const v16 *)(op->reset + at) : zero;
            fired[i] = sd_neuron(mode, strict, *(const v16 *)(acc + at), u ? (v16 *)(u + at) : &zero, d, theta, reset, &above);
            any |= fired[i];
            if (mode != NEURON_LEAK && out->dense)
                *(v16 *)(acc + at) = *(const v16 *)(op->amplitude + at) * sd_select(fired[i], sd_splat(1.0f), (v16){});
        }
        if (!out->bits || !sd_mask(any)) continue; /* most of the time nothing fires here */
        for (int64_t i = 0; i < end; i++) spike_bits(op, row, base + 16 * i, sd_mask(fired[i]));
    }
}

SD_CLONES void sd_event_conv(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    const int64_t size = op->n[18];
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = first; b < last; b++) {
            int64_t row = t * batch + b;
            float *acc = op->scratch + 2 * b * size, *u = op->state ? op->state + b * size : NULL;
            currents(op, row, acc, (int32_t *)(acc + size), size);
            if (op->current) turn(op, acc, op->current, row);
            if (op->mode == NEURON_NONE) {
                if (!op->current) turn(op, acc, op->out, row);
                continue;
            }
            switch (op->mode) {
                case NEURON_PLAIN: conv_neurons(op, NEURON_PLAIN, row, acc, u, size); break;
                case NEURON_SUBTRACT: conv_neurons(op, NEURON_SUBTRACT, row, acc, u, size); break;
                default: conv_neurons(op, op->mode, row, acc, u, size);
            }
            if (op->mem) turn(op, u, op->mem, row);
            if (op->mode != NEURON_LEAK && op->out->dense) turn(op, acc, op->out, row);
        }
}

SD_INLINE int64_t target(int64_t at, int64_t k, int64_t stride, int64_t padding, int64_t size) {
    int64_t place = at + padding - k;
    if (place < 0 || place % stride) return -1;
    place /= stride;
    return place < size ? place : -1;
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
                    int64_t a = target(h, i, n[7], n[9], n[3]), z = target(w, j, n[8], n[10], n[4]);
                    if (a >= 0 && z >= 0) y[(c * n[3] + a) * n[4] + z] += x;
                }
        }
    }
}
