//! `lapidary opt`: each stage of the compiler as text.
//!
//! In: a model's module, or a file of the tensor language. Out: the functions as written (`ir`), as extracted
//! (`fused`), as kernels (`kernels`, `clif`, `asm`) or as memory (`plan`), for one row regime. `ir` and `fused` parse
//! back: what is about them is in comments.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use egg::Language;
use lapidary_codegen::Options;
use lapidary_codegen::compile::{FunctionReport, Loose, Lowered, Times, compile_functions};
use lapidary_codegen::kernel::Kernel;
use lapidary_codegen::price::timing;
use lapidary_codegen::view::{Base, View};
use lapidary_ir::{DType, Extent, Function, Module, text};
use lapidary_models::{Config, graph};
use lapidary_passes::{CostModel, Limits, listing};
use lapidary_runtime::program::{SlotKind, Tiles};
use serde_json::{Value, json};

use crate::model::{self, CompileArgs, MAX_CHUNK, read_stdin, read_text};
use crate::objective::CostName;
use crate::output::Usage;
use crate::{output, trial, what_if};

/// Positions that a file's functions are compiled for, unless --context says otherwise.
const FILE_CONTEXT: usize = 4096;

/// Bytes that a file of the tensor language may have, thirty times what a model's functions take.
const MOST_BYTES: usize = 1 << 20;
/// Operators, inputs and outputs that its functions may have, all together: twice what a model's have. Each becomes
/// kernels of its own where no rule fuses it, and proofs of a chain are longer than the chain.
const MOST_NODES: usize = 1024;

/// Show the stages of the compiler as text.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary opt --fn layer_local\n  \
    lapidary opt --fn layer_local --rows 1 --emit kernels\n  \
    lapidary opt --fn head --emit ir | lapidary opt - --disable softcap")]
