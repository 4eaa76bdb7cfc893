/* One call runs all operations of a program over a chunk of time. Threads share panels or samples, never a sum. */
#include <math.h>

#include "events_common.inc"

enum { KEEP_ALL, KEEP_SUM, KEEP_LAST, KEEP_MAX };

/* Adds up the spikes of a wire that is not listed: a list counts by itself. Spikes of different sizes have no bits; a size of zero is no spike. */
static void count_spikes(sd_wire *w, int64_t rows) {
    if (w->bits && w->start) return;
    if (w->bits) for (int64_t i = 0; i < rows * w->words; i++) w->spikes += __builtin_popcountll(w->bits[i]);
    else for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < w->size; i++) w->spikes += w->dense[row * w->stride + i] != 0.0f;
}

static void split(const sd_event_op *op, int64_t steps, int64_t batch, int64_t threads) {
    void (*run)(const sd_event_op *, int64_t, int64_t, int64_t, int64_t) = op->kind == OP_CONV ? sd_event_conv : sd_event_layer;
    int64_t parts = op->kind == OP_CONV ? batch : op->n[3];
    if (threads > 1 && parts > 1 && steps * batch > 1) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
        for (int64_t part = 0; part < parts; part++) run(op, steps, batch, part, part + 1);
    } else {
        run(op, steps, batch, 0, parts);
    }
    if (op->mode >= NEURON_PLAIN) count_spikes(op->out, steps * batch);
}

void sd_event_run(sd_event_op *const *ops, int64_t count, int64_t steps, int64_t batch, int64_t threads) {
    for (int64_t i = 0; i < count; i++) {
        sd_event_op *op = ops[i];
        switch (op->kind) {
            case OP_EVENTS: sd_event_lists(op, steps, batch); break;
            case OP_LAYER:
            case OP_CONV: split(op, steps, batch, threads); break;
            case OP_POOL: sd_event_pool(op, steps, batch); break;
            case OP_MEMORY:
            case OP_DELTA:
                sd_event_memory(op, steps, batch);
                if (op->mem) count_spikes(op->mem, steps * batch);
                break;
            case OP_MATMUL: sd_event_matmul(op, steps, batch); break;
            case OP_SSM: sd_event_ssm(op, steps, batch); break;
            default: sd_event_dense(op, steps, batch);
        }
    }
}

/* A vector of numbers of a kept wire; spikes that were never written as numbers are made from their bits. */
SD_INLINE vf numbers(const sd_wire *w, int64_t row, int64_t at) {
    if (w->dense) return *(const vf *)(w->dense + row * w->stride + at);
    const uint32_t bits = ((const u16a *)(w->bits + row * w->words))[at / 16] >> (PARTS > 1 ? at % 16 : 0);
    return w->amplitude * sd_select(sd_unmask(bits, 0), sd_splat(1.0f), (vf){});
}

SD_INLINE vf reduced(const int reduce, vf before, vf y) {
    if (reduce == KEEP_SUM) return before + y;
    return reduce == KEEP_MAX ? sd_select(sd_above(before, y), before, y) : y;
}

SD_INLINE void keep_row(const sd_wire *w, const int reduce, int fresh, float *into, int64_t row) {
    const vf start = sd_splat(reduce == KEEP_MAX ? -INFINITY : 0.0f);
    int64_t at = 0;
    for (; at + LANES <= w->size; at += LANES) {
        vfu *to = (vfu *)(into + at);
        const vf before = fresh ? start : (vf)*to;
        *to = (vfu)reduced(reduce, before, numbers(w, row, at));
    }
    if (at < w->size) {
        vf before = start;
        if (!fresh) memcpy(&before, into + at, (size_t)(w->size - at) * sizeof(float));
        before = reduced(reduce, before, numbers(w, row, at));
        memcpy(into + at, &before, (size_t)(w->size - at) * sizeof(float));
    }
}

#if SD_VECTOR == 64
enum { COUNTABLE = 1 << 24, BYTE = 255 }; /* ones that float32 counts one by one, and a byte */

