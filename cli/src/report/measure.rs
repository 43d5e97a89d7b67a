//! Measured times for the page: each kernel's in each row regime, and what the model loses without each rule.
//!
//! In: a model to run and its functions. Out: JSON. Times are medians of repetitions; variations of the compiler take
//! turns, so that what else the machine does meets all of them alike.

use std::time::Instant;

use anyhow::Result;
use lapidary::Activations;
use lapidary_codegen::compile::{FunctionReport, regimes};
use lapidary_codegen::price::ceilings::Ceilings;
use lapidary_codegen::target::{Placement, Target};
use lapidary_ir::Extent;
use lapidary_passes::Saturated;
use serde_json::{Value, json};

use super::ablation::Without;
use super::data;
use crate::model::Engine;
use crate::options::ModelArgs;
use crate::output;

/// Repetitions of which medians are taken.
const REPETITIONS: usize = 5;
/// Tokens in the cache before calls of few rows.
const DEPTH: usize = 128;
/// Calls of one row that a repetition makes.
const DECODED: usize = 8;

/// Measures.
pub(crate) fn measure(
    args: &ModelArgs,
    reports: &[FunctionReport],
    saturated: &[Saturated],
    predicted_for: lapidary_passes::Machine,
    without: &[Without],
) -> Result<Value> {
    let mut engine = Engine::new(args)?;
    let mut machine = Ceilings::new(&args.compile.cpu, engine.session.threads())?;
    let features = Target::new(&args.compile.cpu, Placement::Object)?.features;
    let rounded = args.compile.activations == Activations::Auto;
    let unit = features.matrix_unit(rounded, engine.format.is_quantised());
    let rows = regimes(engine.session.program().plan.chunk);
    let shrunk: Vec<&Without> = without.iter().filter(|w| w.matters).collect();
    let bar = output::bar((rows.len() + shrunk.len()) as u64, "measuring", output::Unit::Steps);
    let (mut read, mut multiply) = (vec![], vec![]);
    let mut variants = vec![];
    for (variant, &rows) in rows.iter().enumerate() {
        let mut times: Vec<Vec<Vec<f64>>> = vec![];
        let mut measured_rows = vec![0.0; reports.len()];
        let mut keys = 0;
        // One more, the first, which brings weights into memory.
        for repetition in 0..=REPETITIONS {
            read.push(machine.read_bandwidth());
            multiply.push(machine.multiply_peak(unit).unwrap_or(f64::NAN));
            let profile = profile(&mut engine, rows)?;
            keys = profile.keys;
            if repetition == 0 {
                continue;
            }
            times.resize(reports.len(), vec![]);
            for (function, steps) in profile.steps.iter().enumerate() {
                let steps = &steps[variant];
                times[function].resize(steps.len(), vec![]);
                for (step, (launches, time)) in steps.iter().enumerate() {
                    if *launches > 0 {
                        times[function][step].push(time.as_nanos() as f64 / *launches as f64);
                        measured_rows[function] = profile.rows(&reports[function].source.name, *launches);
                    }
                }
            }
        }
        let functions: Vec<Value> = reports
            .iter()
            .zip(saturated)
            .enumerate()
            .map(|(at, (report, saturated))| {
                let rows = measured_rows[at].round() as usize;
                if rows == 0 {
                    return Value::Null;
                }
                let extent = Extent { rows, keys: keys.max(rows) };
                let predicted =
                    data::predicted(report, &report.variants[variant], saturated, predicted_for, extent);
                let ns: Vec<Value> = times[at]
                    .iter()
                    .map(|t| if t.is_empty() { Value::Null } else { json!(median(t)) })
                    .collect();
                json!({ "rows": rows, "keys": keys, "ns": ns, "predicted": predicted })
            })
            .collect();
        variants.push(json!(functions));
        bar.inc(1);
    }
    let mut ablation = vec![];
    for w in shrunk {
        let mut other = args.clone();
        other.compile.disable(&w.rule);
        let mut other = Engine::new(&other)?;
        let (mut decode, mut prefill) = (vec![], vec![]);
        for repetition in 0..=REPETITIONS {
            let with = (seconds(&mut engine, 1)?, seconds(&mut engine, usize::MAX)?);
            let without = (seconds(&mut other, 1)?, seconds(&mut other, usize::MAX)?);
            if repetition > 0 {
                decode.push(without.0 / with.0);
                prefill.push(without.1 / with.1);
            }
        }
        ablation.push(json!({ "rule": w.rule, "decode": median(&decode), "prefill": median(&prefill) }));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(json!({
        "threads": engine.session.threads(),
        "read": median(&read) / 1e9,
        "multiply": median(&multiply) / 1e9,
        "variants": variants,
        "ablation": ablation,
    }))
}

/// Launches of one repetition, and what they were called with.
struct Profiled {
    steps: Vec<Vec<Vec<(u64, std::time::Duration)>>>,
    /// Rows of a call of the layers.
    rows: usize,
    /// Calls of the layers.
    calls: usize,
    /// Keys in the cache at the end.
    keys: usize,
}

impl Profiled {
    /// Rows of one launch of a function's kernels.
    fn rows(&self, function: &str, launches: u64) -> f64 {
        match function {
            "head_argmax" => 1.0,
            // One row, or those that were scored.
            "head" => ((self.rows * self.calls) as f64 / launches as f64).max(1.0),
            _ => self.rows as f64,
        }
    }
}

/// Runs every function in the regime of `rows` rows.
fn profile(engine: &mut Engine, rows: usize) -> Result<Profiled> {
    let context = engine.session.context();
    let calls = if rows == 1 { DECODED.min(context) } else { 1 };
    let depth = DEPTH.min(context - rows * calls);
    let ids = ids(engine, depth + rows * calls);
    engine.session.reset();
    if rows < engine.session.program().plan.chunk && depth > 0 {
        engine.session.prefill(&ids[..depth])?;
    }
    engine.session.start_profile();
    for call in ids[depth..].chunks(rows) {
        if rows < engine.session.program().plan.chunk {
            engine.session.decode_all(call)?;
        } else {
            engine.session.score(call, &mut |_, _| {})?;
        }
    }
    engine.session.logits();
    engine.session.argmax();
    let profile = engine.session.take_profile().unwrap_or_default();
    Ok(Profiled { steps: profile.steps, rows, calls, keys: engine.session.position() })
}

/// Seconds of a step of up to `rows` rows and a prediction.
fn seconds(engine: &mut Engine, rows: usize) -> Result<f64> {
    let rows = rows.min(engine.session.program().plan.chunk);
    let context = engine.session.context();
    let calls = if rows == 1 { DECODED.min(context) } else { 1 };
    let depth = if rows == 1 { DEPTH.min(context - calls) } else { 0 };
    let ids = ids(engine, depth + rows * calls);
    engine.session.reset();
    if depth > 0 {
        engine.session.prefill(&ids[..depth])?;
    }
    let start = Instant::now();
    for call in ids[depth..].chunks(rows) {
        if rows == 1 {
            engine.session.decode(call[0])?;
        } else {
            engine.session.prefill(call)?;
        }
        engine.session.argmax();
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Token ids, as good as any.
fn ids(engine: &Engine, n: usize) -> Vec<u32> {
    let vocab = engine.model.config().vocab_size as u32;
    (0..n as u32).map(|i| (i * 97 + 2) % vocab).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 { f64::NAN } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 }
}
