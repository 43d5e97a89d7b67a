//! A result: what a phase took, per token, and its share of the machine's ceilings.

use serde_json::{Value, json};

use super::phase::Phase;
use super::{UNITS, kernels, median};
use crate::model::Engine;

/// The table's first line.
pub(super) const HEADER: &str =
    "phase     tokens  depth   seqs    tok/s    MB/tok GFLOP/tok  of read of mult.\n";

/// A phase and the seconds that it took, each time.
pub(super) struct Measured {
    pub(super) phase: Phase,
    pub(super) seconds: Vec<f64>,
    pub(super) read: Vec<f64>,
    /// Of each unit, `UNITS` in order; NaN of those that the CPU lacks.
    pub(super) multiply: [Vec<f64>; UNITS.len()],
}

/// A result, per token.
pub(super) struct Row {
    tokens_per_s: f64,
    bytes: f64,
    flops: f64,
    bandwidth_share: f64,
    matrix_share: f64,
}

impl Row {
    pub(super) fn new(m: &Measured, engine: &Engine) -> Row {
        let tokens = m.phase.all_tokens() as f64;
        let mut bytes = 0.0;
        let mut flops = [0.0; UNITS.len()];
        for launch in kernels::launches(engine, m.phase) {
            bytes += launch.bytes;
            flops[launch.unit] += launch.flops;
        }
        let share = |amount: f64, ceiling: &[f64]| {
            median(&m.seconds.iter().zip(ceiling).map(|(s, c)| amount / s / c).collect::<Vec<_>>())
        };
        // The time that all products would take, each at the peak of the unit that it uses.
        let of_matrix = (0..UNITS.len()).filter(|&u| flops[u] > 0.0).map(|u| share(flops[u], &m.multiply[u]));
        Row {
            tokens_per_s: tokens / median(&m.seconds),
            bytes: bytes / tokens,
            flops: flops.iter().sum::<f64>() / tokens,
            bandwidth_share: share(bytes, &m.read),
            matrix_share: of_matrix.sum(),
        }
    }

    pub(super) fn text(&self, phase: Phase) -> String {
        format!(
            "{:<9}{:>7}{:>7}{:>7}{:>9.2}{:>10.1}{:>10.3}{:>8.1}%{:>8.1}%\n",
            phase.name(),
            phase.tokens(),
            phase.depth(),
            phase.sequences(),
            self.tokens_per_s,
            self.bytes / 1e6,
            self.flops / 1e9,
            self.bandwidth_share * 100.0,
            self.matrix_share * 100.0
        )
    }

    pub(super) fn json(&self, phase: Phase, engine: &Engine, threads: usize) -> Value {
        json!({
            "phase": phase.name(),
            "weights": engine.format.to_string(),
            "threads": threads,
            "tokens": phase.tokens(),
            "depth": phase.depth(),
            "sequences": phase.sequences(),
            "tokens_per_s": self.tokens_per_s,
            "bytes_per_token": self.bytes,
            "flops_per_token": self.flops,
            "bandwidth_share": self.bandwidth_share,
            "matrix_share": self.matrix_share,
        })
    }
}
