//! `lapidary report`: the compiler's work on a model as one page to look at.
//!
//! In: a model, a published size or a file of the tensor language. Out: an HTML file that needs nothing else: graphs
//! before and after fusion, kernels with their listings, saturation, what each rule buys, the memory plan; with
//! `--measure` also times. The file gets its name once it is whole.

mod ablation;
mod cover;
mod data;
mod measure;
mod page;
mod parallel;
mod proofs;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use lapidary::Graph;
use lapidary_codegen::compile::compile_functions;
use lapidary_ir::Extent;
use lapidary_passes::{Limits, Machine, Objective, prepare};
use lapidary_runtime::file::whole::Output;
use serde_json::{Value, json};

use crate::functions;
use crate::options::{self, CompileArgs, ModelArgs};
use crate::output::{self, Usage};

/// Write a page that shows what the compiler did: graphs, kernels, rules, memory.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary report -o report.html\n  \
    lapidary report --preset 2b -o report.html\n  \
    lapidary report -m gemma-2-2b --measure -o report.html")]
pub(crate) struct Args {
    /// Hugging Face folder, GGUF file, or name OWNER/REPO[:TAG] [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL", conflicts_with_all = ["file", "preset"])]
    model: Option<PathBuf>,
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", conflicts_with = "file", value_parser = options::presets())]
    preset: Option<String>,
    /// Run the model and show measured times beside the predicted ones
    #[arg(long)]
    measure: bool,
    /// Threads to measure with [default: one a fast core]
    #[arg(long, value_name = "N", requires = "measure", value_parser = options::threads())]
    threads: Option<usize>,
    #[command(flatten)]
    compile: CompileArgs,
    /// Page to write
    #[arg(short, long, value_name = "OUT.html")]
    output: PathBuf,
    /// File of the tensor language; `-` reads stdin
    #[arg(value_name = "FILE.ir")]
    file: Option<PathBuf>,
}

/// Writes the page.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.measure && (args.file.is_some() || args.preset.is_some()) {
        let error = anyhow!("--measure runs a model: expected -m or the built-in model, which have weights");
        return Err(Usage::new(error).into());
    }
    let path = &args.output;
    let mut file = Output::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let source = functions::source(
        args.file.as_deref(),
        args.preset.as_deref(),
        args.model.as_deref(),
        &args.compile,
    )?;
    let html = page::html(&collect(args, &source)?)?;
    file.write_all(html.as_bytes())
        .and_then(|()| file.finish().map(drop))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Everything that the page shows.
fn collect(args: &Args, source: &functions::Source) -> Result<page::Data> {
    let context = source.graph.context;
    let mut options = args.compile.compiler(&source.graph)?;
    options.listings = true;
    let reports = compile_functions(&source.graph.module.functions, &options)?.reports;
    for warning in reports.iter().filter_map(|r| r.saturation.warning()) {
        output::note("warning", &warning);
    }
    // What is minimised may be no time (`--cost bytes`); what is shown is.
    let machine = Machine { objective: Objective::Roofline, ..options.machine };
    let extent = |rows: usize| Extent { rows, keys: (context / 2).max(rows) };
    let saturated = reports
        .iter()
        .map(|r| Ok(prepare(&r.source, &options.selection, Limits::default())?))
        .collect::<Result<Vec<_>>>()?;
    let explained = parallel::map(&reports, &|report| {
        let groups: Vec<_> = report.variants.iter().map(cover::groups).collect();
        proofs::explain(report, &options.selection, options.machine, &extent, &groups)
    });
    let (mut listings, mut proofs) = (data::Listings::default(), proofs::Proofs::default());
    let mut functions = vec![];
    for ((report, saturated), explained) in reports.iter().zip(&saturated).zip(explained) {
        let explained = explained?.into_iter().map(|e| proofs::place(e, &mut proofs)).collect();
        functions.push(data::function(report, saturated, machine, &extent, &mut listings, explained));
    }
    let without = ablation::ablate(&reports, &options.selection, options.machine, &extent)?;
    let measured = if args.measure {
        let model = ModelArgs {
            verify: false,
            trust: Default::default(),
            model: args.model.clone(),
            threads: args.threads,
            weights: Default::default(),
            residence: Default::default(),
            compile: args.compile.to_show(),
        };
        Some(measure::measure(&model, &reports, &saturated, machine, &without)?)
    } else {
        None
    };
    let ablation: Vec<Value> = without
        .iter()
        .map(|w| json!({ "rule": w.rule, "ns": w.nanoseconds, "matters": w.matters }))
        .collect();
    let groups = options.selection.rules().groups().iter();
    let rules: Vec<Value> = groups
        .flat_map(|g| g.rules.iter().map(|r| (&g.name, r)))
        .map(|(group, r)| {
            json!({
                "name": r.name, "group": group, "class": r.class.to_string(), "algebra": r.algebra,
                "text": r.to_string(),
            })
        })
        .collect();
    let m = machine;
    let all = json!({
        "title": source.name,
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": options.cpu,
        "context": context,
        "calls": calls(&source.graph),
        "machine": {
            "memory": m.memory, "cache": m.cache, "flops": m.flops.bf16, "loose_flops": m.loose_flops,
            "transcendental": m.transcendental, "launch": m.launch,
        },
        "rules": rules,
        "functions": functions,
        "ablation": ablation,
        "measured": measured,
    });
    Ok(page::Data { title: source.name.clone(), all, listings: listings.texts, proofs: proofs.all })
}

/// How often each function is called for one token that is predicted; once each if they are no model.
fn calls(graph: &Graph) -> Vec<usize> {
    let times = |name: &str| match name {
        _ if graph.parts.layers.is_empty() => 1,
        "embed" | "head_argmax" => 1,
        name => graph.layers().filter(|layer| *layer == name).count(),
    };
    graph.module.functions.iter().map(|f| times(&f.name)).collect()
}
