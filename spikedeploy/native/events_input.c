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

SD_INLINE int64_t row_of(const int64_t *time, const int64_t *sample, int64_t batch, int64_t e) { return time[e] * batch + (sample ? sample[e] : 0); }

/* Which events belong to which row, from event `first` on; whether each comes after the one before it. In loops of their own because only the first cannot be
   done side by side. */
SD_INLINE int into_rows(const int64_t *index, const int64_t *time, const int64_t *sample, int64_t first, int64_t last, int64_t size, int64_t batch,
                        int64_t *start, uint32_t *to) {
    int32_t bad = 0;
    for (int64_t e = first; e < last; e++) start[row_of(time, sample, batch, e) + 1] = e + 1;
    for (int64_t e = first; e < last; e++) to[e] = (uint32_t)index[e];
    for (int64_t e = first ? first : 1; e < last; e++)
        bad |= row_of(time, sample, batch, e) * size + index[e] <= row_of(time, sample, batch, e - 1) * size + index[e - 1];
    return !bad;
}

enum { NEAR = 1024 }; /* events that the nearest cache keeps between one loop and the next */

/* start (rows + 1), to (count), ones (rows): see sd_wire. `sample` and `value` may be NULL, for zeros and ones. Returns 0 where an event lies outside, does not come
   after the one before it, or has a value that is zero or not finite; what was written means nothing then. */
int sd_event_rows(const int64_t *index, const int64_t *time, const int64_t *sample, const float *value, int64_t count, int64_t size, int64_t steps,
                  int64_t batch, int64_t *start, uint32_t *to, uint8_t *ones) {
    const int64_t rows = steps * batch;
    memset(start, 0, (size_t)(rows + 1) * sizeof(int64_t));
    memset(ones, 1, (size_t)rows);
    for (int64_t first = 0, last; first < count; first = last) {
        last = count - first < NEAR ? count : first + NEAR;
        if (!inside(index + first, last - first, size) || !inside(time + first, last - first, steps)) return 0;
        if (sample && !inside(sample + first, last - first, batch)) return 0;
        if (value && !present(value + first, last - first)) return 0;
        if (!(sample ? into_rows(index, time, sample, first, last, size, batch, start, to) : into_rows(index, time, NULL, first, last, size, batch, start, to)))
            return 0;
    }
    for (int64_t e = 0; value && e < count; e++)
        if (value[e] != 1.0f) ones[row_of(time, sample, batch, e)] = 0;
    for (int64_t row = 0; row < rows; row++) /* a row without events ends where the one before it does */
        if (start[row + 1] < start[row]) start[row + 1] = start[row];
    return 1;
}
