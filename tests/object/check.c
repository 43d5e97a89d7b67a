/* Holds an object to its header: statuses, bounds of the state, parallel_for. Ends with 0, or names the line that failed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
            exit(1);                                                          \
        }                                                                     \
    } while (0)

enum { GUARD = 4096 };

static void *scratches[2];
static uint64_t launches;

/* Item by item, the last first, on scratch full of NaN. */
static void backwards(void *context, uint64_t items, model_task task, const void *job)
{
    CHECK(context == &launches);
    CHECK(items > 1);
    launches++;
    for (uint64_t i = items; i-- > 0;) {
        memset(scratches[i % 2], 0xff, MODEL_SCRATCH_BYTES);
        task(job, i, i + 1, scratches[i % 2]);
    }
}

static unsigned char *new_state(void)
{
    size_t bytes = MODEL_STATE_BYTES;
    unsigned char *state = aligned_alloc(MODEL_STATE_ALIGN, bytes + GUARD);
    CHECK(state);
    memset(state, 0, bytes);
    memset(state + bytes, 0xa5, GUARD);
    return state;
}

static void free_state(unsigned char *state)
{
    size_t bytes = MODEL_STATE_BYTES;
    for (size_t i = 0; i < GUARD; i++)
        CHECK(state[bytes + i] == 0xa5);
    free(state);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    size_t bytes = MODEL_STATE_BYTES, file_bytes = MODEL_WEIGHTS_BYTES;
    unsigned char *weights = aligned_alloc(MODEL_WEIGHTS_ALIGN, file_bytes);
    FILE *file = fopen(argv[1], "rb");
    CHECK(weights && file);
    CHECK(fread(weights, 1, file_bytes, file) == file_bytes && fgetc(file) == EOF);
    fclose(file);

    /* What text needs. */
    const int32_t eos[] = MODEL_EOS;
    CHECK(MODEL_EOS_COUNT > 0 && sizeof eos / sizeof *eos == MODEL_EOS_COUNT);
    for (size_t i = 0; i < MODEL_EOS_COUNT; i++)
        CHECK(eos[i] >= 0 && eos[i] < MODEL_VOCAB && eos[i] != MODEL_BOS);
    CHECK(MODEL_BOS >= 0 && MODEL_BOS < MODEL_VOCAB);
    CHECK(model_supported() == 1);

    /* Before init. */
    unsigned char *state = new_state();
    const int32_t ids[] = {2, 17, 5, 99, 1000, 3, 8, 8, 12, 640, 2, 70};
    const size_t count = sizeof ids / sizeof *ids;
    CHECK(model_prefill(state, ids, count) == MODEL_ERROR_STATE);
    CHECK(model_decode(NULL, 2) == MODEL_ERROR_STATE);
    CHECK(model_rollback(state, 0) == MODEL_ERROR_STATE);
    CHECK(model_logits(state) == NULL && model_logits(NULL) == NULL);
    CHECK(model_argmax(state) == -1 && model_position(state) == 0);

    /* What init refuses. */
    CHECK(model_init(NULL, bytes, weights, file_bytes, NULL, NULL) == MODEL_ERROR_STATE);
    CHECK(model_init(state + 8, bytes, weights, file_bytes, NULL, NULL) == MODEL_ERROR_STATE);
    CHECK(model_init(state, bytes - 1, weights, file_bytes, NULL, NULL) == MODEL_ERROR_STATE);
    CHECK(model_init(state, bytes, NULL, file_bytes, NULL, NULL) == MODEL_ERROR_WEIGHTS);
    CHECK(model_init(state, bytes, weights + 8, file_bytes, NULL, NULL) == MODEL_ERROR_WEIGHTS);
    CHECK(model_init(state, bytes, weights, file_bytes - 1, NULL, NULL) == MODEL_ERROR_WEIGHTS);
    for (size_t i = 0; i < 300; i += 7) {
        weights[i] ^= 1;
        CHECK(model_init(state, bytes, weights, file_bytes, NULL, NULL) == MODEL_ERROR_WEIGHTS);
        weights[i] ^= 1;
    }
    CHECK(model_argmax(state) == -1);
    CHECK(model_init(state, bytes, weights, file_bytes, NULL, NULL) == MODEL_OK);

    /* What prefill and decode refuse, changing nothing. */
    CHECK(model_logits(state) == NULL && model_argmax(state) == -1);
    CHECK(model_prefill(state, NULL, 0) == MODEL_OK);
    CHECK(model_prefill(state, NULL, 1) == MODEL_ERROR_ARGUMENT);
    const int32_t high[] = {2, MODEL_VOCAB}, low[] = {2, -1};
    CHECK(model_prefill(state, high, 2) == MODEL_ERROR_TOKEN);
    CHECK(model_prefill(state, low, 2) == MODEL_ERROR_TOKEN);
    CHECK(model_decode(state, MODEL_VOCAB) == MODEL_ERROR_TOKEN && model_decode(state, -1) == MODEL_ERROR_TOKEN);
    CHECK(model_prefill(state, ids, (size_t)MODEL_CONTEXT + 1) == MODEL_ERROR_CONTEXT);
    CHECK(model_prefill(state, ids, SIZE_MAX) == MODEL_ERROR_CONTEXT);
    CHECK(model_position(state) == 0 && model_logits(state) == NULL);

    /* The same answer after a rollback, and however the work is split. */
    CHECK(model_prefill(state, ids, count) == MODEL_OK && model_position(state) == count);
    float *expected = malloc(MODEL_VOCAB * sizeof *expected);
    CHECK(expected);
    memcpy(expected, model_logits(state), MODEL_VOCAB * sizeof *expected);
    int32_t best = model_argmax(state);
    for (int32_t v = 0; v < MODEL_VOCAB; v++)
        CHECK(v < best ? expected[v] < expected[best] : expected[v] <= expected[best]);
    CHECK(model_rollback(state, count + 1) == MODEL_ERROR_POSITION);
    CHECK(model_rollback(state, count) == MODEL_OK && model_logits(state) != NULL);
    CHECK(model_rollback(state, 0) == MODEL_OK && model_position(state) == 0);
    CHECK(model_logits(state) == NULL && model_argmax(state) == -1);
    CHECK(model_prefill(state, ids, count) == MODEL_OK);
    CHECK(memcmp(expected, model_logits(state), MODEL_VOCAB * sizeof *expected) == 0);

    for (int i = 0; i < 2; i++)
        CHECK((scratches[i] = aligned_alloc(MODEL_SCRATCH_ALIGN, MODEL_SCRATCH_BYTES)) != NULL);
    unsigned char *split = new_state();
    CHECK(model_init(split, bytes, weights, file_bytes, backwards, &launches) == MODEL_OK);
    CHECK(model_prefill(split, ids, count) == MODEL_OK);
    CHECK(memcmp(expected, model_logits(split), MODEL_VOCAB * sizeof *expected) == 0);
    CHECK(model_argmax(split) == best && launches > 0);
    free_state(split);

    /* To the last position and not beyond. A window that is gone is not rolled back to. */
    while (model_position(state) < MODEL_CONTEXT) {
        size_t room = (size_t)(MODEL_CONTEXT - model_position(state));
        CHECK(model_prefill(state, ids, room < count ? room : count) == MODEL_OK);
    }
    CHECK(model_decode(state, 2) == MODEL_ERROR_CONTEXT && model_position(state) == MODEL_CONTEXT);
    CHECK(model_logits(state) != NULL);
    CHECK(model_rollback(state, 1) == MODEL_ERROR_POSITION && model_position(state) == MODEL_CONTEXT);
    CHECK(model_rollback(state, MODEL_CONTEXT - 1) == MODEL_OK && model_logits(state) == NULL);
    CHECK(model_decode(state, 2) == MODEL_OK && model_argmax(state) >= 0);

    free_state(state);
    free(expected);
    free(weights);
    for (int i = 0; i < 2; i++)
        free(scratches[i]);
    return 0;
}
