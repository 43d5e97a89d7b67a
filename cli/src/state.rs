//! The options of a text's state in a file, shared by `lapidary run` and `lapidary-run`.
//!
//! In: a file of `--save` or a place for one. Out: a session that goes on where the other one ended, with the options
//! that chose its tokens; a file, written whole or not at all.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lapidary_runtime::snapshot::Notes;
use lapidary_runtime::{SamplerOptions, Session};

use crate::sampling::SamplingArgs;

/// Where a text comes from and goes to.
#[derive(clap::Args)]
pub(crate) struct StateArgs {
    /// Go on from what --save wrote: a prompt, if there is one, comes after its text; it was chosen by the options that
    /// the file keeps, unless others are given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "system"])]
    pub(crate) load: Option<PathBuf>,
    /// Write the text's state to a file at the end, for --load of the same model
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl StateArgs {
    /// Loads what is to be loaded; the options that tokens are chosen by, `given` ones unless nobody gave any.
    pub(crate) fn load(&self, session: &mut Session, given: SamplerOptions) -> Result<SamplerOptions> {
        let Some(path) = &self.load else { return Ok(given) };
        let notes = session.load(path)?;
        if let Some(token) = notes.pending {
            session.decode(token)?;
        }
        ensure!(session.has_logits(), "{}: it has no token to go on from", path.display());
        Ok(notes.sampler.filter(|_| given == unsaid_sampling()).unwrap_or(given))
    }

    /// Saves what is to be saved: a session that was at position `before`, and the tokens that it generated from there.
    pub(crate) fn save(
        &self,
        session: &Session,
        before: usize,
        tokens: &[u32],
        options: SamplerOptions,
    ) -> Result<()> {
        let Some(path) = &self.save else { return Ok(()) };
        let pending = tokens.get(session.position() - before).copied();
        Ok(session.save(path, &Notes { pending, sampler: Some(options), ..Notes::default() })?)
    }
}

/// What the sampler is given where nobody says otherwise.
fn unsaid_sampling() -> SamplerOptions {
    #[derive(clap::Parser)]
    struct Nothing {
        #[command(flatten)]
        sampling: SamplingArgs,
    }
    <Nothing as clap::Parser>::parse_from([""]).sampling.options()
}
