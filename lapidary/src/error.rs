//! The crate's one error type: what a user or a file can cause. Each message is one line that names the option, the
//! path or the field.

use std::io;
use std::path::PathBuf;

use lapidary_runtime::text::ConversationError;

/// Short for a result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option's value that cannot be, or not with this model.
    #[error("option `{option}`: {reason}")]
    Option {
        /// The method of [`Options`](crate::Options) or of [`Compile`](crate::Compile) that sets it.
        option: &'static str,
        /// What was expected, and found.
        reason: String,
    },
    /// A name that no value of an option has.
    #[error("unknown {kind} {name}: expected one of {known}")]
    Choice {
        /// What it should name.
        kind: &'static str,
        /// The name, quoted.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A model without what is asked of it.
    #[error("{}: {what}", path.display())]
    Lacks {
        /// The model.
        path: PathBuf,
        /// What it does not have, and what needs that.
        what: String,
    },
    /// A place that nothing can be written to.
    #[error("{}: {expected}", path.display())]
    Output {
        /// The place.
        path: PathBuf,
        /// What was expected, and found.
        expected: String,
    },
    /// The system refuses to write.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A function of the tensor language, or operands that it cannot be called on.
    #[error("{0}")]
    Graph(String),
    /// A model's files.
    #[error(transparent)]
    Model(#[from] lapidary_models::Error),
    /// Rules, graphs, targets, kernels.
    #[error(transparent)]
    Compiler(#[from] lapidary_codegen::Error),
    /// Artifacts, engines, sequences, sampling.
    #[error(transparent)]
    Run(#[from] lapidary_runtime::Error),
    /// What an artifact's program cannot do here.
    #[error("{}: {source}", path.display())]
    Artifact {
        /// The artifact.
        path: PathBuf,
        /// Why.
        source: Box<lapidary_runtime::Error>,
    },
    /// A name of the Hugging Face hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] lapidary_hub::Error),
    /// Text: a tokenizer, a chat template, a text that is too long.
    #[error(transparent)]
    Text(#[from] lapidary_runtime::file::Error),
    /// An answer in a conversation.
    #[error(transparent)]
    Conversation(#[from] ConversationError),
}

impl Error {
    pub(crate) fn option(option: &'static str, reason: impl Into<String>) -> Error {
        Error::Option { option, reason: reason.into() }
    }
}
