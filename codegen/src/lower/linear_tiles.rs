//! Linear kernels over many rows: outer products of weights held in scratch with panels of x.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use super::hold::{held_row, hold, weight_row};
use super::linear::{Job, fixed};
use super::tiling::Tiling;
use crate::emit::{Emitter, Features};
use crate::kernel::Linear;
use crate::micro::{Microkernel, Raw, StoredTile, TileOperands, WidenOperands};
use crate::view::View;

/// Tiles of weights stored so, as they are held in scratch.
pub(super) fn tiling(micro: &'static Microkernel, stored: DType) -> Tiling {
    let weights = if micro.operands.is_quantised() { stored } else { micro.operands };
    let fetched = micro.is_fetching().then(|| stored.row_bytes(BLOCK));
    Tiling { fours: micro.has_fours(), fetched, ..Tiling::new(micro, weights, weight_row(micro, stored)) }
}

/// Elements of the longest block of these weights.
pub(super) fn longest_block(weights: &[View]) -> usize {
    weights.iter().filter_map(|w| Some(w.dtype.format()?.block)).max().unwrap_or(BLOCK)
}

/// For how many elements of k, at most `k` and `most`, blocks of these weights are held at a time: parts of a length,
/// whole blocks of each format.
pub(super) fn part(most: usize, k: usize, weights: &[View]) -> usize {
    let block = longest_block(weights);
    let most = most / block * block;
    k.div_ceil(k.div_ceil(most)).next_multiple_of(block).min(most)
}

/// Panels of calls that take blocks of weight rows whole: more of them would not stay in the second cache beside these.
const WHOLE_PANELS: usize = 2;
/// The most bytes of such a block in scratch.
const WHOLE_BYTES: usize = 1 << 20;
/// The most bytes of weight rows that are fetched while as many are multiplied: both are in the second cache, with x.
const FETCHED_BYTES: usize = 512 << 10;

/// Tiles for calls of one panel, and of more, up to [`WHOLE_PANELS`], which take all of k at a time, for memory serves
/// rows best in the order of their bytes: of weight rows as they lie, if the unit reads those, and the rows after them
/// are fetched meanwhile; else held whole.
pub(super) fn whole(micro: &'static Microkernel, weight: &View) -> Option<[Tiling; 2]> {
    let k = fixed(weight, 1);
    if micro.is_configured() && weight.dtype == micro.operands && weight.inner_stride() == 1 {
        let weight_stride = weight.step_bytes(0) as usize;
        let rows = micro.block_rows();
        // One panel waits for memory, which gives more if less is under way; more of them load x half as often.
        let more = if rows * weight_stride > FETCHED_BYTES { rows / 2 } else { rows };
        let of = |nr: usize| {
            let ahead = nr * weight_stride;
            Tiling { weight_stride, ahead, nr: Some(nr), ..tiling(micro, weight.dtype) }
        };
        return Some([of(rows / 2), of(more)]);
    }
    let weight_stride = held_row(micro, weight.dtype, k);
    let fits = micro.is_raw() && k > micro.part() && micro.block_rows() * weight_stride <= WHOLE_BYTES;
    fits.then(|| [Tiling { weight_stride, ..tiling(micro, weight.dtype) }; 2])
}

/// Tiles of the weight as it is stored, for calls of one panel, if the unit has them: the narrowest first.
pub(super) fn stored(micro: &Microkernel, weight: &View, features: &Features) -> Option<Vec<StoredTile>> {
    let (k, weights) = (fixed(weight, 1), weight.dtype);
    let (whole, streams) = (k.is_multiple_of(micro.elements_stored(weights)?), features.streams());
    let of = move |&(columns, _): &(usize, usize)| StoredTile {
        weights,
        k,
        columns,
        panel: micro.mr,
        c_stride: micro.mr as i32 * 4,
        streams,
    };
    whole.then(|| micro.shapes.iter().rev().map(of).collect())
}

/// The most bytes of a tile's weights that are held whole while panels meet them one after the other.
const HELD_BYTES: usize = 256 << 10;

/// Tiles for calls of any rows whose weights are held whole, if they take little room: a panel's results are finished
/// before the next panel's, and stay in the first cache until then.
pub(super) fn by_panels(linear: &Linear, weights: &[View]) -> Option<Vec<Tiling>> {
    let micro = linear.micro;
    let tilings: Vec<Tiling> = weights
        .iter()
        .map(|w| {
            let weight_stride = held_row(micro, w.dtype, fixed(w, 1));
            Tiling { weight_stride, ..tiling(micro, w.dtype) }
        })
        .collect();
    let at_once = if linear.is_joint() { tilings.len() } else { 1 };
    let most = tilings.iter().map(|t| t.weight_stride).max().unwrap_or(0);
    let fits = at_once * micro.block_rows() * most <= HELD_BYTES;
    (micro.is_packed() && micro.operands == DType::F32 && fits).then_some(tilings)
}

