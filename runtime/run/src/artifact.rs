//! How an artifact is opened: shared by all that is done with one.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::file::Residence;
use lapidary_runtime::program::Program;
use lapidary_runtime::{Artifact, Session};

use crate::output::note;
use crate::residence::ResidenceArgs;
use crate::trust::TrustArgs;

/// What is run of an artifact, and on what.
#[derive(clap::Args, Clone)]
pub(crate) struct CodeArgs {
    /// CPU whose code is run [default: the best that the file has for this machine]
    #[arg(long, value_name = "NAME")]
    pub(crate) cpu: Option<String>,
    /// Threads [default: one a fast core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Hold every section of the file against its hash first
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    trust: TrustArgs,
}

impl CodeArgs {
    /// An artifact, held against its signature and hashes as is asked for.
    pub(crate) fn artifact(&self, path: &Path) -> Result<Artifact> {
        let artifact = Artifact::open_trusted(path, &self.trust.trust)?.0;
        if self.verify {
            artifact.verify()?;
        }
        Ok(artifact)
    }

    /// How many threads are wanted.
    pub(crate) fn threads(&self) -> usize {
        self.threads.map_or_else(|| Cores::here().threads(), |n| n as usize)
    }
}

/// The same of a model.
#[derive(clap::Args, Clone)]
pub(crate) struct ArtifactArgs {
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    residence: ResidenceArgs,
    /// Most positions, in tokens, fewer than the file is compiled for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub(crate) context: Option<u64>,
}

impl ArtifactArgs {
    /// An artifact, and what `start` makes of its program, itself and a number of threads: an engine or a session,
    /// which tells `threads` how many it has.
    pub(crate) fn open<T>(
        &self,
        path: &Path,
        start: impl FnOnce(Arc<Program>, Arc<Artifact>, usize, Residence) -> Result<T, lapidary_runtime::Error>,
        threads: impl FnOnce(&T) -> usize,
    ) -> Result<(Arc<Artifact>, T)> {
        let artifact = Arc::new(self.code.artifact(path)?);
        let name = || path.display().to_string();
        let mut program = artifact.program(self.code.cpu.as_deref())?;
        if let Some(context) = self.context {
            program.limit_context(context as usize).with_context(name)?;
        }
        let wanted = self.code.threads();
        let started = start(Arc::new(program), artifact.clone(), wanted, self.residence.mmap().into())
            .with_context(name)?;
        let given = threads(&started);
        if given < wanted {
            note("warning", &format!("the system gives {given} of {wanted} threads"));
        }
        Ok((artifact, started))
    }

    /// A session of an artifact.
    pub(crate) fn session(&self, path: &Path) -> Result<(Arc<Artifact>, Session)> {
        let start = |program, weights: Arc<Artifact>, threads, residence| {
            Session::new(program, weights, threads)?.with_residence(residence)
        };
        self.open(path, start, Session::threads)
    }
}
