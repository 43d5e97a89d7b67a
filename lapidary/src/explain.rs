//! How each kernel came about, and what it was chosen over, as data, text and JSON.
//!
//! In: functions, the compiler's options, a kernel's name. Out: for each kernel the source's operators, the rewrites in
//! an order that replays, and the costs of the chosen form and of those rejected. The functions in it are text that
//! parses back.

use std::fmt::{self, Write};

use lapidary_codegen::compile::compile_functions;
use lapidary_ir::{Extent, Function, Id};
use lapidary_passes::explain::{Alternative, Explainer, Explanation, Priced, Step};
use lapidary_passes::price::Work;
use lapidary_passes::{CostModel, Limits, prepare, select};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Rejected forms that are shown of each kernel.
const ALTERNATIVES: usize = 4;

/// A function's kernels, explained.
pub struct Explained {
    /// The function's name.
    pub function: String,
    /// The calls that it was compiled for.
    pub extent: Extent,
    /// Its predicted time in nanoseconds.
    pub nanoseconds: f64,
    /// What saturation warns of.
    pub warning: Option<String>,
    /// Names of kernels, of those that one node takes several, and their explanation.
    kernels: Vec<(String, Explanation)>,
}

/// Explains functions compiled for calls of `rows` rows: all kernels, or those of this name or a part of it. Functions
/// without such a kernel are left out.
///
/// # Errors
/// [`Error::Compiler`]; [`Error::Graph`] for a kernel that there is not.
pub fn explain(
    functions: &[Function],
    options: &lapidary_codegen::Options,
    rows: usize,
    kernel: Option<&str>,
) -> Result<Vec<Explained>> {
    let reports = compile_functions(functions, options)?.reports;
    let mut all = vec![];
    let mut known: Vec<String> = vec![];
    for report in &reports {
        let Some(lowered) = report.variants.iter().find(|v| v.rows >= rows) else {
            let name = &report.source.name;
            return Err(Error::Graph(format!("function `{name}` has no variant for {rows} rows")));
        };
        let extent = Extent { rows: lowered.rows, keys: (options.context / 2).max(lowered.rows) };
        let model = CostModel { machine: options.machine, extent };
        let mut saturated =
            prepare(&report.source, &options.selection, Limits::default()).map_err(compiler)?;
        let extracted = select(&saturated, options.machine, extent).map_err(compiler)?;
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
        let exact = |n: &&str| kernel.is_none_or(|wanted| wanted == *n);
        let has = |n: &&str| kernel.is_some_and(|wanted| n.contains(wanted));
        let any_exact = nodes.iter().any(|(_, n)| n.iter().any(exact));
        let mut kernels = vec![];
        for (id, names) in &nodes {
            let wanted = if any_exact { names.iter().any(exact) } else { names.iter().any(has) };
            if wanted && priced.contains(id) {
                kernels.push((names.join(", "), explainer.kernel(&extracted, *id, ALTERNATIVES)));
            }
        }
        if !kernels.is_empty() {
            all.push(Explained {
                function: report.source.name.clone(),
                extent,
                nanoseconds: extracted.nanoseconds,
                warning: report.saturation.warning(),
                kernels,
            });
        }
    }
    if let (Some(name), true) = (kernel, all.is_empty()) {
        known.dedup();
        return Err(Error::Graph(format!("no kernel `{name}`: expected one of {}", known.join(", "))));
    }
    Ok(all)
}

/// An error of the passes is the compiler's.
fn compiler(error: lapidary_passes::Error) -> Error {
    Error::Compiler(error.into())
}

impl Explained {
    /// Each kernel's explanation, a blank line before it; with `terms`, the whole term after each rewrite.
    pub fn text(&self, terms: bool) -> String {
        let mut out = String::new();
        for (name, e) in &self.kernels {
            out.push('\n');
            let written = write_text(&mut out, name, e, terms);
            debug_assert!(written.is_ok(), "a string takes all text");
        }
        out
    }

    /// Each kernel's explanation.
    pub fn json(&self) -> Vec<Value> {
        self.kernels.iter().map(|(name, e)| to_json(name, e)).collect()
    }
}

/// A kernel's explanation as text; with `terms`, the whole term after each rewrite.
fn write_text(out: &mut String, name: &str, e: &Explanation, terms: bool) -> fmt::Result {
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
    Ok(())
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

/// A kernel's explanation.
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
