/* A linear layer over events and the neurons behind it, fused: sum the weight rows of the active inputs, update the membranes, compare, pack bits.

   Weights lie input-major in panels of 128 output columns (64 over many inputs; 64, 32 and 16 for the rest), so that a panel's sum stays in registers while its active
   rows stream by in ascending order; each column's sum is one chain ((b + w_i) + w_j) + ..., whatever the panel, thread or chunk. */
#include "events_common.inc"

#define UNROLL _Pragma("GCC unroll 8")

#include "events_sums.inc"

/* Where a panel's parameters lie; zeros for those that the operation has not. */
typedef struct {
    const v16 *decay, *theta, *bias, *scale, *reset, *amplitude;
    int strict;
} panel_of;

static const v16 none[8];

SD_INLINE const v16 *at_column(const float *of, int64_t column) { return of ? (const v16 *)(of + column) : none; }

/* The greatest number below: u >= theta and u > below(theta) say the same of every finite u. */
SD_INLINE v16 below(v16 theta) {
    const m16 bits = (m16)theta, zero = (bits & 0x7fffffff) == 0, negative = bits < 0;
    return (v16)((zero & (int32_t)0x80000001) | (~zero & (bits + ((negative & 1) | (~negative & -1)))));
}

SD_INLINE drive drive_of(const sd_event_op *op, const int nv, int64_t column) {
    const sd_wire *in = op->source[0];
    const int64_t wide = op->n[0], bytes = op->n[2], line = bytes ? 64 / bytes : 1; /* integers lie in whole cache lines */
    const int together = column < op->n[4];
    const int64_t place = together ? column % TOGETHER : 0;
    return (drive){in->start, in->index, in->value, op->weight + (column - place) * wide + place, in->ones,
                   (const uint8_t *)op->integer + (column + line - 1) / line * line * bytes * wide, in->amplitude, (int)bytes, together ? TOGETHER : 16 * nv};
}

/* The next panel, which is fetched while this one is read, some lines with every step that has events. */
typedef struct {
    const char *at;
    int64_t lines;
} following;

enum { PANEL_BYTES = 1 << 19, MOST_LINES = 64 }; /* two such panels fit a second-level cache; a single step does not wait for another's panel */

SD_INLINE following following_panel(const sd_event_op *op, const int nv, const drive *from, int64_t column, int64_t rows) {
    const int64_t bytes = op->n[0] * (from->bytes ? (16 * nv * from->bytes + 63) / 64 * 64 : 64 * nv), lines = (bytes / 64 + rows - 1) / rows;
    const int last = column + 16 * nv >= op->n[1];
    return (following){(from->bytes ? (const char *)from->integer : (const char *)from->weight) + bytes, last || bytes > PANEL_BYTES || lines > MOST_LINES ? 0 : lines};
}

SD_INLINE void fetch(following *next) {
    for (int64_t i = 0; i < next->lines; i++, next->at += 64) __builtin_prefetch(next->at, 0, 2);
}

/* One step of leak without events; tells whether anything moved. */
SD_INLINE uint32_t leak(const int nv, v16 *u, const v16 *d, const v16 *b) {
    m16 moved = {};
    UNROLL for (int v = 0; v < nv; v++) {
        const v16 next = sd_settle(d[v] * u[v] + b[v]);
        moved |= (m16)next ^ (m16)u[v];
        u[v] = next;
    }
    return sd_mask(moved != 0);
}

/* The leak of `steps` steps without events, with the very operations of stepping; ends early where nothing moves any more. */
SD_INLINE void catch_up(const int nv, v16 *u, const v16 *d, const v16 *b, int32_t steps) {
    for (int32_t k = 0; k < steps; k++) {
        if (k % 16 == 15 && !leak(nv, u, d, b)) return;
        if (k % 16 != 15) UNROLL for (int v = 0; v < nv; v++) u[v] = sd_settle(d[v] * u[v] + b[v]);
    }
}

