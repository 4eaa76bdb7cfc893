/* A linear layer over events and the neurons behind it, fused: sum the weight rows of the active inputs, update the membranes, compare, pack bits.

   Weights lie input-major in panels of 128 output columns (64, 32 and 16 for the rest), so that a panel's sum stays in registers while its active rows stream
   by in ascending order; each column's sum is one chain ((b + w_i) + w_j) + ..., whatever the panel, thread or chunk. */
#include "events_common.inc"

typedef int16_t i32x16 __attribute__((vector_size(64)));
typedef int8_t i32x8 __attribute__((vector_size(32)));
typedef int8_t i16x8 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));

#define UNROLL _Pragma("GCC unroll 8")

SD_INLINE void sum_ones(const int nv, v16 *acc, const float *weight, const uint32_t *index, int64_t count) {
    v16 a[8];
    UNROLL for (int v = 0; v < nv; v++) a[v] = acc[v];
    for (int64_t k = 0; k < count; k++) {
        const v16 *row = (const v16 *)(weight + (size_t)index[k] * (16 * nv));
        UNROLL for (int v = 0; v < nv; v++) a[v] += row[v];
    }
    UNROLL for (int v = 0; v < nv; v++) acc[v] = a[v];
}

SD_INLINE void sum_values(const int nv, v16 *acc, const float *weight, const uint32_t *index, const float *value, float common, int64_t count) {
    v16 a[8];
    UNROLL for (int v = 0; v < nv; v++) a[v] = acc[v];
    for (int64_t k = 0; k < count; k++) {
        const v16 *row = (const v16 *)(weight + (size_t)index[k] * (16 * nv));
        v16 x = sd_splat(value ? value[k] : common);
        UNROLL for (int v = 0; v < nv; v++) a[v] += x * row[v];
    }
    UNROLL for (int v = 0; v < nv; v++) acc[v] = a[v];
}

/* int8: 255 rows fit 16-bit sums exactly, then they are added to 32-bit ones. */
SD_INLINE void sum_int8(const int nv, m16 *total, const int8_t *weight, const uint32_t *index, int64_t count) {
    for (int64_t k = 0; k < count;) {
        int64_t stop = k + 255 < count ? k + 255 : count;
        if (nv >= 2) {
            i32x16 a[4] = {{}, {}, {}, {}};
            for (; k < stop; k++) {
                const i32x8 *row = (const i32x8 *)(weight + (size_t)index[k] * (16 * nv));
                UNROLL for (int v = 0; v < nv / 2; v++) a[v] += __builtin_convertvector(row[v], i32x16);
            }
            UNROLL for (int v = 0; v < nv / 2; v++) {
                i16x16 half[2];
                memcpy(half, &a[v], 64);
                total[2 * v] += __builtin_convertvector(half[0], m16);
                total[2 * v + 1] += __builtin_convertvector(half[1], m16);
            }
        } else {
            for (; k < stop; k++) total[0] += __builtin_convertvector(*(const i16x8 *)(weight + (size_t)index[k] * 16), m16);
        }
    }
}

SD_INLINE void sum_int16(const int nv, m16 *total, const int16_t *weight, const uint32_t *index, int64_t count) {
    m16 a[8];
    UNROLL for (int v = 0; v < nv; v++) a[v] = total[v];
    for (int64_t k = 0; k < count; k++) {
        const i16x16 *row = (const i16x16 *)(weight + (size_t)index[k] * (16 * nv));
        UNROLL for (int v = 0; v < nv; v++) a[v] += __builtin_convertvector(row[v], m16);
    }
    UNROLL for (int v = 0; v < nv; v++) total[v] = a[v];
}

/* The current of one row of a panel. */
SD_INLINE void current(const sd_event_op *op, const int nv, v16 *acc, int64_t column, int64_t row) {
    const sd_wire *in = op->source[0];
    const v16 *bias = (const v16 *)(op->bias + column);
    int64_t begin = in->start[row], count = in->start[row + 1] - begin;
    const uint32_t *index = in->index + begin;
    size_t panel = (size_t)column * (size_t)op->n[0];
    int integer = (int)op->n[2], ones = in->value ? in->ones[row] : in->amplitude == 1.0f;
    if (integer && (!in->value || ones)) {
        m16 total[8] = {};
        const v16 *scale = (const v16 *)(op->scale + column);
        if (integer == 1) sum_int8(nv, total, (const int8_t *)op->integer + panel, index, count);
        else sum_int16(nv, total, (const int16_t *)op->integer + panel, index, count);
        UNROLL for (int v = 0; v < nv; v++) acc[v] = __builtin_convertvector(total[v], v16) * scale[v] + bias[v];
        return;
    }
    UNROLL for (int v = 0; v < nv; v++) acc[v] = bias[v];
    if (ones) sum_ones(nv, acc, op->weight + panel, index, count);
    else sum_values(nv, acc, op->weight + panel, index, in->value ? in->value + begin : NULL, in->amplitude, count);
}

