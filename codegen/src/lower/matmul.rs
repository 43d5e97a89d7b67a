//! Products of two activations: matmul over any strides, and attention scores.
//!
//! A tile is one row of the output. Where both operands are contiguous along K the kernel takes dot products; else it
//! runs along N and accumulates over K. The order of a sum depends on K alone.

use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::Dim;

use super::elementwise::{load_along_row, over_axes, store_along_row};
use crate::emit::Emitter;
use crate::kernel::Kernel;
use crate::math;
use crate::view::View;

/// Emits a (.., M, K) x b (.., K, N).
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel) {
    let (a, b, output) = (&kernel.inputs[0], &kernel.inputs[1], &kernel.outputs[0]);
    let rank = output.axes.len();
    // b as (.., N, K), so that its last axis is the summed one.
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    rows(e, a, &b.transposed(&order), output, 1, &|_, x| x);
}

/// Emits softcap(scale q kᵀ), query head h against KV head h / (H / G).
pub(super) fn lower_scores(e: &mut Emitter<'_>, kernel: &Kernel, scale: f32, cap: Option<f32>) {
    let (q, k, output) = (&kernel.inputs[0], &kernel.inputs[1], &kernel.outputs[0]);
    let heads = |v: &View| match v.axes[0].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("heads are fixed"),
    };
    let repeat = heads(q) / heads(k);
    rows(e, q, k, output, repeat, &|e, x| {
        let scale = e.splat(scale);
        let x = e.b.ins().fmul(x, scale);
        match cap {
            Some(cap) => math::softcap(e, cap, x),
            None => x,
        }
    });
}

/// One output row a tile: a (.., M, K) against b (.., N, K), whose first axis is shared by `repeat` rows' of a.
fn rows(
    e: &mut Emitter<'_>,
    a: &View,
    b: &View,
    output: &View,
    repeat: usize,
    finish: &dyn Fn(&mut Emitter<'_>, Value) -> Value,
) {
    let dims = output.dims();
    let rank = dims.len();
    let tile_axes = Kernel::tile_axes(output);
    let inner: Vec<usize> = (0..rank - 1).filter(|a| !tile_axes.contains(a)).collect();
    let k_dim = a.axes[rank - 1].dim;
    let along_k = a.inner_stride() == 1 && b.inner_stride() == 1;
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, &mut |e, at| {
            let a_row = e.base(a);
            let a_row = e.at(a, a_row, at);
            let out = e.base(output);
            let out = e.at(output, out, at);
            let mut b_row = e.base(b);
            for &(axis, index) in at.iter().filter(|(axis, _)| *axis < rank - 2) {
                let index = if axis == 0 && repeat > 1 {
                    let repeat = e.i64(repeat as i64);
                    e.b.ins().udiv(index, repeat)
                } else {
                    index
                };
                b_row = e.step(b, axis, b_row, index);
            }
            let (n, k) = (e.length(dims[rank - 1]), e.length(k_dim));
            if along_k {
                let zero = e.i64(0);
                e.for_range(zero, n, 1, &[], |e, column, _| {
                    let b_row = e.step(b, rank - 2, b_row, column);
                    let sum = dot(e, a, a_row, b, b_row, k);
                    let sum = e.b.ins().splat(F32X4, sum);
                    let value = finish(e, sum);
                    store_along_row(e, output, value, out, column, 1);
                    vec![]
                });
            } else {
                e.for_lanes(n, &[], |e, column, lanes, _| {
                    let b_columns = b.transposed(&columns_last(rank));
                    let (zero, none) = (e.i64(0), e.splat(0.0));
                    let sums = e.for_range(zero, k, 1, &[none], |e, i, s| {
                        let x = load_along_row(e, a, Some(a_row), i, 1);
                        let line = e.step(b, rank - 1, b_row, i);
                        let y = load_along_row(e, &b_columns, Some(line), column, lanes);
                        vec![e.fma(x, y, s[0])]
                    });
                    let value = finish(e, sums[0]);
                    store_along_row(e, output, value, out, column, lanes);
                    vec![]
                });
            }
        });
    });
}

fn columns_last(rank: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    order
}

/// Dot product of two contiguous rows, a scalar.
fn dot(e: &mut Emitter<'_>, a: &View, a_row: Value, b: &View, b_row: Value, k: Value) -> Value {
    let zero = e.splat(0.0);
    let sums = e.for_lanes(k, &[zero], |e, i, lanes, s| {
        let x = load_along_row(e, a, Some(a_row), i, lanes);
        let y = load_along_row(e, b, Some(b_row), i, lanes);
        if lanes == 4 {
            return vec![e.fma(x, y, s[0])];
        }
        let product = e.b.ins().fmul(x, y);
        let first = e.lane0(product);
        let alone = e.splat(0.0);
        let alone = e.b.ins().insertlane(alone, first, 0u8);
        vec![e.b.ins().fadd(s[0], alone)]
    });
    e.sum_lanes(sums[0])
}
