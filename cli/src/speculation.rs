//! How tokens are guessed, and what is told of it: shared by `lapidary run`, `lapidary chat` and `lapidary-run`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lapidary_runtime::{Session, Speculated, Speculation};
use serde_json::{Value, json};

/// Who guesses, and how much.
#[derive(clap::Args)]
pub(crate) struct SpeculationArgs {
    /// Guess up to N tokens at a time by what followed the latest ones earlier in the text: the same text, faster where
    /// it copies what it has read; 0 guesses none
    #[arg(long, value_name = "N", value_parser = guesses(0), conflicts_with = "draft")]
    lookup: Option<u64>,
    /// Guess tokens by a smaller model with the same tokens: the same text
    #[arg(long, value_name = "MODEL")]
    draft: Option<PathBuf>,
    /// Most tokens that --draft guesses at a time
    #[arg(long, value_name = "N", value_parser = guesses(1), default_value_t = 8, requires = "draft")]
    draft_max: u64,
}

/// The most tokens: a step has no more rows.
pub(crate) const MOST_GUESSES: u64 = 31;

/// How many tokens, at least so many.
fn guesses(least: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=MOST_GUESSES)
}

impl SpeculationArgs {
    /// Lets a session guess as is asked for; `draft` makes one of a smaller model.
    pub(crate) fn begin(
        &self,
        session: &mut Session,
        draft: impl FnOnce(&Path) -> Result<Session>,
    ) -> Result<()> {
        let with = match (self.lookup, &self.draft) {
            (Some(most @ 1..), _) => Speculation::lookup(most as usize),
            (_, Some(path)) => Speculation::draft(draft(path)?, self.draft_max as usize),
            (_, None) => return Ok(()),
        };
        session.speculate(Some(with))?;
        Ok(())
    }
}

/// For people.
pub(crate) fn told(told: &Speculated) -> String {
    let Speculated { steps, tokens, guessed, right, .. } = told;
    let (percent, gain) = (told.acceptance() * 100.0, told.gain());
    format!(
        "{guessed} tokens, {right} right ({percent:.0} %); {tokens} tokens in {steps} steps, {gain:.2} x plain"
    )
}

/// For programs.
pub(crate) fn json(told: &Speculated) -> Value {
    json!({
        "steps": told.steps,
        "tokens": told.tokens,
        "guessed": told.guessed,
        "right": told.right,
        "acceptance": told.acceptance(),
        "gain": told.gain(),
    })
}
