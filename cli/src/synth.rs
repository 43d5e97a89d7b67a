//! `lapidary synth`: a full-shape checkpoint of random weights, for measurements.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use lapidary_models::config::MAX_LAYERS;
use lapidary_models::{Config, Error, LayerType, WeightDType, synthesize};

use crate::interrupt::{self, Again, Interrupted, Work};
use crate::model;
use crate::output::{self, Unit};

/// Write a full-shape checkpoint of random weights and a tokenizer.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lapidary synth --preset 2b --layers 4 -o /tmp/gemma-2b-random")]
pub(crate) struct Args {
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", value_parser = model::presets())]
    preset: String,
    /// Layers, instead of the size's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_LAYERS))]
    layers: Option<u64>,
    /// Element type of the weights
    #[arg(long, value_enum, default_value_t = Stored::Bf16)]
    dtype: Stored,
    /// Where the random numbers start
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Write into a folder that is not empty
    #[arg(long)]
    force: bool,
}

/// Element types that are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stored {
    /// bfloat16
    Bf16,
    /// 32-bit float
    F32,
}

/// Writes the checkpoint.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut config = Config::preset(&args.preset)?;
    if let Some(layers) = args.layers {
        let layers = layers as usize;
        config.num_hidden_layers = layers;
        config.layer_types = (0..layers).map(LayerType::published).collect();
    }
    let dir = &args.output;
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            ensure!(args.force, "{}: the folder is not empty (--force writes into it)", dir.display());
            clear(dir)?;
        }
        Ok(false) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => bail!("{}: {e}", dir.display()),
    }
    let dtype = match args.dtype {
        Stored::Bf16 => WeightDType::BF16,
        Stored::F32 => WeightDType::F32,
    };
    let total = config.weight_bytes(dtype);
    interrupt::install(Again::Exit)?;
    let work = Work::begin();
    let bar = output::bar(total, "writing", Unit::Bytes);
    let written = synthesize(dir, &config, dtype, args.seed, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
        work.flow()
    });
    bar.finish_and_clear();
    match written {
        Err(Error::Stopped) => return Err(Interrupted.into()),
        other => other?,
    }
    output::say(&format!("{}: {} of weights", dir.display(), output::bytes(total)));
    Ok(())
}

/// Removes the files of an earlier checkpoint, and nothing else.
fn clear(dir: &std::path::Path) -> Result<()> {
    let cannot = || format!("cannot clear {}", dir.display());
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = name.ends_with(".safetensors")
            || name == "model.safetensors.index.json"
            || name == "config.json"
            || name == "generation_config.json"
            || name == "tokenizer.json"
            || name == "tokenizer_config.json"
            || (name.starts_with('.') && name.ends_with(".partial"));
        if ours && entry.file_type().with_context(cannot)?.is_file() {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
