//! The options of how a model's weights are held.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use lapidary::{Choice, Format, Options};
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
    #[command(flatten)]
    others: OtherWeightArgs,
}

/// The same but for the option that a function's file of weights has too.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct OtherWeightArgs {
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

/// What `--weights` takes where a model's format or a function's file may be meant.
#[derive(Clone, Debug)]
pub(crate) enum FormatOrFile {
    Format(Format),
    File(PathBuf),
}

impl FormatOrFile {
    /// For the parser of arguments: what is no format's name must look like a safetensors file.
    pub(crate) fn parse(text: &str) -> Result<FormatOrFile, String> {
        if let Ok(format) = Format::parse(text) {
            return Ok(FormatOrFile::Format(format));
        }
        if text.ends_with(".safetensors") {
            return Ok(FormatOrFile::File(text.into()));
        }
        let formats: Vec<&str> = Format::ALL.iter().map(|(_, name, _)| *name).collect();
        Err(format!("expected {}, or with FILE.ir a file NAME.safetensors", formats.join(", ")))
    }

    /// A model's format.
    pub(crate) fn format(&self) -> Result<Format> {
        match self {
            FormatOrFile::Format(format) => Ok(*format),
            FormatOrFile::File(path) => {
                let path = path.display();
                bail!(Usage::new(anyhow!(
                    "--weights {path}: expected a format; a function FILE.ir takes a file"
                )))
            }
        }
    }

    /// A function's file.
    pub(crate) fn file(&self) -> Result<&Path> {
        match self {
            FormatOrFile::File(path) => Ok(path),
            FormatOrFile::Format(format) => {
                bail!(Usage::new(anyhow!("--weights {format}: expected a safetensors file with FILE.ir")))
            }
        }
    }
}

impl OtherWeightArgs {
    /// With a format.
    pub(crate) fn with(&self, weights: Option<Format>) -> WeightArgs {
        WeightArgs { weights, others: self.clone() }
    }

    /// The first option that is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let OtherWeightArgs { head_weights, lora, no_cache } = self;
        let given = [
            ("--head-weights", head_weights.is_some()),
            ("--lora", !lora.is_empty()),
            ("--no-cache", *no_cache),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }
}

impl WeightArgs {
    /// The same weights, every matrix in this format.
    pub(crate) fn in_format(&self, format: Format) -> WeightArgs {
        OtherWeightArgs { head_weights: None, ..self.others.clone() }.with(Some(format))
    }

    /// The same without adapters.
    pub(crate) fn without_adapters(&self) -> WeightArgs {
        OtherWeightArgs { lora: vec![], ..self.others.clone() }.with(self.weights)
    }

    /// As the library takes them.
    pub(crate) fn apply(&self, options: Options) -> Result<Options> {
        let OtherWeightArgs { head_weights, lora, no_cache } = &self.others;
        let options = options.weights(self.weights).head_weights(*head_weights).cache(!no_cache);
        lora.iter().try_fold(options, |options, given| {
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
