//! The option of trusting what certain keys signed alone, shared by the commands that take an artifact and
//! `lapidary-run`.

use std::path::PathBuf;

/// Whose signature an artifact must have.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TrustArgs {
    /// Take no artifact but one that this ed25519 key signed: PEM file of its public half (may be repeated). An
    /// artifact is code, and hashes prove its integrity, not its origin
    #[arg(long, value_name = "PUBKEY")]
    pub(crate) trust: Vec<PathBuf>,
}
