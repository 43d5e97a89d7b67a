//! Linear kernels over few rows, with weight rows in lanes: rows of x rounded to the operands' type against some weight
//! rows at a time, as these lie.
//!
//! A matrix' last rows, where they do not fill the lanes, are taken with those before them, whose results are not used;
//! a matrix of fewer rows than lanes is gathered in scratch first, its last row as often as need be. So are rows of
//! another type than is read, each brought into that.

use cranelift_codegen::ir::types::I16;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use lapidary_ir::DType;

use super::hold::{hold_row, widened_row};
use super::linear::{Job, Operand, fixed, most_rows};
use crate::emit::{Emitter, Features};
use crate::kernel::Linear;
use crate::micro::{self, FEW_ROWS, Lanes, Microkernel, Raw};
use crate::view::View;

/// Bytes of a row of results: those of lanes that are not used, then a block's.
pub(super) fn row_bytes(micro: &Microkernel) -> usize {
    (MARGIN + micro.block_rows()) * 4
}

/// Results before a block's first one.
pub(super) const MARGIN: usize = 16;

/// The code for a weight: `micro` multiplies, in blocks of `of`.
pub(super) fn raw_lanes(
    weight: &View,
    micro: &Microkernel,
    of: &Microkernel,
    rows: usize,
    features: &Features,
) -> Raw {
    let k = fixed(weight, 1);
    let held = is_held(weight, micro);
    Raw::Lanes(Lanes {
        dtype: if held { micro.operands } else { weight.dtype },
        k,
        rows: micro.lane_rows(rows),
        weight_stride: if held { widened_row(k) } else { weight.dtype.row_bytes(k) } as i32,
        c_stride: row_bytes(of) as i32,
        sums: micro.sums(),
        streams: features.streams(),
    })
}

/// The most rows that weight rows in lanes meet in calls of so many: all, or as many as are few.
pub(super) fn most_in_lanes(few: Option<&'static Microkernel>, rows: usize) -> usize {
    if few.is_some() { rows.min(FEW_ROWS) } else { rows }
}

/// Whether rows are brought into another type first.
fn is_held(weight: &View, micro: &Microkernel) -> bool {
    micro.operands == DType::BF16 && weight.dtype != micro.operands
}

/// Weight rows in lanes.
fn lanes(micro: &Microkernel) -> usize {
    micro.shapes[0].1
}

/// Bytes of scratch where weight rows are gathered, if a weight's are.
pub(super) fn gathered_bytes(linear: &Linear, weights: &[View]) -> Option<usize> {
    let micro = [Some(linear.micro), linear.few].into_iter().flatten().find(|m| m.has_lanes())?;
    let row = |w: &View| match is_held(w, micro) {
        true => Some(widened_row(fixed(w, 1))),
        false => (fixed(w, 0) < lanes(micro)).then(|| w.dtype.row_bytes(fixed(w, 1))),
    };
    Some(lanes(micro) * weights.iter().filter_map(row).max()?)
}

impl Job<'_> {
    /// Dot products of `width` weight rows from `first` with the tile's rows of x, for each of its weights; then the
    /// epilogue.
    pub(super) fn lane_block(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        first: Value,
        width: Value,
        micro: &Microkernel,
    ) {
        let of = self.linear.micro;
        let x = match self.x {
            Operand::Lanes { rounded: Some(scratch), .. } => scratch,
            Operand::Lanes { rounded: None, .. } | Operand::Rows { .. } | Operand::Packed { .. } => {
                e.base(&self.kernel.inputs[0])
            }
        };
        let (begin, end) = self.span(e);
        let zero = e.i64(0);
        for (weight, &c) in weights.iter().zip(&self.results) {
            let most = most_in_lanes(self.linear.few, most_rows(self.kernel));
            let raw = raw_lanes(weight, micro, of, most, &e.features);
            e.for_range(zero, width, lanes(micro) as i64, &[], |e, n, _| {
                let row = e.b.ins().iadd(first, n);
                let (weights, back) = self.lanes_from(e, weight, row, micro);
                let column = e.b.ins().isub(n, back);
                let at = e.scale(column, 4);
                let at = e.offset(at, MARGIN as i64 * 4);
                let c = e.b.ins().iadd(c, at);
                // They stay in the second cache beside these weight rows.
                e.for_range(begin, end, micro.mr as i64, &[], |e, t, _| {
                    let at = e.scale(t, micro::lane_row_bytes(micro.operands, self.k) as i64);
                    let x = e.b.ins().iadd(x, at);
                    let at = e.b.ins().isub(t, begin);
                    let at = e.scale(at, row_bytes(of) as i64);
                    let c = e.b.ins().iadd(c, at);
                    let left = e.b.ins().isub(end, t);
                    let most = e.i64(micro.mr as i64);
                    let count = e.min(left, most);
                    e.call_raw(raw, &[x, weights, c, count]);
                    vec![]
                });
                vec![]
            });
        }
        self.row_epilogue(e, first, width, (row_bytes(of) as i64, MARGIN as i64 * 4));
    }

    /// The address of as many weight rows as lanes, and how many of them come before `row`.
    fn lanes_from(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        row: Value,
        micro: &Microkernel,
    ) -> (Value, Value) {
        let (n, lanes) = (fixed(weight, 0) as i64, lanes(micro) as i64);
        let base = e.base(weight);
        match self.gathered {
            Some(to) if is_held(weight, micro) => {
                let (zero, all, k) = (e.i64(0), e.i64(lanes), e.i64(self.k as i64));
                e.for_range(zero, all, 1, &[], |e, i, _| {
                    let last = e.i64(n - 1);
                    let row = e.b.ins().iadd(row, i);
                    let row = e.min(row, last);
                    let from = e.step(weight, 0, base, row);
                    let at = e.scale(i, widened_row(self.k) as i64);
                    let to = e.b.ins().iadd(to, at);
                    hold_row(e, weight, from, (zero, k), to, (micro, true));
                    vec![]
                });
                (to, zero)
            }
            Some(to) if n < lanes => {
                gather(e, weight, base, to, lanes);
                (to, e.i64(0))
            }
            Some(_) | None => {
                let last = e.i64(n - lanes);
                let from = e.min(row, last);
                let back = e.b.ins().isub(row, from);
                (e.step(weight, 0, base, from), back)
            }
        }
    }
}

/// Copies a matrix of fewer rows than lanes, its last row until there are as many.
fn gather(e: &mut Emitter<'_>, weight: &View, base: Value, to: Value, lanes: i64) {
    let bytes = weight.dtype.row_bytes(fixed(weight, 1)) as i64;
    let (zero, end, all) = (e.i64(0), e.i64(bytes), e.i64(lanes));
    e.for_range(zero, all, 1, &[], |e, n, _| {
        let last = e.i64(fixed(weight, 0) as i64 - 1);
        let row = e.min(n, last);
        let at = e.scale(row, bytes);
        let from = e.b.ins().iadd(base, at);
        let at = e.scale(n, bytes);
        let to = e.b.ins().iadd(to, at);
        // A row of blocks has an even length.
        e.for_range(zero, end, 2, &[], |e, i, _| {
            let flags = MemFlagsData::new().with_notrap();
            let from = e.b.ins().iadd(from, i);
            let word = e.b.ins().load(I16, flags, from, 0);
            let to = e.b.ins().iadd(to, i);
            e.b.ins().store(flags, word, to, 0);
            vec![]
        });
        vec![]
    });
}
