/* What the header of liblapidary promises, tried with the artifact that is the first argument; the second is a file
 * that may be written. */
#include <lapidary.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(what)                                                                                                   \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "line %d: %s (last error: %s)\n", __LINE__, #what, lapidary_last_error());                 \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define OK(call) EXPECT((call) == LAPIDARY_STATUS_OK)
#define FAILS(call, status, word)                                                                                      \
    do {                                                                                                               \
        EXPECT((call) == (status));                                                                                    \
        EXPECT(strstr(lapidary_last_error(), word) != NULL);                                                           \
    } while (0)

static const char PROMPT[] = "It is a truth universally acknowledged";

struct heard {
    char text[4096];
    size_t bytes, pieces, most;
    lapidary_sequence *own;
    lapidary_model *model;
};

static int hear(void *data, const char *text, size_t bytes)
{
    struct heard *heard = data;
    size_t position;
    EXPECT(strlen(text) == bytes && heard->bytes + bytes < sizeof heard->text);
    memcpy(heard->text + heard->bytes, text, bytes + 1);
    heard->bytes += bytes;
    heard->pieces++;
    /* The sequence is in use; the model is not. */
    if (heard->own)
        FAILS(lapidary_sequence_tokens(heard->own, NULL, 0, &position), LAPIDARY_STATUS_BUSY, "another call");
    if (heard->model) {
        lapidary_info info;
        OK(lapidary_describe(heard->model, &info));
    }
    return heard->pieces == heard->most;
}

static size_t position(const lapidary_sequence *sequence)
{
    size_t count = 0;
    lapidary_status status = lapidary_sequence_tokens(sequence, NULL, 0, &count);
    EXPECT(status == (count ? LAPIDARY_STATUS_ROOM : LAPIDARY_STATUS_OK));
    return count;
}

static void append(lapidary_sequence *sequence, const uint32_t *tokens, size_t count, uint32_t want, float *logits,
                   size_t room)
{
    lapidary_work work = {
        .sequence = sequence, .tokens = tokens, .count = count, .want = want, .logits = logits, .room = room};
    OK(lapidary_step(&work, 1));
}

