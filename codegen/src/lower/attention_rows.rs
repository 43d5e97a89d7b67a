//! Attention for few rows, where the CPU has raw dot products: a stream over the cache.
//!
//! A tile is a KV head, a part of the keys where there are many, and some rows, one after the other. Keys go in blocks
//! from the first visible one, of a ring in two contiguous runs. Scores are dot products of a query with rows of keys
//! as they lie; softcap and exp run along keys; the values' weighted sum is a tile product whose columns are the head's
//! elements and whose rows are the query heads of the group, so that a block of keys and values is read once for all of
//! them: straight from the cache where values are whole blocks of 32, else widened first. Parts' sums are put together
//! by [`super::attention_merge`]. A row's result depends on its position and not on the call it is part of.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK as BLOCK_ELEMENTS, DType, Dim};

use super::attention::lane0_mask;
use super::attention_merge::{self, LOWEST};
use super::elementwise::{load_along_row, store_along_row};
use super::softmax::key_range;
use crate::emit::{Emitter, Features};
use crate::kernel::{ATTENTION_ROWS, Kernel, Maximum};
use crate::math;
use crate::micro::{self, DOT_ROWS, Dot, Emit, Microkernel, Mix, Raw, Scores, Tile};
use crate::view::{Capacity, View};

/// Keys of a block.
const BLOCK: usize = 64;

fn fixed(view: &View, axis: usize) -> usize {
    match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("heads and head_dim are fixed"),
    }
}

/// The microkernels that the kernel calls, for dot products and for weighted sums, if the CPU has them and the operands
/// lie as they need.
fn micros(
    inputs: &[View],
    regime: usize,
    features: &Features,
) -> Option<(&'static Microkernel, &'static Microkernel)> {
    let [q, k, ..] = inputs else { unreachable!("four operands") };
    let dots = micro::select(1, 1, DType::F32, features);
    let sums = micro::select(usize::MAX, 1, DType::F32, features);
    let raw = matches!((dots.emit, sums.emit), (Emit::RawDot(_), Emit::RawTile(_)));
    let dense = k.inner_stride() == 1 && k.axes[1].stride == fixed(k, 2) as i64;
    let plain = q.dtype == DType::F32 && (q.inner_stride() == 1 || fixed(q, 2) == 1);
    (raw && dense && plain && regime <= ATTENTION_ROWS as usize).then_some((dots, sums))
}

/// Whether this way serves the kernel.
pub(super) fn fits(kernel: &Kernel, features: &Features) -> bool {
    micros(&kernel.inputs, kernel.regime, features).is_some()
}

/// How many parts the keys of a row go in, and the width of a part's results, if in more than one.
pub(super) fn parts_of(
    inputs: &[View],
    window: Option<usize>,
    (regime, capacity): (usize, Capacity),
    features: &Features,
) -> Option<(usize, usize)> {
    micros(inputs, regime, features)?;
    let keys = window.map_or(capacity.keys, |w| w.min(capacity.keys));
    let parts = (keys / attention_merge::PART).min(attention_merge::MOST_PARTS);
    (parts > 1).then(|| (parts, attention_merge::layout(fixed(&inputs[0], 2)).2))
}

/// Scores of all queries of some heads at once, if the CPU has them and keys are whole blocks: the first head and the
/// code for as many keys as asked.
fn scorings(
    q: &View,
    k: &View,
    rows: usize,
    features: &Features,
) -> Option<(&'static Microkernel, Vec<(usize, Scores)>)> {
    let micro = micro::scoring(features)?;
    let (length, repeat) = (fixed(k, 2), fixed(q, 0) / fixed(k, 0));
    if !length.is_multiple_of(BLOCK_ELEMENTS) {
        return None;
    }
    let of_heads = |head: usize| Scores {
        dtype: k.dtype,
        k: length,
        rows,
        heads: micro.mr.min(repeat - head),
        q_stride: q.step_bytes(0) as i32,
        c_stride: BLOCK as i32 * 4,
    };
    Some((micro, (0..repeat).step_by(micro.mr).map(|head| (head, of_heads(head))).collect()))
}

