/* Holds an object to its header: statuses, bounds of the state, parallel_for. Ends with 0, or names the line that
 * failed. */
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

static unsigned char *new_memory(size_t bytes)
{
    unsigned char *memory = aligned_alloc(MODEL_STATE_ALIGN, bytes + GUARD);
    CHECK(memory);
    memset(memory, 0, bytes);
    memset(memory + bytes, 0xa5, GUARD);
    return memory;
}

static void free_memory(unsigned char *memory, size_t bytes)
{
    for (size_t i = 0; i < GUARD; i++)
        CHECK(memory[bytes + i] == 0xa5);
    free(memory);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    size_t bytes = MODEL_ENGINE_BYTES, state_bytes = MODEL_STATE_BYTES, file_bytes = MODEL_WEIGHTS_BYTES;
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

    /* Before init and open. */
    unsigned char *engine = new_memory(bytes), *state = new_memory(state_bytes);
    const int32_t ids[] = {2, 17, 5, 99, 1000, 3, 8, 8, 12, 640, 2, 70};
    const size_t count = sizeof ids / sizeof *ids;
    CHECK(model_prefill(state, ids, count) == MODEL_ERROR_STATE);
    CHECK(model_decode(NULL, 2) == MODEL_ERROR_STATE);
    CHECK(model_rollback(state, 0) == MODEL_ERROR_STATE);
    CHECK(model_logits(state) == NULL && model_logits(NULL) == NULL);
    CHECK(model_argmax(state) == -1 && model_position(state) == 0);
    CHECK(model_open(state, state_bytes, engine) == MODEL_ERROR_STATE);

    /* What init refuses, and open. */
    CHECK(model_init(NULL, bytes, weights, file_bytes, NULL, NULL) == MODEL_ERROR_STATE);
    CHECK(model_init(engine + 8, bytes, weights, file_bytes, NULL, NULL) == MODEL_ERROR_STATE);
    CHECK(model_init(engine, bytes - 1, weights, file_bytes, NULL, NULL) == MODEL_ERROR_STATE);
    CHECK(model_init(engine, bytes, NULL, file_bytes, NULL, NULL) == MODEL_ERROR_WEIGHTS);
    CHECK(model_init(engine, bytes, weights + 8, file_bytes, NULL, NULL) == MODEL_ERROR_WEIGHTS);
    CHECK(model_init(engine, bytes, weights, file_bytes - 1, NULL, NULL) == MODEL_ERROR_WEIGHTS);
    for (size_t i = 0; i < 300; i += 7) {
        weights[i] ^= 1;
        CHECK(model_init(engine, bytes, weights, file_bytes, NULL, NULL) == MODEL_ERROR_WEIGHTS);
        weights[i] ^= 1;
    }
    CHECK(model_open(state, state_bytes, engine) == MODEL_ERROR_STATE);
    CHECK(model_init(engine, bytes, weights, file_bytes, NULL, NULL) == MODEL_OK);
    CHECK(model_open(NULL, state_bytes, engine) == MODEL_ERROR_STATE);
    CHECK(model_open(state + 8, state_bytes, engine) == MODEL_ERROR_STATE);
    CHECK(model_open(state, state_bytes - 1, engine) == MODEL_ERROR_STATE);
    CHECK(model_open(state, state_bytes, NULL) == MODEL_ERROR_STATE);
    CHECK(model_argmax(state) == -1);
    CHECK(model_open(state, state_bytes, engine) == MODEL_OK);

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
    unsigned char *other = new_memory(bytes), *split = new_memory(state_bytes);
    CHECK(model_init(other, bytes, weights, file_bytes, backwards, &launches) == MODEL_OK);
    CHECK(model_open(split, state_bytes, other) == MODEL_OK);
    CHECK(model_prefill(split, ids, count) == MODEL_OK);
    CHECK(memcmp(expected, model_logits(split), MODEL_VOCAB * sizeof *expected) == 0);
    CHECK(model_argmax(split) == best && launches > 0);

    /* Several states of one engine: each as if it were alone, whose tokens go in the same pass or between. */
    enum { STATES = 5 };
    void *states[STATES];
    int32_t next[STATES], alone[STATES];
    float *logits = malloc(STATES * MODEL_VOCAB * sizeof *logits);
    CHECK(logits);
    for (int turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < STATES; i++) {
            if (turn == 0) {
                states[i] = new_memory(state_bytes);
                CHECK(model_open(states[i], state_bytes, other) == MODEL_OK);
            }
            CHECK(model_rollback(states[i], 0) == MODEL_OK);
            CHECK(model_prefill(states[i], ids + i, count - 2 * i) == MODEL_OK);
            next[i] = ids[i];
            if (turn == 0) {
                CHECK(model_decode(states[i], next[i]) == MODEL_OK && model_decode(states[i], 3) == MODEL_OK);
                memcpy(logits + i * MODEL_VOCAB, model_logits(states[i]), MODEL_VOCAB * sizeof *logits);
                alone[i] = model_argmax(states[i]);
            }
        }
        if (turn == 0)
            continue;
        CHECK(model_step(states, next, STATES) == MODEL_OK);
        for (size_t i = 0; i < STATES; i++)
            next[i] = 3;
        CHECK(model_step(states, next, STATES) == MODEL_OK);
        for (size_t i = 0; i < STATES; i++) {
            CHECK(model_argmax(states[i]) == alone[i]);
            CHECK(memcmp(logits + i * MODEL_VOCAB, model_logits(states[i]), MODEL_VOCAB * sizeof *logits) == 0);
        }
    }

    /* What step refuses, changing nothing. */
    uint64_t position = model_position(states[1]);
    CHECK(model_step(NULL, NULL, 0) == MODEL_OK);
    CHECK(model_step(NULL, next, 1) == MODEL_ERROR_ARGUMENT && model_step(states, NULL, 1) == MODEL_ERROR_ARGUMENT);
    CHECK(model_step(states, next, (size_t)MODEL_CHUNK + 1) == MODEL_ERROR_ARGUMENT);
    next[1] = MODEL_VOCAB;
    CHECK(model_step(states, next, 2) == MODEL_ERROR_TOKEN);
    void *twice[] = {states[0], states[0]}, *of_two[] = {states[0], state}, *none[] = {states[0], NULL};
    CHECK(model_step(twice, ids, 2) == MODEL_ERROR_ARGUMENT);
    CHECK(model_step(of_two, ids, 2) == MODEL_ERROR_STATE && model_step(none, ids, 2) == MODEL_ERROR_STATE);
    CHECK(model_position(states[1]) == position && model_position(states[0]) == count + 2);
    for (size_t i = 0; i < STATES; i++)
        free_memory(states[i], state_bytes);
    free(logits);
    free_memory(split, state_bytes);
    free_memory(other, bytes);

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

    free_memory(state, state_bytes);
    free_memory(engine, bytes);
    free(expected);
    free(weights);
    for (int i = 0; i < 2; i++)
        free(scratches[i]);
    return 0;
}
