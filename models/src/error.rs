//! The crate's one error type: what a user or a file can cause.
//!
//! Every message is one line; what is wrong with a file comes from the runtime, which reads them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

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
    #[error("{path} is not a model: expected a folder or a GGUF file, found {found}", path = path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// What it is, `a file` or `nothing`, and what may have been meant.
        found: String,
    },
    /// A folder lacks a file that it needs.
    #[error("{path} has no {file}{cause}", path = path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// The file, or the files of which one would do.
        file: String,
        /// What the folder may be instead, after a semicolon; or nothing.
        cause: String,
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

/// What is worth a line to a user of a file that was read all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub path: PathBuf,
    /// What is strange about it: one line of bounded length, whatever the file holds.
    pub message: String,
}

impl Warning {
    /// Names the fields that are not known, if there are any.
    pub(crate) fn of_unknown(path: &Path, names: &[String]) -> Option<Warning> {
        let fields = match names.len() {
            0 => return None,
            1 => "field is",
            _ => "fields are",
        };
        let message = format!("{fields} not known and ignored: {}", list(names));
        Some(Warning { path: path.into(), message })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

/// Names of a file, each quoted and cut; of many, the first.
pub(crate) fn list(names: &[String]) -> String {
    /// Names that are listed, characters of each, and bytes (escaped) after which no further one is.
    const NAMES: usize = 12;
    const LENGTH: usize = 40;
    const BYTES: usize = 400;
    let cut = |name: &String| match name.char_indices().nth(LENGTH) {
        Some((at, _)) => format!("{}...", quote(&name[..at])),
        None => quote(name),
    };
    let (mut text, mut listed) = (String::new(), 0);
    while listed < names.len().min(NAMES) && text.len() < BYTES {
        text.push_str(if listed > 0 { ", " } else { "" });
        text.push_str(&cut(&names[listed]));
        listed += 1;
    }
    if listed < names.len() {
        text.push_str(&format!(" and {} more", names.len() - listed));
    }
    text
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
