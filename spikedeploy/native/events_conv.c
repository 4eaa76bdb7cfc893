/* A convolution over events and the neurons behind it: each event is scattered over its kernel. Inside, outputs lie channels-last in rows of pixels with a
   margin, so that every event adds one patch of the same size, vector by vector, without a branch: what falls outside lands in the margin. An output still
   receives its terms in ascending input order because the events come in that order. Taps that a patch has too many weigh zero, and adding zero changes no
   sum, which is never -0 (the bias is not).

   n: 0 W, 1 lanes of all neurons (whole tiles), 2 lanes of a patch's pixel, 3 tiles, 4 O, 5 H', 6 W', 7 lanes of a row, 8 lanes of a pixel, 9..10 rows and
   pixels of a patch, 11..12 lanes from one to the next, 13 where the neurons begin in the sums, 14 lanes of the sums, 15 C H, 16..17 how to divide by W.
   `taps`: C H times ROW integers, W times COLUMN integers, then per neuron its index on the wire, in the order of a tile's bits. */
#include "events_common.inc"

typedef float v8 __attribute__((vector_size(32), may_alias));
typedef uint32_t q8 __attribute__((vector_size(32), may_alias));
typedef uint32_t q16 __attribute__((vector_size(64), may_alias));

#define UNROLL _Pragma("GCC unroll 8")

enum { SILENT_ONCE = 2 }; /* of `silent` */
enum { TILE = 128, VECTORS = TILE / 16 };
enum { TO, FROM, FIRST, ROW_LOW, ROW_HIGH, ROW };  /* place in the sums, place in the weights, first true tap, true lanes */
enum { COLUMN = FIRST + 1 };

/* What one sample works with: sums and integer sums (of events), spikes as numbers, and per tile of the sums whether an event fell into it. */
typedef struct {
    float *sum, *spikes, *u;
    uint32_t *total, *fired;
    uint8_t *touched; /* all zero between steps */
    const float *bias, *scale, *decay, *theta, *amplitude, *reset;
} place;

SD_INLINE place place_of(const sd_event_op *op, int64_t b) {
    const int64_t lanes = op->n[14];
    float *at = op->scratch + b * 5 * lanes;
    return (place){at, at + 2 * lanes, op->state ? op->state + b * op->n[1] : NULL, (uint32_t *)(at + lanes), (uint32_t *)(at + 4 * lanes),
                   (uint8_t *)(at + 3 * lanes), op->bias, op->scale, op->decay, op->theta, op->amplitude, op->reset};
}

typedef struct {
    const int32_t *row, *column;
} taps;

SD_INLINE taps taps_of(const sd_event_op *op, uint32_t index) {
    const uint32_t line = (uint32_t)((uint64_t)index * (uint64_t)op->n[16] >> op->n[17]);
    return (taps){op->taps + line * ROW, op->taps + op->n[15] * ROW + (index - line * (uint32_t)op->n[0]) * COLUMN};
}

/* Marks the tiles that a row's events fall into; all of them where the events are so many that telling tiles apart would not pay. */
SD_INLINE void touch(const sd_event_op *op, uint8_t *touched, int64_t begin, int64_t end) {
    const int64_t rows = op->n[9], reach = (op->n[10] - 1) * op->n[12] + op->n[2] - 1;
    if ((end - begin) * rows >= op->n[3]) {
        memset(touched + op->n[13] / TILE, 1, (size_t)op->n[3]);
        return;
    }
    for (int64_t e = begin; e < end; e++) {
        taps t = taps_of(op, op->source[0]->index[e]);
        int64_t at = t.row[TO] + t.column[TO];
        for (int64_t i = 0; i < rows; i++, at += op->n[11])
            for (int64_t tile = at / TILE; tile <= (at + reach) / TILE; tile++) touched[tile] = 1;
    }
}

/* One event's patch; vectors per pixel, pixels and rows are constants where the caller has them. */
#define PATCH(NAME, TYPE, VECTOR)                                                                                                                      \
    SD_INLINE void NAME(const sd_event_op *op, const int rows, const int pixels, const int vectors, TYPE *to, const TYPE *from, TYPE x) {            \
        for (int i = 0; i < rows; i++, to += op->n[11])                                                                                                \
            for (int j = 0; j < pixels; j++)                                                                                                           \
                for (int v = 0; v < vectors; v++, from += sizeof(VECTOR) / 4) ((VECTOR *)(to + j * op->n[12]))[v] += x * *(const VECTOR *)from;       \
    }
