//! What becomes of attention whose keys went in parts: the parts' sums over their denominators', in the order of keys.
//!
//! A part's results of a head are a row of unnormalised sums (head_dim, rounded up to 16), then four partial
//! denominators, then its maximum in four lanes. How a row's keys are cut depends on how many it sees and on nothing
//! else.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};

use super::super::softmax::key_range;
use super::{divide, fill};
use crate::emit::Emitter;
use crate::kernel::{Kernel, Maximum};
use crate::math;

/// A part has at least this many keys, lest merging costs more than it saves.
pub(super) const PART: usize = 256;

/// The most parts of a row's keys.
pub(super) const MOST_PARTS: usize = 16;

/// What a part's maximum over no key is.
pub(super) const LOWEST: f32 = -1e30;

/// Where a part's denominators lie, and its maximum, in elements from its sums; and the width of it all.
pub(super) fn layout(head_dim: usize) -> (usize, usize, usize) {
    let row = head_dim.next_multiple_of(16);
    (row, row + 4, row + 16)
}

/// Keys of a part when `total` are seen: whole blocks of 64.
pub(super) fn part_length(e: &mut Emitter<'_>, total: Value, parts: usize) -> Value {
    let each = e.offset(total, parts as i64 - 1);
    let parts = e.i64(parts as i64);
    let each = e.b.ins().udiv(each, parts);
    let each = e.offset(each, 63);
    let each = e.b.ins().band_imm_s(each, !63);
    let least = e.i64(PART as i64);
    e.b.ins().smax(each, least)
}

/// Emits the kernel; a tile is a head's row.
pub(in super::super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, window: Option<usize>, maximum: Maximum) {
    let [held, pos] = &kernel.inputs[..] else { unreachable!("parts and positions") };
    let output = &kernel.outputs[0];
    let dims = output.dims();
    let (Dim::Fixed(head_dim), Dim::Fixed(parts)) = (dims[2], held.axes[2].dim) else {
        unreachable!("heads' rows and parts are of fixed numbers")
    };
    let (denominator_at, maximum_at, _) = layout(head_dim);
    let sums = e.take_scratch(head_dim.next_multiple_of(16) * 4);
    e.for_tiles(|e, tile| {
        let indices = e.unravel(tile, &dims[..2]);
        let (head, row) = (indices[0], indices[1]);
        let from = e.base(held);
        let from = e.at(held, from, &[(0, row), (1, head)]);
        let keys = e.keys();
        let (low, high) = key_range(e, pos, window, row, keys);
        let zero = e.i64(0);
        let total = e.b.ins().isub(high, low);
        let total = e.b.ins().smax(total, zero);
        let length = part_length(e, total, parts);
        let up = e.b.ins().iadd(total, length);
        let up = e.offset(up, -1);
        let count = e.b.ins().udiv(up, length);
        let part = |e: &mut Emitter<'_>, index: Value| e.step(held, 2, from, index);
        let (none, lowest) = (e.splat(0.0), e.splat(LOWEST));
        let highest = match maximum {
            Maximum::Bounded => lowest,
            Maximum::Online => e.for_range(zero, count, 1, &[lowest], |e, p, state| {
                let at = part(e, p);
                let highest = e.load(DType::F32, at, maximum_at as i64 * 4, 4);
                vec![e.fmax(highest, state[0])]
            })[0],
        };
        let row_length = e.i64(head_dim.next_multiple_of(16) as i64);
        let address = |e: &mut Emitter<'_>, base: Value, i: Value| {
            let at = e.scale(i, 4);
            e.b.ins().iadd(base, at)
        };
        fill(e, sums, head_dim.next_multiple_of(16), 0.0);
        let denominator = e.for_range(zero, count, 1, &[none], |e, p, state| {
            let at = part(e, p);
            let denominator = e.load(DType::F32, at, denominator_at as i64 * 4, 4);
            let rescale = match maximum {
                Maximum::Bounded => None,
                Maximum::Online => {
                    let own = e.load(DType::F32, at, maximum_at as i64 * 4, 4);
                    let shift = e.b.ins().fsub(own, highest);
                    Some(math::exp(e, shift))
                }
            };
            let scaled = |e: &mut Emitter<'_>, x: Value| match rescale {
                Some(rescale) => e.b.ins().fmul(x, rescale),
                None => x,
            };
            e.for_range(zero, row_length, 4, &[], |e, i, _| {
                let (at, to) = (address(e, at, i), address(e, sums, i));
                let own = e.load(DType::F32, at, 0, 4);
                let own = scaled(e, own);
                let sum = e.load(DType::F32, to, 0, 4);
                let sum = e.b.ins().fadd(sum, own);
                e.store(DType::F32, sum, to, 0, 4);
                vec![]
            });
            let denominator = scaled(e, denominator);
            vec![e.b.ins().fadd(state[0], denominator)]
        })[0];
        let out = e.base(output);
        let out = e.at(output, out, &[(0, head), (1, row)]);
        divide(e, sums, head_dim, denominator, (output, out));
    });
}

/// The keys of part `index` of a row that sees `low..high`; none past the last part.
pub(super) fn part_range(
    e: &mut Emitter<'_>,
    index: Value,
    (low, high): (Value, Value),
    parts: usize,
) -> (Value, Value) {
    let total = e.b.ins().isub(high, low);
    let length = part_length(e, total, parts);
    let skipped = e.b.ins().imul(index, length);
    let start = e.b.ins().iadd(low, skipped);
    let end = e.b.ins().iadd(start, length);
    let end = e.min(end, high);
    let empty = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, start, high);
    (e.b.ins().select(empty, high, start), e.b.ins().select(empty, high, end))
}
