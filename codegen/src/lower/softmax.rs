//! Softmax of rows, over all of a row or a range of keys, and the mask that marks such a range.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::Dim;

use super::elementwise::{AtRow, load_along_row, over_axes, store_along_row};
use super::reduce;
use crate::emit::Emitter;
use crate::kernel::{Kernel, Maximum};
use crate::math;
use crate::view::View;

/// Emits softmax; a tile is a row. Elements outside of the range are 0 and their inputs never read.
pub(super) fn lower(
    e: &mut Emitter<'_>,
    kernel: &Kernel,
    ranged: bool,
    window: Option<usize>,
    maximum: Maximum,
) {
    let (x, output) = (&kernel.inputs[0], &kernel.outputs[0]);
    for_rows(e, kernel, &mut |e, at| {
        let row = e.base(x);
        let row = e.at(x, row, at);
        let out = e.base(output);
        let out = e.at(output, out, at);
        let n = e.length(output.axes[output.axes.len() - 1].dim);
        let (low, high) = if ranged {
            key_range(e, &kernel.inputs[1], window, row_index(output, at), n)
        } else {
            (e.i64(0), n)
        };
        fill(e, output, out, None, low, 0.0);
        fill(e, output, out, Some(high), n, 0.0);
        let count = e.b.ins().isub(high, low);
        let some = e.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, count, 0);
        e.when(some, |e| {
            let load = |e: &mut Emitter<'_>, i: Value, lanes: usize| {
                let i = e.b.ins().iadd(i, low);
                load_along_row(e, x, Some(row), i, lanes)
            };
            let max = match maximum {
                Maximum::Online => {
                    // Finite: of -inf alone every share is 0, not NaN.
                    let max = reduce::max(e, count, &mut |e: &mut Emitter<'_>, i, lanes| load(e, i, lanes));
                    let least = e.splat(f32::MIN);
                    Some(e.fmax(max, least))
                }
                Maximum::Bounded => None,
            };
            let total = reduce::sum(e, count, &mut |e: &mut Emitter<'_>, i: Value, lanes: usize| {
                let x = load(e, i, lanes);
                let p = match max {
                    Some(max) => {
                        let x = e.b.ins().fsub(x, max);
                        math::exp_below(e, x)
                    }
                    None => math::exp(e, x),
                };
                let i = e.b.ins().iadd(i, low);
                store_along_row(e, output, p, out, i, lanes);
                p
            });
            let (zero, one) = (e.splat(0.0), e.splat(1.0));
            let nothing = e.b.ins().fcmp(FloatCC::Equal, total, zero);
            let total = e.choose(nothing, one, total);
            e.for_lanes(count, &[], |e, i, lanes, _| {
                let i = e.b.ins().iadd(i, low);
                let p = load_along_row(e, output, Some(out), i, lanes);
                let p = e.b.ins().fdiv(p, total);
                store_along_row(e, output, p, out, i, lanes);
                vec![]
            });
        });
    });
}

/// Emits the mask: the scores inside of the range, -inf outside.
pub(super) fn lower_mask(e: &mut Emitter<'_>, kernel: &Kernel, window: Option<usize>) {
    let (x, pos, output) = (&kernel.inputs[0], &kernel.inputs[1], &kernel.outputs[0]);
    for_rows(e, kernel, &mut |e, at| {
        let row = e.base(x);
        let row = e.at(x, row, at);
        let out = e.base(output);
        let out = e.at(output, out, at);
        let n = e.length(output.axes[output.axes.len() - 1].dim);
        let (low, high) = key_range(e, pos, window, row_index(output, at), n);
        fill(e, output, out, None, low, f32::NEG_INFINITY);
        fill(e, output, out, Some(high), n, f32::NEG_INFINITY);
        let count = e.b.ins().isub(high, low);
        e.for_lanes(count, &[], |e, i, lanes, _| {
            let i = e.b.ins().iadd(i, low);
            let value = load_along_row(e, x, Some(row), i, lanes);
            store_along_row(e, output, value, out, i, lanes);
            vec![]
        });
    });
}

/// Runs the body for each row of the output.
fn for_rows(e: &mut Emitter<'_>, kernel: &Kernel, body: &mut AtRow<'_>) {
    let output = &kernel.outputs[0];
    let dims = output.dims();
    let tile_axes = Kernel::tile_axes(output);
    let inner: Vec<usize> = (0..dims.len() - 1).filter(|a| !tile_axes.contains(a)).collect();
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, body);
    });
}

/// Index along the second to last axis: the row of the call.
fn row_index(output: &View, at: &[(usize, Value)]) -> Value {
    let axis = output.axes.len() - 2;
    match at.iter().find(|(a, _)| *a == axis) {
        Some(&(_, index)) => index,
        None => unreachable!("every axis but the last is walked"),
    }
}

/// The keys `low..high` that a row sees: (pos - window, pos], cut to 0..n and never turned round.
pub(super) fn key_range(
    e: &mut Emitter<'_>,
    pos: &View,
    window: Option<usize>,
    row: Value,
    n: Value,
) -> (Value, Value) {
    let position = e.base(pos);
    let position = e.step(pos, 0, position, row);
    let position = e.load_index(position);
    let zero = e.i64(0);
    let after = e.offset(position, 1);
    let high = e.b.ins().smin(after, n);
    let high = e.b.ins().smax(high, zero);
    let low = match window {
        Some(window) => {
            let first = e.offset(after, -(window as i64));
            let first = e.b.ins().smax(first, zero);
            e.b.ins().smin(first, high)
        }
        None => zero,
    };
    (low, high)
}

/// Fills elements `from..to` (from 0 if `None`).
fn fill(e: &mut Emitter<'_>, view: &View, row: Value, from: Option<Value>, to: Value, value: f32) {
    let from = from.unwrap_or_else(|| e.i64(0));
    let count = e.b.ins().isub(to, from);
    let value = e.splat(value);
    e.for_lanes(count, &[], |e, i, lanes, _| {
        let i = e.b.ins().iadd(i, from);
        store_along_row(e, view, value, row, i, lanes);
        vec![]
    });
}
