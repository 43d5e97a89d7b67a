//! What is measured: a prompt that is prefilled, or tokens that are decoded one by one, of one sequence or of several
//! at once.

use std::time::{Duration, Instant};

use anyhow::Result;
use lapidary::{Sequence, Session, Want, Work};
use lapidary_codegen::view::Capacity;
use serde_json::Value;

/// What is measured of a call.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Phase {
    /// A prompt of so many tokens from position 0.
    Prefill(usize),
    /// So many tokens of each of so many sequences, one by one, from this depth.
    Decode { tokens: usize, depth: usize, sequences: usize },
}

impl Phase {
    pub(super) fn last_position(self) -> usize {
        match self {
            Phase::Prefill(n) => n,
            Phase::Decode { tokens, depth, .. } => depth.saturating_add(tokens),
        }
    }

    /// Tokens of a sequence.
    pub(super) fn tokens(self) -> usize {
        match self {
            Phase::Prefill(n) | Phase::Decode { tokens: n, .. } => n,
        }
    }

    pub(super) fn sequences(self) -> usize {
        match self {
            Phase::Prefill(_) => 1,
            Phase::Decode { sequences, .. } => sequences,
        }
    }

    /// Tokens of all sequences.
    pub(super) fn all_tokens(self) -> usize {
        self.tokens() * self.sequences()
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
            && result["sequences"] == self.sequences()
            && result["threads"] == threads
    }

    /// The calls of the phase, as rows and keys, of the layers and of the head.
    pub(super) fn of_program(self) -> lapidary_runtime::Phase {
        match self {
            Phase::Prefill(_) => lapidary_runtime::Phase::Prefill,
            Phase::Decode { .. } => lapidary_runtime::Phase::Decode,
        }
    }

    /// Of calls of at most so many rows.
    pub(super) fn calls(self, most: usize) -> Vec<(Capacity, bool)> {
        match self {
            Phase::Prefill(n) => (0..n)
                .step_by(most)
                .map(|at| {
                    let rows = most.min(n - at);
                    (Capacity { rows, keys: at + rows }, at + rows == n)
                })
                .collect(),
            Phase::Decode { tokens, depth, sequences } => {
                let steps = (0..sequences).step_by(most).map(|at| most.min(sequences - at));
                let of = |i| steps.clone().map(move |rows| (Capacity { rows, keys: depth + i + 1 }, true));
                (0..tokens).flat_map(of).collect()
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
        Phase::Decode { tokens, depth, sequences } => {
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
            let (engine, first) = session.parts();
            let others = (1..sequences).map(|_| first.fork()).collect::<Result<Vec<Sequence>, _>>();
            let mut others = others?;
            for i in 0..tokens {
                let token = [id(depth + i)];
                let of = |sequence| Work {
                    sequence,
                    tokens: &token,
                    phase: lapidary::Phase::Decode,
                    want: Want::Argmax,
                };
                let mut works: Vec<Work<'_>> =
                    std::iter::once(&mut *first).chain(&mut others).map(of).collect();
                let start = Instant::now();
                engine.step(&mut works)?;
                spent += start.elapsed();
                between();
            }
            Ok(spent)
        }
    }
}
