/* Continues a text by a compiled model, through liblapidary.
 *
 *     generate model.lap [-n TOKENS] [-c] PROMPT
 *
 * -n: tokens to generate, 64 unless given; -c: put the prompt into the model's chat template.
 */
#include <lapidary.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(lapidary_status status)
{
    if (status == LAPIDARY_STATUS_OK)
        return;
    fprintf(stderr, "error: %s\n", lapidary_last_error());
    exit(1);
}

/* The prompt of a conversation's first message. */
static char *in_template(const lapidary_model *model, const char *prompt)
{
    const lapidary_message message = {"user", prompt};
    size_t bytes = 0;
    lapidary_status status = lapidary_chat(model, NULL, &message, 1, NULL, 0, &bytes);
    if (status != LAPIDARY_STATUS_ROOM)
        check(status);
    char *text = malloc(bytes + 1);
    if (!text)
        exit(1);
    check(lapidary_chat(model, NULL, &message, 1, text, bytes + 1, &bytes));
    return text;
}

static int print(void *data, const char *text, size_t bytes)
{
    (void)data;
    fwrite(text, 1, bytes, stdout);
    return fflush(stdout);
}

int main(int argc, char **argv)
{
    size_t tokens = 64;
    int chat = 0, at = 2;
    for (; at + 1 < argc; at++) {
        if (strcmp(argv[at], "-c") == 0)
            chat = 1;
        else if (strcmp(argv[at], "-n") == 0)
            tokens = strtoul(argv[++at], NULL, 10);
        else
            break;
    }
    if (at + 1 != argc) {
        fprintf(stderr, "usage: %s model.lap [-n TOKENS] [-c] PROMPT\n", argv[0]);
        return 2;
    }
    const char *given = argv[at];

    lapidary_model *model;
    lapidary_sequence *sequence;
    check(lapidary_open(argv[1], NULL, &model));
    check(lapidary_sequence_new(model, &sequence));

    char *made = chat ? in_template(model, given) : NULL;
    const char *prompt = made ? made : given;
    size_t count = 0;
    lapidary_status status = lapidary_tokenize(model, prompt, strlen(prompt), 1, NULL, 0, &count);
    if (status != LAPIDARY_STATUS_ROOM)
        check(status);
    uint32_t *ids = calloc(count, sizeof *ids);
    if (!ids)
        return 1;
    check(lapidary_tokenize(model, prompt, strlen(prompt), 1, ids, count, &count));

    const lapidary_request request = {.most_tokens = tokens, .sampling = lapidary_sampling_greedy()};
    lapidary_outcome outcome;
    check(lapidary_generate(sequence, ids, count, &request, print, NULL, &outcome));
    printf("\n");
    fprintf(stderr, "%zu tokens of prompt in %.1f ms, %zu tokens in %.1f ms\n", count, outcome.prefill_seconds * 1e3,
            outcome.tokens, outcome.decode_seconds * 1e3);

    free(ids);
    free(made);
    lapidary_sequence_free(sequence);
    lapidary_close(model);
    return 0;
}
