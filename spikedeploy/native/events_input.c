/* Address events that are in order already, as rows that own a range of them each. */
#include "events_common.inc"

/* start (rows + 1), to (count), ones (rows): see sd_wire. Returns 0 where an event lies outside, does not come after the one before it, or has a value that is
   zero or not finite: nothing is said then about what was written. */
int sd_event_rows(const int64_t *index, const int64_t *time, const int64_t *sample, const float *value, int64_t count, int64_t size, int64_t steps,
                  int64_t batch, int64_t *start, uint32_t *to, uint8_t *ones) {
    int64_t row = 0, last = -1;
    start[0] = 0;
    memset(ones, 1, (size_t)(steps * batch));
    for (int64_t e = 0; e < count; e++) {
        const int64_t b = sample ? sample[e] : 0, now = time[e] * batch + b;
        if (time[e] < 0 || time[e] >= steps || b < 0 || b >= batch || index[e] < 0 || index[e] >= size || now < row) return 0;
        if (now == row && index[e] <= last) return 0;
        while (row < now) start[++row] = e;
        last = index[e];
        to[e] = (uint32_t)last;
        if (!value) continue;
        if (!(value[e] - value[e] == 0.0f) || value[e] == 0.0f) return 0;
        if (value[e] != 1.0f) ones[row] = 0;
    }
    while (row < steps * batch) start[++row] = count;
    return 1;
}