/* Writes the spikes of a panel as bits; tells whether there were any. */
SD_INLINE uint32_t write_bits(const int nv, const m16 *fired, u16a *bits) {
    uint32_t some = 0;
    if (nv == 8) {
        const m4 all = sd_mask_eight(fired);
        uint64_t two[2];
        memcpy(two, &all, 16);
        memcpy(bits, two, 16);
        return (two[0] | two[1]) != 0;
    }
    if (nv == 1) bits[0] = (uint16_t)(some = sd_mask(fired[0]));
    UNROLL for (int v = 0; v + 1 < nv; v += 2) {
        const uint32_t pair = sd_mask_pair(fired[v], fired[v + 1]);
        memcpy(bits + v, &pair, 4);
        some |= pair;
    }
    return some;
}

/* One step of a panel's neurons; tells whether a membrane stays above its threshold. open: somebody reads more than the bits. */
SD_INLINE uint32_t neurons(const sd_event_op *op, const int nv, const int mode, const int open, const panel_of *p, const v16 *x, v16 *u, int64_t column,
                           int64_t row, u16a *bits) {
    const sd_wire *out = op->out;
    if (open && op->current) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(op->current->dense + row * op->current->stride + column + 16 * v) = x[v];
    if (mode == NEURON_NONE) {
        if (!op->current) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(out->dense + row * out->stride + column + 16 * v) = x[v];
        return 0;
    }
    m16 fired[8], above[8];
    UNROLL for (int v = 0; v < nv; v++) {
        above[v] = (m16){};
        fired[v] = sd_neuron(mode, mode == NEURON_PLAIN ? 1 : p->strict, x[v], &u[v], p->decay[v], p->theta[v], p->reset[v], &above[v]);
    }
    if (open && op->mem) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(op->mem->dense + row * op->mem->stride + column + 16 * v) = u[v];
    if (open && mode != NEURON_LEAK && out->dense)
        UNROLL for (int v = 0; v < nv; v++)
            *(v16 *)(out->dense + row * out->stride + column + 16 * v) = p->amplitude[v] * sd_select(fired[v], sd_splat(1.0f), (v16){});
    if (mode == NEURON_LEAK || (open && !out->bits)) return 0;
    uint32_t loud = write_bits(nv, fired, bits);
    if (mode == NEURON_VALUE) {
        m16 any = above[0];
        UNROLL for (int v = 1; v < nv; v++) any |= above[v];
        loud |= sd_mask(any);
    }
    return loud;
}

SD_INLINE void panel(const sd_event_op *op, const int nv, const int mode, const int open, int64_t column, int64_t number, int64_t steps, int64_t batch,
                     const v16 *given) {
    const sd_wire *in = op->source[0];
    const int linear = op->weight != NULL, may_skip = op->silent && op->silent[number];
    const drive from = drive_of(op, nv, column);
    panel_of p = {at_column(op->decay, column), at_column(op->theta, column), at_column(op->bias, column), at_column(op->scale, column),
                  at_column(op->reset, column), at_column(op->amplitude, column), op->flags & FLAG_STRICT};
    v16 lower[8];
    if (mode == NEURON_PLAIN && !p.strict) {
        UNROLL for (int v = 0; v < nv; v++) lower[v] = below(p.theta[v]);
        p.theta = lower;
    }
    u16a *const bits = op->out->bits ? (u16a *)op->out->bits + column / 16 : NULL;
    const int64_t apart = 4 * op->out->words;
    following next = linear ? following_panel(op, nv, &from, column, steps * batch) : (following){NULL, 0};
    for (int64_t b = 0; b < batch; b++) {
        const int64_t cell = b * op->n[3] + number;
        float *state = op->state ? op->state + b * op->n[1] + column : NULL;
        v16 u[8];
        UNROLL for (int v = 0; v < nv; v++) u[v] = at_column(state, 0)[v];
        uint32_t loud = may_skip ? op->loud[cell] : 1;
        int32_t pending = may_skip ? op->pending[cell] : 0;
        for (int64_t row = b; row < steps * batch; row += batch) {
            v16 acc[8];
            if (may_skip && !loud && pending < INT32_MAX && from.start[row + 1] == from.start[row]) {
                pending++;
                memset(bits + row * apart, 0, 2 * nv);
                continue;
            }
            if (pending) catch_up(nv, u, p.decay, p.bias, pending), pending = 0;
            if (given) UNROLL for (int v = 0; v < nv; v++) acc[v] = given[v];
            else if (linear) {
                if (from.start[row + 1] > from.start[row]) fetch(&next);
                current(&from, nv, acc, p.bias, p.scale, row);
            }
            else UNROLL for (int v = 0; v < nv; v++) acc[v] = at_column(in->dense + row * in->stride, column)[v];
            loud = neurons(op, nv, mode, open, &p, acc, u, column, row, bits ? bits + row * apart : NULL);
        }
        if (state) UNROLL for (int v = 0; v < nv; v++) *(v16 *)(state + 16 * v) = u[v];
        if (may_skip) op->loud[cell] = loud != 0, op->pending[cell] = pending;
    }
}