/// The weighted sums straight from the cache, if the CPU has them and values are whole blocks: heads and columns.
fn mixes(v: &View, repeat: usize, features: &Features) -> Option<(&'static Microkernel, Vec<(usize, Mix)>)> {
    let micro = micro::mixing(features)?;
    let k = fixed(v, 2);
    let dense = v.inner_stride() == 1 && v.axes[1].stride == k as i64;
    if !k.is_multiple_of(BLOCK_ELEMENTS) || !dense {
        return None;
    }
    let (most, heads) = micro.shapes[0];
    let mut mixes = vec![];
    for head in (0..repeat).step_by(heads) {
        for column in (0..k).step_by(most) {
            let mix = Mix {
                dtype: v.dtype,
                k,
                column,
                columns: most.min(k - column),
                heads: heads.min(repeat - head),
                weight_stride: BLOCK as i32 * 4,
                c_stride: row_of(k) as i32 * 4,
            };
            mixes.push((head, mix));
        }
    }
    Some((micro, mixes))
}

/// A part of the weighted sums: query heads and columns, from the first of each.
struct Part {
    head: usize,
    column: usize,
    tile: Tile,
}

/// Length of a row of values in scratch.
fn row_of(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// The weighted sums of all heads and columns, part by part.
fn parts(sums: &Microkernel, repeat: usize, head_dim: usize) -> Vec<Part> {
    let row = row_of(head_dim);
    let widest = sums.shapes.iter().position(|s| s.1 >= repeat).unwrap_or(sums.shapes.len() - 1);
    let shapes = &sums.shapes[widest..];
    let mut parts = vec![];
    for head in (0..repeat).step_by(shapes[0].1) {
        let nr = shapes[0].1.min(repeat - head);
        let mut column = 0;
        while column < row {
            let columns = shapes.iter().map(|s| s.0).find(|&c| c <= row - column);
            let Some(columns) = columns else { unreachable!("rows are whole narrowest shapes") };
            let tile = Tile {
                operands: DType::F32,
                weights: DType::F32,
                columns,
                nr,
                panel: row,
                weight_stride: BLOCK as i32 * 4,
                c_stride: row as i32 * 4,
            };
            parts.push(Part { head, column, tile });
            column += columns;
        }
    }
    parts
}

fn dot(k: &View, rows: usize) -> Raw {
    Raw::Dot(Dot { operands: DType::F32, dtype: k.dtype, k: fixed(k, 2), rows })
}

/// The raw code that the kernel calls.
pub(super) fn raw_code(kernel: &Kernel, features: &Features) -> Vec<(&'static Microkernel, Raw)> {
    let Some((dots, sums)) = micros(&kernel.inputs, kernel.regime, features) else { return vec![] };
    let [q, k, v, ..] = &kernel.inputs[..] else { unreachable!("four operands") };
    let repeat = fixed(q, 0) / fixed(k, 0);
    let scores = [DOT_ROWS, 1].into_iter().flat_map(|rows| match scorings(q, k, rows, features) {
        Some((micro, all)) => all.into_iter().map(|(_, s)| (micro, Raw::Scores(s))).collect(),
        None => vec![(dots, dot(k, rows))],
    });
    match mixes(v, repeat, features) {
        Some((micro, mixes)) => scores.chain(mixes.into_iter().map(|(_, m)| (micro, Raw::Mix(m)))).collect(),
        None => {
            let tiles = parts(sums, repeat, fixed(q, 2)).into_iter();
            scores.chain(tiles.map(|p| (sums, Raw::Tile(p.tile)))).collect()
        }
    }
}

/// How values are weighted and summed.
enum Weighting {
    /// As they lie: the first head and the sum.
    InPlace(Vec<(usize, Mix)>),
    /// Widened to scratch f32 (BLOCK, row), then by tiles.
    Widened { values: Value, parts: Vec<Part> },
}

struct Attention<'a> {
    q: &'a View,
    k: &'a View,
    v: &'a View,
    output: &'a View,
    head_dim: usize,
    /// Query heads a KV head.
    repeat: usize,
    scale: f32,
    cap: Option<f32>,
    maximum: Maximum,
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
pub(super) fn lower(
    e: &mut Emitter<'_>,
    kernel: &Kernel,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    maximum: Maximum,
    key_parts: usize,
) {
    let [q, k, v, pos] = &kernel.inputs[..] else { unreachable!("four operands") };
    let Some((_, sums)) = micros(&kernel.inputs, kernel.regime, &e.features) else {
        unreachable!("callers ask whether this serves")
    };
    let (head_dim, repeat) = (fixed(q, 2), fixed(q, 0) / fixed(k, 0));
    let row = row_of(head_dim) * 4;
    let weighting = match mixes(v, repeat, &e.features) {
        Some((_, mixes)) => Weighting::InPlace(mixes),
        None => {
            Weighting::Widened { values: e.take_scratch(BLOCK * row), parts: parts(sums, repeat, head_dim) }
        }
    };
    let a = Attention {
        q,
        k,
        v,
        output: &kernel.outputs[0],
        head_dim,
        repeat,
        scale,
        cap,
        maximum,
        weighting,
        scores: e.take_scratch(repeat * BLOCK * 4),
        sums: e.take_scratch(repeat * row),
        denominators: e.take_scratch(repeat * 16),
        maxima: e.take_scratch(repeat * 16),
    };
    e.for_tiles(|e, tile| {
        let rows = e.rows();
        let block = e.i64(i64::from(ATTENTION_ROWS));
        let padded = e.offset(rows, i64::from(ATTENTION_ROWS) - 1);
        let blocks = e.b.ins().udiv(padded, block);
        let part = e.b.ins().udiv(tile, blocks);
        let (group, part) = if key_parts == 1 {
            (part, None)
        } else {
            let parts = e.i64(key_parts as i64);
            let group = e.b.ins().udiv(part, parts);
            (group, Some(e.b.ins().urem(part, parts)))
        };
        let first = e.b.ins().urem(tile, blocks);
        let first = e.b.ins().imul(first, block);
        let end = e.b.ins().iadd(first, block);
        let end = e.min(end, rows);
        e.for_range(first, end, 1, &[], |e, row, _| {
            let keys = e.keys();
            let (low, high) = key_range(e, pos, window, row, keys);
            match part {
                None => a.row(e, group, row, low, high, None),
                Some(part) => {
                    let (low, high) = attention_merge::part_range(e, part, (low, high), key_parts);
                    let some = e.b.ins().icmp(IntCC::SignedLessThan, low, high);
                    e.when(some, |e| a.row(e, group, row, low, high, Some(part)));
                }
            }
            vec![]
        });
    });
}

impl Attention<'_> {
    /// One row of the group's query heads over keys `low..high`: all that it sees, or a part.
    fn row(
        &self,
        e: &mut Emitter<'_>,
        group: Value,
        row: Value,
        low: Value,
        high: Value,
        part: Option<Value>,
    ) {
        let first_head = e.scale(group, self.repeat as i64);
        let (zero, heads) = (e.i64(0), e.i64(self.repeat as i64));
        let (none, lowest) = (e.splat(0.0), e.splat(LOWEST));
        let width = row_of(self.head_dim) as i64;
        let all = e.i64(self.repeat as i64 * width);
        e.for_range(zero, all, 4, &[], |e, i, _| {
            let at = e.scale(i, 4);
            let at = e.b.ins().iadd(self.sums, at);
            e.store(DType::F32, none, at, 0, 4);
            vec![]
        });
        e.for_range(zero, heads, 1, &[], |e, h, _| {
            let at = e.scale(h, 16);
            let denominator = e.b.ins().iadd(self.denominators, at);
            e.store(DType::F32, none, denominator, 0, 4);
            let maximum = e.b.ins().iadd(self.maxima, at);
            e.store(DType::F32, lowest, maximum, 0, 4);
            vec![]
        });
        let q = e.base(self.q);
        let q = e.at(self.q, q, &[(0, first_head), (1, row)]);
        let k = e.base(self.k);
        let k = e.step(self.k, 0, k, group);
        let v = e.base(self.v);
        let v = e.step(self.v, 0, v, group);
        let total = e.b.ins().isub(high, low);
        let runs = e.i64(if self.k.ring.is_some() { 2 } else { 1 });
        e.for_range(zero, runs, 1, &[], |e, run, _| {
            let (start, length) = self.run(e, run, low, total);
            e.for_range(zero, length, BLOCK as i64, &[], |e, from, _| {
                let left = e.b.ins().isub(length, from);
                let count = e.i64(BLOCK as i64);
                let count = e.min(left, count);
                let at = e.b.ins().iadd(start, from);
                let k = stored_row(e, self.k, k, at);
                let v = stored_row(e, self.v, v, at);
                self.score(e, q, k, v, count);
                self.soften(e, count);
                self.add(e, k, v, count);
                vec![]
            });
            vec![]
        });
        e.for_range(zero, heads, 1, &[], |e, h, _| {
            let head = e.b.ins().iadd(first_head, h);
            match part {
                None => self.store(e, h, head, row),
                Some(part) => self.store_part(e, h, (head, row, part)),
            }
            vec![]
        });
    }

    /// Where run 0 or 1 of a range starts in storage, and its length; a cache that does not wrap has one run.
    fn run(&self, e: &mut Emitter<'_>, run: Value, low: Value, total: Value) -> (Value, Value) {
        let Some(ring) = self.k.ring else { return (low, total) };
        let ring = e.i64(ring as i64);
        let start = e.b.ins().urem(low, ring);
        let to_end = e.b.ins().isub(ring, start);
        let first = e.min(to_end, total);
        let rest = e.b.ins().isub(total, first);
        let zero = e.i64(0);
        (e.b.ins().select(run, zero, start), e.b.ins().select(run, rest, first))
    }

    /// Products of every head's query with the block's keys.
    fn score(&self, e: &mut Emitter<'_>, q: Value, k: Value, v: Value, count: Value) {
        let (zero, mask) = (e.i64(0), e.i64(!(DOT_ROWS as i64 - 1)));
        let whole = e.b.ins().band(count, mask);
        let heads = e.i64(self.repeat as i64);
        for (from, to, rows) in [(zero, whole, DOT_ROWS), (whole, count, 1)] {
            e.for_range(from, to, rows as i64, &[], |e, j, _| {
                let keys = stored_row(e, self.k, k, j);
                let at = e.scale(j, 4);
                let c = e.b.ins().iadd(self.scores, at);
                if let Some((_, scorings)) = scorings(self.q, self.k, rows, &e.features) {
                    let values = stored_row(e, self.v, v, j);
                    for (head, scores) in scorings {
                        let q = e.offset(q, head as i64 * self.q.step_bytes(0));
                        let c = e.offset(c, (head * BLOCK) as i64 * 4);
                        e.call_raw(Raw::Scores(scores), &[q, keys, c, values]);
                    }
                    return vec![];
                }
                // The keys stay in the first cache from head to head.
                e.for_range(zero, heads, 1, &[], |e, h, _| {
                    let q = e.step(self.q, 0, q, h);
                    let at = e.scale(h, BLOCK as i64 * 4);
                    let c = e.b.ins().iadd(c, at);
                    e.call_raw(dot(self.k, rows), &[q, keys, c]);
                    vec![]
                });
                vec![]
            });
        }
    }

    /// Scores to shares, in place: scale, softcap, exp; denominators grow by them.
    fn soften(&self, e: &mut Emitter<'_>, count: Value) {
        let (zero, heads) = (e.i64(0), e.i64(self.repeat as i64));
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
                let score = e.load(DType::F32, at, 0, lanes);
                let scale = e.splat(self.scale);
                let score = e.b.ins().fmul(score, scale);
                match self.cap {
                    Some(cap) => math::softcap(e, cap, score),
                    None => score,
                }
            };
            let counted = |e: &mut Emitter<'_>, share: Value, lanes: usize| {
                if lanes == 4 { share } else { e.b.ins().band(share, first_only) }
            };
            let denominator = e.load(DType::F32, denominator_at, 0, 4);
            let denominator = match self.maximum {
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
                    let rescale = math::exp(e, shift);
                    self.rescale(e, h, rescale);
                    let denominator = e.b.ins().fmul(denominator, rescale);
                    e.for_lanes(count, &[denominator], |e, j, lanes, state| {
                        let at = address(e, j);
                        let score = e.load(DType::F32, at, 0, lanes);
                        let shifted = e.b.ins().fsub(score, highest);
                        let share = math::exp(e, shifted);
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
        let width = row_of(self.head_dim) as i64;
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
        let (zero, n) = (e.i64(0), e.i64(self.head_dim as i64));
        e.for_range(zero, count, 1, &[], |e, j, _| {
            let row = stored_row(e, self.v, v, j);
            let at = e.scale(j, row_of(self.head_dim) as i64 * 4);
            let to = e.b.ins().iadd(values, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let value = load_along_row(e, self.v, Some(row), i, lanes);
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
        let row = row_of(self.head_dim) as i64;
        let of_head = |e: &mut Emitter<'_>, head: usize, column: usize| {
            let shares = e.offset(self.scores, (head * BLOCK) as i64 * 4);
            (shares, e.offset(self.sums, (head as i64 * row + column as i64) * 4))
        };
        match &self.weighting {
            Weighting::InPlace(mixes) => {
                let next = e.offset(k, BLOCK as i64 * self.k.step_bytes(1));
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
        let (denominator_at, maximum_at, _) = attention_merge::layout(self.head_dim);
        let out = e.base(self.output);
        let out = e.at(self.output, out, &[(0, row), (1, head), (2, part)]);
        let at = e.scale(h, row_of(self.head_dim) as i64 * 4);
        let sums = e.b.ins().iadd(self.sums, at);
        let (zero, n) = (e.i64(0), e.i64(row_of(self.head_dim) as i64));
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

    /// Sums over the denominator to the output; a row that saw nothing yields 0.
    fn store(&self, e: &mut Emitter<'_>, h: Value, head: Value, row: Value) {
        let at = e.scale(h, 16);
        let denominator = e.b.ins().iadd(self.denominators, at);
        let denominator = e.load(DType::F32, denominator, 0, 4);
        let denominator = e.sum_lanes(denominator);
        let denominator = e.b.ins().splat(F32X4, denominator);
        let none = e.splat(0.0);
        let some = e.b.ins().fcmp(FloatCC::GreaterThan, denominator, none);
        let at = e.scale(h, row_of(self.head_dim) as i64 * 4);
        let sums = e.b.ins().iadd(self.sums, at);
        let out = e.base(self.output);
        let out = e.at(self.output, out, &[(0, head), (1, row)]);
        let n = e.i64(self.head_dim as i64);
        e.for_lanes(n, &[], |e, i, lanes, _| {
            let at = e.scale(i, 4);
            let at = e.b.ins().iadd(sums, at);
            let sum = e.load(DType::F32, at, 0, lanes);
            let value = e.b.ins().fdiv(sum, denominator);
            let value = e.choose(some, value, none);
            store_along_row(e, self.output, value, out, i, lanes);
            vec![]
        });
    }
}

/// A row of a cache by where it is stored, not by its key's number.
fn stored_row(e: &mut Emitter<'_>, view: &View, address: Value, index: Value) -> Value {
    let bytes = e.scale(index, view.step_bytes(1));
    e.b.ins().iadd(address, bytes)
}
