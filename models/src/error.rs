//! The crate's one error type: what a user or a file can cause.
//!
//! Every message is one line; what is wrong with a file comes from the runtime, which reads them.

use std::io;
use std::path::PathBuf;

use lapidary_runtime::file;
pub(crate) use lapidary_runtime::file::error::{json, line, quote};

/// Short for a result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a model's folder, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or is not what it should be.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The system refused to write (no permission, no space).
    #[error("cannot write {path} (the checkpoint needs {needed} bytes): {source}", path = path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// Bytes of the whole checkpoint.
        needed: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// A callback broke off; nothing was left behind.
    #[error("stopped")]
    Stopped,
    /// A folder that should be empty of models is not.
    #[error("will not write into {path}: it already holds {found}", path = path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// The file that is in the way.
        found: String,
    },
    /// The path of a model does not lead to a folder.
    #[error("{path} is not a model folder: expected a folder, found {found}", path = path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// What it is: `a file` or `nothing`.
        found: &'static str,
    },
    /// A folder lacks a file that it needs.
    #[error("{path} has no {file}", path = path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// The file, or the files of which one would do.
        file: String,
    },
    /// A preset that is not there.
    #[error("unknown preset {name}: expected one of {known}")]
    Preset {
        /// What was asked for, quoted.
        name: String,
        /// The names that exist.
        known: String,
    },
}

impl Error {
    pub(crate) fn tensor(
        path: impl Into<PathBuf>,
        tensor: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        file::Error::tensor(path, tensor, expected, found).into()
    }

    pub(crate) fn file(
        path: impl Into<PathBuf>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        file::Error::file(path, expected, found).into()
    }

    pub(crate) fn read(path: impl Into<PathBuf>, source: io::Error) -> Error {
        file::Error::read(path, source).into()
    }
}
