/* Address events that are in order already, as rows that own a range of them each. */
#include "events_common.inc"

/* Whether every number lies in [0, limit). */
static int inside(const int64_t *x, int64_t count, int64_t limit) {
    int32_t bad = 0;
    for (int64_t e = 0; e < count; e++) bad |= (uint64_t)x[e] >= (uint64_t)limit;
    return !bad;
}

/* Whether every value is finite and not zero. */
static int present(const float *value, int64_t count) {
    int32_t bad = 0;
    for (int64_t e = 0; e < count; e++) bad |= !(value[e] - value[e] == 0.0f) | (value[e] == 0.0f);
    return !bad;
}

/* start (rows + 1), to (count), ones (rows): see sd_wire. `sample` and `value` may be NULL, for zeros and ones. Returns 0 where an event lies outside, does not come
   after the one before it, or has a value that is zero or not finite; what was written means nothing then. */
int sd_event_rows(const int64_t *index, const int64_t *time, const int64_t *sample, const float *value, int64_t count, int64_t size, int64_t steps,
                  int64_t batch, int64_t *start, uint32_t *to, uint8_t *ones) {
    const int64_t rows = steps * batch;
    int64_t last = -1;
    int32_t bad = 0;
    if (!inside(index, count, size) || !inside(time, count, steps) || (sample && !inside(sample, count, batch))) return 0;
    if (value && !present(value, count)) return 0;
    memset(start, 0, (size_t)(rows + 1) * sizeof(int64_t));
    memset(ones, 1, (size_t)rows);
    for (int64_t e = 0; e < count; e++) {
        const int64_t row = time[e] * batch + (sample ? sample[e] : 0), place = row * size + index[e];
        bad |= place <= last;
        last = place;
        to[e] = (uint32_t)index[e];
        start[row + 1] = e + 1;
        if (value && value[e] != 1.0f) ones[row] = 0;
    }
    for (int64_t row = 0; row < rows; row++) /* a row without events ends where the one before it does */
        if (start[row + 1] < start[row]) start[row + 1] = start[row];
    return !bad;
}
