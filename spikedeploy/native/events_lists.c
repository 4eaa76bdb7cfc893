/* Lists of events: from bits, or from the numbers of a wire. */
#include "events_common.inc"

/* Entries that may be written beyond the end of a list; `index` and `value` have room for them. */
enum { SLACK = 16 };

/* What was seen of the numbers, zero where there was none: NaN or infinite, neither 0 nor 1. */
typedef struct {
    vi endless, other;
} seen;

#if defined(__AVX512F__)
#include "events_compress.inc"
#else
#include "events_list.inc"
#endif

/* The values of a row's events from `begin` to `end`. */
SD_INLINE void values(const sd_wire *w, const float *x, int64_t begin, int64_t end, int ones) {
    if (ones) for (int64_t e = begin; e < end; e += LANES) *(vfu *)(w->value + e) = sd_splat(1.0f);
    else for (int64_t e = begin; e < end; e++) w->value[e] = x[w->index[e]];
}

void sd_event_lists(const sd_event_op *op, int64_t steps, int64_t batch) {
    sd_wire *w = op->source[0];
    const int64_t rows = steps * batch;
    vi endless = {};
    int64_t k = 0;
    if (w->outside) return;
    w->start[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        if (w->bits) {
            const uint64_t *bits = w->bits + row * w->words;
            k = list_bits(bits, w->words, w->index, k);
        } else {
            const float *x = w->dense + row * w->stride;
            seen s = {endless, {}};
            k = list_numbers(x, w->size, w->index, k, &s);
            endless = s.endless;
            w->ones[row] = !sd_mask(s.other != 0);
            values(w, x, w->start[row], k, w->ones[row]);
        }
        w->start[row + 1] = k;
    }
    if (w->bits) w->spikes += k;
    w->finite = !sd_mask(endless != 0);
}
