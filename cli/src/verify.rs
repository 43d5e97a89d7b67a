//! `lapidary verify`: an artifact's bytes held against their hashes, and its signature against a key.

use std::path::PathBuf;

use anyhow::Result;
use lapidary::Artifact;

use crate::output;
use crate::trust::TrustArgs;

/// Hold every section of an artifact against its hash, and its signature against the key it names. Hashes prove a
/// file's integrity, not its origin: --trust does
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary verify model.lap\n  lapidary verify model.lap --trust release.pub"
)]
pub(crate) struct Args {
    /// Artifact to verify
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Verifies.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (artifact, signer) = Artifact::open_trusted(&args.file, &args.trust.trust)?;
    artifact.verify()?;
    for cpu in artifact.cpus() {
        match artifact.function_name() {
            Some(_) => drop(artifact.function_listing(cpu)?),
            None => drop(artifact.listing(cpu)?),
        }
    }
    let signed = match (signer, artifact.signed_by()) {
        (Some(file), Some(key)) => format!(", signed by {key} ({})", file.display()),
        (None, Some(key)) => format!(", signed by {key}, which no --trust vouches for"),
        (_, None) => String::new(),
    };
    let (file, sections) = (args.file.display(), artifact.sections().len());
    output::print(&format!("{file}: {sections} sections verified{signed}\n"))
}
