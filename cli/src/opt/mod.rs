//! `lapidary opt`: each stage of the compiler as text.
//!
//! In: a model's module, or a file of the tensor language. Out: the functions as written (`ir`), as extracted
//! (`fused`), as kernels (`kernels`, `clif`, `asm`) or as memory (`plan`), for one row regime. `ir` and `fused` parse
//! back: what is about them is in comments.

mod memory;
mod stages;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use clap::ValueEnum;
use lapidary_codegen::compile::{compile_functions, regime_of};
use lapidary_ir::{Extent, Function};
use serde_json::Value;

use crate::functions;
use crate::options::{self, CompileArgs};
use crate::output::{self, Usage};
use crate::price::objective::CostName;
use crate::price::what_if;
use crate::{cpus, trial};
use memory::plan;
pub(crate) use memory::{tiles, view};
use stages::{egraph, fused, kernels, listing, measured, times, to_json};

/// Show the stages of the compiler as text.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary opt --fn layer_local\n  \
    lapidary opt --fn layer_local --rows 1 --emit kernels\n  \
    lapidary opt --fn head --emit ir | lapidary opt - --disable softcap")]
pub(crate) struct Args {
    /// Hugging Face folder, GGUF file, or name OWNER/REPO[:TAG] [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL", conflicts_with_all = ["file", "preset"])]
    model: Option<PathBuf>,
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", conflicts_with = "file", value_parser = options::presets())]
    preset: Option<String>,
    /// Only this function
    #[arg(long = "fn", value_name = "NAME")]
    function: Option<String>,
    /// Rows of a call; the stages are shown as compiled for it [default: the most]
    #[arg(long, value_name = "N", value_parser = options::rows())]
    rows: Option<usize>,
    /// Which stage
    #[arg(long, value_enum, default_value_t = Stage::Fused)]
    emit: Stage,
    /// Run the functions on random inputs too, by the interpreter and as machine code; fail if they differ
    #[arg(long)]
    run: bool,
    /// Seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Tell what each stage took
    #[arg(long)]
    time: bool,
    /// Show how the plan would differ on another machine: cores=16,bandwidth=200,flops=..,cache=..,launch=..
    #[arg(long, value_name = "FIGURES", conflicts_with_all = ["emit", "run", "time"])]
    what_if: Option<String>,
    /// Print the compiler's figures as JSON, whatever the stage
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compile: CompileArgs,
    /// File of the tensor language; `-` reads stdin
    #[arg(value_name = "FILE.ir")]
    file: Option<PathBuf>,
}

/// A stage of the compiler.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// As the model wrote it
    Ir,
    /// Every form that the rules reach, by classes, with types, ranges and prices
    Egraph,
    /// The same as Graphviz
    Dot,
    /// The same as egraph-serialize's JSON
    EgraphJson,
    /// The cheapest form that the rules reach
    Fused,
    /// Its kernels, one a line
    Kernels,
    /// The kernels' Cranelift IR
    Clif,
    /// The kernels' machine code
    Asm,
    /// Operands, arena and caches
    Plan,
    /// The kernels' times, measured on made-up numbers
    Times,
}

/// Prints the stage.
pub(crate) fn run(args: &Args) -> Result<()> {
    let given = (args.file.as_deref(), args.preset.as_deref(), args.model.as_deref());
    let source = functions::source(given.0, given.1, given.2, &args.compile)?;
    let mut options = args.compile.compiler(&source.graph)?;
    let functions = source.functions(args.function.as_deref())?;
    let context = source.graph.context;
    let rows = args.rows.unwrap_or(options.chunk);
    if args.file.is_some() {
        // A function's calls are as long as they are.
        options.chunk = options.chunk.max(rows.min(context));
    }
    if let Some(figures) = &args.what_if {
        if args.compile.cost != CostName::Roofline {
            return Err(Usage::new(anyhow!("--what-if: expected --cost roofline")).into());
        }
        return what_if::run(figures, &functions, &options, rows, args.json);
    }
    if args.emit == Stage::Ir && !args.json && !args.time {
        let mut all: Vec<String> = functions.iter().map(Function::to_string).collect();
        if args.run {
            all.push(trial::run(&functions, &options, args.seed, args.compile.few_rules())?);
        }
        return output::print(&joined(&all));
    }
    options.listings = matches!(args.emit, Stage::Clif | Stage::Asm);
    ensure!(rows <= options.chunk, "--rows is {rows}: expected 1 to {}, the chunk", options.chunk);
    if args.emit == Stage::Times {
        cpus::check(&options.cpu)?;
    }
    let start = Instant::now();
    let loose = compile_functions(&functions, &options)?;
    let total = start.elapsed();
    let reports = &loose.reports;
    for warning in reports.iter().filter_map(|r| r.saturation.warning()) {
        output::note("warning", &warning);
    }
    let mut parts = Vec::with_capacity(reports.len());
    let mut figures = Vec::with_capacity(reports.len());
    for (at, report) in reports.iter().enumerate() {
        let Some(lowered) = report.variants.iter().find(|v| v.rows >= rows) else {
            bail!("function `{}` has no variant for {rows} rows", report.source.name);
        };
        if args.json {
            figures.push(to_json(report, lowered));
            continue;
        }
        parts.push(match args.emit {
            Stage::Ir => report.source.to_string(),
            Stage::Egraph | Stage::Dot | Stage::EgraphJson => egraph(report, lowered, args.emit, &options)?,
            Stage::Fused => fused(report, lowered)?,
            Stage::Kernels => kernels(report, lowered)?,
            Stage::Clif => listing(report, lowered, |c| c.clif.as_deref())?,
            Stage::Asm => listing(report, lowered, |c| c.asm.as_deref())?,
            Stage::Plan => plan(report, lowered)?,
            Stage::Times => {
                let extent = Extent { rows, keys: (context / 2).max(rows) };
                measured(&loose, at, lowered, extent, (context, regime_of(lowered.rows, options.chunk)))?
            }
        });
    }
    if args.time && !args.json {
        parts.push(times(reports, total));
    }
    let trial = match args.run {
        true => trial::run(&functions, &options, args.seed, args.compile.few_rules()),
        false => Ok(String::new()),
    };
    if let Ok(text) = &trial
        && !text.is_empty()
    {
        parts.push(text.clone());
    }
    if args.json {
        output::print_json(&Value::Array(figures))?;
    } else {
        output::print(&joined(&parts))?;
    }
    trial.map(|_| ())
}

/// Texts, an empty line between two, one line end at the end.
pub(crate) fn joined(parts: &[String]) -> String {
    let mut text = parts.iter().map(|p| p.trim_end()).collect::<Vec<_>>().join("\n\n");
    text.push('\n');
    text
}
