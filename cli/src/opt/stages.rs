//! Stages of the compiler as text: what is about a function is in comments, so that it parses back.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use lapidary_codegen::Options;
use lapidary_codegen::compile::{FunctionReport, Loose, Lowered, Times};
use lapidary_codegen::kernel::Kernel;
use lapidary_codegen::price::timing;
use lapidary_ir::{Extent, text};
use lapidary_passes::{CostModel, Limits, listing};
use lapidary_runtime::threads;
use serde_json::{Value, json};

use super::Stage;
use super::memory::{tiles, views};

/// `; layer_local, 512 rows`.
pub(super) fn title(report: &FunctionReport, lowered: &Lowered) -> String {
    let s = if lowered.rows == 1 { "" } else { "s" };
    format!("; {}, {} row{s}", report.source.name, lowered.rows)
}

/// What saturation did, in comments, then the extracted function.
pub(super) fn fused(report: &FunctionReport, lowered: &Lowered) -> Result<String> {
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
pub(super) fn kernels(report: &FunctionReport, lowered: &Lowered) -> Result<String> {
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
pub(super) fn measured(
    loose: &Loose,
    at: usize,
    lowered: &Lowered,
    extent: Extent,
    (context, regime): (usize, usize),
) -> Result<String> {
    let threads = threads::of_machine();
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
    // The kernels are those of so many rows, and the price is theirs.
    let of = match regime {
        rows if rows == extent.rows => String::new(),
        1 => " for 1 row".into(),
        rows => format!(" for {rows} rows"),
    };
    writeln!(
        out,
        "; {} kernel{s}, {} a call, predicted {}{of}",
        kernels.len(),
        us(timing.call),
        us(lowered.nanoseconds)
    )?;
    Ok(out)
}

/// A listing of each kernel under its name.
pub(super) fn listing(
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

/// The e-graph that a function's form was chosen from.
pub(super) fn egraph(
    report: &FunctionReport,
    lowered: &Lowered,
    stage: Stage,
    options: &Options,
) -> Result<String> {
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
pub(super) fn times(reports: &[FunctionReport], total: Duration) -> String {
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

/// The fused graph's node of a kernel.
fn node(kernel: &Kernel, lowered: &Lowered) -> String {
    text::node(&lowered.function, kernel.node)
}

/// The figures of a function in one row regime.
pub(super) fn to_json(report: &FunctionReport, lowered: &Lowered) -> Value {
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
