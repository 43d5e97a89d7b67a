//! What a kernel moves and computes in a call: the figures that times are held against.

use lapidary_ir::{DType, Dim};
use lapidary_runtime::demand::{Attention, Demand, Terms, Unit};

use crate::emit::Features;
use crate::kernel::{Body, Kernel};
use crate::view::{Base, Capacity, View};

/// Bytes and floating-point operations of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Weights and cached keys and values, read from memory.
    pub memory_bytes: f64,
    /// Activations, mostly in cache.
    pub cache_bytes: f64,
    /// Floating-point operations; a transcendental function counts as one.
    pub flops: f64,
}

/// The work of a kernel in a call of `extent` rows and keys.
pub fn work(kernel: &Kernel, extent: Capacity) -> Work {
    let rows = |view: &View| view.axes.first().map_or(1, |a| extent.of(a.dim));
    let last = |view: &View| view.axes.last().map_or(1, |a| extent.of(a.dim));
    let cache = |views: &[View]| views.iter().map(|v| bytes(v, extent)).sum::<f64>();
    let elements: f64 = kernel.outputs.iter().map(|v| count(v, extent)).sum();
    let everything = cache(&kernel.inputs) + cache(&kernel.outputs);
    match &kernel.body {
        Body::Linear(linear) => {
            let (x, _) = kernel.inputs.split_at(1 + usize::from(linear.prologue.is_some()));
            let weights = linear.weights(&kernel.inputs);
            let taken = &kernel.inputs[x.len() + weights.len()..];
            let rows = rows(&kernel.outputs[0]) as f64;
            let products: f64 = weights.iter().map(|w| count(w, extent)).sum();
            let x_bytes = rows * last(&weights[0]) as f64 * 4.0;
            let norm = cache(&x[1..]);
            Work {
                memory_bytes: cache(weights),
                cache_bytes: x_bytes + norm + cache(taken) + cache(&kernel.outputs),
                flops: 2.0 * rows * products,
            }
        }
        Body::Attention { window, .. } => {
            let attention = attention(kernel, *window);
            Work {
                memory_bytes: attention.bytes(extent.rows, extent.keys),
                cache_bytes: 2.0 * bytes(&kernel.inputs[0], extent),
                flops: attention.flops(extent.rows, extent.keys),
            }
        }
        Body::Matmul => Work {
            memory_bytes: weights_of(kernel, extent),
            cache_bytes: everything - weights_of(kernel, extent),
            flops: 2.0 * elements * last(&kernel.inputs[0]) as f64,
        },
        Body::Scores { .. } => Work {
            memory_bytes: bytes(&kernel.inputs[1], extent),
            cache_bytes: bytes(&kernel.inputs[0], extent) + cache(&kernel.outputs),
            flops: 2.0 * elements * last(&kernel.inputs[0]) as f64,
        },
        Body::Gather { .. } => {
            Work { memory_bytes: elements * 2.0, cache_bytes: cache(&kernel.outputs), flops: elements }
        }
        Body::Append => Work { memory_bytes: 0.0, cache_bytes: 2.0 * cache(&kernel.inputs), flops: 0.0 },
        Body::Elementwise(_)
        | Body::Map(_)
        | Body::Reduce(_)
        | Body::RmsNorm { .. }
        | Body::AddRmsNorm { .. }
        | Body::Pack(_)
        | Body::Rope
        | Body::PackColumns(_)
        | Body::Product(_)
        | Body::WindowMask { .. }
        | Body::Softmax { .. }
        | Body::MergeAttention { .. } => {
            let memory = weights_of(kernel, extent);
            Work { memory_bytes: memory, cache_bytes: everything - memory, flops: elements }
        }
    }
}

/// The same by rows and keys, as a program holds it.
pub fn demand(kernel: &Kernel, features: &Features) -> Demand {
    let unit = match features.unit(operands(kernel)) {
        DType::BF16 => Unit::Bf16,
        DType::Q8 => Unit::Int8,
        DType::F32 | DType::F16 | DType::I32 | DType::Bool | DType::Block(_) => Unit::F32,
    };
    if let Body::Attention { window, .. } = &kernel.body {
        return Demand { attention: Some(attention(kernel, *window)), unit, ..Demand::default() };
    }
    let of = |rows: usize, keys: usize| work(kernel, Capacity { rows, keys });
    let bytes = Terms::of(|rows, keys| of(rows, keys).memory_bytes);
    Demand { bytes, flops: Terms::of(|rows, keys| of(rows, keys).flops), attention: None, unit }
}

/// What attention's keys cost.
fn attention(kernel: &Kernel, window: Option<usize>) -> Attention {
    let (q, k) = (&kernel.inputs[0], &kernel.inputs[1]);
    let fixed = |view: &View, axis: usize| match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("heads and head_dim are fixed"),
    };
    let (heads, groups, head_dim) = (fixed(q, 0), fixed(k, 0), fixed(q, 2));
    Attention {
        bytes: 2.0 * groups as f64 * k.dtype.row_bytes(head_dim) as f64,
        flops: heads as f64 * (4.0 * head_dim as f64 + 3.0),
        window,
    }
}

/// How a kernel's products hold their operands: f32, bf16 or q8.
pub fn operands(kernel: &Kernel) -> DType {
    if let Body::Linear(linear) = &kernel.body {
        linear.micro.operands
    } else if let Body::Attention { way, .. } = &kernel.body {
        way.operands()
    } else {
        DType::F32
    }
}

/// Bytes of the operands that the caller holds for good: fixed shapes, no temporaries.
fn weights_of(kernel: &Kernel, extent: Capacity) -> f64 {
    let fixed =
        |v: &&View| matches!(v.base, Base::Slot(_)) && v.axes.iter().all(|a| matches!(a.dim, Dim::Fixed(_)));
    kernel.inputs.iter().filter(fixed).map(|v| bytes(v, extent)).sum()
}

fn count(view: &View, extent: Capacity) -> f64 {
    view.axes.iter().filter(|a| a.stride != 0).map(|a| extent.of(a.dim) as f64).product()
}

fn bytes(view: &View, extent: Capacity) -> f64 {
    if !view.in_memory() {
        return 0.0;
    }
    count(view, extent) * view.dtype.mean_bytes()
}
