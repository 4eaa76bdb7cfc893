/* One call runs all operations of a program over a chunk of time. Threads share panels or samples, never a sum. */
#include "events_common.inc"

SD_INLINE int64_t list_bits(const uint64_t *bits, int64_t words, uint32_t *index, int64_t k) {
    for (int64_t w = 0; w < words; w++)
        for (uint64_t word = bits[w]; word; word &= word - 1) index[k++] = (uint32_t)(64 * w + __builtin_ctzll(word));
    return k;
}

/* Sixty-four numbers as bits: which are not zero. */
SD_INLINE uint64_t nonzero(const float *x) {
    const v16u *v = (const v16u *)x;
    uint64_t word = 0;
    for (int i = 0; i < 4; i++) word |= (uint64_t)sd_mask(v[i] != 0.0f) << (16 * i);
    return word;
}

SD_INLINE int64_t list_dense(sd_wire *w, const float *x, int64_t k, uint8_t *ones) {
    uint32_t same = 1;
    int64_t base = 0;
    for (; base + 64 <= w->size; base += 64)
        for (uint64_t word = nonzero(x + base); word; word &= word - 1, k++) {
            int64_t i = base + __builtin_ctzll(word);
            w->index[k] = (uint32_t)i;
            w->value[k] = x[i];
            same &= x[i] == 1.0f;
        }
    for (; base < w->size; base++)
        if (x[base] != 0.0f) {
            w->index[k] = (uint32_t)base;
            same &= (w->value[k++] = x[base]) == 1.0f;
        }
    *ones = (uint8_t)same;
    return k;
}

SD_CLONES void sd_event_lists(const sd_event_op *op, int64_t steps, int64_t batch) {
    sd_wire *w = op->source[0];
    int64_t k = 0;
    if (w->outside) return;
    w->start[0] = 0;
    for (int64_t row = 0; row < steps * batch; row++) {
        k = w->bits ? list_bits(w->bits + row * w->words, w->words, w->index, k) : list_dense(w, w->dense + row * w->stride, k, &w->ones[row]);
        w->start[row + 1] = k;
    }
}

SD_CLONES static int64_t count_bits(const uint64_t *bits, int64_t words) {
    int64_t total = 0;
    for (int64_t w = 0; w < words; w++) total += __builtin_popcountll(bits[w]);
    return total;
}

/* Spikes of different sizes have no bits; a size of zero is no spike. */
SD_CLONES static void count_dense(sd_wire *w, int64_t rows) {
    for (int64_t row = 0; row < rows; row++)
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
    if (op->out->bits) op->out->spikes += count_bits(op->out->bits, steps * batch * op->out->words);
    else if (op->mode >= NEURON_PLAIN) count_dense(op->out, steps * batch);
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
            case OP_DELTA: sd_event_memory(op, steps, batch); break;
            case OP_MATMUL: sd_event_matmul(op, steps, batch); break;
            case OP_SSM: sd_event_ssm(op, steps, batch); break;
            default: sd_event_dense(op, steps, batch);
        }
    }
}

/* Hands the numbers of a block over to the caller, in time order. */
SD_CLONES static void keep(const sd_kept *kept, int64_t first, int64_t steps, int64_t batch) {
    const sd_wire *w = kept->wire;
    const int64_t size = w->size;
    for (int64_t row = 0; row < steps * batch; row++) {
        const float *y = w->dense + row * w->stride;
        float *restrict into = kept->into + (kept->reduce ? row % batch : first * batch + row) * size;
        int fresh = first == 0 && row < batch;
        if (kept->reduce == 1 && !fresh) for (int64_t i = 0; i < size; i++) into[i] = into[i] + y[i];
        else if (kept->reduce == 1) for (int64_t i = 0; i < size; i++) into[i] = 0.0f + y[i];
        else if (kept->reduce == 3 && !fresh) for (int64_t i = 0; i < size; i++) into[i] = into[i] > y[i] ? into[i] : y[i];
        else memcpy(into, y, (size_t)size * sizeof(float));
    }
}

/* Whether no number is NaN or infinite: those have an exponent of ones only. */
SD_CLONES int sd_event_finite(const float *x, int64_t count) {
    const int32_t high = 0x7f800000;
    int32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], 4);
        bad |= (bits & high) == high;
    }
    return !bad;
}

/* A whole sequence: block after block, all operations on each; the input pointers move along. Returns 0 at the first block that holds NaN or infinity. */
int sd_event_sequence(sd_event_op *const *ops, int64_t count, int64_t steps, int64_t block, int64_t batch, int64_t threads, sd_wire *input,
                      const sd_kept *kept, int64_t keeping) {
    for (int64_t first = 0; first < steps; first += block) {
        int64_t now = steps - first < block ? steps - first : block;
        if (!input->outside && !sd_event_finite(input->dense, now * batch * input->stride)) return 0;
        sd_event_run(ops, count, now, batch, threads);
        for (int64_t i = 0; i < keeping; i++) keep(&kept[i], first, now, batch);
        if (input->outside) input->start += now * batch, input->ones += now * batch;
        else input->dense += now * batch * input->stride;
    }
    return 1;
}
