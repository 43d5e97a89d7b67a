//! The options of how a model's weights are held.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lapidary::{Format, Options};
use lapidary_runtime::file::error::quote;

use crate::choices::choices;
use crate::hub;
use crate::output::Usage;

/// Formats of weights.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct WeightArgs {
    /// Format of the weights [default: as the checkpoint stores them]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    weights: Option<Format>,
    /// Format of the embedding table, which is the head's matrix too [default: that of --weights]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    head_weights: Option<Format>,
    /// Merge a LoRA adapter, a folder as PEFT saves it or its name OWNER/REPO, times SCALE [default: 1] (may be
    /// repeated)
    #[arg(long, value_name = "FOLDER[:SCALE]")]
    lora: Vec<String>,
    /// Keep converted weights in memory only, not in the user's cache directory
    #[arg(long)]
    no_cache: bool,
}

impl WeightArgs {
    /// This format, or the checkpoint's own, for every matrix; another for the embedding table, or the same.
    pub(crate) fn of(weights: Option<Format>, head_weights: Option<Format>, no_cache: bool) -> WeightArgs {
        WeightArgs { weights, head_weights, lora: vec![], no_cache }
    }

    /// The same weights, every matrix in this format.
    pub(crate) fn in_format(&self, format: Format) -> WeightArgs {
        WeightArgs { weights: Some(format), head_weights: None, ..self.clone() }
    }

    /// The same without adapters.
    pub(crate) fn without_adapters(&self) -> WeightArgs {
        WeightArgs { lora: vec![], ..self.clone() }
    }

    /// As the library takes them.
    pub(crate) fn apply(&self, options: Options) -> Result<Options> {
        let options = options.weights(self.weights).head_weights(self.head_weights).cache(!self.no_cache);
        self.lora.iter().try_fold(options, |options, given| {
            let (folder, factor) = adapter(given).map_err(Usage::new)?;
            Ok(options.lora(hub::locate(&folder)?, factor))
        })
    }
}

/// `FOLDER` or `FOLDER:SCALE`; a path that leads somewhere is one, whatever it ends in.
fn adapter(given: &str) -> Result<(PathBuf, f64)> {
    let scaled = given.rsplit_once(':').filter(|_| !Path::new(given).exists());
    let Some((folder, scale)) = scaled else { return Ok((given.into(), 1.0)) };
    match scale.parse::<f64>() {
        Ok(factor) if factor.is_finite() => Ok((folder.into(), factor)),
        _ => bail!("--lora: expected FOLDER or FOLDER:SCALE, SCALE a number, found {}", quote(given)),
    }
}
