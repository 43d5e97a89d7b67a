// liblapidary: a compiled model, an artifact of `lapidary compile`, run from C. See docs/c-library.md.
//
// What may be null says so; null elsewhere, and what is out of range, gives LAPIDARY_STATUS_ARGUMENT. Texts are UTF-8.
// A call that does not return LAPIDARY_STATUS_OK has changed nothing, unless it says so; lapidary_last_error() tells
// why.
//
// A handle is good until it is freed, in any order: a sequence keeps its model. Calls may come from any thread. A
// model's calls wait for each other; a sequence that another call is using, that whose callback is running among them,
// gives LAPIDARY_STATUS_BUSY. Nobody may use a handle while it is freed.
//
// Made by cbindgen of runtime/c/src, which is to be changed in its place.


#ifndef LAPIDARY_H
#define LAPIDARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Weights lie in the file, mapped, for the first step, then in memory of the process if there is room for twice as
// many bytes: that is read faster.
#define LAPIDARY_RESIDENCE_AUTO 0

// Weights lie in the file, mapped: processes that open the same file share one copy.
#define LAPIDARY_RESIDENCE_MAPPED 1

// Weights are copied to memory of the process at once.
#define LAPIDARY_RESIDENCE_MEMORY 2

// Phase: tokens that are given, a prompt, were it of one.
#define LAPIDARY_PHASE_PREFILL 0

// Phase: tokens that were chosen, or drafted.
#define LAPIDARY_PHASE_DECODE 1

// Want: that the sequence holds the tokens.
#define LAPIDARY_WANT_NOTHING 0

// Want: the logits after the last token.
#define LAPIDARY_WANT_LOGITS 1

// Want: the logits after each token.
#define LAPIDARY_WANT_ALL_LOGITS 2

// Want: the most likely token after the last, the lowest of equals.
#define LAPIDARY_WANT_ARGMAX 3

// What a call came to.
typedef enum lapidary_status {
    // It did what it says.
    LAPIDARY_STATUS_OK = 0,
    // An argument is null where it may not be, out of its range, or a text that is not UTF-8.
    LAPIDARY_STATUS_ARGUMENT = 1,
    // A file cannot be read or written, or is not what it should be.
    LAPIDARY_STATUS_FILE = 2,
    // The artifact has no code that this machine can run.
    LAPIDARY_STATUS_MACHINE = 3,
    // Memory cannot be had, or may not be used (see lapidary_limit_kv()).
    LAPIDARY_STATUS_MEMORY = 4,
    // The tokens do not fit in what is left of the context.
    LAPIDARY_STATUS_CONTEXT = 5,
    // The room that the caller gives is too small; how much it takes is told.
    LAPIDARY_STATUS_ROOM = 6,
    // Another call is using the sequence.
    LAPIDARY_STATUS_BUSY = 7,
    // The artifact has no tokenizer, or no chat template.
    LAPIDARY_STATUS_ABSENT = 8,
    // The library is at fault, or the artifact is malformed. The model may not be used any more, but freed.
    LAPIDARY_STATUS_INTERNAL = 9,
} lapidary_status;

// Why a generation ended.
typedef enum lapidary_stop {
    // The model ended it.
    LAPIDARY_STOP_END_OF_TEXT = 0,
    // A stop text did.
    LAPIDARY_STOP_TEXT = 1,
    // It has as many tokens as were asked for.
    LAPIDARY_STOP_LENGTH = 2,
    // The context is full.
    LAPIDARY_STOP_CONTEXT = 3,
    // The callback did.
    LAPIDARY_STOP_CALLBACK = 4,
} lapidary_stop;

// An open artifact.
typedef struct lapidary_model lapidary_model;

// A text under way.
typedef struct lapidary_sequence lapidary_sequence;

// How a token is chosen: lapidary_sampling_greedy() has the defaults.
typedef struct lapidary_sampling {
    // Divides the logits before the draw; 0: always the most likely token, the lowest of equals.
    float temperature;
    // Keep this many most likely tokens; 0: all.
    size_t top_k;
    // Keep the fewest most likely tokens whose probabilities add up to this; 1: all.
    float top_p;
    // Keep tokens at least this many times as likely as the most likely one; 0: all.
    float min_p;
    // Divides the positive logits of tokens seen lately, multiplies the negative ones; 1: off.
    float repetition_penalty;
    // How many tokens back the penalty looks; 0: off.
    size_t repeat_last_n;
    // What random numbers come from, with the position: the same seed draws the same.
    uint64_t seed;
} lapidary_sampling;

// What is generated.
typedef struct lapidary_request {
    // Most tokens; 0: as many as the context has room for.
    size_t most_tokens;
    // How they are chosen.
    struct lapidary_sampling sampling;
    // Texts that end it, which is not given out; null if there are none.
    const char *const *stop_texts;
    // How many.
    size_t stop_text_count;
    // Not 0: go on where the model would end.
    uint32_t ignore_end;
} lapidary_request;

