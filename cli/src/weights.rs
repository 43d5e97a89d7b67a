//! The options of how a model's weights are held.

use lapidary::{Format, Options};

use crate::choices::choices;

/// Formats of weights.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct WeightArgs {
    /// Format of the weights [default: as the checkpoint stores them]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    weights: Option<Format>,
    /// Format of the embedding table, which is the head's matrix too [default: that of --weights]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    head_weights: Option<Format>,
    /// Keep converted weights in memory only, not in the user's cache directory
    #[arg(long)]
    no_cache: bool,
}

impl WeightArgs {
    /// This format, or the checkpoint's own, for every matrix; another for the embedding table, or the same.
    pub(crate) fn of(weights: Option<Format>, head_weights: Option<Format>, no_cache: bool) -> WeightArgs {
        WeightArgs { weights, head_weights, no_cache }
    }

    /// Whether the cache directory is left alone.
    pub(crate) fn no_cache(&self) -> bool {
        self.no_cache
    }

    /// As the library takes them.
    pub(crate) fn apply(&self, options: Options) -> Options {
        options.weights(self.weights).head_weights(self.head_weights).cache(!self.no_cache)
    }
}