/// Bytes of the results of a block with one panel: f32 (nr, mr), contiguous.
pub(super) fn block_bytes(micro: &Microkernel) -> usize {
    micro.block_rows() * micro.mr * 4
}

impl Job<'_> {
    /// Outer products of `width` weight rows from `first` with every panel of x, or those of the tile's rows, for each
    /// of the tile's weights; then the epilogue.
    pub(super) fn tile_block(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        first: Value,
        width: Value,
        held: Value,
        part: usize,
    ) {
        if let Some(tilings) = by_panels(&self.linear, weights) {
            return self.panels(e, weights, (first, width), &tilings, (held, part));
        }
        match self.blocking {
            Some(blocking) => self.blocked(e, weights, (first, width), (held, blocking)),
            None => self.one_block(e, weights, (first, width), (held, part)),
        }
    }

    /// The same of one block.
    pub(super) fn one_block(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        (first, width): (Value, Value),
        (held, part): (Value, usize),
    ) {
        let rows = self.rows(e);
        for (weight, &c) in weights.iter().zip(&self.results) {
            let micro = self.linear.micro;
            // Whether all rows of the block are there, of calls of at most so many panels.
            let few = |e: &mut Emitter<'_>, panels: usize, filled: bool| {
                let most = e.i64((panels * micro.mr) as i64);
                let few = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, most);
                if !filled {
                    return few;
                }
                let block = e.i64(micro.block_rows() as i64);
                let filled = e.b.ins().icmp(IntCC::Equal, width, block);
                e.b.ins().band(few, filled)
            };
            let by_parts = |e: &mut Emitter<'_>| self.tiles(e, weight, first, width, (held, part), c);
            let held_whole = |e: &mut Emitter<'_>| {
                let Some([one, more]) = whole(micro, weight) else { return by_parts(e) };
                let by = |e: &mut Emitter<'_>, tiling: Tiling| {
                    self.whole_tiles(e, weight, first, width, (tiling, held), c);
                };
                let few_panels = few(e, WHOLE_PANELS, one.ahead > 0);
                e.choose_path(
                    few_panels,
                    |e| {
                        if one.nr == more.nr {
                            return by(e, one);
                        }
                        let is_one = few(e, 1, false);
                        e.choose_path(is_one, |e| by(e, one), |e| by(e, more));
                    },
                    by_parts,
                );
            };
            match stored(micro, weight, &e.features) {
                Some(tiles) => {
                    let few = few(e, 1, true);
                    e.choose_path(
                        few,
                        |e| self.stored_tiles(e, weight, first, (&tiles, held), c),
                        held_whole,
                    );
                }
                None => held_whole(e),
            }
        }
        let zero = e.i64(0);
        self.tile_epilogue(e, zero, (zero, rows), first, width);
    }

    /// Panel after panel of x with `width` weight rows from `first` of each weight, held whole, and the epilogue.
    fn panels(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        (first, width): (Value, Value),
        tilings: &[Tiling],
        (held, part): (Value, usize),
    ) {
        let micro = self.linear.micro;
        let (rows, mr) = (self.rows(e), micro.mr as i64);
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        let mut places = vec![];
        let mut at = 0;
        for (weight, tiling) in weights.iter().zip(tilings) {
            let to = e.offset(held, at as i64);
            hold(e, weight, first, (zero, k), to, tiling);
            places.push(to);
            at += micro.block_rows() * tiling.weight_stride;
        }
        let x = e.base(&self.kernel.inputs[0]);
        e.for_range(zero, rows, mr, &[], |e, panel, _| {
            let at = e.scale(panel, micro.panel_bytes(self.k) as i64);
            let x = e.b.ins().iadd(x, at);
            let left = e.b.ins().isub(rows, panel);
            e.for_range(zero, k, part as i64, &[], |e, from, _| {
                let steps = e.b.ins().isub(k, from);
                let most = e.i64(part as i64);
                let steps = e.min(steps, most);
                let at = e.scale(from, mr * 4);
                let x = e.b.ins().iadd(x, at);
                let along = e.scale(from, 4);
                for ((tiling, &held), &c) in tilings.iter().zip(&places).zip(&self.results) {
                    let weights = e.b.ins().iadd(held, along);
                    let operands = TileOperands { x, weights, c, k: steps, accumulate: from, streams: None };
                    tiling.run(e, &operands, left, width);
                }
                vec![]
            });
            self.panel_epilogue(e, (panel, zero), rows, first, width);
            vec![]
        });
    }

    /// `width` weight rows from `first`, held in scratch part by part, with every panel of x.
    fn tiles(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        first: Value,
        width: Value,
        (held, part): (Value, usize),
        c: Value,
    ) {
        let rows = self.rows(e);
        let x = e.base(&self.kernel.inputs[0]);
        let mr = self.linear.micro.mr as i64;
        let tiling = tiling(self.linear.micro, weight.dtype);
        // Bytes that a block of k takes, of one row of x.
        let block_bytes = self.linear.micro.panel_bytes(BLOCK) as i64;
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        e.for_range(zero, k, part as i64, &[], |e, from, _| {
            let left = e.b.ins().isub(k, from);
            let length = e.i64(part as i64);
            let length = e.min(left, length);
            let steps = self.steps(e, length);
            hold(e, weight, first, (from, length), held, &tiling);
            let streams = self.next_block(e, weight, (first, from), &tiling);
            e.for_range(zero, rows, mr, &[], |e, t, _| {
                let panel = e.scale(t, self.linear.micro.panel_bytes(self.k) as i64);
                let panel = e.b.ins().iadd(x, panel);
                // Parts start at whole blocks.
                let at = e.scale(from, mr * block_bytes / BLOCK as i64);
                let panel = e.b.ins().iadd(panel, at);
                // Block t / mr, of block_rows rows of mr words.
                let at = e.scale(t, self.linear.micro.block_rows() as i64 * 4);
                let c = e.b.ins().iadd(c, at);
                let left = e.b.ins().isub(rows, t);
                let (weights, accumulate) = (held, from);
                let operands = TileOperands { x: panel, weights, c, k: steps, accumulate, streams };
                tiling.run(e, &operands, left, width);
                vec![]
            });
            vec![]
        });
    }

    /// `width` weight rows from `first`, as they lie or held whole, with every panel of x.
    fn whole_tiles(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        first: Value,
        width: Value,
        (tiling, held): (Tiling, Value),
        c: Value,
    ) {
        let micro = tiling.micro;
        let rows = self.rows(e);
        let x = e.base(&self.kernel.inputs[0]);
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        let weights = if tiling.ahead > 0 {
            let base = e.base(weight);
            e.step(weight, 0, base, first)
        } else {
            hold(e, weight, first, (zero, k), held, &tiling);
            held
        };
        let k = self.steps(e, k);
        let streams = self.next_block(e, weight, (first, zero), &tiling);
        e.for_range(zero, rows, micro.mr as i64, &[], |e, t, _| {
            let panel = e.scale(t, micro.panel_bytes(self.k) as i64);
            let x = e.b.ins().iadd(x, panel);
            let at = e.scale(t, micro.block_rows() as i64 * 4);
            let c = e.b.ins().iadd(c, at);
            let left = e.b.ins().isub(rows, t);
            tiling.run(e, &TileOperands { x, weights, c, k, accumulate: zero, streams }, left, width);
            vec![]
        });
    }

    /// Where that begins which tiles of the elements from `from` on fetch of the next block of weight rows, if they do.
    fn next_block(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        (first, from): (Value, Value),
        tiling: &Tiling,
    ) -> Option<(Value, Option<WidenOperands>)> {
        let rows = tiling.micro.block_rows() as i64;
        let bytes = tiling.fetched? as i64 * rows;
        let (base, next) = (e.base(weight), e.offset(first, rows));
        let next = e.step(weight, 0, base, next);
        let at = e.scale(from, bytes / BLOCK as i64);
        Some((e.b.ins().iadd(next, at), None))
    }

    /// A block of weight rows from `first`, as they are stored, with the one panel of x, by the first tile that is wide
    /// enough.
    fn stored_tiles(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        first: Value,
        (tiles, held): (&[StoredTile], Value),
        c: Value,
    ) {
        let [tile, wider @ ..] = tiles else { return };
        let call = |e: &mut Emitter<'_>| {
            let x = e.base(&self.kernel.inputs[0]);
            let base = e.base(weight);
            let weights = e.step(weight, 0, base, first);
            e.call_raw(Raw::StoredTile(*tile), &[x, weights, c, held]);
        };
        if wider.is_empty() {
            return call(e);
        }
        let (rows, columns) = (self.rows(e), e.i64(tile.columns as i64));
        let fits = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, columns);
        e.choose_path(fits, call, |e| self.stored_tiles(e, weight, first, (wider, held), c));
    }

    /// Steps of k in so many elements.
    pub(super) fn steps(&self, e: &mut Emitter<'_>, length: Value) -> Value {
        match self.linear.micro.operands {
            DType::BF16 => {
                let up = e.offset(length, 1);
                e.b.ins().ushr_imm_u(up, 1)
            }
            DType::Q8 => e.b.ins().ushr_imm_u(length, i64::from(BLOCK.trailing_zeros())),
            DType::F32 | DType::F16 | DType::I32 | DType::Bool | DType::Block(_) => length,
        }
    }
}
