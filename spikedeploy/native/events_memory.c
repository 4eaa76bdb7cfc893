/* Matrix-state memories (Gen2, Gen3) fused with the threshold on their state, and products with a spiking matrix, linear maps of its rows among them. n[0] = d, n[1] = n. */
#include "events_common.inc"

SD_INLINE void compare(const sd_event_op *op, const float *s, int64_t row, int64_t size) {
    sd_wire *spikes = op->mem; /* here `out` is the state itself and `mem` the spikes on it */
    const int strict = op->flags & FLAG_STRICT;
    uint64_t *bits = spikes->bits ? spikes->bits + row * spikes->words : NULL;
    float *dense = spikes->dense ? spikes->dense + row * spikes->stride : NULL;
    for (int64_t i = 0; i < size; i += 16) { /* state and parameters are padded, so that whole vectors may be read */
        vm fired[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) {
            fired[p] = sd_fires(strict, ((const vf *)(s + i))[p], ((const vf *)(op->theta + i))[p]);
            if (dense) ((vf *)(dense + i))[p] = ((const vf *)(op->amplitude + i))[p] * sd_select(fired[p], sd_splat(1.0f), sd_splat(0.0f));
        }
        if (bits) sd_write_mask(PARTS, fired, (u16a *)bits + i / 16);
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
    vf lanes[PARTS] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        UNROLL for (int p = 0; p < PARTS; p++) lanes[p] += ((const vfu *)(x + i))[p] * ((const vfu *)(y + i))[p];
    if (i < n) {
        for (int64_t j = i; j < n; j++) tail[j - i] = x[j] * y[j];
        UNROLL for (int p = 0; p < PARTS; p++) lanes[p] += ((const vfu *)tail)[p];
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

void sd_event_memory(const sd_event_op *op, int64_t steps, int64_t batch) {
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

/* What a row of a product adds up: the lines of B that events [first, last) of A switch on, event i the line index[i] - origin. */
typedef struct {
    const sd_wire *a;
    int64_t first, last, origin, stride;
} picked;

SD_INLINE float event_value(const sd_wire *a, int64_t e) { return a->value ? a->value[e] : a->amplitude; }

/* So many vectors of columns; `bytes` of them are wanted. */
SD_INLINE void add_lines(const picked *p, const float *b, const float *bias, float *y, const int vectors, size_t bytes) {
    vf acc[4 * PARTS] = {};
    if (bias) UNROLL for (int v = 0; v < vectors; v++) acc[v] = ((const vfu *)bias)[v];
    for (int64_t e = p->first; e < p->last; e++) {
        const vfu *line = (const vfu *)(b + (p->a->index[e] - p->origin) * p->stride);
        const vf x = sd_splat(event_value(p->a, e));
        UNROLL for (int v = 0; v < vectors; v++) acc[v] += x * line[v];
    }
    memcpy(y, acc, bytes);
}

SD_INLINE void add_integers(const picked *p, const int32_t *b, const float *scale, const float *bias, float *y, size_t bytes) {
    vi acc[PARTS] = {};
    vf sum[PARTS];
    for (int64_t e = p->first; e < p->last; e++) {
        const viu *line = (const viu *)(b + (p->a->index[e] - p->origin) * p->stride);
        UNROLL for (int v = 0; v < PARTS; v++) acc[v] += line[v];
    }
    UNROLL for (int v = 0; v < PARTS; v++) {
        sum[v] = __builtin_convertvector(acc[v], vf) * ((const vfu *)scale)[v];
        sum[v] += bias ? (vf)((const vfu *)bias)[v] : (vf){};
    }
    memcpy(y, sum, bytes);
}

SD_INLINE int all_ones(const picked *p) {
    int whole = 1;
    if (p->a->value) for (int64_t e = p->first; e < p->last; e++) whole &= p->a->value[e] == 1.0f;
    return whole;
}

/* Lines that are whole vectors: weights. */
SD_INLINE void mapped_row(const sd_event_op *op, const picked *p, float *y, int64_t m) {
    const int32_t *integer = op->integer && all_ones(p) ? (const int32_t *)op->integer : NULL;
    for (int64_t j = 0; j < m;) {
        const int blocks = m - j >= 64 && !integer ? 4 : 1;
        const int64_t count = m - j < 16 * blocks ? m - j : 16 * blocks;
        const float *bias = op->bias ? op->bias + j : NULL;
        const size_t bytes = (size_t)count * sizeof(float);
        if (integer) add_integers(p, integer + j, op->scale + j, bias, y + j, bytes);
        else if (blocks == 4) add_lines(p, op->weight + j, bias, y + j, 4 * PARTS, bytes);
        else add_lines(p, op->weight + j, bias, y + j, PARTS, bytes);
        j += count;
    }
}

/* Lines of a wire, that end where the next begins. */
SD_INLINE void product_row(const picked *p, const float *b, float *y, int64_t m) {
    int64_t j = 0;
    for (; j + 64 <= m; j += 64) add_lines(p, b + j, NULL, y + j, 4 * PARTS, 256);
    for (; j + 16 <= m; j += 16) add_lines(p, b + j, NULL, y + j, PARTS, 64);
    for (; j < m; j++) {
        float sum = 0.0f;
        for (int64_t e = p->first; e < p->last; e++) sum += event_value(p->a, e) * b[(p->a->index[e] - p->origin) * m + j];
        y[j] = sum;
    }
}

/* y (d, m) = A (d, n) B (n, m) + bias, A as events, B a wire or weights: row i sums the lines of B that A's row i switches on.
   n[2] = m, n[3] from one line of B to the next. */
void sd_event_matmul(const sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t d = op->n[0], n = op->n[1], m = op->n[2];
    const sd_wire *a = op->source[0], *b = op->weight ? NULL : op->source[1];
    for (int64_t row = 0; row < steps * batch; row++) {
        float *y = op->out->dense + row * op->out->stride;
        picked p = {a, a->start[row], a->start[row], 0, op->n[3]};
        for (int64_t i = 0; i < d; i++, y += m, p.first = p.last, p.origin += n) {
            while (p.last < a->start[row + 1] && a->index[p.last] < p.origin + n) p.last++;
            if (b) product_row(&p, b->dense + row * b->stride, y, m);
            else mapped_row(op, &p, y, m);
        }
    }
}
