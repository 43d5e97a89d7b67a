//! What extraction minimises: predicted time, or one figure of a kernel alone.
//!
//! In: an objective, a machine. Out: a machine whose kernels are priced by it, so that one cost model serves them all.
//! Prices of the objectives that are no times are counts: 1 "ns" is a FLOP or a byte, 1000 are a kernel.

use super::machine::Machine;

/// An objective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Predicted time by the roofline.
    #[default]
    Roofline,
    /// Arithmetic, a transcendental function counted as one operation.
    Flops,
    /// Bytes read and written.
    Bytes,
    /// Kernels.
    Nodes,
}

impl Objective {
    /// A machine on which an objective is the price.
    pub fn machine(self, machine: Machine) -> Machine {
        Machine { objective: self, ..machine }
    }
}
