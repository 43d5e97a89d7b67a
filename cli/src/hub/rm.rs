//! `lapidary rm`: removes a model from the cache, once a person says so.

use std::io::{self, IsTerminal};

use anyhow::{Result, anyhow, ensure};
use lapidary::hub::Name;

use super::{error, hub};
use crate::output::{self, Usage};

/// Remove a model from the Hugging Face cache, which other programs use too.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary rm hf.co/bartowski/gemma-2-2b-it-GGUF:Q4_K_M\n  \
    lapidary rm google/gemma-2-2b-it --yes")]
pub(crate) struct Args {
    /// OWNER/REPO with all its files, or OWNER/REPO:TAG for one of a repository of GGUFs
    #[arg(value_name = "NAME")]
    name: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Asks, and removes it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let name = Name::parse(&args.name).map_err(error)?;
    let hub = hub()?;
    let cache = hub.cache();
    let held = cache.held(&name).map_err(error)?;
    ensure!(!held.is_empty(), "{name} is not in {} (`lapidary list` shows what is)", cache.root.display());
    let bytes = output::bytes(held.iter().map(|h| h.bytes).sum());
    if !args.yes {
        if !io::stdin().is_terminal() {
            let what = "expected --yes: stdin is no terminal that could be asked";
            return Err(Usage::new(anyhow!("{what}")).into());
        }
        let place = cache.root.display();
        output::ask(&format!("Remove {name}, {bytes}, from {place}, which other programs use too? [y/N] "));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            output::note("note", "nothing was removed");
            return Ok(());
        }
    }
    cache.remove(&name).map_err(error)?;
    output::note("note", &format!("removed {name}, {bytes}"));
    Ok(())
}
