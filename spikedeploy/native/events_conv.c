/* A convolution over events and the neurons behind it: each event is scattered over its kernel. Inside, outputs lie channels-last in rows of pixels with a
   margin, so that every event adds one patch of the same size, vector by vector, without a branch: what falls outside lands in the margin. An output still
   receives its terms in ascending input order because the events come in that order. Taps that a patch has too many weigh zero, and adding zero changes no
   sum, which is never -0 (the bias is not).

   n: 0 W, 1 lanes of all neurons (whole tiles), 2 lanes of a patch's pixel, 3 tiles, 4 O, 5 H', 6 W', 7 lanes of a row, 8 lanes of a pixel, 9..10 rows and
   pixels of a patch, 11..12 lanes from one to the next, 13 where the neurons begin in the sums, 14 lanes of the sums, 15 C H, 16..17 how to divide by W,
   18 whether states may be settled after a group of steps (`settles_late` in events_conv.py).
   `taps`: C H times ROW integers, W times COLUMN integers, then per neuron its index on the wire, in the order of a tile's bits. */
#include "events_common.inc"
#include "events_patch.inc"

enum { SILENT_ONCE = 2 }; /* of `silent` */
enum { TILE = 128, BLOCKS = TILE / 16, SIDE = 4, STEPS = 4 }; /* STEPS: that a tile takes at once; SIDE: vectors side by side */

/* What one sample works with, in planes of `lanes` each: sums of STEPS steps, spikes as numbers, per tile of the sums whether an event fell into it, spikes as
   bits (two words per step and tile), a step's spikes and its words that are not zero, integer sums of STEPS steps. */
typedef struct {
    float *sum, *spikes, *u;
    uint8_t *touched; /* all zero between groups of steps */
    uint64_t *fired;
    uint32_t *list, *some, *total;
    const float *bias, *scale, *decay, *theta, *amplitude, *reset;
    int64_t begin, lanes, tiles; /* where the neurons begin in the sums; from one step's sums to the next's */
} place;

SD_INLINE place place_of(const sd_event_op *op, int64_t b) {
    const int64_t lanes = op->n[14], planes = STEPS * (op->integer ? 2 : 1) + 5;
    float *plane[6] = {op->scratch + b * planes * lanes};
    for (int i = 1; i < 6; i++) plane[i] = plane[i - 1] + (i == 1 ? STEPS : 1) * lanes;
    return (place){
        .sum = plane[0], .spikes = plane[1], .touched = (uint8_t *)plane[2], .fired = (uint64_t *)plane[3], .list = (uint32_t *)plane[4],
        .some = (uint32_t *)plane[5], .total = (uint32_t *)(plane[5] + lanes), .u = op->state ? op->state + b * op->n[1] : NULL,
        .bias = op->bias, .scale = op->scale, .decay = op->decay, .theta = op->theta, .amplitude = op->amplitude, .reset = op->reset,
        .begin = op->n[13], .lanes = lanes, .tiles = op->n[3]};
}

/* Marks the tiles that a row's events fall into; all of them where the events are so many that telling tiles apart would not pay. */
SD_INLINE void touch(const sd_event_op *op, uint8_t *touched, int64_t begin, int64_t end) {
    const int64_t rows = op->n[9], reach = (op->n[10] - 1) * op->n[12] + op->n[2] - 1;
    if ((end - begin) * rows >= op->n[3]) {
        memset(touched + op->n[13] / TILE, 1, (size_t)op->n[3]);
        return;
    }
    const grid g = grid_of(op);
    for (int64_t e = begin; e < end; e++) {
        taps t = taps_of(g, op->source[0]->index[e]);
        int64_t at = t.row[TO] + t.column[TO];
        for (int64_t i = 0; i < rows; i++, at += op->n[11])
            for (int64_t tile = at / TILE; tile <= (at + reach) / TILE; tile++) touched[tile] = 1;
    }
}

/* One step's sums, the `step`-th of the group, in a function of its own because the compiler takes long for it; tells whether they are integer sums, which
   they are where all values are one. */
