//! `lapidary call`: a function of the tensor language, on tensors from files.
//!
//! In: the function's text, safetensors files with its weights and inputs by name. Out: a safetensors file with what it
//! returns; with --tolerance, the distance of each result from the reference interpreter's, and an error beyond it.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use lapidary::Options;
use lapidary::call::{Call, TensorFile, write_tensors};

use crate::functions;
use crate::options::{self, CompileArgs};
use crate::output::{self, Usage};

/// Call a function of the tensor language on tensors from files
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    lapidary call mlp.ir --weights mlp.safetensors --inputs x.safetensors -o y.safetensors\n  \
    lapidary call mlp.ir --weights mlp.safetensors --inputs x.safetensors --activations f32 --tolerance 1e-5")]
pub(crate) struct Args {
    /// File of the tensor language; `-` reads stdin
    #[arg(value_name = "FILE.ir")]
    file: PathBuf,
    /// Function to call [default: the only one]
    #[arg(long = "fn", value_name = "NAME")]
    function: Option<String>,
    /// Safetensors file that holds the function's weights, by their names
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Safetensors file that holds its rows and caches; T and S are what their shapes say
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Safetensors file to write what it returns to
    #[arg(short, long, value_name = "FILE", required_unless_present = "tolerance")]
    output: Option<PathBuf>,
    /// Fail if a result is further from the reference interpreter's than this share of its largest value (or of 1)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    tolerance: Option<f64>,
    /// Threads [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = options::threads())]
    threads: Option<usize>,
    #[command(flatten)]
    compile: CompileArgs,
}

/// A share, for the parser of arguments.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    share.ok_or_else(|| "expected a number of 0 or more".into())
}

/// Binds, compiles, runs, compares, writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.compile.context.is_some() {
        let reason = "--context: S is what the shapes of the tensors say";
        bail!(Usage::new(anyhow!(reason)));
    }
    let mut options: Options = args.compile.options()?;
    if let Some(threads) = args.threads {
        options = options.threads(threads);
    }
    let source = functions::source(Some(&args.file), None, None, &args.compile)?;
    let function = source.one(args.function.as_deref())?;
    let open = |path: &Option<PathBuf>| path.as_ref().map(TensorFile::open).transpose();
    let (weights, inputs) = (open(&args.weights)?, open(&args.inputs)?);
    let call = Call::bind(&function, weights.as_ref(), inputs.as_ref()).map_err(options::error)?;
    let mut compiled = call.compile(&options).map_err(options::error)?;
    let results = call.run(&mut compiled)?;
    if let Some(most) = args.tolerance {
        let distances = call.distances(&results)?;
        let lines: Vec<String> = distances
            .iter()
            .map(|d| format!("{}: {:.1e} from the interpreter's, of its largest value\n", d.name, d.share))
            .collect();
        output::print(&lines.concat())?;
        if let Some(far) = distances.iter().find(|d| d.share > most) {
            bail!(
                "output `{}` is {:.1e} from the interpreter's: expected {most:e} at most",
                far.name,
                far.share
            );
        }
    }
    if let Some(path) = &args.output {
        write_tensors(path, &results)?;
        let all: Vec<String> = results.iter().map(ToString::to_string).collect();
        output::say(&format!("{}: {}", path.display(), all.join(", ")));
    }
    Ok(())
}
