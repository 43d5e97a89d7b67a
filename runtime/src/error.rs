//! What can go wrong in the runtime, one type for all of it.

use crate::memory;
use crate::terminal;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be read, or is not what it should be.
    #[error(transparent)]
    File(#[from] crate::file::Error),
    /// The system refused to write (no permission, no space).
    #[error("cannot write {} ({needed} bytes): {source}", path.display())]
    Write {
        /// What was to be written.
        path: std::path::PathBuf,
        /// Bytes of the whole file.
        needed: u64,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An artifact has no code that this machine can run, or not the code that was asked for.
    #[error("{}: {reason}", path.display())]
    Machine {
        /// The artifact.
        path: std::path::PathBuf,
        /// What the file needs and what the machine has.
        reason: String,
    },
    /// A weight slot's tensor is not in the weight source.
    #[error("tensor `{tensor}` is missing from the checkpoint ({expected} bytes expected)")]
    MissingWeight {
        /// The tensor's name.
        tensor: String,
        /// The bytes that the program expects.
        expected: usize,
    },
    /// A weight slot's tensor has another length than the program was compiled for.
    #[error("tensor `{tensor}` is {found} bytes in the checkpoint, the program expects {expected} bytes")]
    WeightLength {
        /// The tensor's name.
        tensor: String,
        /// The bytes that the program expects.
        expected: usize,
        /// The bytes found.
        found: usize,
    },
    /// The program's parts do not fit together: a broken artifact, or a bug of the compiler.
    #[error("the program is malformed: {0}")]
    Program(String),
    /// A file without a tensor that a function takes, or with another.
    #[error("{}: {what}", path.display())]
    Operand {
        /// The file.
        path: std::path::PathBuf,
        /// The tensor, what was expected, and found.
        what: String,
    },
    /// Operands that a function cannot be called on.
    #[error("function `{function}`: {what}")]
    Call {
        /// The function's name.
        function: String,
        /// The tensor, what was expected, and found.
        what: String,
    },
    /// Memory could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    Memory {
        /// What it was for.
        what: String,
        /// How much.
        bytes: usize,
    },
    /// Tokens do not fit in what is left of the context.
    #[error(
        "{adding} tokens do not fit: the context is {context} tokens, {position} are taken, {} are left",
        context.saturating_sub(*position)
    )]
    ContextExceeded {
        /// The tokens to be added.
        adding: usize,
        /// The tokens that the session holds.
        position: usize,
        /// The most tokens that it may hold.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error("token id {token} is out of range: the vocabulary has {vocab} entries")]
    TokenRange {
        /// The id.
        token: u32,
        /// The entries of the vocabulary.
        vocab: usize,
    },
    /// A model that guesses tokens for one that has others.
    #[error(
        "the draft model has {draft} tokens, expected {vocab}: the tokens of the model that it guesses for"
    )]
    DraftVocab {
        /// The draft model's.
        draft: usize,
        /// The model's.
        vocab: usize,
    },
    /// More positions than the program was compiled for, or none.
    #[error("a context of {context} tokens: it was compiled for {compiled}, expected 1 to {compiled}")]
    ContextCompiled {
        /// The positions asked for.
        context: usize,
        /// The most that there are.
        compiled: usize,
    },
    /// A rollback to after the session's end.
    #[error("cannot roll back to position {to}: the session is at position {position}")]
    RollbackAhead {
        /// The position asked for.
        to: usize,
        /// The session's position.
        position: usize,
    },
    /// A rollback to before what a sliding-window cache still holds.
    #[error(
        "cannot roll back to position {to}: the sliding-window cache goes back to position {smallest} \
         at most (or reset to 0)"
    )]
    RollbackTooFar {
        /// The position asked for.
        to: usize,
        /// The smallest position, other than 0, that can be rolled back to.
        smallest: usize,
    },
    /// The caches of an engine's sequences may not take as much.
    #[error("the KV cache needs {more} bytes more: sequences take {used} bytes, of {most} at most")]
    KvLimit {
        /// What a step asks for.
        more: usize,
        /// What is taken.
        used: usize,
        /// What may be taken.
        most: usize,
    },
    /// A sequence that another engine made.
    #[error("the sequence is another engine's: it was not made by the engine that is to step it")]
    OtherEngine,
    /// There is no last token to predict from: an empty prompt in an empty (or just rolled back) session.
    #[error("there is no token to predict from: the prompt is empty")]
    EmptyPrompt,
    /// A sampler option is out of its range.
    #[error("`{field}` is {value}: it must be {range}")]
    SamplerOption {
        /// The option's field.
        field: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A row of logits has another length than the sampler's vocabulary.
    #[error("the sampler was made for {expected} logits, {found} were given")]
    LogitsLength {
        /// The sampler's vocabulary.
        expected: usize,
        /// The logits given.
        found: usize,
    },
    /// A row of logits has no number above negative infinity to choose.
    #[error("no token can be chosen: every logit is NaN or negative infinity")]
    NoCandidate,
}

/// An error and its causes on one line, nothing in it that steers a terminal. A cause that the error already spells out
/// is not repeated.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = String::new();
    for cause in std::iter::successors(Some(error), |e| e.source()) {
        let text = cause.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let text = terminal::line(&text).into_owned();
        if line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

/// Room for `n` elements of `what`.
pub(crate) fn room<T>(what: &str, n: usize) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    let bytes = n.saturating_mul(size_of::<T>());
    memory::fallible(|| list.try_reserve_exact(n)).map_err(|_| Error::Memory { what: what.into(), bytes })?;
    Ok(list)
}