// Is given the text that became certain with a token: `bytes` bytes and a null, whole characters, good until it
// returns. A result other than 0 ends the generation. It must return: no exception and no jump may leave it.
typedef int (*lapidary_on_text)(void *data, const char *text, size_t bytes);

// What a generation came to.
typedef struct lapidary_outcome {
    // Why it ended.
    enum lapidary_stop stop;
    // Tokens that were made, the one that ends the text not among them.
    size_t tokens;
    // Seconds to append the prompt.
    double prefill_seconds;
    // Seconds from there to the end, callbacks included.
    double decode_seconds;
} lapidary_outcome;

// How an artifact is opened. All zeros, or null in its place, are the defaults.
typedef struct lapidary_options {
    // CPU whose code is run; null: the best that the file has for this machine.
    const char *cpu;
    // PEM file of an ed25519 public key: a file that its owner did not sign is refused. Null: none. An artifact is
    // code, and its hashes prove its integrity, not its origin.
    const char *trust;
    // Not 0: every section is held against its hash first. 0: only code and what describes it.
    uint32_t verify;
    // Threads; 0: one a fast core.
    uint32_t threads;
    // Most tokens that a sequence may hold, fewer than the file is compiled for; 0: as many.
    size_t context;
    // Most bytes that the caches of all sequences may take; 0: any.
    size_t kv_bytes;
    // LAPIDARY_RESIDENCE_AUTO, _MAPPED or _MEMORY.
    uint32_t residence;
} lapidary_options;

// What a model is.
typedef struct lapidary_info {
    // Entries of a row of logits.
    size_t vocab;
    // Most tokens that a sequence may hold.
    size_t context;
    // Most tokens that are computed at once; a call may have any number.
    size_t batch;
    // Threads, the caller's included.
    size_t threads;
    // The token that texts begin with; 0 without a tokenizer.
    uint32_t bos;
    // Whether it has a tokenizer.
    bool has_tokenizer;
    // Whether it has a chat template.
    bool has_chat_template;
    // Whether it was tuned to take turns: its prompts should be made by lapidary_chat().
    bool is_instruction_tuned;
} lapidary_info;

// Where memory goes, in bytes.
typedef struct lapidary_memory {
    // Weights.
    size_t weights;
    // Of them, those in the mapped file.
    size_t weights_mapped;
    // The caches of a sequence whose context is full.
    size_t kv_sequence;
    // The caches of all sequences as they are, in whole pages.
    size_t kv_used;
    // Temporaries of a call.
    size_t arena;
    // Scratch of all threads.
    size_t scratch;
    // The residual stream, inputs and logits.
    size_t activations;
} lapidary_memory;

// Tokens to append to a sequence, and what is wanted of them.
typedef struct lapidary_work {
    // The sequence; each once a step, all of one model.
    struct lapidary_sequence *sequence;
    // The tokens: at least one if anything is wanted.
    const uint32_t *tokens;
    // How many.
    size_t count;
    // LAPIDARY_PHASE_PREFILL or LAPIDARY_PHASE_DECODE. The two may differ in last bits; within a phase a token's
    // result depends on its own text alone, not on how tokens are split over steps nor on what shares them.
    uint32_t phase;
    // LAPIDARY_WANT_NOTHING, _LOGITS, _ALL_LOGITS or _ARGMAX.
    uint32_t want;
    // Where logits go, a row of lapidary_info.vocab numbers each; null where none are wanted.
    float *logits;
    // Numbers that there is room for.
    size_t room;
    // The token that was wanted.
    uint32_t token;
} lapidary_work;

// One message of a conversation.
typedef struct lapidary_message {
    // `user` or `assistant`; a template may know more.
    const char *role;
    // What was said.
    const char *content;
} lapidary_message;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Why the last call of this thread that failed did so: one line, empty if none has failed. Good until the thread's
// next call that fails.
const char *lapidary_last_error(void);

// The library's version: `0.1.0`.
const char *lapidary_version(void);

// The most likely token, always.
struct lapidary_sampling lapidary_sampling_greedy(void);

// Chooses the token after a sequence's last one; nothing is appended. It fails with LAPIDARY_STATUS_ARGUMENT if there
// is none to predict from: the sequence is empty, or was truncated since tokens were appended.
enum lapidary_status lapidary_sample(struct lapidary_sequence *sequence,
                                     const struct lapidary_sampling *sampling,
                                     uint32_t *token);

