/* Lists of events: from bits, or from the numbers of a wire. */
#include "events_common.inc"

/* Entries that may be written beyond the end of a list; `index` and `value` have room for them. */
enum { SLACK = 16 };

/* What was seen of the numbers, zero where there was none: NaN or infinite, neither 0 nor 1. */
typedef struct {
    m16 endless, other;
} seen;

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

/* The numbers of a row that are not zero. */
SD_INLINE int64_t list_numbers(const float *x, int64_t size, uint32_t *index, int64_t k, seen *s) {
    const int64_t whole = size / 64 * 64;
    for (int64_t base = 0; base < whole; base += 64) k = list_word(nonzero(x + base, s), (uint32_t)base, index, k);
    if (whole < size) {
        float rest[64] = {0};
        memcpy(rest, x + whole, (size_t)(size - whole) * sizeof(float));
        k = list_word(nonzero(rest, s), (uint32_t)whole, index, k);
    }
    return k;
}

#include "events_compress.inc"

/* The values of a row's events from `begin` to `end`. */
SD_INLINE void values(const sd_wire *w, const float *x, int64_t begin, int64_t end, int ones) {
    if (ones) for (int64_t e = begin; e < end; e += 16) *(v16u *)(w->value + e) = sd_splat(1.0f);
    else for (int64_t e = begin; e < end; e++) w->value[e] = x[w->index[e]];
}

SD_CLONES void sd_event_lists(const sd_event_op *op, int64_t steps, int64_t batch) {
    sd_wire *w = op->source[0];
    const int64_t rows = steps * batch;
    const int compressing = can_compress();
    m16 endless = {};
    int64_t k = 0;
    if (w->outside) return;
    w->start[0] = 0;
    for (int64_t row = 0; row < rows; row++) {
        if (w->bits) {
            const uint64_t *bits = w->bits + row * w->words;
            k = compressing ? compress_bits(bits, w->words, w->index, k) : list_bits(bits, w->words, w->index, k);
        } else {
            const float *x = w->dense + row * w->stride;
            seen s = {endless, {}};
            k = compressing ? compress_numbers(x, w->size, w->index, k, &s) : list_numbers(x, w->size, w->index, k, &s);
            endless = s.endless;
            w->ones[row] = !sd_mask(s.other != 0);
            values(w, x, w->start[row], k, w->ones[row]);
        }
        w->start[row + 1] = k;
    }
    if (w->bits) w->spikes += k;
    w->finite = !sd_mask(endless != 0);
}
