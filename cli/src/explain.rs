//! `lapidary explain`: how each kernel came about, and what it was chosen over.
//!
//! In: a model's module, or a file of the tensor language; a kernel's name. Out: for each kernel the source's
//! operators, the rewrites in an order that replays, and the costs of the chosen form and of those rejected, as text or
//! JSON. The functions in it are text that parses back.

use std::fmt::Write;

use anyhow::{Result, anyhow, ensure};
use lapidary::explain::explain;
use serde_json::{Value, json};

use crate::functions::FunctionArgs;
use crate::options;
use crate::output::{self, Usage};

/// Show how each kernel came about: its rewrites, step by step, and what it was chosen over.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary explain --fn layer_local attention\n  \
    lapidary explain --preset 2b --fn layer_local --rows 1 --json")]
pub(crate) struct Args {
    #[command(flatten)]
    of: FunctionArgs,
    /// Print the whole term after each rewrite
    #[arg(long)]
    steps: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A kernel's name as `opt --emit kernels` has it, or a part of it; and a file of the tensor language, which
    /// ends in `.ir` or is `-` for stdin
    #[arg(value_name = "KERNEL] [FILE.ir", num_args = 0..=2)]
    what: Vec<String>,
}

/// Prints the explanations.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (file, names) = FunctionArgs::file(&args.what);
    ensure!(names.len() <= 1, Usage::new(anyhow!("expected one KERNEL, found `{}`", names.join("`, `"))));
    let source = args.of.source(file)?;
    let functions = args.of.functions(&source)?;
    let compiler = args.of.compile.compiler(&source.graph)?;
    let rows = args.of.rows(compiler.chunk)?;
    let kernel = names.first().map(String::as_str);
    let all = explain(&functions, &compiler, rows, kernel).map_err(options::error)?;
    let mut texts = vec![];
    let mut values = vec![];
    for explained in &all {
        if let Some(warning) = &explained.warning {
            output::note("warning", warning);
        }
        let extent = explained.extent;
        let of_layers = source.graph.parts.layers.iter().enumerate();
        let (layers, prefixes): (Vec<usize>, Vec<&str>) = of_layers
            .filter(|(_, (name, _))| *name == explained.function)
            .map(|(at, (_, prefix))| (at, prefix.as_str()))
            .unzip();
        if args.json {
            values.push(json!({
                "function": explained.function,
                "rows": extent.rows,
                "keys": extent.keys,
                "layers": layers,
                "prefixes": prefixes,
                "predicted_ns": explained.nanoseconds,
                "kernels": explained.json(),
            }));
        } else {
            let mut text = format!("; {}, {} rows", explained.function, extent.rows);
            if let (Some(first), Some(last)) = (prefixes.first(), prefixes.last()) {
                write!(text, ": {} layers, their weights under {first} to {last}", layers.len())?;
            }
            text.push('\n');
            text.push_str(&explained.text(args.steps));
            texts.push(text);
        }
    }
    if args.json { output::print_json(&Value::Array(values)) } else { output::print(&texts.join("\n")) }
}
