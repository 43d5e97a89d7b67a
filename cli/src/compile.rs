//! `lapidary compile`: a model compiled ahead of time, for this machine or another.
//!
//! In: a model and a target. Out: files. Nothing that is compiled runs here. Invariants: the same input and options give the
//! same bytes; a file has its name only once it is whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use lapidary_codegen::compile::{ImageCompilation, compile_image};
use lapidary_codegen::target;

use crate::interrupt::{self, Again};
use crate::model::{self, CompileArgs};
use crate::object;
use crate::output::{self, Usage};
use crate::weights::WeightArgs;

/// Compile a model ahead of time, for this machine or another
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  lapidary compile --target aarch64-unknown-linux-gnu --emit object -o model.o"
)]
pub(crate) struct Args {
    /// Hugging Face folder of a Gemma 2 [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Target to make code for; --cpu then names one of its CPUs [default: this machine, or the oldest CPU of the target]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// What to write
    #[arg(long, value_enum)]
    emit: Emit,
    /// Object file to write, or folder to write model.o to; header and weights go beside it
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compile: CompileArgs,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Emit {
    /// A relocatable object with a C header and a weights file
    Object,
}

/// Compiles and writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Emit::Object = args.emit;
    let mut compile = args.compile.clone();
    if let Some(triple) = &args.target {
        let cpu = Some(compile.cpu.as_str()).filter(|&cpu| cpu != "native");
        compile.cpu = target::cpu_of_target(triple, cpu).map_err(Usage::new)?.to_string();
    }
    // What is wrong whatever the model comes first.
    compile.options(1)?;
    model::check_cpu_name(&compile.cpu)?;
    let paths = object::Paths::new(&args.output)?;
    interrupt::install(Again::Exit)?;
    let files = paths.create()?;
    let mut model = model::open(args.model.as_deref())?;
    compile.adjust(&mut model.config);
    let model = Arc::new(model);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let weights = args.weights.open(&model, threads)?;
    let start = Instant::now();
    let module = compile.module(&model.config, &|name| weights.dtype(&model, name))?;
    let options = compile.options(compile.context_of(model.config.max_position_embeddings))?;
    let ImageCompilation { image, functions, .. } =
        compile_image(&module, &model::describe(&model.config), &options)?;
    for warning in functions.iter().filter_map(|f| f.saturation.warning()) {
        output::note("warning", &warning);
    }
    let object = object::build(&image, &compile.cpu, &paths, &model, &weights)?;
    let time = start.elapsed();
    files.write(&object, &weights)?;
    output::say(&format!(
        "{}: {} of code in {:.2} s, {} of weights",
        paths.object.display(),
        output::bytes(image.code.len() as u64),
        time.as_secs_f64(),
        output::bytes(object.weights.bytes as u64)
    ));
    Ok(())
}
