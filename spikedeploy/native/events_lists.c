/* Lists of events: from bits, or from the numbers of a wire. */
#include "events_common.inc"

/* Entries that may be written beyond the end of a list; `index` and `value` have room for them. */
enum { SLACK = 16 };

/* Four events at a time without asking how many there are: what is too many is overwritten by the next word. */
SD_INLINE int64_t list_word(uint64_t word, uint32_t base, uint32_t *index, int64_t k) {
    const int64_t end = k + __builtin_popcountll(word);
    do {
        for (int i = 0; i < 4; i++, word &= word - 1) {
            uint32_t place = base + (uint32_t)__builtin_ctzll(word | (uint64_t)1 << 63);
            __asm__("" : "+r"(place)); /* collecting four in a vector first costs more than four stores */
            index[k + i] = place;
        }
        k += 4;
    } while (word);
    return end;
}

SD_INLINE int64_t list_bits(const uint64_t *bits, int64_t words, uint32_t *index, int64_t k) {
    int64_t w = 0;
    for (; w + 4 <= words; w += 4) {
        if (!(bits[w] | bits[w + 1] | bits[w + 2] | bits[w + 3])) continue;
        for (int i = 0; i < 4; i++) k = list_word(bits[w + i], (uint32_t)(64 * (w + i)), index, k);
    }
    for (; w < words; w++) k = list_word(bits[w], (uint32_t)(64 * w), index, k);
    return k;
}

/* What was seen of the numbers, zero where there was none: NaN or infinite, neither 0 nor 1. */
typedef struct {
    m16 endless, other;
} seen;

/* Sixty-four numbers as bits: which are not zero. */
SD_INLINE uint64_t nonzero(const float *x, seen *s) {
    m16 on[4];
    for (int i = 0; i < 4; i++) {
        const v16 now = ((const v16u *)x)[i];
        on[i] = ((m16)now & 0x7fffffff) != 0;
        s->endless |= (m16)(now - now);
        s->other |= on[i] & ((m16)now ^ 0x3f800000);
    }
    return sd_mask_pair(on[0], on[1]) | (uint64_t)sd_mask_pair(on[2], on[3]) << 32;
}

/* One row of numbers; returns where its list ends. */
SD_INLINE int64_t list_dense(const sd_wire *w, const float *x, int64_t k, m16 *endless, uint8_t *ones) {
    const int64_t begin = k, whole = w->size / 64 * 64;
    seen s = {*endless, {}};
    for (int64_t base = 0; base < whole; base += 64) k = list_word(nonzero(x + base, &s), (uint32_t)base, w->index, k);
    if (whole < w->size) {
        float rest[64] = {0};
        memcpy(rest, x + whole, (size_t)(w->size - whole) * sizeof(float));
        k = list_word(nonzero(rest, &s), (uint32_t)whole, w->index, k);
    }
    *endless = s.endless;
    *ones = !sd_mask(s.other != 0);
    if (*ones) for (int64_t e = begin; e < k; e += 16) *(v16u *)(w->value + e) = sd_splat(1.0f);
    else for (int64_t e = begin; e < k; e++) w->value[e] = x[w->index[e]];
    return k;
}

SD_CLONES void sd_event_lists(const sd_event_op *op, int64_t steps, int64_t batch) {
    sd_wire *w = op->source[0];
    const int64_t rows = steps * batch;
    m16 endless = {};
    int64_t k = 0;
    if (w->outside) return;
    w->start[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        k = w->bits ? list_bits(w->bits + row * w->words, w->words, w->index, k) : list_dense(w, w->dense + row * w->stride, k, &endless, &w->ones[row]);
        w->start[row + 1] = k;
    }
    if (w->bits) w->spikes += k;
    w->finite = !sd_mask(endless != 0);
}
