/* Steps on real-valued wires, computed on every value. `n[0]` is the width of a row. */
#include "events_common.inc"

SD_INLINE const float *row_of(const sd_wire *w, int64_t row) { return w->dense + row * w->stride; }

static inline __attribute__((always_inline)) void function_row(int64_t function, const float *x, float *y, int64_t n) {
    switch (function) {
        case 0: for (int64_t i = 0; i < n; i++) y[i] = x[i] > 0.0f ? x[i] : 0.0f; break;
        case 1: for (int64_t i = 0; i < n; i++) y[i] = (float)((double)x[i] * sd_normal64((double)x[i])); break;
        case 2:
            for (int64_t i = 0; i < n; i++) {
                double v = (double)x[i];
                y[i] = (float)(v * sd_sigmoid64((v + (v * v) * v * 0.044715) * 1.5957691216057308));
            }
            break;
        case 3: for (int64_t i = 0; i < n; i++) y[i] = (float)((double)x[i] * sd_sigmoid64((double)x[i])); break;
        case 4: for (int64_t i = 0; i < n; i++) y[i] = (float)sd_sigmoid64((double)x[i]); break;
        case 5: for (int64_t i = 0; i < n; i++) y[i] = (float)sd_tanh64((double)x[i]); break;
        default: for (int64_t i = 0; i < n; i++) y[i] = (float)sd_exp64((double)x[i]);
    }
}

void sd_event_function(int64_t function, const float *x, float *y, int64_t count) { function_row(function, x, y, count); }

void sd_event_log(const float *x, float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] = (float)sd_log64((double)x[i]);
}

/* The sum over lanes of runtime/events_math.py, of x * y, or of x where y is NULL. */
SD_INLINE float lane_sum(const float *x, const float *y, int64_t n) {
    float tail[16] = {0};
    vf lanes[PARTS] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        UNROLL for (int p = 0; p < PARTS; p++) {
            vf now = ((const vfu *)(x + i))[p];
            if (y) now = now * ((const vfu *)(y + i))[p];
            lanes[p] += now;
        }
    }
    if (i < n) {
        for (int64_t j = i; j < n; j++) tail[j - i] = y ? x[j] * y[j] : x[j];
        UNROLL for (int p = 0; p < PARTS; p++) lanes[p] += ((const vfu *)tail)[p];
    }
    return sd_fold(lanes);
}

SD_INLINE void norm_row(const sd_event_op *op, const float *x, float *y, int64_t n, int64_t rows) {
    const float eps = op->scale[0];
    for (int64_t r = 0; r < rows; r++, x += n, y += n) {
        float mean = lane_sum(x, NULL, n) / (float)n;
        for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
        float spread = __builtin_sqrtf(lane_sum(y, y, n) / (float)n + eps);
        for (int64_t i = 0; i < n; i++) y[i] = y[i] / spread;
        if (op->weight) for (int64_t i = 0; i < n; i++) y[i] = y[i] * op->weight[r * n + i];
        if (op->bias) for (int64_t i = 0; i < n; i++) y[i] = y[i] + op->bias[r * n + i];
    }
}

SD_INLINE void l2_row(const sd_event_op *op, const float *x, float *y, int64_t n, int64_t rows) {
    for (int64_t r = 0; r < rows; r++, x += n, y += n) {
        float norm = __builtin_sqrtf(lane_sum(x, x, n)), eps = op->scale[0];
        norm = norm > eps ? norm : eps;
        for (int64_t i = 0; i < n; i++) y[i] = x[i] / norm;
    }
}

/* How large a number is, as an integer that orders like it; NaN is below everything. */
SD_INLINE int32_t magnitude(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    bits &= 0x7fffffff;
    return bits > 0x7f800000 ? -1 : bits;
}

SD_INLINE int64_t count_from(const int32_t *key, int64_t n, int32_t least) {
    int32_t count = 0;
    for (int64_t i = 0; i < n; i++) count += key[i] >= least;
    return count;
}

/* Keeps the k numbers of largest magnitude, ties by lowest index. The k-th magnitude is found bit by bit. */
SD_INLINE void topk_row(const sd_event_op *op, const float *x, float *y, int64_t n, int64_t k, int64_t rows) {
    int32_t *key = (int32_t *)op->scratch;
    for (int64_t r = 0; r < rows; r++, x += n, y += n) {
        for (int64_t i = 0; i < n; i++) key[i] = magnitude(x[i]);
        int32_t last = count_from(key, n, 0) < k ? -1 : 0;
        for (int bit = 30; bit >= 0 && last >= 0; bit--)
            if (count_from(key, n, last | 1 << bit) >= k) last |= 1 << bit;
        int64_t ties = k - count_from(key, n, last + 1);
        for (int64_t i = 0; i < n; i++) {
            const int tie = key[i] == last, kept = key[i] > last || (tie && ties > 0);
            ties -= tie;
            y[i] = kept ? x[i] : 0.0f;
        }
    }
}

/* The nearest level, the lower of two; where no distance is the smallest (NaN, infinity), the first. */
SD_INLINE void nearest_row(const sd_event_op *op, const float *x, float *y, int64_t n) {
    for (int64_t first = 0; first < n; first += 16) {
        float best[16];
        const int64_t count = n - first < 16 ? n - first : 16;
        for (int64_t i = 0; i < count; i++) {
            y[first + i] = op->weight[0];
            best[i] = __builtin_fabsf(x[first + i] - op->weight[0]);
        }
        for (int64_t level = 1; level < op->n[1]; level++)
            for (int64_t i = 0; i < count; i++) {
                const float distance = __builtin_fabsf(x[first + i] - op->weight[level]);
                y[first + i] = distance < best[i] ? op->weight[level] : y[first + i];
                best[i] = distance < best[i] ? distance : best[i];
            }
    }
}

