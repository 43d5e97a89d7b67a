//! `lapidary-run call`: a function of the tensor language that was compiled ahead of time, on tensors from files.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser};
use lapidary_runtime::Callable;
use lapidary_runtime::callable::tensors::{Bytes, Taken, TensorFile, write_tensors};
use lapidary_runtime::program::{Role, WeightSource};

use crate::args::Usage;
use crate::artifact::CodeArgs;
use crate::flags;
use crate::output::say;

/// Call a function that `lapidary compile FILE.ir` wrote on tensors from files.
#[derive(Parser)]
#[command(
    name = "lapidary-run call",
    bin_name = "lapidary-run call",
    version,
    after_help = "Example:\n  lapidary-run call mlp.lap --inputs x.safetensors -o y.safetensors"
)]
struct Args {
    /// Artifact
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Safetensors file that holds the function's inputs, by their names; T is what their shapes say
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Safetensors file to write what it returns to
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    code: CodeArgs,
}

/// Binds, runs, writes.
pub(crate) fn run(words: Vec<OsString>) -> Result<()> {
    let command = flags::with_numbers_below_zero(Args::command());
    let words = flags::translate(&command, words).map_err(Usage)?;
    let args = Args::from_arg_matches(&command.get_matches_from(words)).unwrap_or_else(|e| e.exit());
    let artifact = args.code.artifact(&args.file)?;
    let name = || args.file.display().to_string();
    let program = Arc::new(artifact.function(args.code.cpu.as_deref())?);
    let mut callable = Callable::new(program, args.code.threads()).with_context(name)?;
    let signature = callable.signature().clone();
    let inputs = args.inputs.as_ref().map(TensorFile::open).transpose()?;
    let taken = Taken::new(&signature, |operand| match (operand.role, &inputs) {
        (Role::Weight, _) => Ok(None),
        (_, Some(file)) => Ok(Some(file)),
        (_, None) => {
            let what = format!(
                "--inputs: `{}` takes `{}`, {operand}: expected a file",
                signature.name, operand.name
            );
            Err(anyhow::Error::from(Usage(what)))
        }
    })?;
    let mut takes: Vec<&[u8]> = Vec::with_capacity(taken.operands.len());
    for (operand, given) in signature.operands.iter().zip(&taken.operands) {
        let bytes = given.as_ref().map(Bytes::as_slice).or_else(|| artifact.tensor(&operand.name));
        takes.push(bytes.with_context(|| format!("{}: no tensor `{}`", name(), operand.name))?);
    }
    let results = callable.returned(taken.counts, &takes).with_context(name)?;
    write_tensors(&args.output, &results)?;
    let all: Vec<String> = results.iter().map(ToString::to_string).collect();
    say(&format!("{}: {}", args.output.display(), all.join(", ")));
    Ok(())
}
