//! What a tile of a kernel takes, roughly: whether launches are worth sharing.
//!
//! By the work that benches hold times against, at the figures that prices are made of.

use lapidary_ir::Op;
use lapidary_passes::price::Machine;

use crate::kernel::{Body, Kernel};
use crate::price::work;
use crate::view::{Capacity, View};

/// As many keys as a call is taken to have at most.
const KEYS: usize = 512;

/// Predicted nanoseconds of one tile on one thread of a usual machine, in the largest call: enough to tell a launch
/// worth sharing from one that is not.
pub fn tile_nanoseconds(kernel: &Kernel) -> u32 {
    let machine = Machine::GENERIC.on(1.0);
    let extent = Capacity { rows: kernel.capacity.rows, keys: kernel.capacity.keys.min(KEYS) };
    let elements = |view: &View| view.axes.iter().map(|a| extent.of(a.dim) as f64).product::<f64>();
    let all = |views: &[View]| views.iter().map(elements).fold(0.0, f64::max);
    let work = work::work(kernel, extent);
    let arithmetic = match &kernel.body {
        Body::Linear(_) | Body::Product(_) => work.flops / machine.product_flops,
        Body::Attention { .. } => work.flops / machine.attention_flops,
        Body::Matmul | Body::Scores { .. } => work.flops / machine.loose_flops,
        Body::Map(program) => {
            let each: f64 = program.nodes().iter().map(|op| nanoseconds(&machine, op)).sum();
            all(&kernel.inputs).max(all(&kernel.outputs)) * each
        }
        Body::RmsNorm { .. } | Body::AddRmsNorm { .. } => all(&kernel.outputs) * machine.norm,
        Body::Elementwise(_)
        | Body::Reduce(_)
        | Body::Gather { .. }
        | Body::Append
        | Body::Pack(_)
        | Body::Rope
        | Body::PackColumns(_)
        | Body::WindowMask { .. }
        | Body::Softmax { .. }
        | Body::MergeAttention { .. } => {
            all(&kernel.inputs[..1.min(kernel.inputs.len())]).max(all(&kernel.outputs)) * machine.element
        }
    };
    let tiles = match kernel.tiles.rows {
        0 => kernel.tiles.fixed,
        each => kernel.tiles.fixed * (extent.rows as u32).div_ceil(each),
    };
    // What memory gives to each of the threads that share it.
    let memory = work.memory_bytes * Machine::GENERIC.threads / machine.memory;
    ((memory + arithmetic) / f64::from(tiles.max(1))).min(1e9) as u32
}

/// An operator of a program, of one element.
fn nanoseconds(machine: &Machine, op: &Op) -> f64 {
    let is_slow = matches!(
        op,
        Op::Exp(_) | Op::Log(_) | Op::Tanh(_) | Op::Cos(_) | Op::Sin(_) | Op::Pow(_) | Op::GeluTanh(_)
    );
    if is_slow { machine.transcendental } else { machine.element }
}