/* The common cases with everything decided at compile time, and one form for the rest. */
SD_INLINE void panel_by_mode(const sd_event_op *op, const int nv, int64_t column, int64_t number, int64_t steps, int64_t batch, const v16 *given) {
    const int open = op->current || op->mem || !op->out->bits || op->out->dense;
    if (op->mode == NEURON_PLAIN && !open) panel(op, nv, NEURON_PLAIN, 0, column, number, steps, batch, given);
    else if (op->mode == NEURON_PLAIN) panel(op, nv, NEURON_PLAIN, 1, column, number, steps, batch, given);
    else panel(op, nv, op->mode, 1, column, number, steps, batch, given);
}

/* A function for each width: in one function they take the compiler minutes. */
#define PANEL(NV)                                                                                                                                   \
    static void panel_##NV(const sd_event_op *op, int64_t column, int64_t number, int64_t steps, int64_t batch, const v16 *given) {      \
        panel_by_mode(op, NV, column, number, steps, batch, given);                                                                                 \
    }
PANEL(8)
PANEL(4)
PANEL(2)
PANEL(1)

/* Vectors of the panel at `column`. */
SD_INLINE int panel_width(const sd_event_op *op, int64_t column) {
    const int64_t left = op->n[1] - column, columns = left < op->widest ? left : op->widest;
    return columns >= 128 ? 8 : columns >= 64 ? 4 : columns >= 32 ? 2 : 1;
}

/* Whether this panel is the first of those that lie together and is to be summed with them: in a single step with events whose values are all one. */
SD_INLINE int begins_together(const sd_event_op *op, int64_t column, int64_t rows) {
    const sd_wire *in = op->source[0];
    return rows == 1 && !op->n[2] && column < op->n[4] && column % TOGETHER == 0 && in->start[1] > in->start[0] &&
           (in->value ? in->ones[0] : in->amplitude == 1.0f);
}

void sd_event_layer(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    int64_t column = 0, summed = 0; /* columns before `summed` have their sums in `acc` */
    v16 acc[TOGETHER / 16];
    for (int64_t number = 0; number < last; number++) {
        const int nv = panel_width(op, column);
        if (begins_together(op, column, steps * batch)) {
            const drive from = drive_of(op, nv, column);
            sum_together(&from, acc, (const v16 *)(op->bias + column));
            summed = column + TOGETHER;
        }
        const v16 *sum = column < summed ? acc + column % TOGETHER / 16 : NULL;
        if (number >= first) switch (nv) {
            case 8: panel_8(op, column, number, steps, batch, sum); break;
            case 4: panel_4(op, column, number, steps, batch, sum); break;
            case 2: panel_2(op, column, number, steps, batch, NULL); break;
            default: panel_1(op, column, number, steps, batch, NULL);
        }
        column += 16 * nv;
    }
}

/* Applies every leak that was put off, so that the state can be read. */
void sd_event_settle(sd_event_op *op, int64_t batch) {
    int64_t width = op->n[1], panels = op->n[3];
    if (!op->pending) return;
    for (int64_t b = 0; b < batch; b++) {
        int64_t column = 0;
        for (int64_t number = 0; number < panels; number++) {
            const int nv = panel_width(op, column);
            catch_up(nv, (v16 *)(op->state + b * width + column), (const v16 *)(op->decay + column), (const v16 *)(op->bias + column),
                     op->pending[b * panels + number]);
            op->pending[b * panels + number] = 0;
            column += 16 * nv;
        }
    }
}
