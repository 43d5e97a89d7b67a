//! GGUF, the format of llama.cpp's models: one file (or several, split) that holds configuration, tokenizer and
//! weights.
//!
//! In: a path. Out: a [`Gguf`]: the files mapped, their headers checked. Nothing is converted, and no weight is looked
//! at.
//!
//! | module | what it knows |
//! |---|---|
//! | [`container`] | the header: keys, and which tensor lies where |
//! | [`value`] | a key's value |
//! | [`keys`] | keys by name, held to their type and range |
//! | [`types`] | the forms of tensors |
//! | `architecture` | the families as GGUFs have them |
//! | `config` | the keys as a configuration |
//! | `vocabulary` | the tokenizer, the ids that a file names, its chat template |
//! | `text` | the keys of the tokenizer as a file of their own |
//! | `split` | files that together make one model |

pub(crate) mod architecture;
mod config;
pub mod container;
pub mod keys;
mod split;
pub(crate) mod text;
pub mod types;
pub mod value;
mod vocabulary;

use std::io::Read;
use std::path::{Path, PathBuf};

use lapidary_runtime::file::{self, Map};
use lapidary_runtime::text::{ChatTemplate, SpecialTokens};

use crate::config::Config;
use crate::error::{Error, Result};
use architecture::Architecture;
use container::{Header, Tensor};
use keys::Keys;
pub use vocabulary::tokenizer;

/// The end of the names of files.
const EXTENSION: &str = "gguf";

/// A model's files, mapped. They must not change meanwhile.
pub struct Gguf {
    /// At least one; the first has the keys.
    parts: Vec<Part>,
}

/// One file.
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    pub(crate) map: Map,
    pub(crate) header: Header,
}

impl Gguf {
    /// Whether a path leads to a file that is a GGUF by its name or by its first bytes.
    pub fn is_at(path: &Path) -> bool {
        if !path.metadata().is_ok_and(|found| found.is_file()) {
            return false;
        }
        let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case(EXTENSION));
        named || {
            let mut start = [0; 4];
            let read =
                file::open_unnoted(path).is_ok_and(|(mut file, _)| file.read_exact(&mut start).is_ok());
            read && &start == container::MAGIC
        }
    }

    /// Maps a file, or all files of a model that is split, of which `path` is any.
    ///
    /// # Errors
    /// As [`container::header`]; [`Error::Missing`] for a part that is not there; what does not fit together.
    pub fn open(path: &Path) -> Result<Gguf> {
        Ok(Gguf { parts: split::open(path)? })
    }

    /// The keys: those of the first file.
    pub fn keys(&self) -> Keys<'_> {
        self.parts[0].keys()
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// All tensors and the numbers of their files, in order.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        self.parts.iter().enumerate().flat_map(|(i, part)| part.header.tensors.iter().map(move |t| (i, t)))
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self, special: &SpecialTokens) -> Option<ChatTemplate> {
        vocabulary::template(self.keys(), special)
    }

    /// The files.
    pub(crate) fn into_parts(self) -> Vec<Part> {
        self.parts
    }

    /// The model that its keys describe, and what the family is called here.
    pub(crate) fn config(&self) -> Result<(&'static Architecture, Config)> {
        let keys = self.keys();
        let architecture = Architecture::of(keys)?;
        let rows = self.tensors().find(|(_, t)| t.name == architecture::EMBEDDING);
        let rows = rows.and_then(|(_, t)| t.shape.first().copied());
        Ok((architecture, config::config(keys, architecture, rows)?))
    }
}

impl Part {
    fn open(path: &Path) -> Result<Part> {
        let (file, _) = file::open(path)?;
        let map = Map::new(path, &file).map_err(|source| Error::read(path, source))?;
        // What is read from the disk from now on comes in huge pages.
        map.advise_huge();
        let header = container::header(path, &map)?;
        Ok(Part { path: path.into(), map, header })
    }

    fn keys(&self) -> Keys<'_> {
        Keys { path: &self.path, header: &self.header, file: &self.map }
    }
}

/// The error for a key.
fn field(path: &Path, key: &str, expected: &str, found: String) -> Error {
    file::fields::refused(path, key, expected, found).into()
}