pub(crate) struct Args {
    /// Hugging Face folder of a Gemma 2 [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL", conflicts_with_all = ["file", "preset"])]
    model: Option<PathBuf>,
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", conflicts_with = "file", value_parser = model::presets())]
    preset: Option<String>,
    /// Only this function
    #[arg(long = "fn", value_name = "NAME")]
    function: Option<String>,
    /// Rows of a call; the stages are shown as compiled for it [default: the most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CHUNK))]
    rows: Option<u64>,
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
    let source = source(given.0, given.1, given.2, &args.compile)?;
    let mut options = args.compile.to_show().options_of(source.context, &source.module, source.layers())?;
    let Source { module, context, .. } = source;
    let functions: Vec<Function> = match &args.function {
        None => module.functions,
        Some(name) => {
            let known: Vec<&str> = module.functions.iter().map(|f| f.name.as_str()).collect();
            let known = known.join(", ");
            let found = module.function(name).cloned();
            vec![found.ok_or_else(|| anyhow!("no function `{name}`: expected one of {known}"))?]
        }
    };
    if let Some(figures) = &args.what_if {
        if args.compile.cost != CostName::Roofline {
            return Err(Usage::new(anyhow!("--what-if: expected --cost roofline")).into());
        }
        let rows = args.rows.map_or(options.chunk, |n| n as usize);
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
    let rows = args.rows.map_or(options.chunk, |n| n as usize);
    ensure!(rows <= options.chunk, "--rows is {rows}: expected 1 to {}, the chunk", options.chunk);
    if args.emit == Stage::Times {
        model::check_cpu(&options.cpu)?;
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
                measured(&loose, at, lowered, Extent { rows, keys: (context / 2).max(rows) }, context)?
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

/// The e-graph that a function's form was chosen from.
fn egraph(report: &FunctionReport, lowered: &Lowered, stage: Stage, options: &Options) -> Result<String> {
    let saturated = lapidary_passes::prepare(&report.source, &options.selection, Limits::default())?;
    let extent = Extent { rows: lowered.rows, keys: (options.context / 2).max(lowered.rows) };
    let model = CostModel { machine: options.machine, extent };
    match stage {
        Stage::Egraph => Ok(format!("{}\n{}", title(report, lowered), listing::text(&saturated, &model))),
        Stage::Dot => Ok(listing::dot(&saturated, &model)),
        _ => {
            let mut nodes = serde_json::Map::new();
            let mut class_data = serde_json::Map::new();
            for class in listing::classes(&saturated, &model) {
                for (at, node) in class.nodes.iter().enumerate() {
                    let children: Vec<String> = node.operands.iter().map(|o| format!("{o}.0")).collect();
                    nodes.insert(
                        format!("{}.{at}", class.id),
                        json!({
                            "op": node.op,
                            "children": children,
                            "eclass": class.id.to_string(),
                            "cost": node.nanoseconds,
                            "subsumed": false,
                        }),
                    );
                }
                class_data.insert(class.id.to_string(), json!({ "type": class.ty }));
            }
            let roots: Vec<String> =
                listing::outputs(&saturated).iter().map(|(_, c)| c.to_string()).collect();
            let all = json!({ "nodes": nodes, "root_eclasses": roots, "class_data": class_data });
            Ok(format!("{all:#}"))
        }
    }
}

/// What each stage took, in comments.
fn times(reports: &[FunctionReport], total: Duration) -> String {
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    let mut out = String::from("; ms               saturate   extract  schedule      code\n");
    let mut sum = Times::default();
    let mut line = |name: &str, t: &Times| {
        let [s, e, k, c] = [t.saturate, t.extract, t.schedule, t.code].map(ms);
        out.push_str(&format!("; {name:<16} {s:>9.2} {e:>9.2} {k:>9.2} {c:>9.2}\n"));
    };
    for report in reports {
        let t = &report.times;
        line(&report.source.name, t);
        sum.saturate += t.saturate;
        sum.extract += t.extract;
        sum.schedule += t.schedule;
        sum.code += t.code;
    }
    line("all", &sum);
    out.push_str(&format!("; whole pipeline, machine code mapped: {:.2} ms\n", ms(total)));
    out
}

/// What is compiled.
pub(crate) struct Source {
    /// Its name for people: the model's, or the file's.
    pub(crate) name: String,
    /// The functions.
    pub(crate) module: Module,
    /// The positions that they are compiled for.
    pub(crate) context: usize,
    /// The function of each layer, if it is a model.
    pub(crate) layers: Vec<String>,
}

impl Source {
    /// Each layer's function, of a model.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(String::as_str)
    }
}

/// Operators, inputs and outputs of a function.
fn nodes(function: &Function) -> usize {
    let operators = function.body.as_ref().iter().filter(|op| !op.is_leaf()).count();
    operators + function.inputs.len() + function.outputs.len()
}

/// The functions of a file, a published size or a model, in this order of what is given.
pub(crate) fn source(
    file: Option<&Path>,
    preset: Option<&str>,
    model: Option<&Path>,
    compile: &CompileArgs,
) -> Result<Source> {
    if let Some(path) = file {
        let (name, source) = if path == Path::new("-") {
            ("stdin".to_string(), read_stdin()?)
        } else {
            (path.display().to_string(), read_text(path)?)
        };
        let bytes = source.len();
        ensure!(bytes <= MOST_BYTES, "{name}: expected at most {MOST_BYTES} bytes, found {bytes}");
        let module = text::parse_module(&source).with_context(|| name.clone())?;
        ensure!(!module.functions.is_empty(), "{name}: expected a function, found none");
        let nodes = module.functions.iter().map(nodes).sum::<usize>();
        ensure!(
            nodes <= MOST_NODES,
            "{name}: expected at most {MOST_NODES} operators, inputs and outputs, found {nodes}"
        );
        return Ok(Source { name, module, context: compile.context_of(FILE_CONTEXT), layers: vec![] });
    }
    let build = |name: String, mut config: Config, weight: &dyn Fn(&str) -> DType| {
        compile.adjust(&mut config);
        let context = compile.context_of(config.max_position_embeddings);
        let layers = graph::layers(&config, weight).into_iter().map(|(function, _)| function).collect();
        Ok(Source { name, module: compile.module(&config, weight)?, context, layers })
    };
    if let Some(preset) = preset {
        return build(preset.into(), Config::preset(preset)?, &|_| DType::BF16);
    }
    let model = model::open(model)?;
    let name = model.path.display().to_string();
    build(name, model.config.clone(), &|name| crate::weights::stored_as(&model.checkpoint, name))
}

/// Texts, an empty line between two, one line end at the end.
pub(crate) fn joined(parts: &[String]) -> String {
    let mut text = parts.iter().map(|p| p.trim_end()).collect::<Vec<_>>().join("\n\n");
    text.push('\n');
    text
}

/// `; layer_local, 512 rows`.
fn title(report: &FunctionReport, lowered: &Lowered) -> String {
    let s = if lowered.rows == 1 { "" } else { "s" };
    format!("; {}, {} row{s}", report.source.name, lowered.rows)
}

/// What saturation did, in comments, then the extracted function.
fn fused(report: &FunctionReport, lowered: &Lowered) -> Result<String> {
    let s = &report.saturation;
    let mut out = String::new();
    writeln!(
        out,
        "{}: {}, {} iterations, {} nodes, {} classes, {} µs",
        title(report, lowered),
        s.stop,
        s.iterations,
        s.nodes,
        s.classes,
        s.time.as_micros()
    )?;
    let fired: Vec<String> = s.fired.iter().map(|(rule, n)| format!("{rule} x{n}")).collect();
    writeln!(out, "; rules: {}", if fired.is_empty() { "none".into() } else { fired.join(", ") })?;
    writeln!(out, "; predicted: {:.1} µs", lowered.nanoseconds / 1e3)?;
    write!(out, "{}", lowered.function)?;
    Ok(out)
}

/// One kernel a line; `+` before one that joins the launch of the one above.
fn kernels(report: &FunctionReport, lowered: &Lowered) -> Result<String> {
    let mut out = String::new();
    let code: usize = lowered.compiled.iter().map(|c| c.code_bytes).sum();
    let (all, joins) = (&lowered.schedule.kernels, &lowered.schedule.joins);
    let launches = joins.iter().filter(|&&joins| !joins).count();
    let title = title(report, lowered);
    writeln!(out, "{title}: kernels {}, launches {launches}, code {code} B", all.len())?;
    let width = all.iter().map(|k| k.name.len()).max().unwrap_or(0) + 2;
    for ((kernel, compiled), &joins) in all.iter().zip(&lowered.compiled).zip(joins) {
        writeln!(
            out,
            "{:width$}  {} tiles  ({}) -> ({})  scratch {} B  code {} B  ; {}",
            format!("{}{}", if joins { "+ " } else { "  " }, kernel.name),
            tiles(kernel.tiles),
            views(&kernel.inputs, lowered),
            views(&kernel.outputs, lowered),
            compiled.scratch_bytes,
            compiled.code_bytes,
            node(kernel, lowered),
        )?;
    }
    Ok(out)
}

/// The time of each kernel, in the order of launches, and of a whole call.
fn measured(loose: &Loose, at: usize, lowered: &Lowered, extent: Extent, context: usize) -> Result<String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let timing = timing::time(loose, at, context, extent, timing::Setup::hot(threads))?;
    let us = |ns: f64| format!("{:.2} µs", ns / 1e3);
    let kernels = &lowered.schedule.kernels;
    let mut out = String::new();
    let (s, t) = (if kernels.len() == 1 { "" } else { "s" }, if threads == 1 { "" } else { "s" });
    writeln!(out, "{}, {} keys, {threads} thread{t}", title(&loose.reports[at], lowered), extent.keys)?;
    let width = kernels.iter().map(|k| k.name.len()).max().unwrap_or(0);
    for (kernel, ns) in kernels.iter().zip(&timing.kernels) {
        writeln!(out, "{:width$}  {:>12}  ; {}", kernel.name, us(*ns), node(kernel, lowered))?;
    }
    writeln!(
        out,
        "; {} kernel{s}, {} a call, predicted {}",
        kernels.len(),
        us(timing.call),
        us(lowered.nanoseconds)
    )?;
    Ok(out)
}

/// A listing of each kernel under its name.
fn listing(
    report: &FunctionReport,
    lowered: &Lowered,
    of: impl Fn(&lapidary_codegen::image::Compiled) -> Option<&str>,
) -> Result<String> {
    let mut out = format!("{}\n", title(report, lowered));
    for (kernel, compiled) in lowered.schedule.kernels.iter().zip(&lowered.compiled) {
        writeln!(out, "\n; {}: {}", kernel.name, node(kernel, lowered))?;
        writeln!(out, "{}", of(compiled).unwrap_or("; no listing").trim_end())?;
    }
    Ok(out)
}

/// The caller's operands, the arena, the caches.
fn plan(report: &FunctionReport, lowered: &Lowered) -> Result<String> {
    let (schedule, memory) = (&lowered.schedule, &lowered.memory);
    let mut out = String::new();
    writeln!(out, "{}: arena {} bytes, {} alive at most", title(report, lowered), memory.bytes, memory.peak)?;
    writeln!(out, "slots:")?;
    let width = schedule.slots.iter().map(|s| s.name.len()).max().unwrap_or(0);
    for (at, slot) in schedule.slots.iter().enumerate() {
        writeln!(out, "  {at:>3}  {:width$}  {}", slot.name, slot_text(slot.kind))?;
    }
    writeln!(out, "buffers:")?;
    for (at, (buffer, offset)) in schedule.buffers.iter().zip(&memory.offsets).enumerate() {
        let name = |k: usize| schedule.kernels.get(k).map_or("?", |k| k.name.as_str());
        writeln!(
            out,
            "  {at:>3}  at {offset:>10}  {:>10} bytes  {} .. {}",
            buffer.bytes,
            name(buffer.first),
            name(buffer.last)
        )?;
    }
    writeln!(out, "constants: {} bytes", schedule.constants.len())?;
    Ok(out)
}

fn slot_text(kind: SlotKind) -> String {
    match kind {
        SlotKind::Input { bytes_per_row } => format!("input   {bytes_per_row} bytes a row"),
        SlotKind::Output { fixed_bytes, bytes_per_row: 0 } => format!("output  {fixed_bytes} bytes"),
        SlotKind::Output { fixed_bytes: 0, bytes_per_row } => format!("output  {bytes_per_row} bytes a row"),
        SlotKind::Output { fixed_bytes, bytes_per_row } => {
            format!("output  {fixed_bytes} bytes and {bytes_per_row} a row")
        }
        SlotKind::Weight { bytes } => format!("weight  {bytes} bytes"),
        SlotKind::Cache { heads, rows, row_bytes, window } => {
            let all = heads * rows * row_bytes;
            let held = match window {
                Some(window) => format!("ring of {rows} rows, window {window}"),
                None => format!("{rows} rows"),
            };
            format!("cache   {all} bytes: {heads} heads, {held}, {row_bytes} bytes a row")
        }
    }
}

/// `64*ceil(T/4)`.
pub(crate) fn tiles(tiles: Tiles) -> String {
    match (tiles.fixed, tiles.rows) {
        (fixed, 0) => fixed.to_string(),
        (1, 1) => "T".into(),
        (fixed, 1) => format!("{fixed}*T"),
        (1, rows) => format!("ceil(T/{rows})"),
        (fixed, rows) => format!("{fixed}*ceil(T/{rows})"),
    }
}

fn views(views: &[View], lowered: &Lowered) -> String {
    views.iter().map(|v| view(v, lowered)).collect::<Vec<_>>().join(", ")
}

/// `bf16[T,64]@arena+1024`: dtype, dims, and where it lies.
pub(crate) fn view(view: &View, lowered: &Lowered) -> String {
    let dims: Vec<String> = view.dims().iter().map(ToString::to_string).collect();
    let place = match view.base {
        Base::Arena(id) => {
            format!("arena+{}", lowered.memory.offsets.get(id.0).copied().unwrap_or_default())
        }
        Base::Slot(at) | Base::Cache(at) => {
            lowered.schedule.slots.get(at).map_or_else(|| "?".into(), |s| s.name.clone())
        }
        Base::Constant(at) => format!("constant+{at}"),
        Base::Number(x) => return format!("{x:?}"),
        Base::Integer(x) => return x.to_string(),
    };
    let mut text = format!("{}[{}]@{place}", view.dtype, dims.join(","));
    if view.offset != 0 {
        text.push_str(&format!("+{}", view.bytes_of(view.offset)));
    }
    if let Some(ring) = view.ring {
        text.push_str(&format!("%{ring}"));
    }
    text
}

/// The fused graph's node of a kernel.
fn node(kernel: &Kernel, lowered: &Lowered) -> String {
    text::node(&lowered.function, kernel.node)
}

/// The figures of a function in one row regime.
fn to_json(report: &FunctionReport, lowered: &Lowered) -> Value {
    let s = &report.saturation;
    let fired: serde_json::Map<String, Value> =
        s.fired.iter().map(|(rule, n)| (rule.clone(), json!(n))).collect();
    let kernels: Vec<Value> = lowered
        .schedule
        .kernels
        .iter()
        .zip(&lowered.compiled)
        .map(|(kernel, compiled)| {
            json!({
                "name": kernel.name,
                "kind": kernel.body.name(),
                "tiles": tiles(kernel.tiles),
                "scratch_bytes": compiled.scratch_bytes,
                "code_bytes": compiled.code_bytes,
                "node": node(kernel, lowered),
            })
        })
        .collect();
    json!({
        "function": report.source.name,
        "rows": lowered.rows,
        "stop": s.stop.to_string(),
        "iterations": s.iterations,
        "nodes": s.nodes,
        "classes": s.classes,
        "saturation_us": s.time.as_micros() as u64,
        "rules": fired,
        "predicted_ns": lowered.nanoseconds,
        "stages_us": {
            "saturate": report.times.saturate.as_micros() as u64,
            "extract": report.times.extract.as_micros() as u64,
            "schedule": report.times.schedule.as_micros() as u64,
            "code": report.times.code.as_micros() as u64,
        },
        "arena_bytes": lowered.memory.bytes,
        "arena_peak_bytes": lowered.memory.peak,
        "kernels": kernels,
    })
}