static void arguments(const char *file, lapidary_model *model)
{
    lapidary_model *none = model;
    lapidary_sequence *sequence = NULL;
    lapidary_info info;
    lapidary_memory memory;
    uint32_t id = 0;
    size_t count;
    bool ends;
    char text[8];

    FAILS(lapidary_open(NULL, NULL, &none), LAPIDARY_STATUS_ARGUMENT, "file is null");
    EXPECT(none == NULL);
    FAILS(lapidary_open(file, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "model is null");
    FAILS(lapidary_open("/no/such\n.lap", NULL, &none), LAPIDARY_STATUS_FILE, "/no/such");
    EXPECT(strchr(lapidary_last_error(), '\n') == NULL);
    FAILS(lapidary_open(file, &(lapidary_options){.cpu = "z80"}, &none), LAPIDARY_STATUS_MACHINE, "z80");
    FAILS(lapidary_open(file, &(lapidary_options){.cpu = "\xff"}, &none), LAPIDARY_STATUS_ARGUMENT, "UTF-8");
    FAILS(lapidary_open(file, &(lapidary_options){.trust = "/no/key"}, &none), LAPIDARY_STATUS_FILE, "/no/key");
    FAILS(lapidary_open(file, &(lapidary_options){.residence = 3}, &none), LAPIDARY_STATUS_ARGUMENT, "residence is 3");
    FAILS(lapidary_open(file, &(lapidary_options){.context = 1 << 20}, &none), LAPIDARY_STATUS_ARGUMENT, "context");
    EXPECT(none == NULL);

    FAILS(lapidary_describe(NULL, &info), LAPIDARY_STATUS_ARGUMENT, "model");
    FAILS(lapidary_describe(model, NULL), LAPIDARY_STATUS_ARGUMENT, "info");
    FAILS(lapidary_memory_of(model, NULL), LAPIDARY_STATUS_ARGUMENT, "memory");
    FAILS(lapidary_memory_of(NULL, &memory), LAPIDARY_STATUS_ARGUMENT, "model");
    FAILS(lapidary_limit_kv(NULL, 1), LAPIDARY_STATUS_ARGUMENT, "model");
    FAILS(lapidary_ends_text(model, 1, NULL), LAPIDARY_STATUS_ARGUMENT, "ends");
    OK(lapidary_ends_text(model, UINT32_MAX, &ends));
    EXPECT(!ends);
    FAILS(lapidary_tokenize(model, NULL, 3, 1, &id, 1, &count), LAPIDARY_STATUS_ARGUMENT, "text is null");
    FAILS(lapidary_tokenize(model, "\xff", 1, 1, &id, 1, &count), LAPIDARY_STATUS_ARGUMENT, "UTF-8");
    FAILS(lapidary_tokenize(model, "a", 1, 1, &id, 1, NULL), LAPIDARY_STATUS_ARGUMENT, "count");
    FAILS(lapidary_tokenize(model, "a", (size_t)-1, 1, &id, 1, &count), LAPIDARY_STATUS_ARGUMENT, "text");
    FAILS(lapidary_tokenize(model, PROMPT, strlen(PROMPT), 1, NULL, 0, &count), LAPIDARY_STATUS_ROOM, "room for 0");
    FAILS(lapidary_tokenize(model, PROMPT, strlen(PROMPT), 1, NULL, 99, &count), LAPIDARY_STATUS_ARGUMENT, "null");
    FAILS(lapidary_detokenize(model, NULL, 1, text, 8, &count), LAPIDARY_STATUS_ARGUMENT, "tokens");
    FAILS(lapidary_detokenize(model, &id, 1, text, 0, &count), LAPIDARY_STATUS_ROOM, "text takes 1");
    const lapidary_message silent = {"user", NULL}, said = {"user", "hello"};
    FAILS(lapidary_chat(model, NULL, NULL, 1, text, 8, &count), LAPIDARY_STATUS_ARGUMENT, "messages is null");
    FAILS(lapidary_chat(model, NULL, &silent, 1, text, 8, &count), LAPIDARY_STATUS_ARGUMENT, "content is null");
    FAILS(lapidary_chat(model, "\xff", &said, 1, text, 8, &count), LAPIDARY_STATUS_ARGUMENT, "UTF-8");
    FAILS(lapidary_chat(model, NULL, &said, 1, text, 8, &count), LAPIDARY_STATUS_ROOM, "text takes");

    FAILS(lapidary_sequence_new(NULL, &sequence), LAPIDARY_STATUS_ARGUMENT, "model");
    FAILS(lapidary_sequence_new(model, NULL), LAPIDARY_STATUS_ARGUMENT, "sequence");
    FAILS(lapidary_sequence_fork(NULL, &sequence), LAPIDARY_STATUS_ARGUMENT, "sequence");
    FAILS(lapidary_sequence_truncate(NULL, 0, NULL), LAPIDARY_STATUS_ARGUMENT, "sequence");
    FAILS(lapidary_sequence_save(NULL, file), LAPIDARY_STATUS_ARGUMENT, "sequence");
    FAILS(lapidary_sequence_load(model, NULL, &sequence), LAPIDARY_STATUS_ARGUMENT, "file");
    FAILS(lapidary_sequence_load(model, file, &sequence), LAPIDARY_STATUS_FILE, "lapidary-sequence");
    FAILS(lapidary_step(NULL, 1), LAPIDARY_STATUS_ARGUMENT, "works");
    FAILS(lapidary_step(&(lapidary_work){.sequence = NULL}, 1), LAPIDARY_STATUS_ARGUMENT, "sequence");
    OK(lapidary_step(NULL, 0));

    OK(lapidary_sequence_new(model, &sequence));
    const lapidary_sampling greedy = lapidary_sampling_greedy();
    lapidary_request request = {.most_tokens = 1, .sampling = greedy};
    FAILS(lapidary_sample(sequence, &greedy, &id), LAPIDARY_STATUS_ARGUMENT, "no token");
    FAILS(lapidary_generate(sequence, NULL, 0, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "empty");
    FAILS(lapidary_generate(sequence, NULL, 1, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "prompt");
    FAILS(lapidary_generate(sequence, &id, 1, NULL, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "request");
    request.sampling.temperature = -1;
    FAILS(lapidary_generate(sequence, &id, 1, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "temperature");
    request.sampling.temperature = NAN;
    FAILS(lapidary_generate(sequence, &id, 1, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "temperature");
    request.sampling = greedy;
    request.stop_text_count = 1;
    FAILS(lapidary_generate(sequence, &id, 1, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "stop_texts");
    const char *stops[] = {""};
    request.stop_texts = stops;
    FAILS(lapidary_generate(sequence, &id, 1, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "empty");
    request.stop_text_count = 0;
    const uint32_t beyond = UINT32_MAX;
    FAILS(lapidary_generate(sequence, &beyond, 1, &request, NULL, NULL, NULL), LAPIDARY_STATUS_ARGUMENT, "of range");

    lapidary_work work = {.sequence = sequence, .tokens = &id, .count = 1, .phase = 2};
    FAILS(lapidary_step(&work, 1), LAPIDARY_STATUS_ARGUMENT, "phase is 2");
    work = (lapidary_work){.sequence = sequence, .tokens = &id, .count = 1, .want = 4};
    FAILS(lapidary_step(&work, 1), LAPIDARY_STATUS_ARGUMENT, "want is 4");
    work.want = LAPIDARY_WANT_LOGITS;
    FAILS(lapidary_step(&work, 1), LAPIDARY_STATUS_ROOM, "logits");
    work.room = SIZE_MAX;
    FAILS(lapidary_step(&work, 1), LAPIDARY_STATUS_ARGUMENT, "logits is null");
    work.want = LAPIDARY_WANT_NOTHING;
    const lapidary_work twice[] = {work, work};
    lapidary_work two[2];
    memcpy(two, twice, sizeof two);
    FAILS(lapidary_step(two, 2), LAPIDARY_STATUS_BUSY, "another call");
    EXPECT(position(sequence) == 0);

    OK(lapidary_memory_of(model, &memory));
    EXPECT(memory.weights > 0 && memory.kv_sequence > 0 && memory.kv_used == 0);
    OK(lapidary_limit_kv(model, 1));
    FAILS(lapidary_step(&work, 1), LAPIDARY_STATUS_MEMORY, "at most");
    OK(lapidary_limit_kv(model, SIZE_MAX));
    lapidary_sequence_free(sequence);
    lapidary_sequence_free(NULL);
    lapidary_close(NULL);
}

/* A conversation by the model's template, instructions before what is said. */
static void conversation(lapidary_model *model)
{
    const lapidary_message messages[] = {{"user", "hello"}, {"assistant", "well met"}, {"user", "and then?"}};
    char text[512];
    size_t bytes;
    OK(lapidary_chat(model, "Be brief.", messages, 3, text, sizeof text, &bytes));
    const char *first = strstr(text, "Be brief."), *last = strstr(text, "and then?");
    EXPECT(bytes == strlen(text) && first && last && strstr(first, "hello") < strstr(first, "well met"));
    EXPECT(strstr(last, "model") != NULL);
    uint32_t ids[128];
    size_t count;
    lapidary_info info;
    OK(lapidary_tokenize(model, text, bytes, 1, ids, 128, &count));
    OK(lapidary_describe(model, &info));
    EXPECT(ids[0] == info.bos && ids[1] != info.bos);
}

/* Generated by one call, or chosen and stepped one by one: the same tokens, for a seed. */
static void generation(lapidary_model *model, const uint32_t *ids, size_t count)
{
    enum { MOST = 12 };
    lapidary_sampling sampling = lapidary_sampling_greedy();
    sampling.temperature = 0.8f;
    sampling.repetition_penalty = 1.1f;
    sampling.seed = 7;
    lapidary_request request = {.most_tokens = MOST, .sampling = sampling};
    lapidary_sequence *whole, *steps;
    lapidary_outcome outcome;
    struct heard heard = {.model = model};
    OK(lapidary_sequence_new(model, &whole));
    heard.own = whole;
    OK(lapidary_generate(whole, ids, count, &request, hear, &heard, &outcome));
    EXPECT(outcome.stop == LAPIDARY_STOP_LENGTH && outcome.tokens == MOST && heard.bytes > 0);
    uint32_t held[256];
    size_t holds;
    OK(lapidary_sequence_tokens(whole, held, 256, &holds));
    EXPECT(holds == count + MOST && memcmp(held, ids, count * sizeof *ids) == 0);
    char text[4096];
    size_t bytes;
    OK(lapidary_detokenize(model, held + count, MOST, text, sizeof text, &bytes));
    EXPECT(bytes == heard.bytes && strcmp(text, heard.text) == 0);

    OK(lapidary_sequence_new(model, &steps));
    append(steps, ids, count, LAPIDARY_WANT_NOTHING, NULL, 0);
    for (size_t at = count; at < holds; at++) {
        uint32_t token;
        OK(lapidary_sample(steps, &sampling, &token));
        EXPECT(token == held[at]);
        lapidary_work work = {.sequence = steps, .tokens = &token, .count = 1, .phase = LAPIDARY_PHASE_DECODE};
        OK(lapidary_step(&work, 1));
    }

    /* The callback ends it, and so does a stop text, which is not given out. */
    OK(lapidary_sequence_truncate(steps, 0, NULL));
    struct heard few = {.most = 3};
    OK(lapidary_generate(steps, ids, count, &request, hear, &few, &outcome));
    EXPECT(outcome.stop == LAPIDARY_STOP_CALLBACK && outcome.tokens <= MOST && few.pieces == 3);
    EXPECT(strncmp(few.text, heard.text, few.bytes) == 0 && position(steps) == count + outcome.tokens);
    OK(lapidary_sequence_truncate(steps, 0, NULL));
    char stop[] = {heard.text[heard.bytes / 2], heard.text[heard.bytes / 2 + 1], 0};
    const char *stops[] = {stop};
    request.stop_texts = stops;
    request.stop_text_count = 1;
    struct heard until = {.most = 0};
    OK(lapidary_generate(steps, ids, count, &request, hear, &until, &outcome));
    EXPECT(outcome.stop == LAPIDARY_STOP_TEXT && strstr(until.text, stop) == NULL);
    EXPECT(until.bytes == (size_t)(strstr(heard.text, stop) - heard.text));

    /* As far as the context goes. */
    request = (lapidary_request){.sampling = sampling, .ignore_end = 1};
    lapidary_info info;
    OK(lapidary_describe(model, &info));
    OK(lapidary_generate(steps, NULL, 0, &request, NULL, NULL, &outcome));
    EXPECT(outcome.stop == LAPIDARY_STOP_CONTEXT && position(steps) == info.context);
    lapidary_work work = {.sequence = steps, .tokens = ids, .count = 1};
    FAILS(lapidary_step(&work, 1), LAPIDARY_STATUS_CONTEXT, "do not fit");
    lapidary_sequence_free(whole);
    lapidary_sequence_free(steps);
}

/* Two sequences in a step have the bits of each alone; a fork, a truncation, a file go on with the same. */
static void sequences(lapidary_model *model, const char *file, const uint32_t *ids, size_t count)
{
    lapidary_info info;
    OK(lapidary_describe(model, &info));
    const size_t row = info.vocab * sizeof(float);
    float *alone = malloc(row * (count + 1)), *together = malloc(row * (count + 1)), *more = malloc(row);
    lapidary_sequence *a, *b, *copy, *loaded;
    EXPECT(alone && together && more);
    OK(lapidary_sequence_new(model, &a));
    OK(lapidary_sequence_new(model, &b));
    append(a, ids, count, LAPIDARY_WANT_ALL_LOGITS, alone, info.vocab * count);
    append(b, ids + 1, 2, LAPIDARY_WANT_LOGITS, alone + info.vocab * count, info.vocab);
    OK(lapidary_sequence_truncate(a, 0, NULL));
    OK(lapidary_sequence_truncate(b, 0, NULL));
    lapidary_work works[] = {
        {.sequence = a, .tokens = ids, .count = count, .want = LAPIDARY_WANT_ALL_LOGITS},
        {.sequence = b, .tokens = ids + 1, .count = 2, .want = LAPIDARY_WANT_LOGITS},
    };
    works[0].logits = together;
    works[0].room = info.vocab * count;
    works[1].logits = together + works[0].room;
    works[1].room = info.vocab;
    OK(lapidary_step(works, 2));
    EXPECT(memcmp(alone, together, row * (count + 1)) == 0);

    const uint32_t next = ids[1];
    lapidary_work argmax = {.sequence = b, .tokens = &next, .count = 1, .want = LAPIDARY_WANT_ARGMAX};
    OK(lapidary_sequence_fork(a, &copy));
    OK(lapidary_sequence_save(a, file));
    OK(lapidary_sequence_load(model, file, &loaded));
    append(a, &next, 1, LAPIDARY_WANT_LOGITS, more, info.vocab);
    lapidary_sequence *others[] = {copy, loaded};
    for (int i = 0; i < 2; i++) {
        EXPECT(position(others[i]) == count);
        append(others[i], &next, 1, LAPIDARY_WANT_LOGITS, alone, info.vocab);
        EXPECT(memcmp(alone, more, row) == 0);
    }
    OK(lapidary_step(&argmax, 1));
    EXPECT(argmax.token < info.vocab);
    size_t reached;
    OK(lapidary_sequence_truncate(a, count, &reached));
    EXPECT(reached == count && position(a) == count);
    append(a, &next, 1, LAPIDARY_WANT_LOGITS, alone, info.vocab);
    EXPECT(memcmp(alone, more, row) == 0);

    FILE *broken = fopen(file, "r+b");
    EXPECT(broken && fseek(broken, -40, SEEK_END) == 0);
    int byte = fgetc(broken);
    EXPECT(fseek(broken, -40, SEEK_END) == 0 && fputc(byte ^ 1, broken) != EOF && fclose(broken) == 0);
    lapidary_sequence *none = a;
    FAILS(lapidary_sequence_load(model, file, &none), LAPIDARY_STATUS_FILE, "damaged");
    EXPECT(none == NULL);
    FAILS(lapidary_sequence_save(a, "/no/such/file"), LAPIDARY_STATUS_FILE, "/no/such");

    /* A sequence keeps its model. */
    lapidary_sequence_free(copy);
    lapidary_sequence_free(b);
    lapidary_close(model);
    append(loaded, ids, 1, LAPIDARY_WANT_NOTHING, NULL, 0);
    lapidary_sequence_free(loaded);
    lapidary_sequence_free(a);
    free(alone);
    free(together);
    free(more);
}

int main(int argc, char **argv)
{
    lapidary_model *model, *other;
    uint32_t ids[64];
    size_t count;
    EXPECT(argc == 3);
    EXPECT(strlen(lapidary_last_error()) == 0 && strchr(lapidary_version(), '.') != NULL);
    OK(lapidary_open(argv[1], &(lapidary_options){.verify = 1, .threads = 2, .context = 60}, &model));
    lapidary_info info;
    OK(lapidary_describe(model, &info));
    EXPECT(info.context == 60 && info.threads == 2 && info.has_tokenizer && info.has_chat_template && info.vocab > 0);
    OK(lapidary_tokenize(model, PROMPT, strlen(PROMPT), 1, ids, 64, &count));
    EXPECT(count > 3 && ids[0] == info.bos);
    char text[64];
    size_t bytes;
    OK(lapidary_detokenize(model, ids, count, text, 64, &bytes));
    EXPECT(strcmp(text, PROMPT) == 0 && bytes == strlen(PROMPT));

    arguments(argv[1], model);
    conversation(model);
    OK(lapidary_open(argv[1], &(lapidary_options){.residence = LAPIDARY_RESIDENCE_MEMORY}, &other));
    lapidary_memory mapped, moved;
    OK(lapidary_memory_of(model, &mapped));
    OK(lapidary_memory_of(other, &moved));
    EXPECT(mapped.weights_mapped == mapped.weights && moved.weights_mapped == 0 && moved.weights == mapped.weights);
    lapidary_sequence *of_model, *of_other;
    OK(lapidary_sequence_new(model, &of_model));
    OK(lapidary_sequence_new(other, &of_other));
    lapidary_work works[] = {{.sequence = of_model}, {.sequence = of_other}};
    FAILS(lapidary_step(works, 2), LAPIDARY_STATUS_ARGUMENT, "several models");
    lapidary_close(other);
    lapidary_sequence_free(of_other);
    lapidary_sequence_free(of_model);
    generation(model, ids, count);
    sequences(model, argv[2], ids, count);
    printf("ok\n");
    return 0;
}
