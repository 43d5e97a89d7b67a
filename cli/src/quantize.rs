//! `lapidary quantize`: a model's folder again, its matrices in another format, to be shipped and opened with `-m`.
//!
//! In: a folder or the built-in model, formats. Out: a folder; it appears once it is whole. Memory stays at a few MiB a
//! thread.

use std::path::PathBuf;

use anyhow::{Context, Result};
use lapidary::Format;
use lapidary_models::{Destination, Error, FormatChoice, export};
use lapidary_runtime::file::inputs;
use lapidary_runtime::threads;

use crate::choices::choices;
use crate::interrupt::{Interrupted, Work};
use crate::output::{self, Unit};
use crate::{model, options, synth};

/// Write a model again with its weights quantised, or in other floats.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary quantize -m gemma-2-9b --weights q4 -o gemma-2-9b-q4\n  \
    lapidary quantize -m gemma-2-2b --weights q4 --head-weights q8 -o gemma-2-2b-q4")]
pub(crate) struct Args {
    /// Hugging Face folder, GGUF file, or name OWNER/REPO[:TAG] [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Format of the weights
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    weights: Format,
    /// Format of the embedding table, which is the head's matrix too [default: that of --weights]
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    head_weights: Option<Format>,
    /// Threads [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = options::threads())]
    threads: Option<usize>,
    /// Folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Write into a folder that is not empty: a model's files in it give way once the new ones are whole
    #[arg(long)]
    force: bool,
}

/// Writes the folder.
pub(crate) fn run(args: &Args) -> Result<()> {
    let model = model::files(args.model.as_deref())?;
    let dir = &args.output;
    if let Ok(found) = dir.metadata() {
        inputs::check_output(&found).with_context(|| format!("cannot write {}", dir.display()))?;
    }
    synth::check_place(dir, args.force)?;
    let choice = FormatChoice {
        body: Some(args.weights.stored()),
        head: Some(args.head_weights.unwrap_or(args.weights).stored()),
    };
    let threads = args.threads.unwrap_or_else(threads::of_machine);
    let work = Work::begin();
    let bar = output::bar(0, "converting", Unit::Bytes);
    let written =
        export(&model, Destination { dir, replace: args.force }, choice, threads, &mut |done, all| {
            bar.set_length(all);
            bar.set_position(done);
            work.flow()
        });
    bar.finish_and_clear();
    match written {
        Err(Error::Stopped) => return Err(Interrupted.into()),
        other => other?,
    }
    synth::say_size(dir)
}
