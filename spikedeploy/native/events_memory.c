/* Matrix-state memories (Gen2, Gen3) fused with the threshold on their state, and products with a spiking matrix. n[0] = d, n[1] = n. */
#include "events_common.inc"

SD_INLINE void compare(const sd_event_op *op, const float *s, int64_t row, int64_t size) {
    sd_wire *spikes = op->mem; /* here `out` is the state itself and `mem` the spikes on it */
    const int strict = op->flags & FLAG_STRICT;
    uint64_t *bits = spikes->bits ? spikes->bits + row * spikes->words : NULL;
    float *dense = spikes->dense ? spikes->dense + row * spikes->stride : NULL;
    for (int64_t i = 0; i < size; i += 16) { /* state and parameters are padded, so that whole vectors may be read */
        m16 fired = sd_fires(strict, *(const v16 *)(s + i), *(const v16 *)(op->theta + i));
        if (bits) sd_set_bits(bits, i, sd_mask(fired));
        if (dense) *(v16 *)(dense + i) = *(const v16 *)(op->amplitude + i) * sd_select(fired, sd_splat(1.0f), sd_splat(0.0f));
    }
}

/* What snntorch-1.0.0 makes of alpha and k: the floor, the running log of the decay, the damping of new writes. */
SD_INLINE void snntorch_gate(float *log_p, const float *alpha, const float *k, float *a, float *gated, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        a[j] = alpha[j] > 1e-8f ? alpha[j] : 1e-8f;
        log_p[j] = log_p[j] + (float)sd_log64((double)a[j]);
        float p = (float)sd_exp64((double)log_p[j]);
        gated[j] = k[j] * (p / (p + 1e-8f));
    }
}

SD_INLINE float lanes_product(const float *x, const float *y, int64_t n) {
    float tail[16] = {0};
    v16 lanes = {}, last;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) lanes += *(const v16u *)(x + i) * *(const v16u *)(y + i);
    if (i < n) {
        for (int64_t j = i; j < n; j++) tail[j - i] = x[j] * y[j];
        memcpy(&last, tail, 64);
        lanes += last;
    }
    return sd_fold(lanes);
}

SD_INLINE void write_rows(float *s, const float *v, const float *k, const float *a, int64_t d, int64_t n) {
    for (int64_t i = 0; i < d; i++, s += n)
        for (int64_t j = 0; j < n; j++) s[j] = sd_settle_one(s[j] * a[j] + v[i] * k[j]);
}

SD_INLINE void delta_rows(float *s, const float *v, const float *k, const float *a, float beta, int64_t d, int64_t n) {
    for (int64_t i = 0; i < d; i++, s += n) {
        for (int64_t j = 0; j < n; j++) s[j] = s[j] * a[j];
        float write = beta * (v[i] - lanes_product(s, k, n));
        for (int64_t j = 0; j < n; j++) s[j] = sd_settle_one(s[j] + write * k[j]);
    }
}

SD_CLONES void sd_event_memory(const sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t d = op->n[0], n = op->n[1], padded = op->n[2];
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = 0; b < batch; b++) {
            int64_t row = t * batch + b;
            const float *v = op->source[0]->dense + row * op->source[0]->stride, *k = op->source[1]->dense + row * op->source[1]->stride;
            const float *a = op->source[2]->dense + row * op->source[2]->stride;
            float *s = op->state + b * padded;
            if (op->mode == 1) {
                snntorch_gate(op->state2 + b * op->n[3], a, k, op->scratch, op->scratch + op->n[3], n);
                a = op->scratch, k = op->scratch + op->n[3];
            }
            if (op->kind == OP_DELTA) delta_rows(s, v, k, a, op->source[3]->dense[row * op->source[3]->stride], d, n);
            else write_rows(s, v, k, a, d, n);
            if (op->mem) compare(op, s, row, padded);
            if (op->out) memcpy(op->out->dense + row * op->out->stride, s, (size_t)(d * n) * sizeof(float));
        }
}

/* y (d, m) = A (d, n) B (n, m), A as events: row i sums the rows of B that A's row i switches on. n[2] = m. */
SD_CLONES void sd_event_matmul(const sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t d = op->n[0], n = op->n[1], m = op->n[2];
    const sd_wire *a = op->source[0];
    for (int64_t row = 0; row < steps * batch; row++) {
        const float *q = op->source[1]->dense + row * op->source[1]->stride;
        float *y = op->out->dense + row * op->out->stride;
        int64_t first = a->start[row], last = a->start[row + 1];
        for (int64_t i = 0; i < d; i++, y += m) {
            int64_t end = first, limit = (i + 1) * n, j = 0;
            while (end < last && a->index[end] < limit) end++;
            for (; j + 64 <= m; j += 64) {
                v16 acc[4] = {{}, {}, {}, {}};
                for (int64_t e = first; e < end; e++) {
                    const v16u *line = (const v16u *)(q + (a->index[e] - i * n) * m + j);
                    v16 x = sd_splat(a->value ? a->value[e] : a->amplitude);
                    for (int v = 0; v < 4; v++) acc[v] += x * line[v];
                }
                for (int v = 0; v < 4; v++) ((v16u *)(y + j))[v] = acc[v];
            }
            for (; j < m; j++) {
                float sum = 0.0f;
                for (int64_t e = first; e < end; e++) sum += (a->value ? a->value[e] : a->amplitude) * q[(a->index[e] - i * n) * m + j];
                y[j] = sum;
            }
            first = end;
        }
    }
}
