//! `lapidary explain`: how each kernel came about, and what it was chosen over.
//!
//! In: a model's module, or a file of the tensor language; a kernel's name. Out: for each kernel the source's
//! operators, the rewrites in an order that replays, and the costs of the chosen form and of those rejected, as text or
//! JSON. The functions in it are text that parses back.

use std::fmt::Write;

use anyhow::{Result, anyhow, bail, ensure};
use lapidary_codegen::compile::compile_functions;
use lapidary_ir::{Extent, Id};
use lapidary_passes::explain::{Alternative, Explainer, Explanation, Priced, Step};
use lapidary_passes::price::Work;
use lapidary_passes::{CostModel, Limits, prepare, select};
use serde_json::{Value, json};

use crate::functions::FunctionArgs;
use crate::output::{self, Usage};

/// Rejected forms that are shown of each kernel.
const ALTERNATIVES: usize = 4;

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
    let options = args.of.compile.compiler(&source.graph)?;
    let rows = args.of.rows(options.chunk)?;
    let reports = compile_functions(&functions, &options)?.reports;
    let mut texts = vec![];
    let mut values = vec![];
    let mut known: Vec<String> = vec![];
    for report in &reports {
        if let Some(warning) = report.saturation.warning() {
            output::note("warning", &warning);
        }
        let Some(lowered) = report.variants.iter().find(|v| v.rows >= rows) else {
            bail!("function `{}` has no variant for {rows} rows", report.source.name);
        };
        let extent = Extent { rows: lowered.rows, keys: (options.context / 2).max(lowered.rows) };
        let model = CostModel { machine: options.machine, extent };
        let mut saturated = prepare(&report.source, &options.selection, Limits::default())?;
        let extracted = select(&saturated, options.machine, extent)?;
        let explainer = Explainer::new(&mut saturated, &options.selection, model);
        // A node may take several launches, which share its name's beginning.
        let mut nodes: Vec<(Id, Vec<&str>)> = vec![];
        for kernel in &lowered.schedule.kernels {
            known.push(kernel.name.clone());
            match nodes.iter_mut().find(|(id, _)| *id == kernel.node) {
                Some((_, names)) => names.push(&kernel.name),
                None => nodes.push((kernel.node, vec![&kernel.name])),
            }
        }
        let priced = explainer.kernels(&extracted);
        let exact = |n: &&str| names.first().is_none_or(|wanted| wanted == n);
        let has = |n: &&str| names.first().is_some_and(|wanted| n.contains(wanted.as_str()));
        let any_exact = nodes.iter().any(|(_, n)| n.iter().any(exact));
        let mut explained = vec![];
        for (id, kernels) in &nodes {
            let wanted = if any_exact { kernels.iter().any(exact) } else { kernels.iter().any(has) };
            if wanted && priced.contains(id) {
                explained.push((kernels.join(", "), explainer.kernel(&extracted, *id, ALTERNATIVES)));
            }
        }
        if explained.is_empty() {
            continue;
        }
        let of_layers = source.graph.parts.layers.iter().enumerate();
        let (layers, prefixes): (Vec<usize>, Vec<&str>) = of_layers
            .filter(|(_, (name, _))| *name == report.source.name)
            .map(|(at, (_, prefix))| (at, prefix.as_str()))
            .unzip();
        if args.json {
            let kernels: Vec<Value> = explained.iter().map(|(name, e)| to_json(name, e)).collect();
            values.push(json!({
                "function": report.source.name,
                "rows": extent.rows,
                "keys": extent.keys,
                "layers": layers,
                "prefixes": prefixes,
                "predicted_ns": extracted.nanoseconds,
                "kernels": kernels,
            }));
        } else {
            let mut text = format!("; {}, {} rows", report.source.name, extent.rows);
            if let (Some(first), Some(last)) = (prefixes.first(), prefixes.last()) {
                write!(text, ": {} layers, their weights under {first} to {last}", layers.len())?;
            }
            text.push('\n');
            for (name, e) in &explained {
                text.push('\n');
                text.push_str(&to_text(name, e, args.steps)?);
            }
            texts.push(text);
        }
    }
    if let (Some(name), true) = (names.first(), texts.is_empty() && values.is_empty()) {
        known.dedup();
        bail!("no kernel `{name}`: expected one of {}", known.join(", "));
    }
    if args.json { output::print_json(&Value::Array(values)) } else { output::print(&texts.join("\n")) }
}

