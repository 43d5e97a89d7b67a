//! Appends the call's rows to a cache, rounded to its dtype: row t becomes key S - T + t.
//!
//! To a cache of 8 bits a block of 32 elements goes as quants and a scale: the largest magnitude over 127, rounded to
//! bf16.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType, Dim};

use super::elementwise::{load_along_row, store_along_row};
use super::round::largest_of_block;
use crate::emit::{Emitter, Features};
use crate::kernel::Kernel;
use crate::micro::{self, Microkernel, Raw, Widen};
use crate::view::View;

/// The raw code that rounds a row, if there is some.
fn rounding(kernel: &Kernel, features: &Features) -> Option<(&'static Microkernel, Raw)> {
    let (rows, cache) = (&kernel.inputs[0], &kernel.outputs[0]);
    let whole = rows.dims().last().is_some_and(|n| matches!(n, Dim::Fixed(n) if n.is_multiple_of(BLOCK)));
    let (from, to) = (rows.dtype, cache.dtype);
    let suits = features.unit(to) == to && (from, to) == (DType::F32, DType::BF16);
    let side_by_side = rows.inner_stride() == 1 && cache.inner_stride() == 1;
    let widen = Widen { from, to, fetches: false };
    let micro = micro::widening(features, widen).filter(|_| suits && side_by_side && whole)?;
    Some((micro, Raw::Widen(widen)))
}

/// The raw code that the kernel calls.
pub(super) fn raw_code(kernel: &Kernel, features: &Features) -> Vec<(&'static Microkernel, Raw)> {
    rounding(kernel, features).into_iter().collect()
}

/// Emits the kernel; a tile is a head's row.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel) {
    let (rows, cache) = (&kernel.inputs[0], &kernel.outputs[0]);
    let dims = rows.dims();
    let rounding = rounding(kernel, &e.features);
    e.for_tiles(|e, tile| {
        let indices = e.unravel(tile, &dims[..2]);
        let (head, t) = (indices[0], indices[1]);
        let row = e.base(rows);
        let row = e.at(rows, row, &[(0, head), (1, t)]);
        let (keys, count) = (e.keys(), e.rows());
        let first = e.b.ins().isub(keys, count);
        let key = e.b.ins().iadd(first, t);
        let out = e.base(cache);
        let out = e.at(cache, out, &[(0, head), (1, key)]);
        if cache.dtype == DType::Q8 {
            let Dim::Fixed(k) = dims[2] else { unreachable!("a cache's rows have fixed lengths") };
            round_row(e, rows, row, k, out);
            return;
        }
        let n = e.length(dims[2]);
        if let Some((_, raw)) = rounding {
            let blocks = e.b.ins().ushr_imm_u(n, i64::from(BLOCK.trailing_zeros()));
            return e.call_raw(raw, &[row, row, out, blocks]);
        }
        e.for_lanes(n, &[], |e, i, lanes, _| {
            let value = load_along_row(e, rows, Some(row), i, lanes);
            store_along_row(e, cache, value, out, i, lanes);
            vec![]
        });
    });
}

/// A row of `k` elements to a quantised row: the quants, then the blocks' scales.
fn round_row(e: &mut Emitter<'_>, rows: &View, row: Value, k: usize, out: Value) {
    let (zero, blocks) = (e.i64(0), e.i64((k / BLOCK) as i64));
    let scales = e.offset(out, k as i64);
    e.for_range(zero, blocks, 1, &[], |e, block, _| {
        let first = e.scale(block, BLOCK as i64);
        let values: [Value; BLOCK / 4] = std::array::from_fn(|v| {
            let i = e.offset(first, 4 * v as i64);
            load_along_row(e, rows, Some(row), i, 4)
        });
        let none = e.splat(0.0);
        let largest = largest_of_block(e, &values);
        let top = e.splat(127.0);
        let scale = e.b.ins().fdiv(largest, top);
        let at = e.scale(block, 2);
        let at = e.b.ins().iadd(scales, at);
        e.store(DType::BF16, scale, at, 0, 1);
        let scale = e.load(DType::BF16, at, 0, 1);
        let some = e.b.ins().fcmp(FloatCC::GreaterThan, scale, none);
        let lowest = e.splat(-127.0);
        let quants = values.map(|v| {
            let v = e.b.ins().fdiv(v, scale);
            let v = e.fmax(v, lowest);
            let v = e.choose(some, v, none);
            e.round_to_int(v)
        });
        let to = e.b.ins().iadd(out, first);
        for (half, quants) in (0..).zip(e.narrow_int8(&quants)) {
            e.store_int(quants, to, half * 16, 4);
        }
        vec![]
    });
}
