//! `lapidary opt --what-if`: how the plan would differ on another machine.
//!
//! In: functions, options, the other machine's figures. Out: for each function the predicted times and the kernels of
//! both plans with their prices on both machines, as text or JSON.

use std::fmt::Write;

use anyhow::{Result, ensure};
use lapidary_codegen::Options;
use lapidary_codegen::compile::regimes;
use lapidary_ir::{Extent, Function};
use lapidary_passes::what_if::{Changed, what_if};
use lapidary_passes::{Limits, prepare};
use serde_json::{Value, json};

use super::objective;
use crate::opt::joined;
use crate::output;

/// Prints the plans for the machine of `options` and for another.
pub(crate) fn run(
    figures: &str,
    functions: &[Function],
    options: &Options,
    rows: usize,
    as_json: bool,
) -> Result<()> {
    let other = objective::machine(options.machine, figures)?;
    ensure!(rows <= options.chunk, "--rows is {rows}: expected 1 to {}, the chunk", options.chunk);
    let Some(rows) = regimes(options.chunk).into_iter().find(|&r| r >= rows) else {
        unreachable!("the last regime is the chunk")
    };
    let extent = Extent { rows, keys: (options.context / 2).max(rows) };
    let mut texts = vec![];
    let mut values = vec![];
    for function in functions {
        let saturated = prepare(function, &options.selection, Limits::default())?;
        let w = what_if(&saturated, options.machine, other, extent)?;
        if as_json {
            let kernel = |k: &Changed| {
                json!({
                    "node": k.text,
                    "before": k.before,
                    "after": k.after,
                    "before_ns": k.before_nanoseconds,
                    "after_ns": k.after_nanoseconds,
                })
            };
            values.push(json!({
                "function": function.name,
                "rows": rows,
                "before_ns": w.before_nanoseconds,
                "kept_ns": w.kept_nanoseconds,
                "after_ns": w.after_nanoseconds,
                "kernels": w.kernels.iter().map(kernel).collect::<Vec<_>>(),
            }));
            continue;
        }
        let us = |ns: f64| format!("{:.1} µs", ns / 1e3);
        let differ = w.kernels.iter().filter(|k| k.before != k.after).count();
        let mut out = String::new();
        writeln!(
            out,
            "; {}, {rows} rows: {} -> {} ({} with the plan as it is), {differ} kernels differ",
            function.name,
            us(w.before_nanoseconds),
            us(w.after_nanoseconds),
            us(w.kept_nanoseconds)
        )?;
        for k in &w.kernels {
            let sign = match (k.before, k.after) {
                (true, true) => ' ',
                (true, false) => '-',
                (false, _) => '+',
            };
            let (before, after) = (us(k.before_nanoseconds), us(k.after_nanoseconds));
            writeln!(out, "{sign} {before:>12} -> {after:>12}  {}", k.text)?;
        }
        texts.push(out);
    }
    if as_json { output::print_json(&Value::Array(values)) } else { output::print(&joined(&texts)) }
}
