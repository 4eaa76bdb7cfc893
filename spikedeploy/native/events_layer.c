/* A linear layer over events and the neurons behind it, fused: sum the weight rows of the active inputs, update the membranes, compare, pack bits.

   Weights lie input-major in panels of 128 output columns (64 over many inputs; 64, 32 and 16 for the rest), so that a panel's sum stays in registers while its active
   rows stream by in ascending order; each column's sum is one chain ((b + w_i) + w_j) + ..., whatever the panel, thread or chunk. */
#include "events_common.inc"

#include "events_sums.inc"

/* Where a panel's parameters lie; zeros for those that the operation has not. */
typedef struct {
    const vf *decay, *theta, *bias, *scale, *folded, *reset, *amplitude;
    int strict;
} panel_of;

static const vf none[WIDEST];

SD_INLINE const vf *at_column(const float *of, int64_t column) { return of ? (const vf *)(of + column) : none; }

SD_INLINE drive drive_of(const sd_event_op *op, const int nv, int64_t column) {
    const sd_wire *in = op->source[0];
    const int64_t wide = op->n[0], bytes = op->n[2], line = bytes ? 64 / bytes : 1; /* integers lie in whole cache lines */
    const int together = column < op->n[4];
    const int64_t place = together ? column % TOGETHER : 0;
    return (drive){in->start, in->index, in->value, op->weight + (column - place) * wide + place, in->ones,
                   (const uint8_t *)op->integer + (column + line - 1) / line * line * bytes * wide, in->amplitude, (int)bytes, together ? TOGETHER : LANES * nv};
}

/* The next panel, which is fetched while this one is read, some lines with every step that has events. */
typedef struct {
    const char *at;
    int64_t lines;
} following;

enum { PANEL_BYTES = 1 << 19, MOST_LINES = 64 }; /* two such panels fit a second-level cache; a single step does not wait for another's panel */

SD_INLINE following following_panel(const sd_event_op *op, const int nv, const drive *from, int64_t column, int64_t rows) {
    const int64_t bytes = op->n[0] * (from->bytes ? (LANES * nv * from->bytes + 63) / 64 * 64 : SD_VECTOR * nv), lines = (bytes / 64 + rows - 1) / rows;
    const int last = column + LANES * nv >= op->n[1];
    return (following){(from->bytes ? (const char *)from->integer : (const char *)from->weight) + bytes, last || bytes > PANEL_BYTES || lines > MOST_LINES ? 0 : lines};
}

SD_INLINE void fetch(following *next) {
    for (int64_t i = 0; i < next->lines; i++, next->at += 64) __builtin_prefetch(next->at, 0, 2);
}

/* One step of leak without events; tells whether anything moved. */
SD_INLINE uint32_t leak(const int nv, vf *u, const vf *d, const vf *b) {
    vi moved = {};
    UNROLL for (int v = 0; v < nv; v++) {
        const vf next = sd_settle(d[v] * u[v] + b[v]);
        moved |= (vi)next ^ (vi)u[v];
        u[v] = next;
    }
    return sd_mask(sd_some(moved));
}

/* The leak of `steps` steps without events, with the very operations of stepping; ends early where nothing moves any more. */
SD_INLINE void catch_up_some(const int nv, vf *u, const vf *d, const vf *b, int32_t steps) {
    for (int32_t k = 0; k < steps; k++) {
        if (k % 16 == 15 && !leak(nv, u, d, b)) return;
        if (k % 16 != 15) UNROLL for (int v = 0; v < nv; v++) u[v] = sd_settle(d[v] * u[v] + b[v]);
    }
}

SD_INLINE void catch_up(const int nv, vf *u, const vf *d, const vf *b, int32_t steps) {
    const int once = nv < ONCE ? nv : ONCE;
    for (int at = 0; at < nv; at += once) catch_up_some(once, u + at, d + at, b + at, steps);
}