static __attribute__((noinline)) int currents(const sd_event_op *op, int64_t row, const place *p, int64_t step) {
    const sd_wire *in = op->source[0];
    const int ones = in->value ? in->ones[row] : in->amplitude == 1.0f, touching = op->n[2] == op->n[12];
    const int rows = (int)op->n[9], runs = touching ? 1 : (int)op->n[10], lanes = (int)op->n[2] * (touching ? (int)op->n[10] : 1);
    const int64_t begin = in->start[row], end = in->start[row + 1];
    if (op->silent) touch(op, p->touched, begin, end);
    if (op->integer && (!in->value || ones)) {
        scatter_integers(op, 1, rows, runs, lanes, p->total + step * p->lanes, begin, end);
        return 1;
    }
    if (ones) scatter(op, 1, rows, runs, lanes, p->sum + step * p->lanes, begin, end);
    else scatter(op, 0, rows, runs, lanes, p->sum + step * p->lanes, begin, end);
    return 0;
}

/* (row, pixel, channel) to the wire's (channel, pixel). */
SD_INLINE void turn(const sd_event_op *op, const float *from, const sd_wire *to, int64_t row) {
    const int64_t *n = op->n;
    float *y = to->dense + row * to->stride;
    for (int64_t o = 0; o < n[4]; o++)
        for (int64_t h = 0; h < n[5]; h++)
            for (int64_t w = 0; w < n[6]; w++) *y++ = from[h * n[7] + w * n[8] + o];
}

/* A tile's integer sums of one step as currents; they are zero afterwards. */
SD_INLINE void scale_tile(place p, int64_t step, int64_t at) {
    const int64_t begin = step * p.lanes + p.begin;
    for (int64_t lane = at; lane < at + TILE; lane += LANES) {
        vu *total = (vu *)(p.total + begin + lane);
        *(vf *)(p.sum + begin + lane) = __builtin_convertvector((vi)*total, vf) * *(const vf *)(p.scale + lane) + *(const vf *)(p.bias + lane);
        *total = (vu){};
    }
}

/* The leak of `steps` steps without events, with the very operations of stepping; ends early where nothing moves any more. Several vectors at a time, because
   each waits for itself. `once`: settling at the end is enough, see `events_conv.py`. */
SD_INLINE void catch_up(place p, int64_t at, int32_t steps, const int once) {
    const vf *d = (const vf *)(p.decay + at), *b = (const vf *)(p.bias + at);
    vf *state = (vf *)(p.u + at);
    for (int v = 0; v < TILE / LANES; v += 4) {
        vf now[4];
        UNROLL for (int i = 0; i < 4; i++) now[i] = state[v + i];
        for (int32_t k = 0; k < steps; k++) {
            vi moved = {};
            UNROLL for (int i = 0; i < 4; i++) {
                vf next = d[v + i] * now[i] + b[v + i];
                if (!once) next = sd_settle(next);
                if (k % 16 == 0) moved |= (vi)next ^ (vi)now[i];
                now[i] = next;
            }
            if (k % 16 == 0 && !sd_mask(moved != 0)) break;
        }
        UNROLL for (int i = 0; i < 4; i++) state[v + i] = sd_settle(now[i]);
    }
}

/* What the compiler is to know; `steps` at once, of which only the last settles the states; `numbers`: spikes are wanted as numbers too. */
typedef struct {
    int mode, strict, steps, numbers;
} variant;

/* A tile's sixteen bytes of bits, LANES of them: of byte l bit v tells about lane l of block v. */
SD_INLINE void store_bits(uint64_t *to, int part, vi bits) {
    vb bytes = __builtin_convertvector(bits, vb);
    memcpy((char *)to + part * LANES, &bytes, LANES);
}

/* A tile's neurons through all steps, one vector of each block: a few side by side because each waits for itself; the sums are left as the next group wants them. Tells whether
   a membrane stays above its threshold. */
