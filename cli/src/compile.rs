//! `lapidary compile`: a model compiled ahead of time, for this machine or another.
//!
//! In: a model and a target. Out: files. Nothing that is compiled runs here. Invariants: the same input and options
//! give the same bytes; a file has its name only once it is whole.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use lapidary_codegen::compile::{ImageCompilation, compile_image};
use lapidary_codegen::target;

use crate::artifact;
use crate::model::{self, CompileArgs};
use crate::object;
use crate::output::{self, Usage};
use crate::weights::WeightArgs;

/// Compile a model ahead of time, for this machine or another
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary compile -m gemma-2-2b-it --weights q4 --cpu x86-64-v3,x86-64-v4 -o model.lap\n  \
        lapidary compile --target aarch64-unknown-linux-gnu --emit object -o model.o"
)]
pub(crate) struct Args {
    /// Hugging Face folder of a Gemma 2 [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Target to make code for: x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu or riscv64-unknown-linux-gnu
    /// [default: this machine's]; --cpu names CPUs of it, for an artifact several, separated by
    /// commas [default without --target: this machine's CPU; with it: an artifact's are all, an object's the oldest]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Emit::Artifact)]
    emit: Emit,
    /// Most rows (tokens, of all sequences together) of one call: the same as --chunk
    #[arg(long, value_name = "N", conflicts_with = "chunk", value_parser = clap::value_parser!(u64).range(1..=model::MAX_CHUNK))]
    batch: Option<u64>,
    /// Artifact to write; or object file to write, or folder to write model.o to, header and weights go beside it
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Sign the artifact: PEM file of an ed25519 private key, as `openssl genpkey -algorithm ed25519` writes it
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    compile: CompileArgs,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Emit {
    /// One file to run with `lapidary run -m FILE.lap` or `lapidary-run FILE.lap`
    Artifact,
    /// A relocatable object with a C header and a weights file
    Object,
}

/// Compiles and writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut compile = args.compile.clone();
    if let Some(batch) = args.batch {
        compile.chunk = batch;
    }
    if args.emit == Emit::Artifact {
        return artifact::write(&artifact::Request {
            model: args.model.as_deref(),
            target: args.target.as_deref(),
            weights: &args.weights,
            compile,
            output: &args.output,
            sign: args.sign.as_deref(),
        });
    }
    if args.sign.is_some() {
        bail!(Usage::new(anyhow!("--sign: only an artifact can be signed, not an object")));
    }
    if compile.cpu.contains(',') {
        bail!(Usage::new(anyhow!("--cpu {}: an object is for one CPU", compile.cpu)));
    }
    if let Some(triple) = &args.target {
        let cpu = Some(compile.cpu.as_str()).filter(|&cpu| cpu != "native");
        compile.cpu = target::cpu_of_target(triple, cpu).map_err(Usage::new)?.to_string();
    }
    // What is wrong whatever the model comes first.
    compile.options(1)?;
    model::check_cpu_name(&compile.cpu)?;
    let paths = object::Paths::new(&args.output)?;
    let files = paths.create()?;
    let mut model = model::open(args.model.as_deref())?;
    compile.adjust(&mut model.config);
    let model = Arc::new(model);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let weights = args.weights.open(&model, threads)?;
    let start = Instant::now();
    let dtype = |name: &str| weights.dtype(&model, name);
    let module = compile.module(&model.config, &dtype)?;
    let description = model::describe(&model.config, &dtype);
    let layers = description.layers.iter().map(|(name, _)| name.as_str());
    let context = compile.context_of(model.config.max_position_embeddings);
    let options = compile.options_of(context, &module, layers)?;
    let ImageCompilation { image, functions, .. } = compile_image(&module, &description, &options)?;
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
