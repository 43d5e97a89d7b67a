//! Attention for few rows, where the CPU has raw dot products: a stream over the cache.
//!
//! A tile is a KV head, a part of the keys where there are many, and some rows, one after the other. Keys go in blocks
//! from the first visible one, of a ring in two contiguous runs. Scores are dot products of a query with rows of keys
//! as they lie; softcap and exp run along keys; the values' weighted sum is a tile product whose columns are the head's
//! elements and whose rows are the query heads of the group, so that a block of keys and values is read once for all of
//! them: straight from the cache where values are whole blocks of 32, else widened first. Parts' sums are put together
//! by [`super::merge`].

mod raw;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::super::elementwise::load_along_row;
use super::super::lanes::lane0_mask;
use super::merge::{self, LOWEST};
use super::{Attention, divide, fill, stored_row};
use crate::emit::Emitter;
use crate::kernel::Maximum;
use crate::math;
use crate::micro::{DOT_ROWS, Microkernel, Mix, Raw};
use raw::{Part, dot, mixes, parts, row_of, scorings};
pub(super) use raw::{micros, raw_code};

/// Keys of a block.
const BLOCK: usize = 64;

/// How values are weighted and summed.
enum Weighting {
    /// As they lie: the first head and the sum.
    InPlace(Vec<(usize, Mix)>),
    /// Widened to scratch f32 (BLOCK, row), then by tiles.
    Widened { values: Value, parts: Vec<Part> },
}

struct Rows<'a> {
    op: Attention<'a>,
    weighting: Weighting,
    /// Scratch: scores f32 (heads, BLOCK).
    scores: Value,
    /// Scratch: unnormalised outputs f32 (heads, row).
    sums: Value,
    /// Scratch, four lanes a head: denominators (to be added up) and maxima (all the same).
    denominators: Value,
    maxima: Value,
}

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, op: Attention<'_>, sums: &'static Microkernel) {
    let Attention { head_dim, repeat, .. } = op;
    let row = row_of(head_dim) * 4;
    let weighting = match mixes(op.v, repeat, &e.features) {
        Some((_, mixes)) => Weighting::InPlace(mixes),
        None => {
            Weighting::Widened { values: e.take_scratch(BLOCK * row), parts: parts(sums, repeat, head_dim) }
        }
    };
    let a = Rows {
        op,
        weighting,
        scores: e.take_scratch(repeat * BLOCK * 4),
        sums: e.take_scratch(repeat * row),
        denominators: e.take_scratch(repeat * 16),
        maxima: e.take_scratch(repeat * 16),
    };
    op.for_rows(e, |e, at| match at.part {
        None => a.row(e, (at.group, at.row, None), at.keys),
        Some(part) => {
            let (low, high) = merge::part_range(e, part, at.keys, op.parts);
            let some = e.b.ins().icmp(IntCC::SignedLessThan, low, high);
            e.when(some, |e| a.row(e, (at.group, at.row, Some(part)), (low, high)));
        }
    });
}

