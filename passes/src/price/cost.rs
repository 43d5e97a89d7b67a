//! The cost of a kernel on a machine: bytes moved, arithmetic and a launch, in nanoseconds.
//!
//! A roofline: the longer of memory time and arithmetic time, plus the launch; arithmetic at the rate of the kind of
//! kernel, of the weights' format and of the row regime ([`Machine`]). Every e-node that stands for a kernel is priced
//! whole, with the kernels that prepare its operands; views, attributes and what the schedule folds cost next to
//! nothing but never nothing, so cycles never pay. What a kernel does is [`CostModel::work`].

use egg::Id;
use lapidary_ir::{Dim, Extent, Op};

use super::machine::Machine;
use super::measured::UNMEASURED;
use super::objective::Objective;
use super::work::Work;
use crate::analysis::Graph;

/// A view, an attribute: small, so that fewer win, but above 0.
const EPSILON: f64 = 1.0;
/// Share of the shorter of moving and computing that does not hide behind the longer.
const OVERLAP: f64 = 0.05;
/// Share of the activations out of cache that is waited for, not fetched ahead.
const WAITED: f64 = 0.5;
/// Tiles of kernels that share well.
const MANY_TILES: f64 = 64.0;
/// The price of a kernel where kernels are counted: far above that of views.
const KERNEL: f64 = 1000.0;
/// A launch that takes one thread less than this, in nanoseconds, stays on it. The runtime's pool shares what the
/// schedule reckons at 5 µs, more than such kernels take.
const PARALLEL: f64 = 3000.0;
/// Part of the arithmetic that tells kernels apart that would take the same.
const TIE: f64 = 1e-3;

/// What a number for each row and each key of a cache is priced above its time: the arena holds them for the longest
/// context, and a prompt's bits would depend on the chunk if they paid with one and not with another.
const SPREAD: f64 = 4.0;

/// Prices nodes of a graph for calls of one extent.
#[derive(Clone, Copy, Debug)]
pub struct CostModel {
    /// The machine.
    pub machine: Machine,
    /// Rows and keys of the call that is priced.
    pub extent: Extent,
}

/// A kernel's price, by the launches that it may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// The launch that prepares its operands, nanoseconds; 0 if there is none.
    pub before: f64,
    /// Itself.
    pub itself: f64,
    /// The launch that adds its parts up.
    pub after: f64,
}

impl Parts {
    /// All of it.
    pub fn sum(self) -> f64 {
        self.before + self.itself + self.after
    }
}

impl CostModel {
    /// Price of one node, its operands not included, in nanoseconds.
    pub fn price(&self, graph: &Graph, id: Id, node: &Op) -> f64 {
        let time = self.priced(graph, id, node);
        if self.machine.objective == Objective::Roofline && spreads(graph, id, node) {
            SPREAD * time
        } else {
            time
        }
    }

    fn priced(&self, graph: &Graph, id: Id, node: &Op) -> f64 {
        match self.work(graph, id, node) {
            None => EPSILON,
            Some(work) => match self.machine.measured {
                None => self.time(work),
                // Measured with the linear that it is a part of.
                Some(_) if matches!(node, Op::NormPrologue(_)) => EPSILON,
                Some(_) if work.launches == 0.0 => self.time(work),
                Some(measured) => match measured.price(graph, id, node, self) {
                    Some(nanoseconds) => EPSILON + nanoseconds,
                    None => UNMEASURED * self.time(work),
                },
            },
        }
    }

    /// What it counts for: predicted time in nanoseconds, or what else is minimised.
    pub fn time(&self, w: Work) -> f64 {
        match self.machine.objective {
            Objective::Roofline => EPSILON + self.parts(w).sum(),
            Objective::Flops => EPSILON + w.flops + w.loose_flops + w.transcendentals,
            Objective::Bytes => EPSILON + w.memory_bytes + w.cache_bytes,
            Objective::Nodes => EPSILON + KERNEL * w.launches,
        }
    }

    /// What a kernel waits for so many bytes of activations, in nanoseconds, where weights have driven them out of the
    /// caches.
    pub(crate) fn waiting(&self, bytes: f64) -> f64 {
        if self.machine.is_resident() { 0.0 } else { WAITED * bytes / self.machine.cache }
    }

    /// Predicted time in nanoseconds, launch by launch.
    pub fn parts(&self, w: Work) -> Parts {
        let m = &self.machine;
        let (moving, waiting) = match m.is_resident() {
            true => ((w.memory_bytes + w.cache_bytes) / m.near, 0.0),
            // What keys take longer than weights.
            false => {
                let keys = w.key_bytes * (1.0 / m.keys - 1.0 / m.memory);
                (w.memory_bytes / m.memory + keys, self.waiting(w.cache_bytes))
            }
        };
        let launch = |busy: f64, tiles: f64, (moving, waiting): (f64, f64), launches: f64| {
            let share = (tiles / m.threads).ceil() / tiles;
            let (alone, together) = (m.call + busy, m.launch + busy * share);
            let (start, computing) = if busy < PARALLEL || tiles <= 1.0 {
                (m.call, busy)
            } else if together < m.call + PARALLEL {
                // More work is never cheaper, for all that it is shared.
                (m.call, PARALLEL + TIE * busy)
            } else {
                (m.launch, busy * share)
            };
            debug_assert!(start + computing <= alone.max(together) + TIE * busy);
            let start = start + if m.is_resident() { m.cool } else { m.cold };
            // What overlaps costs the longer of the two; a little of the shorter settles ties.
            let computing = computing + waiting;
            launches * start + moving.max(computing) + OVERLAP * moving.min(computing)
        };
        let beside = |busy: f64| if busy == 0.0 { 0.0 } else { launch(busy, MANY_TILES, (0.0, 0.0), 1.0) };
        Parts {
            before: beside(w.before),
            itself: launch(w.busy, w.tiles, (moving, waiting), w.launches),
            after: beside(w.after),
        }
    }
}

/// Whether a kernel makes a number for each row and each key.
fn spreads(graph: &Graph, id: Id, node: &Op) -> bool {
    let makes = matches!(node, Op::Scores(_) | Op::Matmul(_) | Op::Softmax(_));
    let shape = graph[id].data.ty.tensor().map(|t| &t.shape[..]);
    makes && shape.is_some_and(|shape| shape.contains(&Dim::Rows) && shape.contains(&Dim::Keys))
}
