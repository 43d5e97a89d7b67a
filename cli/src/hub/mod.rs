//! Models by their names on the Hugging Face hub, for commands: found in the cache, or fetched, which is shown.

pub(crate) mod list;
pub(crate) mod pull;
pub(crate) mod rm;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Error, Result};
use indicatif::ProgressBar;
use lapidary::hub::{self, Hub, Progress, Wanted};

use crate::output::{self, Unit, Usage};

/// The path that a user means by `-m`: one that leads somewhere as it is, else that of the model of this name.
pub(crate) fn locate(given: &Path) -> Result<PathBuf> {
    locate_for(given, Wanted::Model)
}

/// The same of one whose text alone is wanted.
pub(crate) fn locate_text(given: &Path) -> Result<PathBuf> {
    locate_for(given, Wanted::Text)
}

fn locate_for(given: &Path, wanted: Wanted) -> Result<PathBuf> {
    let mut bars = Bars::default();
    hub::locate(given, wanted, &mut |p| bars.show(p.file, p.done, p.total)).map_err(error)
}

/// The hub and the cache.
fn hub() -> Result<Hub> {
    Hub::from_env().map_err(error)
}

/// What is no name is a mistake in the arguments.
fn error(error: hub::Error) -> Error {
    match error {
        hub::Error::Name { .. } => Usage::new(error).into(),
        error => error.into(),
    }
}

/// One bar a file; where stderr is no terminal, a line for each that takes its time.
#[derive(Default)]
pub(crate) struct Bars {
    bar: Option<(String, ProgressBar)>,
}

impl Bars {
    /// Bytes from which on a file is worth a line.
    const LARGE: u64 = 1 << 20;

    /// Shows how far a file is.
    pub(crate) fn show(&mut self, file: &str, done: u64, total: u64) {
        if self.bar.as_ref().is_none_or(|(name, _)| name != file) {
            if total >= Bars::LARGE && !io::stderr().is_terminal() {
                output::note("note", &format!("fetching {file}, {}", output::bytes(total)));
            }
            self.bar = Some((file.into(), output::bar(total, file, Unit::Bytes)));
        }
        let Some((_, bar)) = &self.bar else { return };
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
            self.bar = None;
        }
    }

    fn of(&mut self) -> impl FnMut(Progress<'_>) {
        |p| self.show(p.file, p.done, p.total)
    }
}
