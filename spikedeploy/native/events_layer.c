/* A linear layer over events and the neurons behind it, fused: sum the weight rows of the active inputs, update the membranes, compare, pack bits.

   Weights lie input-major in panels of 128 output columns (64, 32 and 16 for the rest), so that a panel's sum stays in registers while its active rows stream
   by in ascending order; each column's sum is one chain ((b + w_i) + w_j) + ..., whatever the panel, thread or chunk. */
#include "events_common.inc"

typedef uint16_t h32 __attribute__((vector_size(64), may_alias));
typedef uint16_t h16 __attribute__((vector_size(32), may_alias));
typedef uint16_t h8 __attribute__((vector_size(16), may_alias));
typedef uint32_t w16 __attribute__((vector_size(64), may_alias));
typedef uint32_t w8 __attribute__((vector_size(32), may_alias));

#define UNROLL _Pragma("GCC unroll 8")

/* Rows ahead of the sum that are asked for where the weights do not fit the second-level cache. */
#define AHEAD 8
#define FIRST_ROWS 24 /* of a block; after them the panel is near */

SD_INLINE void sum_ones(const int nv, const int far, v16 *acc, const float *weight, const uint32_t *index, int64_t count) {
    v16 a[8];
    UNROLL for (int v = 0; v < nv; v++) a[v] = acc[v];
    for (int64_t k = 0; k < count; k++) {
        const v16 *row = (const v16 *)(weight + (size_t)index[k] * (16 * nv));
        if (far) {
            const v16 *ahead = (const v16 *)(weight + (size_t)index[k + AHEAD < count ? k + AHEAD : k] * (16 * nv));
            UNROLL for (int v = 0; v < nv; v++) __builtin_prefetch(&ahead[v], 0, 2);
        }
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

/* Integer weights are stored plus half their range, two to a lane: column c of a half in the low part, column c of the other half in the high part. `both` adds
   whole lanes and `high` their upper parts, so the sum of the low parts is both - (high << bits), exactly, while neither part's sum overflows a lane: 256
   rows of int8 in 16 bits, 65,536 rows of int16 in 32. */
#define SUM_PAIRS(NAME, LANES, BYTES, BITS)                                                                              \
    SD_INLINE int64_t NAME(const int n, LANES *both, LANES *high, const uint8_t *weight, const uint32_t *index, int64_t k, int64_t stop) { \
        LANES a[4], h[4];                                                                                                \
        UNROLL for (int v = 0; v < n; v++) a[v] = h[v] = (LANES){};                                                      \
        for (; k < stop; k++) {                                                                                          \
            const LANES *row = (const LANES *)(weight + (size_t)index[k] * (size_t)(BYTES * n));                         \
            UNROLL for (int v = 0; v < n; v++) a[v] += row[v], h[v] += row[v] >> BITS;                                   \
        }                                                                                                                \
        UNROLL for (int v = 0; v < n; v++) both[v] = a[v] - (h[v] << BITS), high[v] = h[v];                              \
        return k;                                                                                                        \
    }
SUM_PAIRS(pairs_h32, h32, 64, 8)
SUM_PAIRS(pairs_h16, h16, 32, 8)
SUM_PAIRS(pairs_h8, h8, 16, 8)
SUM_PAIRS(pairs_w16, w16, 64, 16)
SUM_PAIRS(pairs_w8, w8, 32, 16)

SD_INLINE m16 widen(const uint16_t *x) {
    h16 half;
    memcpy(&half, x, 32);
    return __builtin_convertvector(half, m16);
}

SD_INLINE void sum_int8(const int nv, m16 *total, const uint8_t *weight, const uint32_t *index, int64_t count) {
    for (int64_t k = 0; k < count;) {
        int64_t stop = k + 256 < count ? k + 256 : count;
        uint16_t columns[128];
        if (nv >= 4) {
            h32 low[2], high[2];
            k = pairs_h32(nv / 4, low, high, weight, index, k, stop);
            UNROLL for (int v = 0; v < nv / 4; v++) memcpy(columns + 64 * v, &low[v], 64), memcpy(columns + 64 * v + 32, &high[v], 64);
        } else if (nv == 2) {
            h16 low[1], high[1];
            k = pairs_h16(1, low, high, weight, index, k, stop);
            memcpy(columns, low, 32), memcpy(columns + 16, high, 32);
        } else {
            h8 low[1], high[1];
            k = pairs_h8(1, low, high, weight, index, k, stop);
            memcpy(columns, low, 16), memcpy(columns + 8, high, 16);
        }
        UNROLL for (int v = 0; v < nv; v++) total[v] += widen(columns + 16 * v);
    }
    UNROLL for (int v = 0; v < nv; v++) total[v] -= (int32_t)(128 * count);
}

SD_INLINE void sum_int16(const int nv, m16 *total, const uint8_t *weight, const uint32_t *index, int64_t count) {
    if (nv >= 2) {
        w16 low[4], high[4];
        pairs_w16(nv / 2, low, high, weight, index, 0, count);
        UNROLL for (int v = 0; v < nv / 2; v++) total[2 * v] = (m16)low[v], total[2 * v + 1] = (m16)high[v];
    } else {
        w8 low[1], high[1];
        pairs_w8(1, low, high, weight, index, 0, count);
        memcpy(total, low, 32), memcpy((char *)total + 32, high, 32);
    }
    UNROLL for (int v = 0; v < nv; v++) total[v] = (m16)((w16)total[v] - (uint32_t)(32768u * (uint32_t)count));
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
        if (integer == 1) sum_int8(nv, total, (const uint8_t *)op->integer + panel, index, count);
        else sum_int16(nv, total, (const uint8_t *)op->integer + 2 * panel, index, count);
        UNROLL for (int v = 0; v < nv; v++) acc[v] = __builtin_convertvector(total[v], v16) * scale[v] + bias[v];
        return;
    }
    UNROLL for (int v = 0; v < nv; v++) acc[v] = bias[v];
    if (ones && (op->flags & FLAG_FAR) && row < FIRST_ROWS) sum_ones(nv, 1, acc, op->weight + panel, index, count);
    else if (ones) sum_ones(nv, 0, acc, op->weight + panel, index, count);
    else sum_values(nv, acc, op->weight + panel, index, in->value ? in->value + begin : NULL, in->amplitude, count);
}

/* The leak of `pending` steps without events, with the very operations of stepping; ends early where nothing moves any more. */
SD_INLINE void catch_up(const sd_event_op *op, const int nv, v16 *u, int64_t column, int32_t steps) {
    const v16 *d = (const v16 *)(op->decay + column), *b = (const v16 *)(op->bias + column);
    for (int v = 0; v < nv; v++) {
        v16 now = u[v];
        for (int32_t k = 0; k < steps; k++) {
            v16 next = sd_settle(d[v] * now + b[v]);
            if (!memcmp(&next, &now, 64)) break;
            now = next;
        }
        u[v] = now;
    }
}

SD_INLINE void neurons(const sd_event_op *op, const int nv, const int mode, const v16 *x, int64_t column, int64_t row, v16 *u, uint8_t *loud) {
    const int strict = op->flags & FLAG_STRICT;
    sd_wire *out = op->out;
    m16 any = {};
    if (op->current) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(op->current->dense + row * op->current->stride + column + 16 * v) = x[v];
    if (mode == NEURON_NONE) {
        if (!op->current) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(out->dense + row * out->stride + column + 16 * v) = x[v];
        return;
    }
    m16 fired[8];
    UNROLL for (int v = 0; v < nv; v++) {
        int64_t at = column + 16 * v;
        v16 zero = {};
        v16 d = op->decay ? *(const v16 *)(op->decay + at) : zero, theta = op->theta ? *(const v16 *)(op->theta + at) : zero;
        v16 reset = mode == NEURON_VALUE ? *(const v16 *)(op->reset + at) : zero;
        m16 above = {};
        fired[v] = sd_neuron(mode, strict, x[v], u ? &u[v] : &zero, d, theta, reset, &above);
        any |= above | fired[v];
        if (op->mem) *(v16 *)(op->mem->dense + row * op->mem->stride + at) = u[v];
        if (mode != NEURON_LEAK && out->dense)
            *(v16 *)(out->dense + row * out->stride + at) = *(const v16 *)(op->amplitude + at) * sd_select(fired[v], sd_splat(1.0f), zero);
    }
    const uint32_t some = sd_mask(any);
    if (loud) *loud = some != 0;
    if (mode == NEURON_LEAK || !out->bits) return;
    u16a *bits = (u16a *)(out->bits + row * out->words) + column / 16;
    if (!some) memset(bits, 0, 2 * nv);
    else UNROLL for (int v = 0; v < nv; v++) bits[v] = (uint16_t)sd_mask(fired[v]);
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
            uint8_t *loud = may_skip ? &op->loud[cell] : NULL;
            if (op->mode == NEURON_PLAIN) neurons(op, nv, NEURON_PLAIN, acc, column, row, u, loud);
            else neurons(op, nv, op->mode, acc, column, row, u, loud);
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