/* The leak of `pending` steps without events, with the very operations of stepping; ends early where nothing moves any more. */
SD_INLINE void catch_up(const sd_event_op *op, const int nv, v16 *u, int64_t column, int32_t steps) {
    const v16 *d = (const v16 *)(op->decay + column), *b = (const v16 *)(op->bias + column);
    for (int v = 0; v < nv; v++) {
        v16 now = u[v];
        for (int32_t k = 0; k < steps; k++) {
            v16 next = d[v] * now + b[v];
            if (!memcmp(&next, &now, 64)) break;
            now = next;
        }
        u[v] = now;
    }
}

SD_INLINE void neurons(const sd_event_op *op, const int nv, const v16 *x, int64_t column, int64_t row, v16 *u, uint8_t *loud) {
    const int mode = op->mode, strict = op->flags & FLAG_STRICT;
    sd_wire *out = op->out;
    m16 any = {};
    if (op->current) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(op->current->dense + row * op->current->stride + column + 16 * v) = x[v];
    if (mode == NEURON_NONE) {
        if (!op->current) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(out->dense + row * out->stride + column + 16 * v) = x[v];
        return;
    }
    for (int v = 0; v < nv; v++) {
        int64_t at = column + 16 * v;
        v16 zero = {};
        v16 d = op->decay ? *(const v16 *)(op->decay + at) : zero, theta = op->theta ? *(const v16 *)(op->theta + at) : zero;
        v16 reset = op->reset ? *(const v16 *)(op->reset + at) : zero;
        m16 above = {};
        m16 fired = sd_neuron(mode, strict, x[v], u ? &u[v] : &zero, d, theta, reset, &above);
        any |= above;
        if (op->mem) *(v16 *)(op->mem->dense + row * op->mem->stride + at) = u[v];
        if (mode == NEURON_LEAK) continue;
        if (out->bits) sd_set_bits(out->bits + row * out->words, at, sd_mask(fired));
        if (out->dense) *(v16 *)(out->dense + row * out->stride + at) = *(const v16 *)(op->amplitude + at) * sd_select(fired, sd_splat(1.0f), zero);
    }
    if (loud) *loud = sd_mask(any != 0) != 0;
}

SD_INLINE void panel(const sd_event_op *op, const int nv, int64_t column, int64_t number, int64_t steps, int64_t batch) {
    const sd_wire *in = op->source[0];
    const int64_t width = op->n[1], panels = op->n[3];
    const int linear = op->weight != NULL, may_skip = op->silent && op->silent[number];
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = 0; b < batch; b++) {
            int64_t row = t * batch + b, cell = b * panels + number;
            v16 *u = op->state ? (v16 *)(op->state + b * width + column) : NULL;
            v16 acc[8];
            if (may_skip) {
                if (in->start[row + 1] == in->start[row] && !op->loud[cell]) {
                    op->pending[cell]++;
                    memset((u16a *)(op->out->bits + row * op->out->words) + column / 16, 0, 2 * nv);
                    continue;
                }
                if (op->pending[cell]) {
                    catch_up(op, nv, u, column, op->pending[cell]);
                    op->pending[cell] = 0;
                }
            }
            if (linear) current(op, nv, acc, column, row);
            else UNROLL for (int v = 0; v < nv; v++) acc[v] = *(const v16 *)(in->dense + row * in->stride + column + 16 * v);
            neurons(op, nv, acc, column, row, u, may_skip ? &op->loud[cell] : NULL);
        }
}

SD_INLINE int panel_width(int64_t left) { return left >= 128 ? 8 : left >= 64 ? 4 : left >= 32 ? 2 : 1; }

SD_CLONES void sd_event_layer(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    int64_t column = 0, width = op->n[1];
    for (int64_t number = 0; number < last; number++) {
        int nv = panel_width(width - column);
        if (number >= first) switch (nv) {
            case 8: panel(op, 8, column, number, steps, batch); break;
            case 4: panel(op, 4, column, number, steps, batch); break;
            case 2: panel(op, 2, column, number, steps, batch); break;
            default: panel(op, 1, column, number, steps, batch);
        }
        column += 16 * nv;
    }
}

/* Applies every leak that was put off, so that the state can be read. */
SD_CLONES void sd_event_settle(sd_event_op *op, int64_t batch) {
    int64_t width = op->n[1], panels = op->n[3];
    if (!op->pending) return;
    for (int64_t b = 0; b < batch; b++) {
        int64_t column = 0;
        for (int64_t number = 0; number < panels; number++) {
            int nv = panel_width(width - column);
            catch_up(op, nv, (v16 *)(op->state + b * width + column), column, op->pending[b * panels + number]);
            op->pending[b * panels + number] = 0;
            column += 16 * nv;
        }
    }
}
