//! Kernel by kernel: launches, time, and its share of the machine's ceilings, beside what was predicted.
//!
//! In: profiles of a phase, of which medians are taken. Out: a line a kernel, as text or JSON, the longest first.

use std::collections::BTreeMap;

use anyhow::Result;
use lapidary_codegen::view::Capacity;
use lapidary_ir::DType;
use lapidary_runtime::Profile;
use serde_json::{Value, json};

use super::phase::Phase;
use super::{UNITS, index, median};
use crate::model::Engine;
use crate::price::predict::Predictor;

/// Where a launch is: function, variant, step.
pub(crate) type Place = (usize, usize, usize);

/// Every launch of a kernel in a phase.
pub(super) struct Launches {
    pub(super) place: Place,
    /// Bytes of weights and cached keys and values, of all launches together.
    pub(super) bytes: f64,
    /// Operations likewise.
    pub(super) flops: f64,
    /// What it multiplies in: its place among [`UNITS`].
    pub(super) unit: usize,
    /// Extents that it is called with, and how often.
    extents: BTreeMap<(usize, usize), u64>,
}

/// Every kernel that a phase launches.
pub(super) fn launches(engine: &Engine, phase: Phase) -> Vec<Launches> {
    let plan = &engine.session.program().plan;
    let mut all: BTreeMap<Place, Launches> = BTreeMap::new();
    let most = engine.session.program().functions[plan.embed].most_rows(phase.of_program());
    for (extent, predicts) in phase.calls(most) {
        // Decoding, each row is a sequence's, and has a row of logits.
        let sequences = if phase.sequences() == 1 { 1 } else { extent.rows };
        let one = Capacity { rows: sequences, keys: extent.keys };
        let head = predicts.then_some((plan.head_argmax, one));
        let layers = plan.layers.iter().map(|l| (l.function, extent));
        for (function, extent) in std::iter::once((plan.embed, extent)).chain(layers).chain(head) {
            let code = &engine.session.program().functions[function];
            let variant = code.variant_for(phase.of_program(), extent.rows);
            for (step, kernel) in code.variants[variant].steps.iter().enumerate() {
                let place = (function, variant, step);
                let unit = super::dtype_index(kernel.demand.unit);
                let new = || Launches { place, bytes: 0.0, flops: 0.0, unit, extents: BTreeMap::new() };
                let launches = all.entry(place).or_insert_with(new);
                // What belongs to one sequence is done for each, in one launch.
                let times = if kernel.by_segment { sequences } else { 1 };
                let (rows, keys) = (extent.rows / times, extent.keys);
                launches.bytes += times as f64 * kernel.demand.bytes(rows, keys);
                launches.flops += times as f64 * kernel.demand.flops(rows, keys);
                *launches.extents.entry((rows, keys)).or_default() += times as u64;
            }
        }
    }
    all.into_values().collect()
}

/// What the machine does at most.
pub(super) struct Ceilings {
    /// Bytes read a second.
    pub(super) read: f64,
    /// Operations a second of each unit.
    pub(super) peaks: [f64; UNITS.len()],
}

/// A kernel's line of the table.
pub(super) struct Line {
    name: String,
    launches: u64,
    pub(super) seconds: f64,
    pub(super) bytes: f64,
    pub(super) flops: f64,
    share: f64,
    roofline: f64,
    unit: DType,
    /// Seconds of all launches, by the cost model; none of what it does not price.
    predicted: Option<f64>,
}

/// A ratio of predicted to measured time within this is agreement: the bar of the cost model.
const AGREES: std::ops::RangeInclusive<f64> = 0.67..=1.5;

impl Line {
    /// One launch in which so much is moved and computed, not timed yet; `unit` is its place among [`UNITS`].
    pub(super) fn new(name: &str, bytes: f64, flops: f64, unit: usize) -> Line {
        let (name, unit) = (name.to_string(), UNITS[unit]);
        Line {
            name,
            launches: 1,
            seconds: 0.0,
            bytes,
            flops,
            share: 0.0,
            roofline: 0.0,
            unit,
            predicted: None,
        }
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.predicted? / self.seconds)
    }

    pub(super) fn json(&self) -> Value {
        let mut line = json!({
            "kernel": self.name,
            "launches": self.launches,
            "ms": self.seconds * 1e3,
            "gbps": self.bytes / self.seconds / 1e9,
            "gflops": self.flops / self.seconds / 1e9,
            "share": self.share,
            "roofline": self.roofline,
            "unit": super::unit_name(self.unit),
            "ns": self.seconds * 1e9 / self.launches as f64,
        });
        if let Some(predicted) = self.predicted {
            line["predicted_ns"] = json!(predicted * 1e9 / self.launches as f64);
            line["predicted_ratio"] = json!(self.ratio());
        }
        line
    }
}

