//! `lapidary synth`: a full-shape checkpoint of random weights, for measurements.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use lapidary::Format;
use lapidary_models::config::MAX_LAYERS;
use lapidary_models::{Config, Destination, Error, FormatChoice, WeightDType, synthesize};
use lapidary_runtime::file::{self, safetensors::LENGTH_BYTES};

use crate::choices::choices;
use crate::interrupt::{Interrupted, Work};
use crate::options;
use crate::output::{self, Unit};

/// Write a full-shape checkpoint of random weights and a tokenizer.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary synth --preset 2b --layers 4 -o /tmp/gemma-2b-random\n  \
    lapidary synth --preset 27b --weights q4 -o /tmp/gemma-27b-random-q4")]
pub(crate) struct Args {
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", value_parser = options::presets())]
    preset: String,
    /// Layers, instead of the size's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_LAYERS))]
    layers: Option<u64>,
    /// Element type of the weights
    #[arg(long, value_enum, default_value_t = Stored::Bf16)]
    dtype: Stored,
    /// Format that matrices are converted to while they are drawn [default: that of --dtype]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    weights: Option<Format>,
    /// Format of the embedding table, which is the head's matrix too [default: that of --weights]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    head_weights: Option<Format>,
    /// Where the random numbers start
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Write into a folder that is not empty: a model's files in it give way once the new ones are whole
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
        config = config.with_layers(layers as usize);
    }
    let dir = &args.output;
    check_place(dir, args.force)?;
    let dtype = match args.dtype {
        Stored::Bf16 => WeightDType::BF16,
        Stored::F32 => WeightDType::F32,
    };
    let choice = FormatChoice {
        body: args.weights.map(Format::stored),
        head: args.head_weights.or(args.weights).map(Format::stored),
    };
    let total = config.weight_bytes(dtype);
    let work = Work::begin();
    let bar = output::bar(total, "writing", Unit::Bytes);
    let written = synthesize(
        Destination { dir, replace: args.force },
        &config,
        dtype,
        choice,
        args.seed,
        &mut |done, all| {
            bar.set_length(all);
            bar.set_position(done);
            work.flow()
        },
    );
    bar.finish_and_clear();
    match written {
        Err(Error::Stopped) => return Err(Interrupted.into()),
        other => other?,
    }
    say_size(dir)
}

/// Says how much was written. The model is not opened: it is whole, whether or not there is memory to look at it.
pub(crate) fn say_size(dir: &Path) -> Result<()> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let (mut file, found) = file::open_unnoted(&path)?;
            let mut header = [0; LENGTH_BYTES];
            file.read_exact(&mut header)?;
            bytes += found.len().saturating_sub(LENGTH_BYTES as u64 + u64::from_le_bytes(header));
        }
    }
    output::say(&format!("{}: {} of weights", dir.display(), output::bytes(bytes)));
    Ok(())
}

/// Fails for a folder that is not empty, unless it may be written into.
pub(crate) fn check_place(dir: &Path, force: bool) -> Result<()> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            ensure!(force, "{}: the folder is not empty (--force writes into it)", dir.display());
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => bail!("{}: {e}", dir.display()),
    }
}
