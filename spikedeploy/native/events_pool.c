/* Sums over windows, from events: every event is added to a block of outputs. n: 0 W, 1 C H, 2 outputs, 3 W', 4..5 how to divide by W. `taps`: per input row
   (of any channel) and then per input column, the first output place and the number of output rows or columns that see it. */
#include "events_common.inc"

void sd_event_pool(const sd_event_op *op, int64_t steps, int64_t batch) {
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