// Appends the tokens of a prompt to a sequence, then generates: each piece of text is given to `on_text` with `data`.
// No prompt (`prompt` null, `count` 0) goes on from the sequence's last token. `on_text`, `outcome` may be null.
//
// Afterwards the sequence holds the prompt and every token that was made, but for a last one that the context has no
// room for. Where it fails with LAPIDARY_STATUS_MEMORY or LAPIDARY_STATUS_INTERNAL it may hold some of them.
enum lapidary_status lapidary_generate(struct lapidary_sequence *sequence,
                                       const uint32_t *prompt,
                                       size_t count,
                                       const struct lapidary_request *request,
                                       lapidary_on_text on_text,
                                       void *data,
                                       struct lapidary_outcome *outcome);

// Opens an artifact. `options` may be null.
enum lapidary_status lapidary_open(const char *file,
                                   const struct lapidary_options *options,
                                   struct lapidary_model **model);

// Frees a model; null is none. Its sequences live on.
void lapidary_close(struct lapidary_model *model);

// Says what a model is.
enum lapidary_status lapidary_describe(const struct lapidary_model *model, struct lapidary_info *info);

// Says where a model's memory goes.
enum lapidary_status lapidary_memory_of(const struct lapidary_model *model, struct lapidary_memory *memory);

// Sets the most bytes that the caches of all sequences may take: calls that need more give LAPIDARY_STATUS_MEMORY.
enum lapidary_status lapidary_limit_kv(struct lapidary_model *model, size_t bytes);

// Makes an empty sequence. It takes address space for its context, and memory as it is used.
enum lapidary_status lapidary_sequence_new(const struct lapidary_model *model, struct lapidary_sequence **sequence);

// Frees a sequence; null is none.
void lapidary_sequence_free(struct lapidary_sequence *sequence);

// Makes a copy of a sequence, which shares nothing with it.
enum lapidary_status lapidary_sequence_fork(const struct lapidary_sequence *sequence, struct lapidary_sequence **copy);

// Forgets the tokens from `position` on, or all where a sliding window before `position` is gone. `reached`, which may
// be null, is the position then: `position` (or the sequence's end, if that is before) or 0.
enum lapidary_status lapidary_sequence_truncate(struct lapidary_sequence *sequence, size_t position, size_t *reached);

// The tokens that a sequence holds. `count` is how many there are, its position, also where `room` is too small for
// them (LAPIDARY_STATUS_ROOM): `tokens` may be null, of room 0, to ask for it.
enum lapidary_status lapidary_sequence_tokens(const struct lapidary_sequence *sequence,
                                              uint32_t *tokens,
                                              size_t room,
                                              size_t *count);

// Writes a sequence to a file, for lapidary_sequence_load() with the same model, or for `lapidary run --load`.
enum lapidary_status lapidary_sequence_save(const struct lapidary_sequence *sequence, const char *file);

// Makes a sequence of a file of lapidary_sequence_save(), or of `lapidary run --save`. One of another model is
// refused.
enum lapidary_status lapidary_sequence_load(const struct lapidary_model *model,
                                            const char *file,
                                            struct lapidary_sequence **sequence);

// Appends tokens to sequences, those of all in as few calls of kernels as can be. Where it fails, nothing was
// appended.
enum lapidary_status lapidary_step(struct lapidary_work *works, size_t count);

// The tokens of `bytes` bytes of text, special tokens in it among them; `begin` other than 0 puts the token before
// them that texts begin with, once. `count` is how many there are, also where `room` is too small for them
// (LAPIDARY_STATUS_ROOM): `tokens` may be null, of room 0, to ask for it.
enum lapidary_status lapidary_tokenize(const struct lapidary_model *model,
                                       const char *text,
                                       size_t bytes,
                                       uint32_t begin,
                                       uint32_t *tokens,
                                       size_t room,
                                       size_t *count);

// The text of tokens, which ends with a null; special tokens give none. `bytes` is its length without the null, also
// where `room`, which includes it, is too small (LAPIDARY_STATUS_ROOM): `text` may be null, of room 0, to ask for it.
enum lapidary_status lapidary_detokenize(const struct lapidary_model *model,
                                         const uint32_t *tokens,
                                         size_t count,
                                         char *text,
                                         size_t room,
                                         size_t *bytes);

// The prompt for messages by the model's chat template, up to where the model's turn begins: to be tokenized with
// `begin`. `system` are instructions, null for none. `text`, `room` and `bytes` as in lapidary_detokenize().
enum lapidary_status lapidary_chat(const struct lapidary_model *model,
                                   const char *system,
                                   const struct lapidary_message *messages,
                                   size_t count,
                                   char *text,
                                   size_t room,
                                   size_t *bytes);

// Whether a token ends a text of this model.
enum lapidary_status lapidary_ends_text(const struct lapidary_model *model, uint32_t token, bool *ends);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LAPIDARY_H */
