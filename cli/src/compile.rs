//! `lapidary compile`: a model, or a function of the tensor language, compiled ahead of time, for this machine or
//! another.
//!
//! In: a model or a function, and a target. Out: files. Nothing that is compiled runs here. Invariants: the same input
//! and options give the same bytes; a file has its name only once it is whole.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use lapidary::call::TensorFile;
use lapidary::{Compile, NATIVE, Options, PrivateKey, Written};

use crate::functions;
use crate::model;
use crate::options::{self, CompileArgs};
use crate::output::{self, Usage};
use crate::weights::{FormatOrFile, OtherWeightArgs};

/// Compile a model or a function of the tensor language ahead of time, for this machine or another
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
        lapidary compile -m gemma-2-2b-it --weights q4 --cpu x86-64-v3,x86-64-v4 -o model.lap\n  \
        lapidary compile --target aarch64-unknown-linux-gnu --emit object -o model.o\n  \
        lapidary compile mlp.ir --weights mlp.safetensors --emit object -o mlp.o")]
pub(crate) struct Args {
    /// File of the tensor language with a function to compile instead of a model; `-` reads stdin
    #[arg(value_name = "FILE.ir", conflicts_with_all = ["model", "context", "kv_cache", "sliding_window"])]
    file: Option<PathBuf>,
    /// Of several functions, the one to compile
    #[arg(long = "fn", value_name = "NAME", requires = "file")]
    function: Option<String>,
    /// Hugging Face folder, GGUF file, or name OWNER/REPO[:TAG] [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Format of the weights [default: as the checkpoint stores them]; of FILE.ir, the safetensors file that holds them
    /// by their names
    #[arg(long, value_parser = FormatOrFile::parse, value_name = "FORMAT|FILE")]
    weights: Option<FormatOrFile>,
    /// Target to make code for: x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu or riscv64-unknown-linux-gnu
    /// [default: this machine's]; --cpu names CPUs of it, for an artifact several, separated by
    /// commas [default without --target: this machine's CPU; with it: an artifact's are all, an object's the oldest]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Emit::Artifact)]
    emit: Emit,
    /// Most rows (tokens, of all sequences together) of one call: the same as --chunk
    #[arg(long, value_name = "N", conflicts_with = "chunk", value_parser = options::rows())]
    batch: Option<usize>,
    /// Artifact to write; or object file to write, or folder to write model.o to, header and weights go beside it
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Sign the artifact: PEM file of an ed25519 private key, as `openssl genpkey -algorithm ed25519` writes it
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    others: OtherWeightArgs,
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
    compile.chunk = args.batch.unwrap_or(compile.chunk);
    let mut how = match args.emit {
        Emit::Artifact => Compile::artifact(),
        Emit::Object if args.sign.is_some() => {
            bail!(Usage::new(anyhow!("--sign: only an artifact can be signed, not an object")))
        }
        Emit::Object => Compile::object(),
    };
    if let Some(key) = &args.sign {
        how = how.sign(PrivateKey::read(key)?);
    }
    if let Some(triple) = &args.target {
        how = how.target(triple);
    }
    if compile.cpu != NATIVE {
        how = compile.cpu.split(',').map(str::trim).fold(how, Compile::cpu);
    }
    // What is wrong whatever the model comes first.
    if let (Some(_), Some(option)) = (&args.file, args.others.given()) {
        bail!(Usage::new(anyhow!("{option}: a function's weights are as their file has them")));
    }
    let format = match (&args.weights, &args.file) {
        (Some(weights), None) => Some(weights.format()?),
        (_, _) => None,
    };
    let options = args.others.with(format).apply(compile.unpriced()?)?;
    let targets = how.targets(&options).map_err(|e| Usage::new(options::error(e)))?;
    let options = compile.priced(options, targets.iter().map(|target| &target.name))?;
    how.check(&options, &args.output).map_err(|e| refused(args, e))?;
    let written = match &args.file {
        Some(file) => function(args, file, &how, &options)?,
        None => {
            let model = model::open(args.model.as_deref(), options)?;
            model.compile(&how, &args.output).map_err(|e| refused(args, e))?
        }
    };
    let Written { path, cpus, bytes, code_bytes, compile, write } = written;
    let (path, size, code) = (path.display(), output::bytes(bytes), output::bytes(code_bytes));
    let (compile, write) = (compile.as_secs_f64(), write.as_secs_f64());
    output::say(&match args.emit {
        Emit::Artifact => {
            let cpus = cpus.join(", ");
            format!("{path}: {size}, {code} of code for {cpus} in {compile:.2} s; written in {write:.2} s")
        }
        Emit::Object => format!("{path}: {code} of code in {compile:.2} s, {size} of weights"),
    });
    Ok(())
}

/// Compiles a function of a file, and writes it.
fn function(args: &Args, file: &Path, how: &Compile, options: &Options) -> Result<Written> {
    let weights = args.weights.as_ref().map(FormatOrFile::file).transpose()?;
    let source = functions::source(Some(file), None, None, &args.compile)?;
    let function = source.one(args.function.as_deref())?;
    let weights = weights.map(TensorFile::open).transpose()?;
    let written = how.function(&function, weights.as_ref(), options, &args.output);
    written.map_err(|error| match error {
        error @ (lapidary::Error::Graph(_) | lapidary::Error::Compiler(_)) => {
            options::error(error).context(source.name.clone())
        }
        error => refused(args, error),
    })
}

/// An error of the library, with the option of the output's place; a name that no object can have is a mistake in the
/// arguments.
fn refused(args: &Args, error: lapidary::Error) -> anyhow::Error {
    match (error, args.emit) {
        (error @ lapidary::Error::Output { .. }, Emit::Artifact) => anyhow!("-o {error}"),
        (error @ lapidary::Error::Output { .. }, Emit::Object) => Usage::new(anyhow!("-o {error}")).into(),
        (error, _) => options::error(error),
    }
}
