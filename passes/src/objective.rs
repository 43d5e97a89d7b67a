//! What extraction minimises: predicted time, or one figure of a kernel alone.
//!
//! In: an objective, a machine. Out: a machine whose kernels are priced by it, so that one cost model serves them all. Prices
//! of the objectives that are no times are counts: 1 "ns" is a FLOP or a byte, 1000 are a kernel.

use crate::cost::Machine;

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

/// The price of a kernel where kernels are counted: far above that of views.
const KERNEL: f64 = 1000.0;

impl Objective {
    /// A machine on which an objective is the predicted time.
    pub fn machine(self, machine: Machine) -> Machine {
        // Free unless named below.
        let free = Machine {
            memory: f64::INFINITY,
            cache: f64::INFINITY,
            flops: f64::INFINITY,
            loose_flops: f64::INFINITY,
            transcendental: 0.0,
            launch: 0.0,
            measured: None,
        };
        match self {
            Objective::Roofline => machine,
            Objective::Flops => Machine { flops: 1.0, loose_flops: 1.0, transcendental: 1.0, ..free },
            Objective::Bytes => Machine { memory: 1.0, cache: 1.0, ..free },
            Objective::Nodes => Machine { launch: KERNEL, ..free },
        }
    }
}