/* The sum over time of spikes of size one kept as bits: counted in bytes first. */
static void keep_count_of_bits(const sd_wire *w, int fresh, float *into, int64_t b, int64_t steps, int64_t batch) {
    for (int64_t at = 0; at < w->size; at += 64) {
        const size_t bytes = (size_t)(w->size - at < 64 ? w->size - at : 64) * sizeof(float);
        float sum[64] = {0};
        if (!fresh) memcpy(sum, into + at, bytes);
        for (int64_t t = 0; t < steps; t += BYTE) {
            uint8_t times[64];
            sd_count_bits(w->bits + (t * batch + b) * w->words + at / 64, batch * w->words, steps - t < BYTE ? steps - t : BYTE, times);
            for (int i = 0; i < 64; i++) sum[i] += (float)times[i];
        }
        memcpy(into + at, sum, bytes);
    }
}
#endif

/* The sum over time of spikes kept as bits, sixty-four columns at a time in registers. */
SD_INLINE void keep_sum_of_bits(const sd_wire *w, int fresh, float *into, int64_t b, int64_t rows, int64_t batch) {
    for (int64_t at = 0; at < w->size; at += 64) {
        const size_t bytes = (size_t)(w->size - at < 64 ? w->size - at : 64) * sizeof(float);
        vf sum[64 / LANES] = {};
        if (!fresh) memcpy(sum, into + at, bytes);
        for (int64_t row = b; row < rows; row += batch) {
            const m1 *word = (const m1 *)(w->bits + row * w->words + at / 64);
            UNROLL for (int i = 0; i < 64 / LANES; i++) {
                const vm fired = sd_unmask((uint32_t)word[LANES * i / 32], LANES * i % 32);
                sum[i] += sd_select(fired, sd_splat(w->amplitude), (vf){});
            }
        }
        memcpy(into + at, sum, bytes);
    }
}

/* Hands the numbers of a block over to the caller, in time order. */
static void keep(const sd_kept *kept, int64_t first, int64_t steps, int64_t batch) {
    const sd_wire *w = kept->wire;
    const int64_t rows = steps * batch;
    if (kept->reduce == KEEP_SUM && !w->dense) {
#if SD_VECTOR == 64
        if (w->amplitude == 1.0f && first + steps <= COUNTABLE) {
            for (int64_t b = 0; b < batch; b++) keep_count_of_bits(w, first == 0, kept->into + b * w->size, b, steps, batch);
            return;
        }
#endif
        for (int64_t b = 0; b < batch; b++) keep_sum_of_bits(w, first == 0, kept->into + b * w->size, b, rows, batch);
        return;
    }
    for (int64_t row = kept->reduce == KEEP_LAST ? rows - batch : 0; row < rows; row++) {
        float *into = kept->into + (kept->reduce ? row % batch : first * batch + row) * w->size;
        const int fresh = first == 0 && row < batch;
        switch (kept->reduce) {
            case KEEP_SUM: keep_row(w, KEEP_SUM, fresh, into, row); break;
            case KEEP_MAX: keep_row(w, KEEP_MAX, fresh, into, row); break;
            default: keep_row(w, KEEP_ALL, fresh, into, row);
        }
    }
}

/* Whether no number is NaN or infinite: then x - x is +0, whose bits are all zero. */
int sd_event_finite(const float *x, int64_t count) {
    vi odd[8] = {};
    int32_t rest = 0;
    int64_t i = 0;
    for (; i + 8 * LANES <= count; i += 8 * LANES) {
        const vfu *v = (const vfu *)(x + i);
        for (int k = 0; k < 8; k++) odd[k] |= (vi)(v[k] - v[k]);
    }
    for (; i < count; i++) rest |= !(x[i] - x[i] == 0.0f);
    for (int k = 1; k < 8; k++) odd[0] |= odd[k];
    return !(rest | (int32_t)sd_mask(sd_some(odd[0])));
}

/* A whole sequence: block after block, all operations on each; the input pointers move along. Returns 0 at the first block that holds NaN or infinity. */
int sd_event_sequence(sd_event_op *const *ops, int64_t count, int64_t steps, int64_t block, int64_t batch, int64_t threads, sd_wire *input,
                      const sd_kept *kept, int64_t keeping) {
    for (int64_t first = 0; first < steps; first += block) {
        int64_t now = steps - first < block ? steps - first : block;
        const int listed = input->start != NULL;
        if (!input->outside && !listed && !sd_event_finite(input->dense, now * batch * input->stride)) return 0;
        sd_event_run(ops, count, now, batch, threads);
        if (!input->outside && listed && !input->finite) return 0;
        for (int64_t i = 0; i < keeping; i++) keep(&kept[i], first, now, batch);
        if (input->outside) input->start += now * batch, input->ones += now * batch;
        else input->dense += now * batch * input->stride;
    }
    return 1;
}
