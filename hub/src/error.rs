//! The crate's one error type. Each message is one line that names the model, the file or the address.

use std::io;
use std::path::PathBuf;

/// Short for a result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model cannot be had by its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that is no name.
    #[error(
        "{text} is no name of the Hugging Face hub: expected OWNER/REPO, such as google/gemma-2-2b-it, or, of a \
         repository of GGUFs, OWNER/REPO:TAG, such as hf.co/bartowski/gemma-2-2b-it-GGUF:Q4_K_M"
    )]
    Name {
        /// The text, quoted.
        text: String,
    },
    /// What was given leads nowhere, and as a name it leads to nothing.
    #[error("nothing is at {}; and by name: {source}", path.display())]
    Nowhere {
        /// What was given.
        path: PathBuf,
        /// What became of the name.
        source: Box<Error>,
    },
    /// An environment variable that cannot be.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What it should be.
        expected: String,
        /// What it is, quoted.
        found: String,
    },
    /// There is no place for a cache.
    #[error("no place for fetched models: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set")]
    NoCache,
    /// Nothing may be fetched, and it is not here.
    #[error("{name} is not in {}, and HF_HUB_OFFLINE says to fetch nothing", cache.display())]
    Offline {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub knows no such repository, or shows it to others only.
    #[error("{name}: the hub has no model of this name{}", if *token { ", or none for this HF_TOKEN" } else {
        ", or only for those who may see it (set HF_TOKEN)" })]
    Unknown {
        /// The repository.
        name: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The model's terms are not accepted, or it is not known who asks.
    #[error("{name} is a gated model: accept its terms at {page}, and set HF_TOKEN to a token of yours{}",
        if *token { " (the one that is set may not read it)" } else { "" })]
    Gated {
        /// The repository.
        name: String,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// A token that the hub does not take.
    #[error("{name}: the hub refuses HF_TOKEN, or the token that `hf auth login` wrote: is it still valid?")]
    Token {
        /// The repository.
        name: String,
    },
    /// A repository without a model that could run.
    #[error("{name} holds no model that runs here: expected {expected}, found {found}")]
    NoModel {
        /// The repository.
        name: String,
        /// What is needed.
        expected: String,
        /// What there is.
        found: String,
    },
    /// No GGUF of the tag.
    #[error("{name} {what}: expected a tag of {known}")]
    Tag {
        /// The repository.
        name: String,
        /// What is wrong.
        what: String,
        /// The tags that there are.
        known: String,
    },
    /// The hub cannot be reached, or breaks off again and again.
    #[error("cannot fetch {url}: {cause}{kept}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        cause: String,
        /// What is kept of the file.
        kept: String,
    },
    /// An answer that is not the hub's.
    #[error("{url}: expected {expected}, found {found}")]
    Answer {
        /// The address.
        url: String,
        /// What was expected.
        expected: String,
        /// What came.
        found: String,
    },
    /// A file whose bytes are not those that the hub has.
    #[error(
        "{name}: {file} is not as the hub says: expected SHA-256 {expected}, found {found}; it was removed"
    )]
    Hash {
        /// The repository.
        name: String,
        /// The file.
        file: String,
        /// As the hub says.
        expected: String,
        /// As it came.
        found: String,
    },
    /// The cache cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Disk {
        /// `read`, `write`, ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// The error of something that is done to a path.
pub(crate) fn disk(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Disk { what, path, source }
}
