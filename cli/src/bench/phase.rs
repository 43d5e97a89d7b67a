//! What is measured: a prompt that is prefilled, or tokens that are decoded one by one.

use std::time::{Duration, Instant};

use anyhow::Result;
use lapidary::Session;
use lapidary_codegen::view::Capacity;
use serde_json::Value;

/// What is measured of a call.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Phase {
    /// A prompt of so many tokens from position 0.
    Prefill(usize),
    /// So many tokens one by one, from this depth.
    Decode { tokens: usize, depth: usize },
}

impl Phase {
    pub(super) fn last_position(self) -> usize {
        match self {
            Phase::Prefill(n) => n,
            Phase::Decode { tokens, depth } => depth.saturating_add(tokens),
        }
    }

    pub(super) fn tokens(self) -> usize {
        match self {
            Phase::Prefill(n) | Phase::Decode { tokens: n, .. } => n,
        }
    }

    pub(super) fn depth(self) -> usize {
        match self {
            Phase::Prefill(_) => 0,
            Phase::Decode { depth, .. } => depth,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::Prefill(_) => "prefill",
            Phase::Decode { .. } => "decode",
        }
    }

    /// Whether a result is this phase's.
    pub(super) fn is(self, result: &Value, threads: usize) -> bool {
        result.get("kernels").is_none()
            && result["phase"] == self.name()
            && result["tokens"] == self.tokens()
            && result["depth"] == self.depth()
            && result["threads"] == threads
    }

    /// The calls of the phase, as rows and keys, of the layers and of the head.
    pub(super) fn of_program(self) -> lapidary_runtime::Phase {
        match self {
            Phase::Prefill(_) => lapidary_runtime::Phase::Prefill,
            Phase::Decode { .. } => lapidary_runtime::Phase::Decode,
        }
    }

    pub(super) fn calls(self, chunk: usize) -> Vec<(Capacity, bool)> {
        match self {
            Phase::Prefill(n) => (0..n)
                .step_by(chunk)
                .map(|at| {
                    let rows = chunk.min(n - at);
                    (Capacity { rows, keys: at + rows }, at + rows == n)
                })
                .collect(),
            Phase::Decode { tokens, depth } => {
                (0..tokens).map(|i| (Capacity { rows: 1, keys: depth + i + 1 }, true)).collect()
            }
        }
    }
}

/// Runs a phase from position 0; the time of the phase alone. `between` runs after each token that is generated.
pub(super) fn time(session: &mut Session, phase: Phase, between: &mut dyn FnMut()) -> Result<Duration> {
    let vocab = session.program().plan.vocab as u32;
    let id = |i: usize| (i as u32).wrapping_mul(7919) % vocab;
    match phase {
        Phase::Prefill(n) => {
            session.reset();
            let ids: Vec<u32> = (0..n).map(id).collect();
            let start = Instant::now();
            session.prefill(&ids)?;
            session.argmax();
            Ok(start.elapsed())
        }
        Phase::Decode { tokens, depth } => {
            let back = session.position() >= depth && depth >= session.smallest_rollback().max(1);
            if back {
                session.rollback(depth)?;
            } else if depth == 0 {
                session.reset();
            } else {
                session.reset();
                session.prefill(&(0..depth).map(id).collect::<Vec<_>>())?;
            }
            let mut spent = Duration::ZERO;
            for i in 0..tokens {
                let start = Instant::now();
                session.decode(id(depth + i))?;
                session.argmax();
                spent += start.elapsed();
                between();
            }
            Ok(spent)
        }
    }
}
