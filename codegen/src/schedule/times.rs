//! What a tile of a kernel takes, roughly: whether launches are worth sharing.

use lapidary_ir::{Dim, Op};

use crate::kernel::{Body, Kernel};
use crate::view::View;

/// The same of an operator of a program, of one element.
fn map_nanoseconds(op: &Op) -> f64 {
    match op {
        Op::Exp(_) | Op::Log(_) | Op::Tanh(_) | Op::Cos(_) | Op::Sin(_) | Op::Pow(_) | Op::GeluTanh(_) => 1.5,
        Op::Input(_) => 0.5,
        _ => 0.25,
    }
}

/// Predicted nanoseconds of one tile on one thread: enough to tell a launch worth sharing from one that is not.
pub fn tile_nanoseconds(kernel: &Kernel) -> u32 {
    let rows = kernel.capacity.rows as f64;
    let inner = |v: &View| v.axes.last().map_or(1, |a| kernel.capacity.of(a.dim)) as f64;
    let ns = match &kernel.body {
        Body::Linear(linear) => {
            let weights = linear.weights(&kernel.inputs);
            let w = &weights[0];
            let all: usize = weights.iter().map(|w| kernel.capacity.of(w.axes[0].dim)).sum();
            let products = inner(w) * all as f64 / f64::from(kernel.tiles.fixed.max(1));
            let rows = kernel.capacity.of(kernel.outputs[0].axes[0].dim) as f64;
            w.dtype.mean_bytes() * products / 14.0 + rows * products / 20.0
        }
        Body::Attention { window, parts, .. } => {
            let keys = kernel.capacity.of(kernel.inputs[1].axes[1].dim);
            let keys = window.unwrap_or(keys).min(keys).min(512) as f64 / *parts as f64;
            let heads = |input: usize| kernel.capacity.of(kernel.inputs[input].axes[0].dim) as f64;
            let queries = match kernel.inputs[0].axes[1].dim {
                Dim::Fixed(n) => n as f64 * heads(0) / f64::from(kernel.tiles.fixed.max(1)),
                Dim::Rows | Dim::Keys => rows.min(f64::from(kernel.tiles.rows)) * heads(0) / heads(1),
            };
            queries * keys * (inner(&kernel.inputs[0]) * 0.2 + 3.0)
        }
        Body::Pack(pack) => {
            let element = if pack.prologue.is_some() { 2.0 } else { 0.5 };
            pack.micro.mr as f64 * inner(&kernel.inputs[0]) * element
        }
        Body::Product(_) => {
            let tiles = f64::from(kernel.tiles.fixed.max(1));
            let elements: f64 =
                kernel.outputs[0].axes.iter().map(|a| kernel.capacity.of(a.dim) as f64).product();
            let blocks = match kernel.tiles.rows {
                0 => 1.0,
                each => (rows / f64::from(each)).ceil(),
            };
            elements / (tiles * blocks) * (inner(&kernel.inputs[0]) / 20.0 + 1.0)
        }
        Body::PackColumns(micro) => micro.mr as f64 * inner(&kernel.inputs[0]) * 0.5,
        Body::Matmul | Body::Scores { .. } => inner(&kernel.outputs[0]) * inner(&kernel.inputs[0]) * 0.3,
        Body::Map(program) => {
            let row = kernel.inputs.iter().map(inner).fold(inner(&kernel.outputs[0]), f64::max);
            row * program.nodes().iter().map(map_nanoseconds).sum::<f64>()
        }
        _ => {
            let keys: f64 =
                kernel.outputs[0].axes.iter().filter(|a| a.dim == Dim::Keys).map(|_| 256.0).product();
            keys * inner(kernel.inputs.first().unwrap_or(&kernel.outputs[0]))
        }
    };
    ns.min(1e9) as u32
}
