//! The published sizes, by name: rows of their families' files.

use crate::config::Config;
use crate::error::{Error, Result, quote};

/// A published size.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// `gemma2-2b`.
    pub name: &'static str,
    /// A shorter name, which is taken too.
    pub alias: Option<&'static str>,
    /// Its whole configuration.
    pub config: fn() -> Config,
}

impl Preset {
    /// Every published size of every family.
    pub fn all() -> impl Iterator<Item = &'static Preset> {
        crate::MODELS.iter().flat_map(|family| family.presets)
    }
}

impl Config {
    /// The published configuration of a size: `gemma2-2b`, or `2b` for short.
    ///
    /// # Errors
    /// [`Error::Preset`] for a name that is none.
    pub fn preset(name: &str) -> Result<Config> {
        let preset = Preset::all().find(|p| p.name == name || p.alias == Some(name));
        preset.map(|p| (p.config)()).ok_or_else(|| Error::Preset {
            name: quote(name),
            known: Preset::all().map(|p| p.name).collect::<Vec<_>>().join(", "),
        })
    }
}
