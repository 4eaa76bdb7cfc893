/* A convolution over events and the neurons behind it: each event is scattered over its kernel. Inside, outputs lie channels-last in rows of pixels with a
   margin, so that every event adds one patch of the same size, vector by vector, without a branch: what falls outside lands in the margin. An output still
   receives its terms in ascending input order because the events come in that order. Taps that a patch has too many weigh zero, and adding zero changes no
   sum, which is never -0 (the bias is not).

   n: 0 W, 1 lanes of all neurons (whole tiles), 2 lanes of a patch's pixel, 3 tiles, 4 O, 5 H', 6 W', 7 lanes of a row, 8 lanes of a pixel, 9..10 rows and
   pixels of a patch, 11..12 lanes from one to the next, 13 where the neurons begin in the sums, 14 lanes of the sums, 15 C H, 16 whether states may be settled
   after a group of steps (`settles_late` in events_conv.py), 17 lanes from one tile's parameters to the next's: 0 where all tiles have the same, 18 lanes of
   zeros before and behind each run of weights.
   `taps`: per lane a bit that tells whether it is a neuron's; per input its `origin`; per lane its index on the wire; C H times ROW and W times COLUMN integers.
   Lanes between rows are stepped like neurons, and nobody looks. */
#include "events_common.inc"
#include "events_patch.inc"
#include "events_words.inc"

enum { SILENT_ONCE = 2 }; /* of `silent` */
enum { TILE = 128, SIDE = 4, STEPS = 4, ONCE = 64 }; /* STEPS: that a tile takes at once; SIDE: vectors side by side; ONCE: words looked at together */

/* What one sample works with, in planes of `lanes` each: sums of STEPS steps, spikes as numbers, per tile of the sums whether an event fell into it, spikes as
   bits (two words per step and tile), integer sums of STEPS steps. */
typedef struct {
    float *sum, *spikes, *u;
    uint8_t *touched; /* all zero between groups of steps */
    uint64_t *fired;
    uint32_t *total;
    const float *bias, *scale, *decay, *theta, *amplitude, *reset;
    int64_t begin, lanes, tiles, apart; /* where the neurons begin in the sums; from one step's sums to the next's; from one tile's parameters to the next's */
} place;

SD_INLINE place place_of(const sd_event_op *op, int64_t b) {
    const int64_t lanes = op->n[14], planes = STEPS * (op->integer ? 2 : 1) + 3;
    float *plane[5] = {op->scratch + b * planes * lanes};
    for (int i = 1; i < 5; i++) plane[i] = plane[i - 1] + (i == 1 ? STEPS : 1) * lanes;
    return (place){
        .sum = plane[0], .spikes = plane[1], .touched = (uint8_t *)plane[2], .fired = (uint64_t *)plane[3], .total = (uint32_t *)plane[4],
        .u = op->state ? op->state + b * op->n[1] : NULL,
        .bias = op->bias, .scale = op->scale, .decay = op->decay, .theta = op->theta, .amplitude = op->amplitude, .reset = op->reset,
        .begin = op->n[13], .lanes = lanes, .tiles = op->n[3], .apart = op->n[17]};
}

/* Marks the tiles that the events of a group of steps fall into; all of them where the events are so many that telling tiles apart would not pay. */
SD_INLINE void touch(const sd_event_op *op, uint8_t *touched, int64_t row, int64_t batch, int64_t steps) {
    const sd_wire *in = op->source[0];
    const origin *place = origins(op);
    const int64_t rows = op->n[9], reach = (op->n[10] - 1) * op->n[12] + op->n[2] - 1;
    int64_t count = 0;
    for (int64_t s = 0; s < steps; s++) count += in->start[row + s * batch + 1] - in->start[row + s * batch];
    if (count * rows >= op->n[3]) {
        memset(touched + op->n[13] / TILE, 1, (size_t)op->n[3]);
        return;
    }
    for (; steps; steps--, row += batch)
        for (int64_t e = in->start[row]; e < in->start[row + 1]; e++) {
            int64_t at = in_sums(place[in->index[e]]);
            for (int64_t i = 0; i < rows; i++, at += op->n[11])
                for (int64_t tile = at / TILE; tile <= (at + reach) / TILE; tile++) touched[tile] = 1;
        }
}

/* The sums of a group of steps, in a function of its own because the compiler takes long for it. `ones`: all values are one. Tells whether they are integer
   sums, which they are where all values are the same. */
