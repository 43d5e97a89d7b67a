//! RMSNorm: x / sqrt(mean(x²) + eps) (1 + w), alone, onto a residual, or as a linear kernel's prologue.

use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::Dim;

use super::elementwise::{load_along_row, over_axes, store_along_row};
use super::reduce::sum;
use crate::emit::Emitter;
use crate::kernel::Kernel;
use crate::view::View;

/// Emits the kernel; a tile is a row.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, eps: f32, residual: bool) {
    let first = usize::from(residual);
    let (x, w, output) = (&kernel.inputs[first], &kernel.inputs[first + 1], &kernel.outputs[0]);
    let dims = output.dims();
    let last = dims.len() - 1;
    let tile_axes = Kernel::tile_axes(output);
    let inner: Vec<usize> = (0..last).filter(|a| !tile_axes.contains(a)).collect();
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, &mut |e, at| {
            let row = e.base(x);
            let row = e.at(x, row, at);
            let out = e.base(output);
            let out = e.at(output, out, at);
            let held = residual.then(|| {
                let view = &kernel.inputs[0];
                let base = e.base(view);
                (view, e.at(view, base, at))
            });
            norm_row(e, x, row, w, eps, &mut |e, i, lanes, value| {
                let value = match held {
                    Some((view, base)) => {
                        let r = load_along_row(e, view, Some(base), i, lanes);
                        e.b.ins().fadd(r, value)
                    }
                    None => value,
                };
                store_along_row(e, output, value, out, i, lanes);
            });
        });
    });
}

/// Norms one row of x and hands each four (or one) of its elements to `store`.
pub(super) fn norm_row(
    e: &mut Emitter<'_>,
    x: &View,
    row: Value,
    w: &View,
    eps: f32,
    store: &mut dyn FnMut(&mut Emitter<'_>, Value, usize, Value),
) {
    let Some(Dim::Fixed(k)) = x.axes.last().map(|a| a.dim) else { unreachable!("the normed axis is fixed") };
    let n = e.i64(k as i64);
    let total = sum(e, n, &mut |e: &mut Emitter<'_>, i: Value, lanes: usize| {
        let x = load_along_row(e, x, Some(row), i, lanes);
        e.b.ins().fmul(x, x)
    });
    let length = e.splat(k as f32);
    let mean = e.b.ins().fdiv(total, length);
    let eps = e.splat(eps);
    let mean = e.b.ins().fadd(mean, eps);
    let root = e.b.ins().sqrt(mean);
    let one = e.splat(1.0);
    let scale = e.b.ins().fdiv(one, root);
    debug_assert_eq!(e.b.func.dfg.value_type(scale), F32X4);
    let weights = e.base(w);
    e.for_lanes(n, &[], |e, i, lanes, _| {
        let value = load_along_row(e, x, Some(row), i, lanes);
        let value = e.b.ins().fmul(value, scale);
        let weight = load_along_row(e, w, Some(weights), i, lanes);
        let weight = if w.one_added { weight } else { e.b.ins().fadd(weight, one) };
        let value = e.b.ins().fmul(value, weight);
        store(e, i, lanes, value);
        vec![]
    });
}