/* Rows of a table; the input was checked to be rows of it, but by a stream, which checks nothing: what lies outside reads row 0. */
SD_INLINE void embedding_row(const sd_event_op *op, const float *x, float *y) {
    const int64_t width = op->n[0];
    for (int64_t i = 0; i < op->n[1]; i++) {
        const int64_t row = x[i] >= 0.0f && x[i] < (float)op->n[2] ? (int64_t)x[i] : 0;
        memcpy(y + i * width, op->weight + row * width, (size_t)width * sizeof(float));
    }
}

/* Sums and products of wires of different shapes: `taps` tells, per input and element, where it is read. */
SD_INLINE void broadcast_row(const sd_event_op *op, int64_t row, float *y, int64_t n) {
    for (int32_t k = 0; k < op->count; k++) {
        const float *x = row_of(op->source[k], row);
        const int32_t *at = op->taps + k * n;
        if (k == 0) for (int64_t i = 0; i < n; i++) y[i] = x[at[i]];
        else if (op->kind == OP_ADD) for (int64_t i = 0; i < n; i++) y[i] = y[i] + x[at[i]];
        else for (int64_t i = 0; i < n; i++) y[i] = y[i] * x[at[i]];
    }
}

/* A ring of whole steps; n[1] steps long, pending[0] tells where the oldest lies. */
SD_INLINE void delay(sd_event_op *op, int64_t steps, int64_t batch) {
    int64_t stride = op->out->stride, block = batch * stride;
    for (int64_t t = 0; t < steps; t++) {
        float *oldest = op->state + op->pending[0] * block;
        memcpy(op->out->dense + t * block, oldest, (size_t)block * sizeof(float));
        for (int64_t b = 0; b < batch; b++) memcpy(oldest + b * stride, row_of(op->source[0], t * batch + b), (size_t)op->n[0] * sizeof(float));
        op->pending[0] = (int32_t)((op->pending[0] + 1) % op->n[1]);
    }
}

void sd_event_dense(sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t n = op->n[0];
    if (op->kind == OP_DELAY) {
        delay(op, steps, batch);
        return;
    }
    for (int64_t row = 0; row < steps * batch; row++) {
        const float *x = row_of(op->source[0], row);
        float *y = op->out->dense + row * op->out->stride;
        if (op->taps) {
            broadcast_row(op, row, y, n);
            continue;
        }
        switch (op->kind) {
            case OP_SCALE:
                for (int64_t i = 0; i < n; i++) y[i] = op->weight[i] * x[i];
                if (op->bias) for (int64_t i = 0; i < n; i++) y[i] = y[i] + op->bias[i];
                break;
            case OP_ADD:
                for (int64_t i = 0; i < n; i++) y[i] = x[i];
                for (int32_t k = 1; k < op->count; k++) {
                    const float *other = row_of(op->source[k], row);
                    for (int64_t i = 0; i < n; i++) y[i] = y[i] + other[i];
                }
                break;
            case OP_MUL: {
                const float *other = row_of(op->source[1], row);
                for (int64_t i = 0; i < n; i++) y[i] = x[i] * other[i];
                break;
            }
            case OP_SLICE:
                for (int64_t r = 0; r < op->n[3]; r++) memcpy(y + r * n, x + r * op->n[2] + op->n[1], (size_t)n * sizeof(float));
                break;
            case OP_ACTIVATION: function_row(op->mode, x, y, n); break;
            case OP_NORM: norm_row(op, x, y, n, op->n[1]); break;
            case OP_L2: l2_row(op, x, y, n, op->n[1]); break;
            case OP_TOPK: topk_row(op, x, y, n, op->n[1], op->n[2]); break;
            case OP_NEAREST: nearest_row(op, x, y, n); break;
            default: embedding_row(op, x, y);
        }
    }
}

/* h = A h + x per mode; y = 2 Re(C h) + D x. n[0] channels, n[1] modes; A and C as four arrays one after another in `weight`. */
void sd_event_ssm(const sd_event_op *op, int64_t steps, int64_t batch) {
    const int64_t channels = op->n[0], modes = op->n[1], size = channels * modes;
    const float *a_re = op->weight, *a_im = a_re + size, *c_re = a_im + size, *c_im = c_re + size;
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = 0; b < batch; b++) {
            const float *x = row_of(op->source[0], t * batch + b);
            float *y = op->out->dense + (t * batch + b) * op->out->stride, *re = op->state + b * op->n[2], *im = op->state2 + b * op->n[2];
            float *part = op->scratch;
            for (int64_t h = 0; h < channels; h++)
                for (int64_t m = 0; m < modes; m++) {
                    int64_t i = h * modes + m;
                    float r = re[i], s = im[i];
                    re[i] = sd_settle_one(a_re[i] * r - a_im[i] * s + x[h]);
                    im[i] = sd_settle_one(a_re[i] * s + a_im[i] * r);
                    part[i] = c_re[i] * re[i] - c_im[i] * im[i];
                }
            for (int64_t h = 0; h < channels; h++) y[h] = 2.0f * lane_sum(part + h * modes, NULL, modes) + op->bias[h] * x[h];
        }
}