PATCH(patch_v8, float, v8)
PATCH(patch_v16, float, v16)
PATCH(patch_q8, uint32_t, q8)
PATCH(patch_q16, uint32_t, q16)

/* An infinite or undefined input times the zero of a missing tap is not zero: here only true taps count. */
static __attribute__((noinline)) void patch_true(const sd_event_op *op, taps t, float *to, const float *from, float x) {
    const int64_t *n = op->n;
    for (int64_t i = t.row[FIRST]; i < n[9]; i++)
        for (int64_t j = t.column[FIRST]; j < n[10]; j++)
            for (int32_t o = t.row[ROW_LOW]; o < t.row[ROW_HIGH]; o++) to[i * n[11] + j * n[12] + o] += x * from[(i * n[10] + j) * n[2] + o];
}

#define SCATTER(NAME, TYPE, PATCHES, INTO, WEIGHT, VALUE, CHECK)                                                                    \
    SD_INLINE void NAME(const sd_event_op *op, const int rows, const int pixels, const int vectors, place p, int64_t begin, int64_t end) {  \
        const sd_wire *in = op->source[0];                                                                                          \
        for (int64_t e = begin; e < end; e++) {                                                                                     \
            taps t = taps_of(op, in->index[e]);                                                                                     \
            const int32_t at = t.row[TO] + t.column[TO];                                                                            \
            const TYPE *from = (const TYPE *)op->WEIGHT + t.row[FROM] + t.column[FROM], x = VALUE;                                  \
            CHECK PATCHES(op, rows, pixels, vectors, p.INTO + at, from, x);                                                         \
        }                                                                                                                           \
    }
#define FINITE if (__builtin_expect(!(x - x == 0.0f), 0)) patch_true(op, t, p.sum + at, from, x); else
#define GIVEN (in->value ? in->value[e] : in->amplitude)
SCATTER(scatter_v8, float, patch_v8, sum, weight, GIVEN, FINITE)
SCATTER(scatter_v16, float, patch_v16, sum, weight, GIVEN, FINITE)
SCATTER(scatter_q8, uint32_t, patch_q8, total, integer, 1, )
SCATTER(scatter_q16, uint32_t, patch_q16, total, integer, 1, )

