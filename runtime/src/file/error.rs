//! What can be wrong with a file of a model.
//!
//! Every message is one line that names the path and the tensor or field, what was expected and what was found. Text
//! that comes from a file is quoted (escaped and cut), so a hostile name cannot break the line.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::terminal;

/// Short for a result of reading a file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a file, or with text given to what was read from it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file as a whole is not what it should be.
    #[error("{path}: expected {expected}, found {found}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A field of a JSON file has a value that is malformed or not supported.
    #[error("{path}: field `{field}`: expected {expected}, found {found}", path = path.display())]
    Field {
        /// The file, or what stands for it.
        path: PathBuf,
        /// The field, with dots between levels.
        field: String,
        /// The values that are supported.
        expected: String,
        /// The value that is there, as JSON, or `nothing`.
        found: String,
    },
    /// A tensor of a checkpoint is missing, unexpected or malformed.
    #[error("{path}: tensor {tensor}: expected {expected}, found {found}", path = path.display())]
    Tensor {
        /// The file, or the folder where no one file is at fault.
        path: PathBuf,
        /// The tensor's name, quoted.
        tensor: String,
        /// The shape, dtype or offset that is supported.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A chat template does not compile, or refused the messages.
    #[error("chat template: {message}")]
    Template {
        /// The template's own words, on one line.
        message: String,
    },
    /// A text has more tokens than there is room for.
    #[error("at least {tokens} tokens, the context is {most}")]
    Long {
        /// Tokens that were counted before the rest was left.
        tokens: usize,
        /// The context.
        most: usize,
    },
    /// Text that the tokenizer cannot encode.
    #[error("{path}: cannot encode the text: {message}", path = path.display())]
    Encode {
        /// The tokenizer's file.
        path: PathBuf,
        /// The tokenizer's own words, on one line.
        message: String,
    },
}

impl Error {
    /// [`Error::Tensor`], the name quoted.
    pub fn tensor(
        path: impl Into<PathBuf>,
        tensor: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Tensor {
            path: path.into(),
            tensor: quote(tensor),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// [`Error::Read`].
    pub fn read(path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::Read { path: path.into(), source }
    }

    /// [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::File { path: path.into(), expected: expected.into(), found: found.into() }
    }
}

/// Characters of a file's own text that a message repeats.
const QUOTED: usize = 120;

/// `text` escaped and cut, in quotes.
pub fn quote(text: &str) -> String {
    let cut: String = text.chars().take(QUOTED).collect();
    let dots = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{dots}")
}

/// Any message on one line, as [`terminal::line`] has it, cut.
pub fn line(message: impl fmt::Display) -> String {
    let mut text = terminal::line(&message.to_string()).into_owned();
    if let Some((at, _)) = text.char_indices().nth(4 * QUOTED) {
        text.truncate(at);
        text.push_str("...");
    }
    text
}

/// A JSON value as it was written, on one line, cut.
pub fn json(value: &serde_json::Value) -> String {
    line(value)
}