static __attribute__((noinline)) int currents(const sd_event_op *op, const int ones, int64_t row, int64_t batch, int64_t steps, const place *p) {
    if (op->silent) touch(op, p->touched, row, batch, steps);
    const int integer = op->integer && (ones || !op->source[0]->value);
    if (integer) scatter_integers(op, shape_of(op), p->total, row, batch, steps);
    else if (ones) scatter(op, p->sum, row, batch, steps);
    else scatter_values(op, p->sum, row);
    return integer;
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
SD_INLINE void scale_tile(place p, int64_t step, int64_t tile) {
    const int64_t begin = step * p.lanes + p.begin + tile * TILE, given = tile * p.apart;
    for (int64_t lane = 0; lane < TILE; lane += LANES) {
        vu *total = (vu *)(p.total + begin + lane);
        const vf scale = *(const vf *)(p.scale + given + lane), bias = *(const vf *)(p.bias + given + lane);
        *(vf *)(p.sum + begin + lane) = __builtin_convertvector((vi)*total, vf) * scale + bias;
        *total = (vu){};
    }
}

/* The leak of `steps` steps without events, with the very operations of stepping; ends early where nothing moves any more. Several vectors at a time, because
   each waits for itself. `once`: settling at the end is enough, see `events_conv.py`. */
SD_INLINE void catch_up(place p, int64_t tile, int32_t steps, const int once) {
    const vf *d = (const vf *)(p.decay + tile * p.apart), *b = (const vf *)(p.bias + tile * p.apart);
    vf *state = (vf *)(p.u + tile * TILE);
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
            if (k % 16 == 0 && !sd_mask(sd_some(moved))) break;
        }
        UNROLL for (int i = 0; i < 4; i++) state[v + i] = sd_settle(now[i]);
    }
}

/* What the compiler is to know; `steps` at once, of which only the last settles the states; `numbers`: spikes are wanted as numbers too. */
typedef struct {
    int mode, strict, steps, numbers;
} variant;

/* A tile's neurons through all steps, a few vectors side by side because each waits for itself; the sums are left as the next group wants them. Tells whether a
   membrane stays above its threshold though it was reset. */
SD_INLINE uint32_t neurons(const variant is, place p, int64_t tile) {
    const vf none = {};
    uint32_t loud = 0;
    for (int at = 0; at < TILE; at += SIDE * LANES) {
        const int64_t lane = tile * TILE + at, given = tile * p.apart + at;
        u16a *const bits = (u16a *)(p.fired + 2 * tile) + at / 16;
        vf *const state = (vf *)(p.u + lane);
        vf u[SIDE], d[SIDE], theta[SIDE], bias[SIDE], reset[SIDE];
        vm fired[SIDE], stays[SIDE] = {0};
        UNROLL for (int i = 0; i < SIDE; i++) {
            u[i] = is.mode == NEURON_THRESHOLD ? none : state[i];
            d[i] = is.mode == NEURON_THRESHOLD ? none : ((const vf *)(p.decay + given))[i];
            theta[i] = is.mode == NEURON_LEAK ? none : ((const vf *)(p.theta + given))[i];
            reset[i] = is.mode == NEURON_VALUE ? ((const vf *)(p.reset + given))[i] : none;
            bias[i] = ((const vf *)(p.bias + given))[i];
        }
        UNROLL for (int s = 0; s < is.steps; s++) {
            vf *sum = (vf *)(p.sum + s * p.lanes + p.begin + lane);
            UNROLL for (int i = 0; i < SIDE; i++) {
                fired[i] = sd_neuron_settling(is.steps == 1, is.mode, is.strict, sum[i], &u[i], d[i], theta[i], reset[i], &stays[i]);
                sum[i] = bias[i];
                if (is.numbers) ((vf *)(p.spikes + lane))[i] = ((const vf *)(p.amplitude + given))[i] * sd_select(fired[i], sd_splat(1.0f), none);
            }
            sd_write_mask(SIDE, fired, bits + s * p.tiles * (TILE / 16));
        }
        UNROLL for (int i = 0; i < SIDE; i++) {
            if (is.mode != NEURON_THRESHOLD) state[i] = is.steps == 1 ? u[i] : sd_settle(u[i]);
            if (is.mode == NEURON_VALUE) loud |= sd_mask(stays[i]);
        }
    }
    return loud;
}

/* A group of steps: tiles that an event reached, that hold a membrane above its threshold, or whose silence is not proven. */
SD_INLINE void step_tiles(const sd_event_op *op, const variant is, int integer, int64_t b, place p) {
    uint8_t *touched = p.touched + p.begin / TILE, *loud = op->silent ? op->loud + b * p.tiles : NULL;
    int32_t *pending = op->silent ? op->pending + b * p.tiles : NULL;
    for (int64_t tile = 0; tile < p.tiles; tile++) {
        if (loud) {
            if (!(touched[tile] | loud[tile] | !op->silent[tile]) && pending[tile] < INT32_MAX - STEPS) {
                pending[tile] += is.steps;
                for (int s = 0; s < is.steps; s++) memset(p.fired + 2 * (s * p.tiles + tile), 0, 16);
                continue;
            }
            if (pending[tile] && op->silent[tile] == SILENT_ONCE) catch_up(p, tile, pending[tile], 1);
            else if (pending[tile]) catch_up(p, tile, pending[tile], 0);
            pending[tile] = 0;
        }
        for (int s = 0; integer && s < is.steps; s++) scale_tile(p, s, tile);
        const uint32_t above = neurons(is, p, tile);
        if (loud) loud[tile] = above != 0;
    }
    if (!loud) return;
    const uint64_t *last = p.fired + 2 * (is.steps - 1) * p.tiles;
    for (int64_t tile = 0; tile < p.tiles && is.mode != NEURON_VALUE; tile++) loud[tile] = (last[2 * tile] | last[2 * tile + 1]) != 0;
    memset(touched, 0, (size_t)p.tiles);
}

