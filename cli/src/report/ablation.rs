//! What each rule buys: the predicted time of every function in every row regime without it.
//!
//! In: functions and the rules that run. Out: a row for each rule that fired anywhere. Saturation without a rule is a
//! matter of milliseconds; the work is shared among threads.

use anyhow::Result;
use lapidary_codegen::compile::FunctionReport;
use lapidary_ir::Extent;
use lapidary_passes::{Limits, Machine, Selection, prepare, select};

use super::parallel;

/// A rule left out.
pub(crate) struct Without {
    /// Its name.
    pub(crate) rule: String,
    /// Predicted time in nanoseconds (or what else extraction minimises), by function and row regime.
    pub(crate) nanoseconds: Vec<Vec<f64>>,
    /// Whether any function's extracted form is another one.
    pub(crate) matters: bool,
}

/// Leaves out each rule that fired, in turn.
pub(crate) fn ablate(
    reports: &[FunctionReport],
    selection: &Selection,
    machine: Machine,
    extent: &(dyn Fn(usize) -> Extent + Sync),
) -> Result<Vec<Without>> {
    let mut rules: Vec<String> = vec![];
    for (rule, _) in reports.iter().flat_map(|r| &r.saturation.fired) {
        if !rules.iter().any(|known| known == rule) {
            rules.push((*rule).to_string());
        }
    }
    parallel::map(&rules, &|rule| without(rule, reports, selection, machine, extent)).into_iter().collect()
}

fn without(
    rule: &str,
    reports: &[FunctionReport],
    selection: &Selection,
    machine: Machine,
    extent: &(dyn Fn(usize) -> Extent + Sync),
) -> Result<Without> {
    let selection = selection.without(rule);
    let mut matters = false;
    let mut nanoseconds = Vec::with_capacity(reports.len());
    for report in reports {
        if !report.saturation.fired.iter().any(|(fired, _)| *fired == rule) {
            nanoseconds.push(report.variants.iter().map(|v| v.nanoseconds).collect());
            continue;
        }
        let saturated = prepare(&report.source, &selection, Limits::default())?;
        let mut of_regime = vec![];
        for variant in &report.variants {
            let form = select(&saturated, machine, extent(variant.rows))?;
            matters |= form.function.body != variant.function.body;
            of_regime.push(form.nanoseconds);
        }
        nanoseconds.push(of_regime);
    }
    Ok(Without { rule: rule.to_string(), nanoseconds, matters })
}