SD_INLINE int neurons_part(const variant is, place p, int64_t tile, const int part) {
    const vf none = {};
    vi spikes[STEPS] = {}, above = {};
    uint64_t loud[2] = {};
    for (int v = 0; v < BLOCKS; v += SIDE) {
        const int64_t lane = tile * TILE + 16 * v + LANES * part;
        vf u[SIDE], d[SIDE], theta[SIDE], bias[SIDE], reset[SIDE];
        vi stays[SIDE] = {};
        UNROLL for (int i = 0; i < SIDE; i++) {
            u[i] = is.mode == NEURON_THRESHOLD ? none : ((const vf *)(p.u + lane))[PARTS * i];
            d[i] = is.mode == NEURON_THRESHOLD ? none : ((const vf *)(p.decay + lane))[PARTS * i];
            theta[i] = is.mode == NEURON_LEAK ? none : ((const vf *)(p.theta + lane))[PARTS * i];
            reset[i] = is.mode == NEURON_VALUE ? ((const vf *)(p.reset + lane))[PARTS * i] : none;
            bias[i] = ((const vf *)(p.bias + lane))[PARTS * i];
        }
        UNROLL for (int s = 0; s < is.steps; s++) {
            vf *sum = (vf *)(p.sum + s * p.lanes + p.begin + lane);
            UNROLL for (int i = 0; i < SIDE; i++) {
                const vi now = sd_neuron_settling(is.steps == 1, is.mode, is.strict, sum[PARTS * i], &u[i], d[i], theta[i], reset[i], &stays[i]);
                sum[PARTS * i] = bias[i];
                spikes[s] |= now & (1 << (v + i));
                if (is.numbers) ((vf *)(p.spikes + lane))[PARTS * i] = ((const vf *)(p.amplitude + lane))[PARTS * i] * sd_select(now, sd_splat(1.0f), none);
            }
        }
        UNROLL for (int i = 0; i < SIDE; i++) {
            if (is.mode != NEURON_THRESHOLD) ((vf *)(p.u + lane))[PARTS * i] = is.steps == 1 ? u[i] : sd_settle(u[i]);
            above |= stays[i];
        }
    }
    UNROLL for (int s = 0; s < is.steps; s++) store_bits(p.fired + 2 * (s * p.tiles + tile), part, spikes[s]);
    store_bits(loud, part, above);
    return (loud[0] | loud[1]) != 0;
}

SD_INLINE int neurons(const variant is, place p, int64_t tile) {
    int above = 0;
    for (int part = 0; part < PARTS; part++) above |= neurons_part(is, p, tile, part);
    return above;
}

/* A group of steps: tiles that an event reached, that hold a membrane above its threshold, or whose silence is not proven. Bit s of `integer`: step s has
   integer sums. */
SD_INLINE void step_tiles(const sd_event_op *op, const variant is, int integer, int64_t b, place p) {
    uint8_t *touched = p.touched + p.begin / TILE, *loud = op->silent ? op->loud + b * p.tiles : NULL;
    int32_t *pending = op->silent ? op->pending + b * p.tiles : NULL;
    for (int64_t tile = 0; tile < p.tiles; tile++) {
        const int64_t at = tile * TILE;
        if (loud) {
            if (!(touched[tile] | loud[tile] | !op->silent[tile]) && pending[tile] < INT32_MAX - STEPS) {
                pending[tile] += is.steps;
                for (int s = 0; s < is.steps; s++) memset(p.fired + 2 * (s * p.tiles + tile), 0, 16);
                continue;
            }
            if (pending[tile] && op->silent[tile] == SILENT_ONCE) catch_up(p, at, pending[tile], 1);
            else if (pending[tile]) catch_up(p, at, pending[tile], 0);
            pending[tile] = 0;
        }
        for (int s = 0; integer >> s; s++) if (integer >> s & 1) scale_tile(p, s, at);
        const int above = neurons(is, p, tile);
        if (loud) loud[tile] = (uint8_t)above;
    }
    if (loud) memset(touched, 0, (size_t)p.tiles);
}

/* The spikes of a group of steps, from the order of tiles to the wire's. Three short loops without a branch in them, over words, over those that are not
   zero, over spikes: wrong guesses of how many there are cost more than the work. */