/* Whether this row's currents are integer sums, which they are where all its values are one. */
SD_INLINE int currents(const sd_event_op *op, int64_t row, place p) {
    const sd_wire *in = op->source[0];
    const int rows = (int)op->n[9], pixels = (int)op->n[10], lanes = (int)op->n[2], wide = lanes == op->n[8] && lanes % 16 == 0;
    const int64_t begin = in->start[row], end = in->start[row + 1];
    if (op->silent) touch(op, p.touched, begin, end);
    if (op->integer && (!in->value || in->ones[row])) {
        if (wide) scatter_q16(op, rows, pixels, lanes / 16, p, begin, end);
        else scatter_q8(op, rows, pixels, lanes / 8, p, begin, end);
        return 1;
    }
    if (lanes == 8 && rows == 2 && pixels == 2) scatter_v8(op, 2, 2, 1, p, begin, end);
    else if (lanes == 8 && rows == 3 && pixels == 3) scatter_v8(op, 3, 3, 1, p, begin, end);
    else if (wide && lanes == 16 && rows == 2 && pixels == 2) scatter_v16(op, 2, 2, 1, p, begin, end);
    else if (wide && lanes == 16 && rows == 3 && pixels == 3) scatter_v16(op, 3, 3, 1, p, begin, end);
    else if (wide) scatter_v16(op, rows, pixels, lanes / 16, p, begin, end);
    else scatter_v8(op, rows, pixels, lanes / 8, p, begin, end);
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

/* A tile's integer sums as currents; they are zero afterwards. */
SD_INLINE void scale_tile(place p, int64_t begin, int64_t at) {
    for (int64_t lane = at; lane < at + TILE; lane += 16) {
        q16 *total = (q16 *)(p.total + begin + lane);
        *(v16 *)(p.sum + begin + lane) = __builtin_convertvector((m16)*total, v16) * *(const v16 *)(p.scale + lane) + *(const v16 *)(p.bias + lane);
        *total = (q16){};
    }
}

/* A vector of currents; its sums are left as the next step wants them. */
SD_INLINE v16 take(place p, int64_t begin, int64_t at) {
    v16 *sum = (v16 *)(p.sum + begin + at), x = *sum;
    *sum = *(const v16 *)(p.bias + at);
    return x;
}

/* The leak of `steps` steps without events, with the very operations of stepping; ends early where nothing moves any more. Several vectors at a time, because
   each waits for itself. `once`: settling at the end is enough, see `events_conv.py`. */
SD_INLINE void catch_up(place p, int64_t at, int32_t steps, const int once) {
    const v16 *d = (const v16 *)(p.decay + at), *b = (const v16 *)(p.bias + at);
    v16 *state = (v16 *)(p.u + at);
    for (int v = 0; v < VECTORS; v += 4) {
        v16 now[4];
        UNROLL for (int i = 0; i < 4; i++) now[i] = state[v + i];
        for (int32_t k = 0; k < steps; k++) {
            m16 moved = {};
            UNROLL for (int i = 0; i < 4; i++) {
                v16 next = d[v + i] * now[i] + b[v + i];
                if (!once) next = sd_settle(next);
                if (k % 16 == 0) moved |= (m16)next ^ (m16)now[i];
                now[i] = next;
            }
            if (k % 16 == 0 && !sd_mask(moved != 0)) break;
        }
        UNROLL for (int i = 0; i < 4; i++) state[v + i] = sd_settle(now[i]);
    }
}

/* What the compiler is to know; `numbers`: spikes are wanted as numbers too. */
typedef struct {
    int mode, strict, numbers;
} variant;

/* One step of a tile's neurons: in `fired` bit v of byte l tells about lane l of vector v. */
SD_INLINE void neurons(const variant is, place p, int64_t begin, int64_t at, uint64_t fired[2], uint64_t loud[2]) {
    m16 spikes = {}, above = {};
    for (int v = 0; v < VECTORS; v++) {
        const int64_t lane = at + 16 * v;
        m16 stays = {};
        v16 none = {}, d = is.mode == NEURON_THRESHOLD ? none : *(const v16 *)(p.decay + lane);
        v16 theta = is.mode == NEURON_LEAK ? none : *(const v16 *)(p.theta + lane), reset = is.mode == NEURON_VALUE ? *(const v16 *)(p.reset + lane) : none;
        v16 *u = is.mode == NEURON_THRESHOLD ? &none : (v16 *)(p.u + lane);
        m16 now = sd_neuron(is.mode, is.strict, take(p, begin, lane), u, d, theta, reset, &stays);
        spikes |= now & (1 << v);
        if (is.mode == NEURON_VALUE) above |= stays;
        if (is.numbers) *(v16 *)(p.spikes + lane) = *(const v16 *)(p.amplitude + lane) * sd_select(now, sd_splat(1.0f), (v16){});
    }
    b16 bytes = __builtin_convertvector(spikes, b16);
    memcpy(fired, &bytes, 16);
    if (is.mode == NEURON_VALUE) bytes = __builtin_convertvector(above, b16);
    memcpy(loud, &bytes, 16);
}

/* Appends where a word has ones; the first two are written whether they are there or not, because a wrong guess of their number
   costs more: a list has room for two more entries. */
SD_INLINE int64_t list_word(uint32_t *list, int64_t k, int64_t at, uint64_t word) {
    const uint64_t end = (uint64_t)1 << 63, rest = word & (word - 1);
    list[k] = (uint32_t)(at + __builtin_ctzll(word | end));
    list[k + 1] = (uint32_t)(at + __builtin_ctzll(rest | end));
    int64_t i = k + 2;
    for (uint64_t more = rest & (rest - 1); more; more &= more - 1) list[i++] = (uint32_t)(at + __builtin_ctzll(more));
    return k + __builtin_popcountll(word);
}

/* One step: tiles that an event reached, that hold a membrane above its threshold, or whose silence is not proven. */
SD_INLINE void step_tiles(const sd_event_op *op, const variant is, int integer, int64_t row, int64_t b, place p) {
    const int64_t tiles = op->n[3], begin = op->n[13];
    uint8_t *touched = p.touched + begin / TILE, *loud = op->silent ? op->loud + b * tiles : NULL;
    int32_t *pending = op->silent ? op->pending + b * tiles : NULL;
    int64_t spikes = 0;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t at = tile * TILE;
        uint64_t fired[2], above[2];
        if (loud) {
            if (!(touched[tile] | loud[tile] | !op->silent[tile]) && pending[tile] < INT32_MAX) {
                pending[tile]++;
                continue;
            }
            if (pending[tile] && op->silent[tile] == SILENT_ONCE) catch_up(p, at, pending[tile], 1);
            else if (pending[tile]) catch_up(p, at, pending[tile], 0);
            pending[tile] = 0;
        }
        if (integer) scale_tile(p, begin, at);
        neurons(is, p, begin, at, fired, above);
        if (loud) loud[tile] = (above[0] | above[1]) != 0;
        spikes = list_word(p.fired, spikes, at, fired[0]);
        spikes = list_word(p.fired, spikes, at + TILE / 2, fired[1]);
    }
    if (loud) memset(touched, 0, (size_t)tiles);
    if (!op->out->bits) return;
    const uint32_t *wire = (const uint32_t *)op->taps + op->n[15] * ROW + op->n[0] * COLUMN;
    uint64_t *bits = op->out->bits + row * op->out->words;
    memset(bits, 0, (size_t)op->out->words * 8);
    for (int64_t k = 0; k < spikes; k++) bits[wire[p.fired[k]] / 64] |= (uint64_t)1 << (wire[p.fired[k]] % 64);
}

