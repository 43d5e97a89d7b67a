/* Runs token ids through a compiled model and prints the greedy continuation, or the logits.
 *
 *     main model.weights [-t THREADS] [-n TOKENS] [-l] ID...
 *
 * -n: tokens to generate; -l: instead of each token print the logits it was chosen from, a line each. Ids come from a
 * tokenizer; the first is the beginning-of-sequence token, 2 for Gemma.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "threads.h"

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "error: %s: %s\n", what, why);
    exit(1);
}

static void check(int status)
{
    static const char *const names[] = {"ok", "bad state", "these are not the weights of this object", "bad argument",
                                        "more tokens than the context", "no such token", "no such position",
                                        "this CPU lacks what the code needs"};
    if (status != MODEL_OK)
        fail("model", names[status]);
}

/* Reads a whole file to aligned memory; a program on an operating system would map it. */
static void *read_file(const char *path, size_t bytes)
{
    FILE *file = fopen(path, "rb");
    void *memory = aligned_alloc(MODEL_WEIGHTS_ALIGN, bytes);
    if (!file)
        fail(path, strerror(errno));
    if (!memory)
        fail(path, "out of memory");
    if (fread(memory, 1, bytes, file) != bytes || fgetc(file) != EOF)
        fail(path, "not as long as the weights of this model");
    fclose(file);
    return memory;
}

/* Memory for an engine or a state. */
static void *zeroed(size_t bytes)
{
    void *memory = aligned_alloc(MODEL_STATE_ALIGN, bytes);
    if (!memory)
        fail("memory", "there is not enough");
    return memset(memory, 0, bytes);
}

static long number(const char *text, long most)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 0 || value > most)
        fail(text, "expected a number in range");
    return value;
}

int main(int argc, char **argv)
{
    long threads = 1, tokens = 16;
    int print_logits = 0, at = 2;
    if (argc < 3) {
        fprintf(stderr, "usage: %s model.weights [-t THREADS] [-n TOKENS] [-l] ID...\n", argv[0]);
        return 2;
    }
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (strcmp(argv[at], "-l") == 0)
            print_logits = 1;
        else if (strcmp(argv[at], "-t") == 0 && at + 1 < argc)
            threads = number(argv[++at], THREADS_MAX);
        else if (strcmp(argv[at], "-n") == 0 && at + 1 < argc)
            tokens = number(argv[++at], MODEL_CONTEXT);
        else
            fail(argv[at], "no such option");
    }
    if (at == argc)
        fail("arguments", "expected token ids");

    void *weights = read_file(argv[1], MODEL_WEIGHTS_BYTES);
    void *engine = zeroed(MODEL_ENGINE_BYTES), *state = zeroed(MODEL_STATE_BYTES);
    struct threads *pool = threads > 1 ? threads_start((int)threads, MODEL_SCRATCH_BYTES, MODEL_SCRATCH_ALIGN) : NULL;
    if (threads > 1 && !pool)
        fail("threads", "cannot be started");
    check(model_init(engine, MODEL_ENGINE_BYTES, weights, MODEL_WEIGHTS_BYTES, pool ? threads_run : NULL, pool));
    check(model_open(state, MODEL_STATE_BYTES, engine));

    size_t count = (size_t)(argc - at);
    int32_t *ids = calloc(count, sizeof *ids);
    if (!ids)
        fail("ids", "out of memory");
    for (size_t i = 0; i < count; i++)
        ids[i] = (int32_t)number(argv[at + (int)i], INT32_MAX);
    check(model_prefill(state, ids, count));
    for (long n = 0; n < tokens; n++) {
        if (n > 0)
            check(model_decode(state, model_argmax(state)));
        if (!print_logits) {
            printf("%s%d", n ? " " : "", (int)model_argmax(state));
            continue;
        }
        const float *logits = model_logits(state);
        for (int v = 0; v < MODEL_VOCAB; v++)
            printf("%.9g%s", (double)logits[v], v + 1 < MODEL_VOCAB ? " " : "\n");
    }
    if (!print_logits)
        printf("\n");
    threads_stop(pool);
    free(ids);
    free(state);
    free(engine);
    free(weights);
    return 0;
}
