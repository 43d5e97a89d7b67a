
/* Random numbers: number `position` of a seed is a function of the two alone, the same everywhere and for `lapidary run
 * --seed`, which draws a token at the position that it takes. Not for secrets. */
typedef struct {
    uint64_t seed, position;
} @lower_rng;

static inline uint64_t @lower_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void @lower_seed(@lower_rng *rng, uint64_t seed)
{
    rng->seed = seed;
    rng->position = 0;
}

/* The next number in [0, 1). */
static inline double @lower_unit(@lower_rng *rng)
{
    const uint64_t step = 0x9e3779b97f4a7c15u;
    uint64_t counter = @lower_mix(rng->seed + step) + ++rng->position * step;
    return (double)(@lower_mix(counter) >> 11) * (1.0 / 9007199254740992.0);
}

/* e to the power of x, for x <= 0, to the last bits of a double; here so that no library of mathematics is needed. */
static inline double @lower_exp(double x)
{
    if (!(x > -745.0))
        return 0.0;
    int halvings = (int)(0.5 - x * 1.4426950408889634);
    double r = (x + halvings * 0.6931471803691238) + halvings * 1.9082149292705877e-10, sum = 1.0, power = 0.5;
    for (int n = 14; n > 0; n--)
        sum = 1.0 + sum * r / n;
    for (; halvings > 0; halvings >>= 1, power *= power)
        if (halvings & 1)
            sum *= power;
    return sum;
}

/* A logit to choose by: infinity comes down to a number. */
static inline float @lower_bounded(float logit)
{
    return logit < 3.4028234e+38f ? logit : 3.4028234e+38f;
}

/* Whether token `a` comes before token `b`: it is more likely, or the lower of equals. */
static inline int @lower_before(const float *logits, int32_t a, int32_t b)
{
    float x = @lower_bounded(logits[a]), y = @lower_bounded(logits[b]);
    return x > y || (x == y && a < b);
}

/* Lets the token at `at` sink to its place in a heap of `count` tokens, the first at the top. */
static inline void @lower_sink(const float *logits, int32_t *heap, int32_t at, int32_t count)
{
    for (int32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && @lower_before(logits, heap[child + 1], heap[child]))
            child++;
        if (!@lower_before(logits, heap[child], heap[at]))
            return;
        int32_t token = heap[at];
        heap[at] = heap[child];
        heap[child] = token;
    }
}

/* Draws a token from a row of logits: of the `top_k` most likely ones (0: of all) the fewest whose probabilities add up
 * to `top_p` (1: all), their logits divided by `temperature`; the most likely one if that is 0. The order of steps is
 * that of `lapidary run`, and so are the tokens of the same seed where `rng->position` is the state's. `scratch` is
 * room for @UPPER_VOCAB tokens. -1: there is no number among the logits, or no row. */
static inline int32_t @lower_sample(const float *logits, float temperature, int32_t top_k, float top_p, @lower_rng *rng,
                                    int32_t *scratch)
{
    const float least = -3.4028234e+38f;
    int32_t count = 0, best = -1;
    for (int32_t id = 0; logits && id < @UPPER_VOCAB; id++) {
        if (!(logits[id] >= least))
            continue;
        if (best < 0 || @lower_before(logits, id, best))
            best = id;
        scratch[count++] = id;
    }
    if (best < 0 || !(temperature > 0.0f))
        return best;
    float max = @lower_bounded(logits[best]);
    int cut_k = top_k > 0 && top_k < count, cut_p = top_p < 1.0f;
    int32_t *kept = scratch;
    if (cut_k || cut_p) {
        double wanted = 0.0, sum = 0.0;
        int32_t most = cut_k ? top_k : count, taken = 0;
        if (cut_p && !cut_k)
            for (int32_t i = 0; i < count; i++)
                wanted += @lower_exp((double)(@lower_bounded(logits[scratch[i]]) - max));
        for (int32_t at = count / 2; at-- > 0;)
            @lower_sink(logits, scratch, at, count);
        /* The likeliest go to the end of the scratch, one by one, the first of them last. */
        for (; taken < most && !(cut_p && !cut_k && taken > 0 && sum >= top_p * wanted); taken++) {
            int32_t last = count - taken - 1, token = scratch[0];
            scratch[0] = scratch[last];
            scratch[last] = token;
            @lower_sink(logits, scratch, 0, last);
            sum += @lower_exp((double)(@lower_bounded(logits[token]) - max));
        }
        kept = scratch + count - taken;
        for (int32_t i = 0; i < taken / 2; i++) {
            int32_t token = kept[i];
            kept[i] = kept[taken - 1 - i];
            kept[taken - 1 - i] = token;
        }
        count = taken;
        if (cut_k && cut_p) {
            double all = sum;
            sum = 0.0;
            for (count = 0; count < taken && (count == 0 || sum < top_p * all); count++)
                sum += @lower_exp((double)(@lower_bounded(logits[kept[count]]) - max));
        }
    }
    double all = 0.0;
    for (int32_t i = 0; i < count; i++)
        all += @lower_exp(((double)@lower_bounded(logits[kept[i]]) - max) / temperature);
    double left = @lower_unit(rng) * all;
    for (int32_t i = 0; i < count; i++) {
        double weight = @lower_exp(((double)@lower_bounded(logits[kept[i]]) - max) / temperature);
        if (weight > 0.0)
            best = kept[i];
        if (weight > 0.0 && (left -= weight) < 0.0)
            break;
    }
    return best;
}
