//! The options of whether weights are mapped, shared by the commands that run a model and `lapidary-run`.

/// Where weights lie that are in files; of two, the last counts.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct ResidenceArgs {
    /// Leave weights in mapped files, which processes share [default: for the first step, then as with --no-mmap if
    /// there is room for twice as many bytes]
    #[arg(long, overrides_with = "no_mmap")]
    mmap: bool,
    /// Copy weights to memory of the process at once: that is read faster
    #[arg(long, overrides_with = "mmap")]
    no_mmap: bool,
}

impl ResidenceArgs {
    /// Whether they are mapped, if that is said.
    pub(crate) fn mmap(self) -> Option<bool> {
        (self.mmap || self.no_mmap).then_some(self.mmap)
    }
}
