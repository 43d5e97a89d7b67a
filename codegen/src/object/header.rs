//! The C header of an object: constants, types, functions, and what a caller must know.
//!
//! In: what the object was made from. Out: text that is C11 and C++17. Invariant: every number in it is the one that
//! the code was made with.

use std::fmt::Write;

use super::state::{Places, STATE_ALIGN};
use super::weights::{WEIGHT_ALIGN, WeightsFile};
use super::{Parts, Status, guard};
use crate::target::Target;

/// The header's text.
pub fn text(target: &Target, parts: &Parts<'_>, places: &Places, weights: &WeightsFile) -> String {
    let Parts { image, prefix, .. } = parts;
    let upper = prefix.to_ascii_uppercase();
    let plan = &image.plan;
    let (triple, cpu) = (target.isa.triple(), &target.name);
    let mut out = format!(
        "/* A language model compiled by Lapidary for {triple}, CPU {cpu}: link {prefix}.o, load {prefix}.weights.\n"
    );
    let named = |text: &str| text.replace("@lower", prefix).replace("@UPPER", &upper);
    out.push_str(&named(ABOUT));
    begin(&mut out, target, prefix);
    let constants = [
        ("VOCAB", plan.vocab, "Entries of a row of logits; tokens are 0 .. VOCAB - 1."),
        ("HIDDEN", plan.hidden, "Width of the residual stream, in floats."),
        ("LAYERS", plan.layers.len(), "Layers."),
        ("CONTEXT", plan.context, "The most tokens that a state holds."),
        ("CHUNK", plan.chunk, "The most tokens of one pass, of all its states; longer prompts take several."),
        ("ENGINE_BYTES", places.engine.bytes, "Bytes of an engine: temporaries, scratch, tables."),
        ("STATE_BYTES", places.state_bytes, "Bytes of a state: caches and logits."),
        ("STATE_ALIGN", STATE_ALIGN, "Alignment of an engine and of a state in bytes."),
        (
            "CACHE_BYTES",
            places.kv_bytes,
            "Bytes of the state that are the KV cache; touched as the text grows.",
        ),
        ("ARENA_BYTES", places.engine.arena_bytes, "Bytes of the engine that are temporaries of one pass."),
        ("SCRATCH_BYTES", places.engine.scratch_bytes, "Bytes of scratch of each thread of a parallel_for."),
        ("SCRATCH_ALIGN", STATE_ALIGN, "Alignment of a thread's scratch in bytes."),
        ("WEIGHTS_BYTES", weights.bytes, "Length of the weights file in bytes."),
        (
            "WEIGHTS_ALIGN",
            WEIGHT_ALIGN,
            "Alignment of the weights in memory, in bytes (a mapped file has it).",
        ),
    ];
    for (name, value, about) in constants {
        let suffix = if value > i32::MAX as usize { "ULL" } else { "" };
        let _ = writeln!(out, "/* {about} */\n#define {upper}_{name} {value}{suffix}");
    }
    let ids = if parts.stop.is_empty() { &[-1][..] } else { parts.stop };
    let ids: Vec<String> = ids.iter().map(i32::to_string).collect();
    let _ = writeln!(
        out,
        "/* The token that a text begins with. */\n#define {upper}_BOS {}\n\
         /* The tokens that end an answer, all of them: `const int32_t eos[] = {upper}_EOS;`. Where there are none, \
         -1. */\n\
         #define {upper}_EOS {{{}}}\n/* How many. */\n#define {upper}_EOS_COUNT {}",
        parts.bos,
        ids.join(", "),
        parts.stop.len(),
    );
    out.push_str("\n/* What functions return. */\nenum {\n");
    for (index, status) in Status::ALL.into_iter().enumerate() {
        let (name, about) = describe(status);
        let comma = if index + 1 == Status::ALL.len() { "" } else { "," };
        let _ = writeln!(out, "    {upper}_{name} = {}{comma} /* {about} */", status.code());
    }
    out.push_str("};\n");
    out.push_str(&named(BEGINNING));
    out.push_str(&named(FUNCTIONS));
    out.push_str(&named(include_str!("sample.h")));
    out.push_str(END);
    out
}

/// The end of what is said first, with what the CPU needs, and the beginning of what a compiler reads.
pub(super) fn begin(out: &mut String, target: &Target, prefix: &str) {
    let upper = prefix.to_ascii_uppercase();
    let named = |text: &str| text.replace("@lower", prefix).replace("@UPPER", &upper);
    out.push_str(&named(CPU).replace("@needs", &lines(&guard::needs(target))));
    if target.features.amx {
        out.push_str(&named(AMX));
    }
    out.push_str(" */\n");
    let _ = write!(
        out,
        "#ifndef LAPIDARY_{upper}_H\n#define LAPIDARY_{upper}_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n\
         #ifdef __cplusplus\nextern \"C\" {{\n#endif\n\n"
    );
}

/// A list that is broken into lines of a comment.
fn lines(list: &str) -> String {
    const WIDTH: usize = 110;
    let mut out = String::new();
    let mut width = 0;
    for word in list.split(' ') {
        if width > 0 && width + word.len() > WIDTH {
            out.push_str("\n *");
            width = 0;
        }
        let _ = write!(out, "{}{word}", if out.is_empty() { "" } else { " " });
        width += word.len() + 1;
    }
    out
}

