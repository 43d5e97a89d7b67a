//! Models by their names on the Hugging Face hub: found in the cache that all programs share, else fetched into it.
//!
//! In: a [`Name`]. Out: the path of a folder or of a GGUF, as `lapidary_models` opens it. The cache is that of Python's
//! `huggingface_hub`, so what `transformers` fetched is found, and the other way round.
//!
//! | module | what it knows |
//! |---|---|
//! | [`name`] | which texts are names |
//! | [`settings`] | the variables that all programs of the hub go by |
//! | [`select`] | which files of a repository a model needs |
//! | [`cache`] | where files lie, what is held, how it is removed |
//! | `client` | the hub's answers |
//! | `download` | one file: resumed, counted, hashed |
//!
//! The crate `hf-hub` (0.5) is not used: it checks no hash, knows neither `HF_TOKEN` nor `HF_HUB_OFFLINE`, resumes
//! only what it broke off itself, and tells a gated model from one that there is not by a status alone. What is left of
//! it is a client of two requests, here on [`ureq`].
//!
//! Invariants: a blob has its name only once its length, and where the hub gives one its SHA-256, are right; a
//! snapshot has only links to such blobs; a token is sent to the hub and never where it redirects to.

pub mod cache;
mod client;
mod download;
mod error;
pub mod name;
pub mod select;
pub mod settings;

use std::path::{Path, PathBuf};

use cache::Cache;
use client::Client;
pub use error::{Error, Result};
pub use name::Name;
use select::Selection;
pub use settings::Settings;

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Its name in the repository.
    pub file: &'a str,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// What is wanted of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Model,
    /// What turns text into ids: of a folder its small files, of a GGUF, which has its text within, all.
    Text,
}

/// The hub and the cache.
pub struct Hub {
    settings: Settings,
    cache: Cache,
}

impl Hub {
    /// As the environment says.
    ///
    /// # Errors
    /// [`Error::NoCache`] where there is no place for a cache, [`Error::Setting`] for a variable that cannot be.
    pub fn from_env() -> Result<Hub> {
        Hub::new(Settings::from_env()?)
    }

    /// With given settings.
    ///
    /// # Errors
    /// None today.
    pub fn new(settings: Settings) -> Result<Hub> {
        let cache = Cache { root: settings.cache.clone() };
        Ok(Hub { settings, cache })
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A model's path: the cache's if all its files are there, else they are fetched. The hub is not asked for a newer
    /// version: [`Hub::fetch`] does that.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; [`Error::Offline`] for what is not in the cache.
    pub fn open(&self, name: &Name, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        self.open_for(name, Wanted::Model, progress)
    }

    /// The same of what is wanted of a model.
    ///
    /// # Errors
    /// As [`Hub::open`].
    pub fn open_for(
        &self,
        name: &Name,
        wanted: Wanted,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        let repository = self.cache.repository(name);
        let held = repository.held(name)?;
        if let Some(path) = held.whole {
            return Ok(path);
        }
        if wanted == Wanted::Text
            && let Some(path) = repository.text(name)?
        {
            return Ok(path);
        }
        if self.settings.offline {
            // A folder without a tokenizer turns ids into logits, no more: that is for its reader to say.
            return match held.usable {
                Some(path) => Ok(path),
                None => Err(self.not_here(name)),
            };
        }
        match (self.fetch_for(name, wanted, progress), held.usable) {
            (Err(Error::Unreachable { .. }), Some(path)) => Ok(path),
            (result, _) => result,
        }
    }

    /// A model's path, its files as the hub has them today: what the cache lacks of them is fetched.
    ///
    /// # Errors
    /// [`Error::Offline`], and what the hub, the network and the disk refuse.
    pub fn fetch(&self, name: &Name, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        self.fetch_for(name, Wanted::Model, progress)
    }

    fn fetch_for(
        &self,
        name: &Name,
        wanted: Wanted,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        if self.settings.offline {
            return Err(self.not_here(name));
        }
        let client = Client::new(&self.settings)?;
        let listing = client.listing(name)?;
        let repository = self.cache.repository(name);
        let mut fetch =
            |file: &str| download::file(&client, &repository, name, &listing.commit, file, progress);
        let path = match select::wanted(name, &listing.files)? {
            Selection::Files(files) => {
                let paths = files.iter().map(|file| fetch(file)).collect::<Result<Vec<_>>>()?;
                // Any part stands for the whole; the first one is what people give.
                paths.into_iter().next()
            }
            Selection::Folder { small, index, weights } => {
                for file in &small {
                    fetch(file)?;
                }
                if wanted == Wanted::Text && small.iter().any(|file| file == select::TOKENIZER) {
                    return Ok(repository.snapshot(&listing.commit));
                }
                let shards = match &index {
                    Some(index) => select::shards(name, &fetch(index)?, &listing.files)?,
                    None => weights,
                };
                for file in &shards {
                    fetch(file)?;
                }
                Some(repository.snapshot(&listing.commit))
            }
        };
        let Some(path) = path else { unreachable!("a selection has files") };
        repository.set_main(&listing.commit)?;
        Ok(path)
    }

    fn not_here(&self, name: &Name) -> Error {
        Error::Offline { name: name.to_string(), cache: self.cache.root.clone() }
    }
}

/// The path that a user means: one that leads somewhere as it is, else that of the model of this name.
///
/// # Errors
/// As [`Hub::open`], within [`Error::Nowhere`] where it may have been meant as a path.
pub fn locate(given: &Path, wanted: Wanted, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    let Some(name) = Name::of_path(given) else { return Ok(given.into()) };
    let name = name?;
    let nowhere = |source: Error| match source {
        Error::Unknown { .. } | Error::Unreachable { .. } | Error::Offline { .. } => {
            Error::Nowhere { path: given.into(), source: Box::new(source) }
        }
        other => other,
    };
    Hub::from_env()?.open_for(&name, wanted, progress).map_err(nowhere)
}
