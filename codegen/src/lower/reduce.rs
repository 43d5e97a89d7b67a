//! Reductions along the last axis of the input, in an order that its length alone decides.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, I32, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::Dim;

use super::elementwise::{load_along_row, over_axes, store_along_row};
use crate::emit::Emitter;
use crate::kernel::{Kernel, Reduction};
use crate::math;

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, reduction: Reduction) {
    let (input, output) = (&kernel.inputs[0], &kernel.outputs[0]);
    let dims = output.dims();
    let tile_axes = Kernel::tile_axes(output);
    let inner: Vec<usize> = (0..dims.len() - 1).filter(|a| !tile_axes.contains(a)).collect();
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, &mut |e, at| {
            let row = e.base(input);
            let row = e.at(input, row, at);
            let n = e.length(input.axes[input.axes.len() - 1].dim);
            let mut element =
                |e: &mut Emitter<'_>, i: Value, lanes: usize| load_along_row(e, input, Some(row), i, lanes);
            let result = reduce(e, reduction, n, &mut element);
            let out = e.base(output);
            let out = e.at(output, out, at);
            let zero = e.i64(0);
            store_along_row(e, output, result, out, zero, 1);
        });
    });
}

/// A reduction of `n` elements, in every lane.
pub(super) fn reduce(
    e: &mut Emitter<'_>,
    reduction: Reduction,
    n: Value,
    element: &mut Element<'_>,
) -> Value {
    match reduction {
        Reduction::Sum => sum(e, n, element),
        Reduction::Mean => {
            let total = sum(e, n, element);
            let n = e.b.ins().ireduce(I32, n);
            let n = e.b.ins().splat(I32X4, n);
            let n = e.b.ins().fcvt_from_sint(F32X4, n);
            e.b.ins().fdiv(total, n)
        }
        Reduction::Max => max(e, n, element),
        Reduction::Min => {
            let negated = max(e, n, &mut |e, i, lanes| {
                let x = element(e, i, lanes);
                e.b.ins().fneg(x)
            });
            e.b.ins().fneg(negated)
        }
        Reduction::Prod => product(e, n, element),
        Reduction::Argmax => argmax(e, n, element),
    }
}

/// Loads elements `i..i + lanes` (4, or 1 into every lane).
pub(super) type Element<'a> = dyn FnMut(&mut Emitter<'_>, Value, usize) -> Value + 'a;

/// Keeps lane 0 of a one-element load and puts `other` in the rest.
fn first_lane(e: &mut Emitter<'_>, value: Value, other: f32) -> Value {
    let first = e.lane0(value);
    let rest = e.splat(other);
    e.b.ins().insertlane(rest, first, 0u8)
}

/// The sum in every lane: four partial sums of whole fours, the tail into the first.
pub(super) fn sum(e: &mut Emitter<'_>, n: Value, element: &mut Element<'_>) -> Value {
    let zero = e.splat(0.0);
    let sums = e.for_lanes(n, &[zero], |e, i, lanes, s| {
        let x = element(e, i, lanes);
        let x = if lanes == 4 { x } else { first_lane(e, x, 0.0) };
        vec![e.b.ins().fadd(s[0], x)]
    });
    let total = e.sum_lanes(sums[0]);
    e.b.ins().splat(F32X4, total)
}

/// The product in every lane: four partial products of whole fours, the tail into the first.
pub(super) fn product(e: &mut Emitter<'_>, n: Value, element: &mut Element<'_>) -> Value {
    let one = e.splat(1.0);
    let products = e.for_lanes(n, &[one], |e, i, lanes, s| {
        let x = element(e, i, lanes);
        let x = if lanes == 4 { x } else { first_lane(e, x, 1.0) };
        vec![e.b.ins().fmul(s[0], x)]
    });
    let mut all = e.lane0(products[0]);
    for lane in 1..4u8 {
        let next = e.b.ins().extractlane(products[0], lane);
        all = e.b.ins().fmul(all, next);
    }
    e.b.ins().splat(F32X4, all)
}

/// The largest in every lane; -inf of none.
pub(super) fn max(e: &mut Emitter<'_>, n: Value, element: &mut Element<'_>) -> Value {
    let lowest = e.splat(f32::NEG_INFINITY);
    let best = e.for_lanes(n, &[lowest], |e, i, lanes, s| {
        let x = element(e, i, lanes);
        vec![e.fmax(x, s[0])]
    });
    let best = e.max_lanes(best[0]);
    e.b.ins().splat(F32X4, best)
}

/// Index of the first of the largest, in every lane of I32X4.
fn argmax(e: &mut Emitter<'_>, n: Value, element: &mut Element<'_>) -> Value {
    let best = max(e, n, element);
    // The first index that holds it. Rows of NaN alone hold none: index 0.
    let none = e.splat_int(i32::MAX);
    let numbers = math::lane_numbers(e);
    let found = e.for_lanes(n, &[none], |e, i, lanes, s| {
        let x = element(e, i, lanes);
        let equal = e.b.ins().fcmp(FloatCC::Equal, x, best);
        let start = e.b.ins().ireduce(I32, i);
        let start = e.b.ins().splat(I32X4, start);
        let index = if lanes == 4 { e.b.ins().iadd(start, numbers) } else { start };
        let candidate = e.b.ins().bitselect(equal, index, none);
        vec![e.b.ins().smin(candidate, s[0])]
    });
    let mut first = e.b.ins().extractlane(found[0], 0u8);
    for lane in 1..4 {
        let other = e.b.ins().extractlane(found[0], lane as u8);
        first = e.b.ins().smin(first, other);
    }
    let missing = e.b.ins().icmp_imm_s(IntCC::Equal, first, i64::from(i32::MAX));
    let zero = e.b.ins().iconst(I32, 0);
    let first = e.b.ins().select(missing, zero, first);
    e.b.ins().splat(I32X4, first)
}