/// A status' name and meaning.
fn describe(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::Ok => ("OK", "Done."),
        Status::State => ("ERROR_STATE", "The engine or state is null, misaligned, too small, or not ready."),
        Status::Weights => {
            ("ERROR_WEIGHTS", "The weights are null, misaligned, or not those of this object.")
        }
        Status::Argument => {
            ("ERROR_ARGUMENT", "A null pointer, too many states, or one twice; nothing changed.")
        }
        Status::Context => ("ERROR_CONTEXT", "More tokens than the context has room for; nothing changed."),
        Status::Token => ("ERROR_TOKEN", "A token that is not in 0 .. VOCAB - 1; nothing changed."),
        Status::Position => ("ERROR_POSITION", "A position ahead, or whose window is gone; nothing changed."),
        Status::Cpu => ("ERROR_CPU", "This CPU lacks what the code needs; nothing changed."),
    }
}

const ABOUT: &str = " *
 * The code needs nothing else, not even libc. It allocates nothing and writes nothing but engine and states.
 *
 * Memory: the caller provides the bytes of the weights file, aligned to @UPPER_WEIGHTS_ALIGN, which are read only;
 * an engine of @UPPER_ENGINE_BYTES bytes; and for each sequence of tokens a state of @UPPER_STATE_BYTES bytes. Both
 * are aligned to @UPPER_STATE_ALIGN and ALL ZERO before their first @lower_init or @lower_open (as mmap and calloc
 * give them). An engine holds addresses of itself and of the weights, a state those of its engine: none may move.
 * Many engines may share the weights, many states an engine.
 *
 * Weights file: a safetensors file (8 bytes of header length, little-endian; JSON; tensors). Each tensor starts at a
 * multiple of 64 bytes; `_padding.N` fills the gaps. Quantised matrices are U8 of shape (rows, bytes of a row).
 *
 * Threads: an engine, with all of its states, is used by one thread at a time; different engines by different
 * threads at once. With a parallel_for the launches that are worth it are spread; results are the same, to the bit,
 * however they are split.
";

const CPU: &str = "\
 *
 * CPU: the code needs
 * @needs.
 * @lower_supported says whether this machine has all of it, and @lower_init refuses one that has not: no other
 * function may be called there. x86-64 is asked by CPUID; elsewhere Linux is, by /proc/self/auxv or riscv_hwprobe:
 * where it does not answer, the code is let run.
";

/// Linux' `Documentation/arch/x86/xstate.rst`.
const AMX: &str = "\
 *
 * AMX: this code may use tile registers, which Linux gives a process on request only. @lower_supported and
 * @lower_init ask for them (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`); where Linux refuses, a machine
 * counts as without. Alternate signal stacks must then be longer: getauxval(AT_MINSIGSTKSZ) says how long.
";

/// Threads, `supported` and `init`.
pub(super) const BEGINNING: &str = "
/* A part of the work: does items begin .. end - 1 of a job. `scratch` is @UPPER_SCRATCH_BYTES bytes, aligned to
 * @UPPER_SCRATCH_ALIGN, that no other call uses at the same time; its contents do not matter. */
typedef void (*@lower_task)(const void *job, uint64_t begin, uint64_t end, void *scratch);

/* Must call `task(job, begin, end, scratch)` so that each of the items 0 .. items - 1 is done exactly once, on any
 * threads and split in any way, and return when all are done and their writes are visible to the calling thread. */
typedef void (*@lower_parallel_for)(void *context, uint64_t items, @lower_task task, const void *job);

/* 1 if this machine has what the code needs, else 0. It may be called at any time. */
int32_t @lower_supported(void);

/* Makes an engine ready. `parallel_for` may be null: all work is then done by the calling thread. `context` is
 * passed on to it. */
int32_t @lower_init(void *engine, size_t engine_bytes, const void *weights, size_t weights_bytes,
                    @lower_parallel_for parallel_for, void *context);
";

const FUNCTIONS: &str = "
/* Makes a state of an engine ready, at position 0. */
int32_t @lower_open(void *state, size_t state_bytes, void *engine);

/* Appends `count` tokens. All are checked first: after an error nothing has changed. */
int32_t @lower_prefill(void *state, const int32_t *ids, size_t count);

/* Appends one token. */
int32_t @lower_decode(void *state, int32_t id);

/* Appends `ids[i]` to `states[i]` for `count` different states of one engine, at most @UPPER_CHUNK, in one pass
 * that reads the weights once: after an error nothing has changed. */
int32_t @lower_step(void *const *states, const int32_t *ids, size_t count);

/* The logits after the last token, @UPPER_VOCAB floats within the state, computed when first asked for; valid
 * until tokens are appended. Null if there is no token to predict from, or the state is not ready. */
const float *@lower_logits(void *state);

/* The most likely next token, the lowest among equals. -1 where @lower_logits gives null. */
int32_t @lower_argmax(void *state);

/* Tokens held. */
uint64_t @lower_position(const void *state);

/* Forgets the tokens from `position` on; 0 always works. Sliding-window caches keep @UPPER_CHUNK tokens beyond the
 * window, so a position further back than that may be refused. There are no logits until tokens are appended. */
int32_t @lower_rollback(void *state, uint64_t position);
";

pub(super) const END: &str = "
#ifdef __cplusplus
}
#endif

#endif
";