/* One step of a panel's neurons; tells whether a membrane stays above its threshold. open: somebody reads more than the bits. */
SD_INLINE uint32_t neurons(const sd_event_op *op, const int nv, const int mode, const int open, const panel_of *p, const vf *x, vf *u, int64_t column,
                           int64_t row, u16a *bits) {
    const sd_wire *out = op->out;
    if (open && op->current) UNROLL for (int v = 0; v < nv; v++) *(vf *)(op->current->dense + row * op->current->stride + column + LANES * v) = x[v];
    if (mode == NEURON_NONE) {
        if (!op->current) UNROLL for (int v = 0; v < nv; v++) *(vf *)(out->dense + row * out->stride + column + LANES * v) = x[v];
        return 0;
    }
    vm fired[WIDEST], above[WIDEST];
    UNROLL for (int v = 0; v < nv; v++) {
        above[v] = (vm){0};
        fired[v] = sd_neuron(mode, p->strict, x[v], &u[v], p->decay[v], p->theta[v], p->reset[v], &above[v]);
    }
    if (open && op->mem) UNROLL for (int v = 0; v < nv; v++) *(vf *)(op->mem->dense + row * op->mem->stride + column + LANES * v) = u[v];
    if (open && mode != NEURON_LEAK && out->dense)
        UNROLL for (int v = 0; v < nv; v++)
            *(vf *)(out->dense + row * out->stride + column + LANES * v) = p->amplitude[v] * sd_select(fired[v], sd_splat(1.0f), (vf){});
    if (mode == NEURON_LEAK || (open && !out->bits)) return 0;
    uint32_t loud = sd_write_mask(nv, fired, bits);
    if (mode == NEURON_VALUE) {
        vm any = above[0];
        UNROLL for (int v = 1; v < nv; v++) any |= above[v];
        loud |= sd_mask(any);
    }
    return loud;
}

/* What `sd_step_plain` leaves to the next step. Until then no such state is above a threshold: see `_limit` in runtime/events_ops_fused.py. */
SD_INLINE void settle(const int nv, vf *u) {
    UNROLL for (int v = 0; v < nv; v++) u[v] = sd_settle(u[v]);
}

SD_INLINE void panel(const sd_event_op *op, const int nv, const int mode, const int open, int64_t column, int64_t number, int64_t steps, int64_t batch,
                     const vf *given) {
    const sd_wire *in = op->source[0];
    const int linear = op->weight != NULL, may_skip = op->silent && op->silent[number], late = mode == NEURON_PLAIN && !open;
    const drive from = drive_of(op, nv, column);
    panel_of p = {at_column(op->decay, column), at_column(op->theta, column), at_column(op->bias, column), at_column(op->scale, column),
                  op->n[5] ? (const vf *)(op->scale + op->n[1] + column) : NULL, at_column(op->reset, column), at_column(op->amplitude, column), op->flags & FLAG_STRICT};
    u16a *const bits = op->out->bits ? (u16a *)op->out->bits + column / 16 : NULL;
    const int64_t apart = 4 * op->out->words;
    following next = linear ? following_panel(op, nv, &from, column, steps * batch) : (following){NULL, 0};
    for (int64_t b = 0; b < batch; b++) {
        const int64_t cell = b * op->n[3] + number;
        float *state = op->state ? op->state + b * op->n[1] + column : NULL;
        vf u[WIDEST];
        UNROLL for (int v = 0; v < nv; v++) u[v] = at_column(state, 0)[v];
        uint32_t loud = may_skip ? op->loud[cell] : 1;
        int32_t pending = may_skip ? op->pending[cell] : 0;
        for (int64_t row = b; row < steps * batch; row += batch) {
            vf acc[WIDEST];
            if (may_skip && !loud && pending < INT32_MAX && from.start[row + 1] == from.start[row]) {
                pending++;
                memset(bits + row * apart, 0, LANES * nv / 8);
                continue;
            }
            if (pending) {
                if (late) settle(nv, u);
                catch_up(nv, u, p.decay, p.bias, pending), pending = 0;
            }
            if (given) UNROLL for (int v = 0; v < nv; v++) acc[v] = given[v];
            else if (linear) {
                if (from.start[row + 1] > from.start[row]) fetch(&next);
                current(&from, nv, acc, p.bias, p.scale, p.folded, !late || op->n[6], row);
            }
            else UNROLL for (int v = 0; v < nv; v++) acc[v] = at_column(in->dense + row * in->stride, column)[v];
            if (late) loud = sd_step_plain(nv, u, p.decay, acc, p.theta, bits + row * apart);
            else loud = neurons(op, nv, mode, open, &p, acc, u, column, row, bits ? bits + row * apart : NULL);
        }
        if (late) settle(nv, u);
        if (state) UNROLL for (int v = 0; v < nv; v++) *(vf *)(state + LANES * v) = u[v];
        if (may_skip) op->loud[cell] = loud != 0, op->pending[cell] = pending;
    }
}

