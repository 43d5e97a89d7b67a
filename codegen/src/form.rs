//! A function's forms: the one that is chosen for each row regime, with its kernels and their memory.
//!
//! In: a function and options. Out: every stage of it up to machine code ([`FunctionReport`]). A function is saturated
//! once, then extracted and scheduled for each regime; caches are laid out alike in all of them.

use std::collections::HashMap;
use std::time::Instant;

use lapidary_ir::{Extent, Function, Input, InputKind};
use lapidary_passes::Limits;
use lapidary_runtime::layout::ring_rows;

use crate::Error;
use crate::compile::{FunctionReport, Lowered, Options, Times};
use crate::emit::Features;
use crate::memory;
use crate::micro::FEW_ROWS;
use crate::price::candidates;
use crate::schedule::{self, Setting};
use crate::view::Capacity;

/// The row regimes of a chunk: one row, few and more that are decoded, all of them by the kernels of one; and what is
/// prefilled.
pub fn regimes(chunk: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = [1, 4, FEW_ROWS].into_iter().filter(|&r| r < chunk).collect();
    rows.push(chunk);
    rows
}

/// The regime that a variant of calls of up to `rows` rows has its form and its kernels of: one row's in what is
/// decoded, many rows' in what is prefilled, of a chunk of one alone the same. So a row's result does not depend on how
/// many there are.
pub fn regime_of(rows: usize, chunk: usize) -> usize {
    if rows == chunk && chunk > 1 { chunk.max(FEW_ROWS + 1) } else { 1 }
}

/// The functions that make logits of hidden states, and tokens.
pub(crate) const HEADS: [&str; 2] = ["head", "head_argmax"];

/// Whether a function goes by one row's kernels whatever is asked of it: a head of quantised weights, which a prompt
/// calls for one row, where tiles would widen all of them for it.
fn is_of_one_row(function: &Function, features: Features) -> bool {
    let quantised = |input: &Input| input.kind == InputKind::Weight && input.ty.dtype.is_quantised();
    features.amx && HEADS.contains(&function.name.as_str()) && function.inputs.iter().any(quantised)
}

/// A function up to its kernels: saturated once, then extracted and scheduled for each row regime.
pub(crate) fn form(
    function: &Function,
    options: &Options,
    features: Features,
) -> Result<FunctionReport, Error> {
    let mut times = Times::default();
    let start = Instant::now();
    let saturated = lapidary_passes::prepare(function, &options.selection, Limits::default())?;
    times.saturate = start.elapsed();
    let start = Instant::now();
    let regimes = regimes(options.chunk);
    let mut forms = Vec::with_capacity(regimes.len());
    let one = options.rounded && is_of_one_row(function, features);
    let regime = |&rows: &usize| if one { 1 } else { regime_of(rows, options.chunk) };
    let chosen: Vec<usize> = regimes.iter().map(regime).collect();
    for regime in &chosen {
        let rows = options.chunk.min(*regime);
        let extent = Extent { rows, keys: (options.context / 2).max(rows) };
        if let Some(measured) = options.machine.measured {
            candidates::fill(measured, &saturated, options, extent)?;
        }
        forms.push(lapidary_passes::select(&saturated, options.machine, extent)?);
    }
    times.extract = start.elapsed();
    let start = Instant::now();
    // One layout of a cache serves every regime.
    let mut rings = HashMap::new();
    for input in &function.inputs {
        if let InputKind::Cache { window: Some(window) } = input.kind {
            let rows = ring_rows(window, options.chunk);
            let wraps = forms.iter().all(|f| schedule::cache_can_wrap(&f.function, &input.name));
            if wraps && rows < options.context {
                rings.insert(input.name.clone(), rows);
            }
        }
    }
    let mut variants = vec![];
    for ((&rows, regime), form) in regimes.iter().zip(chosen).zip(forms) {
        let capacity = Capacity { rows, keys: options.context };
        let (rounded, machine) = (options.rounded, options.machine);
        let setting = Setting { capacity, regime, rings: rings.clone(), features, rounded, machine };
        let schedule = schedule::schedule(&form.function, &setting)?;
        let memory = memory::plan(&schedule.buffers);
        variants.push(Lowered {
            rows,
            function: form.function,
            nanoseconds: form.nanoseconds,
            schedule,
            memory,
            compiled: vec![],
        });
    }
    times.schedule = start.elapsed();
    Ok(FunctionReport { source: function.clone(), saturation: saturated.report, variants, times })
}