/// The lines of a phase.
pub(super) fn table(
    engine: &Engine,
    phase: Phase,
    profiles: &[Profile],
    ceilings: &Ceilings,
    predictor: Option<&Predictor>,
) -> Result<Vec<Line>> {
    let mut lines = vec![];
    for launch in launches(engine, phase) {
        let (function, variant, step) = launch.place;
        let of = |p: &Profile| p.steps[function][variant][step].1.as_secs_f64();
        let seconds = median(&profiles.iter().map(of).collect::<Vec<_>>());
        let code = &engine.session.program().functions[function];
        let kernel = &code.variants[variant].steps[step];
        let (bytes, flops) = (launch.bytes, launch.flops);
        let mut predicted = predictor.map(|_| 0.0);
        for (&(rows, keys), &count) in &launch.extents {
            let ns = predictor.and_then(|p| p.nanoseconds(launch.place, rows, keys));
            predicted = predicted.zip(ns).map(|(sum, ns)| sum + ns * 1e-9 * count as f64);
        }
        let line = Line::new(&format!("{}.{}", code.name, kernel.name), bytes, flops, launch.unit);
        lines.push(Line { launches: launch.extents.values().sum(), seconds, predicted, ..line });
    }
    finish(&mut lines, ceilings);
    Ok(lines)
}

/// What lines that are timed come to beside each other and the ceilings; the longest first.
pub(super) fn finish(lines: &mut [Line], ceilings: &Ceilings) {
    let all: f64 = lines.iter().map(|l| l.seconds).sum();
    for line in &mut *lines {
        line.share = line.seconds / all;
        // Nothing is multiplied in a unit that the CPU lacks; a peak that was not measured is no limit.
        let least = (line.bytes / ceilings.read).max(line.flops / ceilings.peaks[index(line.unit)]);
        line.roofline = least / line.seconds;
    }
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
}

/// How well a phase was predicted.
pub(super) fn agreement(lines: &[Line]) -> Value {
    let priced: Vec<&Line> = lines.iter().filter(|l| l.predicted.is_some()).collect();
    let agree = priced.iter().filter(|l| l.ratio().is_some_and(|r| AGREES.contains(&r)));
    let (within, share) = agree.fold((0, 0.0), |(n, share), l| (n + 1, share + l.share));
    let predicted: f64 = priced.iter().filter_map(|l| l.predicted).sum();
    json!({
        "ms": predicted * 1e3,
        "ratio": predicted / lines.iter().map(|l| l.seconds).sum::<f64>(),
        "kernels": lines.len(),
        "kernels_within": within,
        "share_within": share,
    })
}

/// The table.
pub(super) fn text(title: &str, lines: &[Line], predicted: bool) -> String {
    let mut text = format!(
        "\n{title}\n{:<34}{:>9}{:>10}{:>8}{:>9}{:>8}{:>10}",
        "kernel", "launches", "ms", "GB/s", "GFLOP/s", "share", "roofline"
    );
    text.push_str(if predicted { "   predicted   ratio\n" } else { "\n" });
    for l in lines {
        text.push_str(&format!(
            "{:<34}{:>9}{:>10.2}{:>8.1}{:>9.1}{:>7.1}%{:>9.1}%",
            l.name,
            l.launches,
            l.seconds * 1e3,
            l.bytes / l.seconds / 1e9,
            l.flops / l.seconds / 1e9,
            l.share * 100.0,
            l.roofline * 100.0
        ));
        if let (Some(ms), Some(ratio)) = (l.predicted.map(|s| s * 1e3), l.ratio()) {
            text.push_str(&format!("{ms:>12.2}{ratio:>8.2}"));
        }
        text.push('\n');
    }
    if predicted {
        let a = agreement(lines);
        text.push_str(&format!(
            "predicted {:.2} ms, {:.2} of the measured; within {} to {}: {} of {} kernels, {:.1}% of the time\n",
            a["ms"].as_f64().unwrap_or(f64::NAN),
            a["ratio"].as_f64().unwrap_or(f64::NAN),
            AGREES.start(),
            AGREES.end(),
            a["kernels_within"],
            a["kernels"],
            a["share_within"].as_f64().unwrap_or(f64::NAN) * 100.0
        ));
    }
    text
}
