//! The option of trusting what certain keys signed alone, shared by the commands that take an artifact and
//! `lapidary-run`.
//!
//! In: files of ed25519 public keys. Out: an artifact that one of them signed, or an error that names it. Nothing of
//! the artifact but its header is used before.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lapidary_runtime::Artifact;
use lapidary_runtime::artifact::PublicKey;

/// Whose signature an artifact must have.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TrustArgs {
    /// Take no artifact but one that this ed25519 key signed: PEM file of its public half (may be repeated). An
    /// artifact is code, and hashes prove its integrity, not its origin
    #[arg(long, value_name = "PUBKEY")]
    pub(crate) trust: Vec<PathBuf>,
}

impl TrustArgs {
    /// Opens an artifact; where keys are named, only one that one of them signed, with the file of the key that did.
    pub(crate) fn open(&self, path: &Path) -> Result<(Artifact, Option<&Path>)> {
        let keys = self.trust.iter().map(|file| PublicKey::read(file)).collect::<Result<Vec<_>, _>>()?;
        let artifact = Artifact::open(path)?;
        if keys.is_empty() {
            return Ok((artifact, None));
        }
        let signer = artifact.signer(&keys)?;
        let file = keys.iter().position(|key| key == signer).map(|at| self.trust[at].as_path());
        Ok((artifact, file))
    }
}