/* The common cases with everything decided at compile time, and one form for the rest. */
SD_INLINE void panel_by_mode(const sd_event_op *op, const int nv, int64_t column, int64_t number, int64_t steps, int64_t batch, const vf *given) {
    const int open = op->current || op->mem || !op->out->bits || op->out->dense;
    if (op->mode == NEURON_PLAIN && !open) panel(op, nv, NEURON_PLAIN, 0, column, number, steps, batch, given);
    else if (op->mode == NEURON_PLAIN) panel(op, nv, NEURON_PLAIN, 1, column, number, steps, batch, given);
    else panel(op, nv, op->mode, 1, column, number, steps, batch, given);
}

/* A function for each width: in one function they take the compiler minutes. */
#define PANEL(COLUMNS)                                                                                                                                   \
    static void panel_##COLUMNS(const sd_event_op *op, int64_t column, int64_t number, int64_t steps, int64_t batch, const vf *given) {      \
        panel_by_mode(op, COLUMNS / LANES, column, number, steps, batch, given);                                                                                 \
    }
PANEL(128)
PANEL(64)
PANEL(32)
PANEL(16)

/* Vectors of the panel at `column`. */
SD_INLINE int panel_width(const sd_event_op *op, int64_t column) {
    const int64_t left = op->n[1] - column, columns = left < op->widest ? left : op->widest;
    return (columns >= 128 ? 128 : columns >= 64 ? 64 : columns >= 32 ? 32 : 16) / LANES;
}

/* Whether this panel is the first of those that lie together and is to be summed with them: in a single step with events whose values are all one. */
SD_INLINE int begins_together(const sd_event_op *op, int64_t column, int64_t rows) {
    const sd_wire *in = op->source[0];
    return rows == 1 && !op->n[2] && column < op->n[4] && column % TOGETHER == 0 && in->start[1] > in->start[0] &&
           (in->value ? in->ones[0] : in->amplitude == 1.0f);
}

void sd_event_layer(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    int64_t column = 0, summed = 0; /* columns before `summed` have their sums in `acc` */
    vf acc[TOGETHER / LANES];
    for (int64_t number = 0; number < last; number++) {
        const int nv = panel_width(op, column);
        if (begins_together(op, column, steps * batch)) {
            const drive from = drive_of(op, nv, column);
            sum_together(&from, acc, (const vf *)(op->bias + column));
            summed = column + TOGETHER;
        }
        const vf *sum = column < summed ? acc + column % TOGETHER / LANES : NULL;
        if (number >= first) switch (nv) {
            case 128 / LANES: panel_128(op, column, number, steps, batch, sum); break;
            case 64 / LANES: panel_64(op, column, number, steps, batch, sum); break;
            case 32 / LANES: panel_32(op, column, number, steps, batch, NULL); break;
            default: panel_16(op, column, number, steps, batch, NULL);
        }
        column += LANES * nv;
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
            catch_up(nv, (vf *)(op->state + b * width + column), (const vf *)(op->decay + column), (const vf *)(op->bias + column),
                     op->pending[b * panels + number]);
            op->pending[b * panels + number] = 0;
            column += LANES * nv;
        }
    }
}