fn to_text(name: &str, e: &Explanation, terms: bool) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "{name}: {}", e.text)?;
    writeln!(out, "  cost     {}", work(&e.work, e.nanoseconds))?;
    if !e.weights.is_empty() {
        writeln!(out, "  weights  {}", e.weights.join(", "))?;
    }
    for (at, op) in e.source.iter().enumerate() {
        let label = if at == 0 { "source" } else { "" };
        let of = op.origin.as_ref().map_or_else(String::new, |o| format!("  ; {o}"));
        writeln!(out, "  {label:7}  {}{of}", op.text)?;
    }
    for a in &e.alternatives {
        writeln!(out, "  instead  {}  {:+.1} µs", a.text, a.extra_nanoseconds / 1e3)?;
        let list = |priced: &[Priced]| -> Vec<String> {
            priced.iter().map(|p| format!("{}: {}", p.text, work(&p.work, p.nanoseconds))).collect()
        };
        for (label, priced) in [("more", list(&a.added)), ("less", list(&a.saved))] {
            for text in priced {
                writeln!(out, "    {label}   {text}")?;
            }
        }
    }
    writeln!(out, "input:\n{}", e.start)?;
    for (at, step) in e.steps.iter().enumerate() {
        writeln!(out, "{}. {} ({}): {}", at + 1, step.rule, step.class, step.algebra)?;
        writeln!(out, "   {} => {}", step.lhs, step.rhs)?;
        for (var, pattern) in &step.also {
            writeln!(out, "   where {var} is {pattern}")?;
        }
        writeln!(out, "   {}", step.from)?;
        writeln!(out, "   becomes {}", step.into)?;
        if terms {
            writeln!(out, "{}", step.function)?;
        }
    }
    match &e.gap {
        Some(gap) => writeln!(out, "; {gap}")?,
        None => writeln!(out, "output:\n{}", e.end)?,
    }
    Ok(out)
}

/// `12.3 µs: 1024 B of memory, 2048 B of cache, 4096 FLOP, 1 launch`.
fn work(w: &Work, nanoseconds: f64) -> String {
    format!(
        "{:.1} µs: {} B from memory, {} B in cache, {} FLOP, {} transcendentals, {} launches",
        nanoseconds / 1e3,
        w.memory_bytes.round(),
        w.cache_bytes.round(),
        (w.flops + w.loose_flops).round(),
        w.transcendentals.round(),
        w.launches
    )
}

fn cost_json(w: &Work, nanoseconds: f64) -> Value {
    json!({
        "predicted_ns": nanoseconds,
        "memory_bytes": w.memory_bytes,
        "cache_bytes": w.cache_bytes,
        "flops": w.flops + w.loose_flops,
        "transcendentals": w.transcendentals,
        "launches": w.launches,
    })
}

fn to_json(name: &str, e: &Explanation) -> Value {
    let priced = |p: &Priced| json!({ "node": p.text, "cost": cost_json(&p.work, p.nanoseconds) });
    let alternative = |a: &Alternative| {
        json!({
            "node": a.text,
            "function_ns": a.function_nanoseconds,
            "extra_ns": a.extra_nanoseconds,
            "added": a.added.iter().map(priced).collect::<Vec<_>>(),
            "saved": a.saved.iter().map(priced).collect::<Vec<_>>(),
        })
    };
    let step = |s: &Step| {
        let also = s.also.iter().map(|(var, pattern)| (var.to_string(), json!(pattern.to_string())));
        let bindings = s.bindings.iter().map(|(var, text)| (var.clone(), json!(text)));
        json!({
            "rule": s.rule,
            "group": s.group,
            "class": s.class.to_string(),
            "algebra": s.algebra,
            "lhs": s.lhs.to_string(),
            "also": Value::Object(also.collect()),
            "rhs": s.rhs.to_string(),
            "bindings": Value::Object(bindings.collect()),
            "at": usize::from(s.at),
            "from": s.from,
            "into": s.into,
            "function": s.function.to_string(),
        })
    };
    let source: Vec<Value> =
        e.source.iter().map(|op| json!({ "text": op.text, "origin": op.origin })).collect();
    json!({
        "kernel": name,
        "node": e.text,
        "cost": cost_json(&e.work, e.nanoseconds),
        "weights": e.weights,
        "source": source,
        "alternatives": e.alternatives.iter().map(alternative).collect::<Vec<_>>(),
        "input": e.start.to_string(),
        "steps": e.steps.iter().map(step).collect::<Vec<_>>(),
        "output": e.end.to_string(),
        "gap": e.gap,
    })
}
