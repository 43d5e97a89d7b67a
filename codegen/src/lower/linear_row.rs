//! Linear kernels over one row of x, rounded to 8 bits: a block of weight rows is four runs, of which one row each is
//! met at a time. Memory serves four streams in the order of their bytes, far from each other, better than rows side by
//! side.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};

use super::linear::{Job, Operand, fixed};
use super::linear_lanes::{MARGIN, row_bytes};
use super::round::LaneRows;
use crate::emit::{Emitter, Features};
use crate::kernel::Linear;
use crate::micro::{Raw, Row, RowUnit};
use crate::view::View;

/// Runs of a block.
const RUNS: i64 = 4;
/// Blocks of the tile space that are taken together, if there are so many: runs of 64 rows.
const AT_ONCE: usize = 16;

/// Whether a kernel of calls of up to `rows` rows takes its weights so.
pub(super) fn is_alone(linear: &Linear, weights: &[View], rows: usize, features: &Features) -> bool {
    // Where one stream is nearly as good, weights in lanes make more of bits that lie one by one.
    let by_bits = |w: &View| w.dtype.format().is_some_and(|f| f.quants.bits.iter().any(|bits| bits.run == 1));
    let suits = |w: &View| features.streams() > 1 || !by_bits(w);
    let fits = |w: &View| fixed(w, 0) >= linear.micro.block_rows() && suits(w);
    rows == 1 && features.far_rows() && linear.micro.has_row() && weights.iter().all(fits)
}

/// Blocks that are taken together.
pub(super) fn at_once(weights: &[View], linear: &Linear) -> usize {
    let most = weights.iter().map(|w| fixed(w, 0)).max().unwrap_or(1);
    most.div_ceil(linear.micro.block_rows()).min(AT_ONCE)
}

/// Bytes of a block's results: those of rows that are not used, then the others.
pub(super) fn results_bytes(weights: &[View], linear: &Linear) -> usize {
    (MARGIN + at_once(weights, linear) * linear.micro.block_rows()) * 4
}

/// How x lies for the weights, each way once: weights of one kernel may be in several formats.
pub(super) fn layouts(weights: &[View]) -> Vec<[usize; 3]> {
    let mut layouts: Vec<_> = weights.iter().map(|w| RowUnit::quants(w.dtype)).collect();
    layouts.sort_unstable();
    layouts.dedup();
    layouts
}

/// Bytes of x, rounded, in every way that it lies.
pub(super) fn rounded_bytes(k: usize, weights: &[View]) -> usize {
    layouts(weights).len() * RowUnit::row_bytes(k)
}

/// The code for a weight.
pub(super) fn raw_row(weight: &View) -> Raw {
    Raw::Row(Row { dtype: weight.dtype, k: fixed(weight, 1) })
}

impl Job<'_> {
    /// Rounds the row of x, in every way that it lies, to `to`.
    pub(super) fn round_alone(&self, e: &mut Emitter<'_>, x: Value, to: Value) {
        let one = e.i64(1);
        for (layout, i) in layouts(self.linear.weights(&self.kernel.inputs)).into_iter().zip(0..) {
            let to = e.offset(to, i * RowUnit::row_bytes(self.k) as i64);
            let of = LaneRows { k: self.k, micro: self.linear.micro, most: 1, alone: Some(layout) };
            of.round(e, (x, 0), one, to);
        }
    }

    /// Dot products of `width` weight rows from `first` with the row of x, for each of the tile's weights; then the
    /// epilogue.
    pub(super) fn row_block(&self, e: &mut Emitter<'_>, weights: &[View], first: Value, width: Value) {
        let Operand::Lanes { rounded: Some(rounded), .. } = self.x else {
            unreachable!("a kernel of one row of x rounds it itself")
        };
        let layouts = layouts(self.linear.weights(&self.kernel.inputs));
        for (weight, &c) in weights.iter().zip(&self.results) {
            let raw = raw_row(weight);
            let layout = RowUnit::quants(weight.dtype);
            let before = layouts.iter().take_while(|&&other| other != layout).count();
            let x = e.offset(rounded, (before * RowUnit::row_bytes(self.k)) as i64);
            let base = e.base(weight);
            let each = e.b.ins().ushr_imm_u(width, i64::from(RUNS.trailing_zeros()));
            let some = e.b.ins().icmp_imm_u(IntCC::NotEqual, each, 0);
            let results = e.offset(c, MARGIN as i64 * 4);
            e.when(some, |e| {
                let rows = e.step(weight, 0, base, first);
                e.call_raw(raw, &[x, rows, results, each]);
            });
            // What is left over is taken with rows before it.
            let rest = e.b.ins().band_imm_u(width, RUNS - 1);
            let some = e.b.ins().icmp_imm_u(IntCC::NotEqual, rest, 0);
            e.when(some, |e| {
                let before = e.offset(width, -RUNS);
                let row = e.b.ins().iadd(first, before);
                let rows = e.step(weight, 0, base, row);
                let at = e.scale(before, 4);
                let results = e.b.ins().iadd(results, at);
                let one = e.i64(1);
                e.call_raw(raw, &[x, rows, results, one]);
            });
        }
        self.row_epilogue(e, first, width, (row_bytes(self.linear.micro) as i64, MARGIN as i64 * 4));
    }
}
