//! `lapidary pull`: a model of the hub, as it is there today, into the cache.

use anyhow::Result;
use lapidary::hub::Name;

use super::{Bars, error, hub};
use crate::output;

/// Fetch a model of the Hugging Face hub into the shared cache, or its newest version.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary pull google/gemma-2-2b-it\n  \
    lapidary pull hf.co/bartowski/gemma-2-2b-it-GGUF:Q4_K_M\n\n\
    What broke off is gone on with. Gated models need HF_TOKEN, or the token that `hf auth login` keeps.")]
pub(crate) struct Args {
    /// OWNER/REPO, or OWNER/REPO:TAG for one file of a repository of GGUFs [without a tag: Q4_K_M]
    #[arg(value_name = "NAME")]
    name: String,
}

/// Fetches it; prints where it is.
pub(crate) fn run(args: &Args) -> Result<()> {
    let name = Name::parse(&args.name).map_err(error)?;
    let mut bars = Bars::default();
    let path = hub()?.fetch(&name, &mut bars.of()).map_err(error)?;
    output::print(&format!("{}\n", path.display()))
}
