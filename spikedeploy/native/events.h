/* The event-driven engine. A wire holds T*B rows (time outer, batch inner) of one chunk, in up to three forms. */
typedef struct {
    int64_t size, stride;     /* floats in a row; floats from one row to the next, a multiple of 16 where the engine owns the buffer */
    float *dense;             /* NULL where nobody reads the numbers */
    int64_t words;            /* 64-bit words in a row of bits */
    uint64_t *bits;           /* NULL unless a neuron writes this wire with one amplitude */
    float amplitude;
    int64_t *start;           /* rows + 1: where each row's events begin; NULL unless somebody reads events */
    uint32_t *index;          /* ascending within a row */
    float *value;             /* NULL: every event has the value `amplitude` */
    uint8_t *ones;            /* per row, where `value` is given: every value is 1 */
    int64_t spikes;           /* how many bits were written in this run */
    int32_t outside;          /* 1: start, index and value were given by the caller */
    int32_t finite;           /* of the numbers that were listed last: none was NaN or infinite */
} sd_wire;

typedef struct {
    int32_t kind, mode, flags, count;       /* see events_kinds.inc; count: input wires */
    sd_wire **source;                       /* `count` of them */
    sd_wire *out, *mem, *current;           /* spikes or the result; membrane; what the neuron was driven by */
    int64_t n[20];                          /* sizes, by kind */
    int64_t widest;                         /* columns of the widest panel of a layer */
    const float *weight, *bias, *decay, *theta, *amplitude, *reset;
    const void *integer;                    /* int8 or int16 weights; `scale` turns their sum into a current */
    const float *scale;
    float *state, *state2;
    int32_t *pending;                       /* per batch entry and panel: steps of leak not yet applied */
    uint8_t *loud;                          /* per batch entry and panel: some membrane is above its threshold */
    const uint8_t *silent;                  /* per panel: a quiet panel without events provably stays quiet */
    float *scratch;
    const int32_t *taps;                    /* convolutions: where each input row and column goes, see events_conv.c */
} sd_event_op;

typedef struct {
    sd_wire *wire;
    int32_t reduce;           /* 0 every step, 1 sum, 2 last, 3 max */
    float *into;              /* (T, B, size), or (B, size) when reduced */
} sd_kept;

int sd_event_rows(const int64_t *index, const int64_t *time, const int64_t *sample, const float *value, int64_t count, int64_t size, int64_t steps,
                  int64_t batch, int64_t *start, uint32_t *to, uint8_t *ones);
int sd_event_finite(const float *x, int64_t count);
int sd_event_sequence(sd_event_op *const *ops, int64_t count, int64_t steps, int64_t block, int64_t batch, int64_t threads, sd_wire *input,
                       const sd_kept *kept, int64_t keeping);
void sd_event_run(sd_event_op *const *ops, int64_t count, int64_t steps, int64_t batch, int64_t threads);
void sd_event_settle(sd_event_op *op, int64_t batch);
void sd_event_function(int64_t function, const float *x, float *y, int64_t count);
void sd_event_log(const float *x, float *y, int64_t count);