/* The currents as numbers, for whoever reads them. */
SD_INLINE void show_currents(const sd_event_op *op, int integer, int64_t row, place p) {
    const int64_t begin = op->n[13];
    for (int64_t at = 0; integer && at < op->n[1]; at += TILE) scale_tile(p, begin, at);
    turn(op, p.sum + begin, op->current ? op->current : op->out, row);
    if (op->mode == NEURON_NONE) memcpy(p.sum + begin, p.bias, (size_t)op->n[1] * sizeof(float));
}

SD_CLONES void sd_event_conv(const sd_event_op *op, int64_t steps, int64_t batch, int64_t first, int64_t last) {
    const variant is = {op->mode, op->flags & FLAG_STRICT, op->mode > NEURON_LEAK && op->out->dense};
    const int common = is.strict && !is.numbers ? is.mode : NEURON_NONE, shown = op->current || is.mode == NEURON_NONE;
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = first; b < last; b++) {
            const int64_t row = t * batch + b;
            place p = place_of(op, b);
            int integer = currents(op, row, p);
            if (shown) show_currents(op, integer, row, p), integer = 0;
            if (is.mode == NEURON_NONE) continue;
            switch (common) {
                case NEURON_PLAIN: step_tiles(op, (variant){NEURON_PLAIN, 1, 0}, integer, row, b, p); break;
                case NEURON_SUBTRACT: step_tiles(op, (variant){NEURON_SUBTRACT, 1, 0}, integer, row, b, p); break;
                case NEURON_ZERO: step_tiles(op, (variant){NEURON_ZERO, 1, 0}, integer, row, b, p); break;
                default: step_tiles(op, is, integer, row, b, p);
            }
            if (op->mem) turn(op, p.u, op->mem, row);
            if (is.numbers) turn(op, p.spikes, op->out, row);
        }
}

/* Sums over windows, from events: every event is added to a block of outputs. n: 0 W, 1 C H, 2 outputs, 3 W', 4..5 how to divide by W. `taps`: per input row (of
   any channel) and then per input column, the first output place and the number of output rows or columns that see it. */
SD_CLONES void sd_event_pool(const sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t *n = op->n;
    const sd_wire *in = op->source[0];
    for (int64_t row = 0; row < steps * batch; row++) {
        float *y = op->out->dense + row * op->out->stride;
        memset(y, 0, (size_t)n[2] * sizeof(float));
        for (int64_t e = in->start[row]; e < in->start[row + 1]; e++) {
            const uint32_t line = (uint32_t)((uint64_t)in->index[e] * (uint64_t)n[4] >> n[5]);
            const int32_t *down = op->taps + 2 * line, *across = op->taps + 2 * (n[1] + in->index[e] - line * (uint32_t)n[0]);
            const float x = in->value ? in->value[e] : in->amplitude;
            float *to = y + down[0] + across[0];
            for (int32_t i = 0; i < down[1]; i++, to += n[3])
                for (int32_t j = 0; j < across[1]; j++) to[j] += x;
        }
    }
}