SD_INLINE void write_bits(const sd_event_op *op, place p, int64_t steps, int64_t row, int64_t batch) {
    const uint32_t *wire = (const uint32_t *)op->taps + op->n[15] * ROW + op->n[0] * COLUMN;
    const int64_t words = 2 * p.tiles, apart = batch * op->out->words;
    uint64_t *bits = op->out->bits + row * op->out->words;
    for (int64_t s = 0; s < steps; s++) {
        const uint64_t *fired = p.fired + s * words;
        int64_t some = 0, spikes = 0;
        for (int64_t w = 0; w < words; w++) p.some[some] = (uint32_t)w, some += fired[w] != 0;
        for (int64_t k = 0; k < some; k++) {
            const uint32_t at = 64 * p.some[k];
            uint64_t word = fired[p.some[k]];
            const int64_t end = spikes + __builtin_popcountll(word);
            for (; spikes < end; spikes += 4)
                UNROLL for (int i = 0; i < 4; i++, word &= word - 1) p.list[spikes + i] = wire[at + (uint32_t)__builtin_ctzll(word | (uint64_t)1 << 63)];
            spikes = end;
        }
        memset(bits + s * apart, 0, (size_t)op->out->words * 8);
        for (int64_t k = 0; k < spikes; k++) bits[s * apart + p.list[k] / 64] |= (uint64_t)1 << (p.list[k] % 64);
    }
}

/* The currents as numbers, for whoever reads them. */
SD_INLINE void show_currents(const sd_event_op *op, int integer, int64_t row, place p) {
    for (int64_t at = 0; integer && at < op->n[1]; at += TILE) scale_tile(p, 0, at);
    turn(op, p.sum + p.begin, op->current ? op->current : op->out, row);
    if (op->mode == NEURON_NONE) memcpy(p.sum + p.begin, p.bias, (size_t)op->n[1] * sizeof(float));
}

/* One step where somebody reads numbers. */
SD_INLINE void step_shown(const sd_event_op *op, int64_t row, int64_t batch, int64_t b, place p) {
    const variant is = {op->mode, op->flags & FLAG_STRICT, 1, op->mode > NEURON_LEAK && op->out->dense};
    int integer = currents(op, row, &p, 0);
    if (op->current || is.mode == NEURON_NONE) show_currents(op, integer, row, p), integer = 0;
    if (is.mode == NEURON_NONE) return;
    step_tiles(op, is, integer, b, p);
    if (op->out->bits) write_bits(op, p, 1, row, batch);
    if (op->mem) turn(op, p.u, op->mem, row);
    if (is.numbers) turn(op, p.spikes, op->out, row);
}

/* Whether the inputs of a group of steps are all one. */
SD_INLINE int all_ones(const sd_wire *in, int64_t row, int64_t batch) {
    int ones = 1;
    for (int64_t s = 0; s < STEPS; s++) ones &= in->value ? in->ones[row + s * batch] : in->amplitude == 1.0f;
    return ones;
}

/* Steps of which only the spikes' bits are read, of the three common neurons, each with everything decided at compile time. */
SD_INLINE void step_closed(const sd_event_op *op, const int steps, int64_t row, int64_t batch, int64_t b, place p) {
    int integer = 0;
    for (int s = 0; s < steps; s++) integer |= currents(op, row + s * batch, &p, s) << s;
    switch (op->mode) {
        case NEURON_PLAIN: step_tiles(op, (variant){NEURON_PLAIN, 1, steps, 0}, integer, b, p); break;
        case NEURON_SUBTRACT: step_tiles(op, (variant){NEURON_SUBTRACT, 1, steps, 0}, integer, b, p); break;
        default: step_tiles(op, (variant){NEURON_ZERO, 1, steps, 0}, integer, b, p);
    }
    write_bits(op, p, steps, row, batch);
}

void sd_event_conv(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    const int common = (op->mode == NEURON_PLAIN || op->mode == NEURON_SUBTRACT || op->mode == NEURON_ZERO) && op->flags & FLAG_STRICT;
    const int closed = common && !op->current && !op->mem && !op->out->dense;
    for (int64_t b = first; b < last; b++)
        for (int64_t t = 0, now; t < steps; t += now) {
            const int64_t row = t * batch + b;
            now = closed && op->n[18] && steps - t >= STEPS && all_ones(op->source[0], row, batch) ? STEPS : 1;
            if (now == STEPS) step_closed(op, STEPS, row, batch, b, place_of(op, b));
            else if (closed) step_closed(op, 1, row, batch, b, place_of(op, b));
            else step_shown(op, row, batch, b, place_of(op, b));
        }
}