/* One step's spikes, from the order of lanes to the wire's. First which words are not zero, then which places their spikes have, two at a time, then the bits:
   wrong guesses of how many there are cost more than the work, and so do bits that are set before all earlier places are known. */
SD_INLINE void write_bits(const sd_event_op *op, const uint64_t *fired, uint64_t *bits) {
    const uint64_t *neuron = neuron_bits(op);
    const uint32_t *wire = wire_places(op);
    const int64_t words = op->n[1] / 64;
    memset(bits, 0, (size_t)op->out->words * 8);
    for (int64_t first = 0; first < words; first += ONCE) {
        uint64_t word[ONCE + 8];
        uint32_t at[ONCE + 8], place[64 * ONCE];
        const int64_t found = collect_words(fired + first, neuron + first, words - first < ONCE ? words - first : ONCE, word, at);
        int64_t spikes = 0;
        for (int64_t k = 0; k < found; k++) {
            const uint32_t *lanes = wire + 64 * ((uint32_t)first + at[k]);
            const int64_t end = spikes + __builtin_popcountll(word[k]);
            for (uint64_t now = word[k]; now; spikes += 2)
                UNROLL for (int i = 0; i < 2; i++, now &= now - 1) place[spikes + i] = alone(lanes[lowest(now)]);
            spikes = end;
        }
        for (int64_t k = 0; k < spikes; k++) bits[place[k] / 64] |= (uint64_t)1 << place[k] % 64;
    }
}

/* The currents as numbers, for whoever reads them. */
SD_INLINE void show_currents(const sd_event_op *op, int integer, int64_t row, place p) {
    for (int64_t tile = 0; integer && tile < p.tiles; tile++) scale_tile(p, 0, tile);
    turn(op, p.sum + p.begin, op->current ? op->current : op->out, row);
    if (op->mode == NEURON_NONE) memcpy(p.sum + p.begin, p.bias, (size_t)op->n[1] * sizeof(float));
}

/* One step where somebody reads numbers. */
SD_INLINE void step_shown(const sd_event_op *op, const int ones, int64_t row, int64_t b, place p) {
    const variant is = {op->mode, op->flags & FLAG_STRICT, 1, op->mode > NEURON_LEAK && op->out->dense};
    int integer = currents(op, ones, row, 0, 1, &p);
    if (op->current || is.mode == NEURON_NONE) show_currents(op, integer, row, p), integer = 0;
    if (is.mode == NEURON_NONE) return;
    step_tiles(op, is, integer, b, p);
    if (op->out->bits) write_bits(op, p.fired, op->out->bits + row * op->out->words);
    if (op->mem) turn(op, p.u, op->mem, row);
    if (is.numbers) turn(op, p.spikes, op->out, row);
}

/* Whether the inputs of a group of steps are all one. */
SD_INLINE int all_ones(const sd_wire *in, int64_t row, int64_t batch, int64_t steps) {
    int ones = in->value != NULL || in->amplitude == 1.0f;
    for (int64_t s = 0; in->value && s < steps; s++) ones &= in->ones[row + s * batch];
    return ones;
}

/* Steps of which only the spikes' bits are read, of the three common neurons, each with everything decided at compile time. */
SD_INLINE void step_closed(const sd_event_op *op, const int ones, const int steps, int64_t row, int64_t batch, int64_t b, place p) {
    const int integer = currents(op, ones, row, batch, steps, &p);
    switch (op->mode) {
        case NEURON_PLAIN: step_tiles(op, (variant){NEURON_PLAIN, 1, steps, 0}, integer, b, p); break;
        case NEURON_SUBTRACT: step_tiles(op, (variant){NEURON_SUBTRACT, 1, steps, 0}, integer, b, p); break;
        default: step_tiles(op, (variant){NEURON_ZERO, 1, steps, 0}, integer, b, p);
    }
    for (int s = 0; s < steps; s++) write_bits(op, p.fired + 2 * s * p.tiles, op->out->bits + (row + s * batch) * op->out->words);
}

void sd_event_conv(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    const int common = (op->mode == NEURON_PLAIN || op->mode == NEURON_SUBTRACT || op->mode == NEURON_ZERO) && op->flags & FLAG_STRICT;
    const int closed = common && !op->current && !op->mem && !op->out->dense;
    for (int64_t b = first; b < last; b++)
        for (int64_t t = 0, now; t < steps; t += now) {
            const int64_t row = t * batch + b;
            const int group = closed && op->n[16] && steps - t >= STEPS && all_ones(op->source[0], row, batch, STEPS);
            const int ones = group || all_ones(op->source[0], row, 0, 1);
            now = group ? STEPS : 1;
            if (group) step_closed(op, 1, STEPS, row, batch, b, place_of(op, b));
            else if (closed) step_closed(op, ones, 1, row, batch, b, place_of(op, b));
            else step_shown(op, ones, row, b, place_of(op, b));
        }
}