impl Rows<'_> {
    /// One row of the group's query heads over keys `low..high`: all that it sees, or a part.
    fn row(
        &self,
        e: &mut Emitter<'_>,
        (group, row, part): (Value, Value, Option<Value>),
        (low, high): (Value, Value),
    ) {
        let op = &self.op;
        let first_head = e.scale(group, op.repeat as i64);
        fill(e, self.sums, op.repeat * row_of(op.head_dim), 0.0);
        fill(e, self.denominators, op.repeat * 4, 0.0);
        fill(e, self.maxima, op.repeat * 4, LOWEST);
        let q = e.base(op.q);
        let q = e.at(op.q, q, &[(0, first_head), (1, row)]);
        let (k, v) = op.cached(e, group);
        let total = e.b.ins().isub(high, low);
        let (zero, runs) = (e.i64(0), e.i64(op.runs()));
        e.for_range(zero, runs, 1, &[], |e, run, _| {
            let (start, length) = op.run(e, run, low, total);
            e.for_range(zero, length, BLOCK as i64, &[], |e, from, _| {
                let left = e.b.ins().isub(length, from);
                let count = e.i64(BLOCK as i64);
                let count = e.min(left, count);
                let at = e.b.ins().iadd(start, from);
                let k = stored_row(e, op.k, k, at);
                let v = stored_row(e, op.v, v, at);
                self.score(e, q, k, v, count);
                self.soften(e, count);
                self.add(e, k, v, count);
                vec![]
            });
            vec![]
        });
        let heads = e.i64(op.repeat as i64);
        e.for_range(zero, heads, 1, &[], |e, h, _| {
            let head = e.b.ins().iadd(first_head, h);
            match part {
                None => self.store(e, h, head, row),
                Some(part) => self.store_part(e, h, (head, row, part)),
            }
            vec![]
        });
    }

    /// Products of every head's query with the block's keys.
    fn score(&self, e: &mut Emitter<'_>, q: Value, k: Value, v: Value, count: Value) {
        let (zero, mask) = (e.i64(0), e.i64(!(DOT_ROWS as i64 - 1)));
        let whole = e.b.ins().band(count, mask);
        let heads = e.i64(self.op.repeat as i64);
        for (from, to, rows) in [(zero, whole, DOT_ROWS), (whole, count, 1)] {
            e.for_range(from, to, rows as i64, &[], |e, j, _| {
                let keys = stored_row(e, self.op.k, k, j);
                let at = e.scale(j, 4);
                let c = e.b.ins().iadd(self.scores, at);
                if let Some((_, scorings)) = scorings(self.op.q, self.op.k, rows, &e.features) {
                    let values = stored_row(e, self.op.v, v, j);
                    for (head, scores) in scorings {
                        let q = e.offset(q, head as i64 * self.op.q.step_bytes(0));
                        let c = e.offset(c, (head * BLOCK) as i64 * 4);
                        e.call_raw(Raw::Scores(scores), &[q, keys, c, values]);
                    }
                    return vec![];
                }
                // The keys stay in the first cache from head to head.
                e.for_range(zero, heads, 1, &[], |e, h, _| {
                    let q = e.step(self.op.q, 0, q, h);
                    let at = e.scale(h, BLOCK as i64 * 4);
                    let c = e.b.ins().iadd(c, at);
                    e.call_raw(dot(self.op.k, rows), &[q, keys, c]);
                    vec![]
                });
                vec![]
            });
        }
    }

    /// Scores to shares, in place: scale, softcap, exp; denominators grow by them.
    fn soften(&self, e: &mut Emitter<'_>, count: Value) {
        let (zero, heads) = (e.i64(0), e.i64(self.op.repeat as i64));
        let first_only = lane0_mask(e);
        e.for_range(zero, heads, 1, &[], |e, h, _| {
            let at = e.scale(h, BLOCK as i64 * 4);
            let scores = e.b.ins().iadd(self.scores, at);
            let at = e.scale(h, 16);
            let denominator_at = e.b.ins().iadd(self.denominators, at);
            let maximum_at = e.b.ins().iadd(self.maxima, at);
            let address = |e: &mut Emitter<'_>, j: Value| {
                let at = e.scale(j, 4);
                e.b.ins().iadd(scores, at)
            };
            let score = |e: &mut Emitter<'_>, at: Value, lanes: usize| {
                let products = e.load(DType::F32, at, 0, lanes);
                self.op.score(e, products)
            };
            let counted = |e: &mut Emitter<'_>, share: Value, lanes: usize| {
                if lanes == 4 { share } else { e.b.ins().band(share, first_only) }
            };
            let denominator = e.load(DType::F32, denominator_at, 0, 4);
            let denominator = match self.op.maximum {
                Maximum::Bounded => e.for_lanes(count, &[denominator], |e, j, lanes, state| {
                    let at = address(e, j);
                    let score = score(e, at, lanes);
                    let share = math::exp_bounded(e, score);
                    e.store(DType::F32, share, at, 0, lanes);
                    let counted = counted(e, share, lanes);
                    vec![e.b.ins().fadd(state[0], counted)]
                })[0],
                Maximum::Online => {
                    let before = e.load(DType::F32, maximum_at, 0, 4);
                    let highest = e.for_lanes(count, &[before], |e, j, lanes, state| {
                        let at = address(e, j);
                        let score = score(e, at, lanes);
                        e.store(DType::F32, score, at, 0, lanes);
                        vec![e.fmax(score, state[0])]
                    })[0];
                    let highest = e.max_lanes(highest);
                    let highest = e.b.ins().splat(F32X4, highest);
                    e.store(DType::F32, highest, maximum_at, 0, 4);
                    let shift = e.b.ins().fsub(before, highest);
                    let rescale = math::exp_below(e, shift);
                    self.rescale(e, h, rescale);
                    let denominator = e.b.ins().fmul(denominator, rescale);
                    e.for_lanes(count, &[denominator], |e, j, lanes, state| {
                        let at = address(e, j);
                        let score = e.load(DType::F32, at, 0, lanes);
                        let shifted = e.b.ins().fsub(score, highest);
                        let share = math::exp_below(e, shifted);
                        e.store(DType::F32, share, at, 0, lanes);
                        let counted = counted(e, share, lanes);
                        vec![e.b.ins().fadd(state[0], counted)]
                    })[0]
                }
            };
            e.store(DType::F32, denominator, denominator_at, 0, 4);
            vec![]
        });
    }

    /// A head's sums so far, to a new maximum.
    fn rescale(&self, e: &mut Emitter<'_>, head: Value, rescale: Value) {
        let width = row_of(self.op.head_dim) as i64;
        let at = e.scale(head, width * 4);
        let sums = e.b.ins().iadd(self.sums, at);
        let (zero, n) = (e.i64(0), e.i64(width));
        e.for_range(zero, n, 4, &[], |e, i, _| {
            let at = e.scale(i, 4);
            let at = e.b.ins().iadd(sums, at);
            let sum = e.load(DType::F32, at, 0, 4);
            let sum = e.b.ins().fmul(sum, rescale);
            e.store(DType::F32, sum, at, 0, 4);
            vec![]
        });
    }

    /// The block's values to f32 rows. What lies beyond the last element is never looked at.
    fn widen(&self, e: &mut Emitter<'_>, v: Value, count: Value, values: Value) {
        let (zero, n) = (e.i64(0), e.i64(self.op.head_dim as i64));
        e.for_range(zero, count, 1, &[], |e, j, _| {
            let row = stored_row(e, self.op.v, v, j);
            let at = e.scale(j, row_of(self.op.head_dim) as i64 * 4);
            let to = e.b.ins().iadd(values, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let value = load_along_row(e, self.op.v, Some(row), i, lanes);
                let at = e.scale(i, 4);
                let to = e.b.ins().iadd(to, at);
                e.store(DType::F32, value, to, 0, lanes);
                vec![]
            });
            vec![]
        });
    }

    /// Adds the block's values, times their shares, to every head's sums.
    fn add(&self, e: &mut Emitter<'_>, k: Value, v: Value, count: Value) {
        let row = row_of(self.op.head_dim) as i64;
        let of_head = |e: &mut Emitter<'_>, head: usize, column: usize| {
            let shares = e.offset(self.scores, (head * BLOCK) as i64 * 4);
            (shares, e.offset(self.sums, (head as i64 * row + column as i64) * 4))
        };
        match &self.weighting {
            Weighting::InPlace(mixes) => {
                let next = e.offset(k, BLOCK as i64 * self.op.k.step_bytes(1));
                for &(head, mix) in mixes {
                    let (shares, c) = of_head(e, head, mix.column);
                    // Each sum fetches its part of the next block's keys.
                    let next = e.offset(next, (BLOCK * mix.dtype.row_bytes(mix.column)) as i64);
                    e.call_raw(Raw::Mix(mix), &[v, shares, c, count, next]);
                }
            }
            Weighting::Widened { values, parts } => {
                self.widen(e, v, count, *values);
                let one = e.i64(1);
                for part in parts {
                    let x = e.offset(*values, part.column as i64 * 4);
                    let (shares, c) = of_head(e, part.head, part.column);
                    e.call_raw(Raw::Tile(part.tile), &[x, shares, c, count, one]);
                }
            }
        }
    }

    /// A part's sums, denominators and maximum of one head to where they are merged.
    fn store_part(&self, e: &mut Emitter<'_>, h: Value, (head, row, part): (Value, Value, Value)) {
        let (denominator_at, maximum_at, _) = merge::layout(self.op.head_dim);
        let out = e.base(self.op.output);
        let out = e.at(self.op.output, out, &[(0, row), (1, head), (2, part)]);
        let at = e.scale(h, row_of(self.op.head_dim) as i64 * 4);
        let sums = e.b.ins().iadd(self.sums, at);
        let (zero, n) = (e.i64(0), e.i64(row_of(self.op.head_dim) as i64));
        e.for_range(zero, n, 4, &[], |e, i, _| {
            let at = e.scale(i, 4);
            let (from, to) = (e.b.ins().iadd(sums, at), e.b.ins().iadd(out, at));
            let sum = e.load(DType::F32, from, 0, 4);
            e.store(DType::F32, sum, to, 0, 4);
            vec![]
        });
        let at = e.scale(h, 16);
        for (array, to) in [(self.denominators, denominator_at), (self.maxima, maximum_at)] {
            let from = e.b.ins().iadd(array, at);
            let value = e.load(DType::F32, from, 0, 4);
            e.store(DType::F32, value, out, to as i64 * 4, 4);
        }
    }

    /// Sums over the denominator to the output.
    fn store(&self, e: &mut Emitter<'_>, h: Value, head: Value, row: Value) {
        let op = &self.op;
        let at = e.scale(h, 16);
        let denominator = e.b.ins().iadd(self.denominators, at);
        let denominator = e.load(DType::F32, denominator, 0, 4);
        let at = e.scale(h, row_of(op.head_dim) as i64 * 4);
        let sums = e.b.ins().iadd(self.sums, at);
        let out = e.base(op.output);
        let out = e.at(op.output, out, &[(0, head), (1, row)]);
        divide(e, sums, op.head_dim, denominator, (op.output, out));
    }
}
