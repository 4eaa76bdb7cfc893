/* Lists of events: from bits, or from the numbers of a wire. */
#include "events_common.inc"
#include "events_words.inc"

/* Entries that may be written beyond the end of a list; `index` and `value` have room for them. */
enum { SLACK = 16 };

/* What was seen of the numbers, zero where there was none: NaN or infinite, neither 0 nor 1. */
typedef struct {
    vi endless, other;
} seen;

/* Some events at a time without asking how many there are: what is too many is overwritten by the next word. */
SD_INLINE int64_t list_word(const int once, uint64_t word, uint32_t base, uint32_t *index, int64_t k) {
    const int64_t end = k + __builtin_popcountll(word);
    do {
        for (int i = 0; i < once; i++, word &= word - 1) index[k + i] = alone(base + lowest(word));
        k += once;
    } while (word);
    return end;
}

/* Bits of which most words have none. */
static int64_t list_few_bits(const uint64_t *bits, int64_t words, uint32_t *index, int64_t k) {
    for (int64_t first = 0; first < words; first += 64) {
        uint64_t word[64 + 8];
        uint32_t at[64 + 8];
        const int64_t found = collect_words(bits + first, NULL, words - first < 64 ? words - first : 64, word, at);
        for (int64_t i = 0; i < found; i++) k = list_word(2, word[i], 64 * ((uint32_t)first + at[i]), index, k);
    }
    return k;
}

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
    int64_t k = 0, count = 0; /* of the row before; of the first its own */
    if (w->outside) return;
    w->start[0] = 0;
    for (int64_t i = 0; w->bits && i < w->words; i++) count += __builtin_popcountll(w->bits[i]);
    for (int64_t row = 0; row < rows; row++) {
        if (w->bits) {
            const uint64_t *bits = w->bits + row * w->words;
            k = count < w->words ? list_few_bits(bits, w->words, w->index, k) : list_many_bits(bits, w->words, w->index, k);
            count = k - w->start[row];
        } else {
            const float *x = w->dense + row * w->stride;
            seen s = {endless, {}};
            k = list_numbers(x, w->size, w->index, k, &s);
            endless = s.endless;
            w->ones[row] = !sd_mask(sd_some(s.other));
            values(w, x, w->start[row], k, w->ones[row]);
        }
        w->start[row + 1] = k;
    }
    if (w->bits) w->spikes += k;
    w->finite = !sd_mask(sd_some(endless));
}
