//! Linear kernels over many rows: outer products of weights held in scratch with panels of x.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use super::hold::{held_row, hold, weight_row};
use super::linear::{Job, fixed, most_rows};
use super::tiling::Tiling;
use crate::emit::Emitter;
use crate::kernel::Linear;
use crate::micro::{Microkernel, TileOperands};
use crate::view::View;

/// Tiles of weights stored so, as they are held in scratch.
pub(super) fn tiling(micro: &'static Microkernel, stored: DType) -> Tiling {
    let weights = if micro.operands.is_quantised() { stored } else { micro.operands };
    let (weight_stride, c_stride) = (weight_row(micro, stored), micro.mr * 4);
    let fours = micro.has_fours();
    Tiling { micro, weights, weight_stride, c_stride, ahead: 0, fours, streams: None }
}

/// The same for calls of many rows where the unit multiplies faster than caches bring x: it streams past the weights,
/// of which the next block's are fetched meanwhile.
pub(super) fn streaming(micro: &'static Microkernel, weight: &View) -> Tiling {
    let stored = weight.step_bytes(0) as i32;
    Tiling { streams: micro.is_configured().then_some(stored), ..tiling(micro, weight.dtype) }
}

/// Panels of calls that take blocks of weight rows whole: more of them would not stay in the second cache beside these.
const WHOLE_PANELS: usize = 2;
/// The most bytes of such a block in scratch.
const WHOLE_BYTES: usize = 1 << 20;

/// Tiles for calls of few rows, which take all of k at a time, for memory serves rows best in the order of their bytes:
/// of weight rows as they lie, if the unit reads those, and the rows after them are fetched meanwhile; else held whole.
pub(super) fn whole(micro: &'static Microkernel, weight: &View) -> Option<Tiling> {
    let k = fixed(weight, 1);
    if micro.is_configured() && weight.dtype == micro.operands && weight.inner_stride() == 1 {
        let weight_stride = weight.step_bytes(0) as usize;
        let ahead = micro.block_rows() * weight_stride;
        return Some(Tiling { weight_stride, ahead, ..tiling(micro, weight.dtype) });
    }
    let weight_stride = held_row(micro, weight.dtype, k);
    let fits = micro.is_raw() && k > micro.part() && micro.block_rows() * weight_stride <= WHOLE_BYTES;
    fits.then_some(Tiling { weight_stride, ..tiling(micro, weight.dtype) })
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

/// The most bytes of the results of blocks that panels meet together: they stay in the second cache.
const TOGETHER_BYTES: usize = 512 << 10;

/// The most blocks of weight rows that panels of `rows` rows of x meet before the next part of k: x comes once for all
/// of them. What a tile register holds is fast next to what brings x from the last cache.
pub(super) fn together(micro: &Microkernel, rows: usize) -> usize {
    if micro.is_configured() { (TOGETHER_BYTES / results_bytes(micro, rows)).clamp(1, 8) } else { 1 }
}

/// Bytes of the results of a block with all panels of so many rows.
pub(super) fn results_bytes(micro: &Microkernel, rows: usize) -> usize {
    rows.div_ceil(micro.mr) * block_bytes(micro)
}

/// Bytes of the results of a block with one panel: f32 (nr, mr), contiguous.
pub(super) fn block_bytes(micro: &Microkernel) -> usize {
    micro.block_rows() * micro.mr * 4
}

/// Where the stored weights begin that are held after those of the block of `rows` from row `n` of `width`: the next
/// block's, or the first one's of the next part.
fn next_block(
    e: &mut Emitter<'_>,
    weight: &View,
    (first, width): (Value, Value),
    (n, rows): (Value, usize),
    (from, part): (Value, usize),
) -> Value {
    let (zero, next, later) = (e.i64(0), e.offset(n, rows as i64), e.offset(from, part as i64));
    let more = e.b.ins().icmp(IntCC::SignedLessThan, next, width);
    let n = e.b.ins().select(more, next, zero);
    let from = e.b.ins().select(more, from, later);
    let (base, row) = (e.base(weight), e.b.ins().iadd(first, n));
    let row = e.step(weight, 0, base, row);
    let at = match weight.dtype.format() {
        Some(format) => {
            let block = e.b.ins().ushr_imm_u(from, i64::from(format.block.trailing_zeros()));
            let at = e.scale(block, format.planes[0] as i64);
            e.offset(at, format.plane_at(0, fixed(weight, 1)) as i64)
        }
        None => e.scale(from, weight.dtype.bytes() as i64),
    };
    e.b.ins().iadd(row, at)
}

/// A block of those that panels meet together.
pub(super) struct Member {
    /// Its first weight row, counted from theirs.
    pub(super) n: Value,
    /// Its weight rows.
    pub(super) width: Value,
    /// Where its results lie, in bytes from theirs.
    pub(super) at: Value,
}

impl Job<'_> {
    /// Outer products of `width` weight rows from `first`, of [`together`] blocks at most, with every panel of x, for
    /// each of the tile's weights; then the epilogue.
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
        if self.together() == 1 {
            return self.one_block(e, weights, (first, width), (held, part));
        }
        let most = e.i64((WHOLE_PANELS * self.linear.micro.mr) as i64);
        let rows = self.rows(e);
        let few = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, most);
        e.choose_path(
            few,
            |e| {
                self.each_block(e, width, &mut |e, Member { n, width, .. }| {
                    let first = e.b.ins().iadd(first, n);
                    self.one_block(e, weights, (first, width), (held, part));
                });
            },
            |e| {
                for (weight, &c) in weights.iter().zip(&self.results) {
                    self.tiles(e, weight, first, width, (held, part), c);
                }
                self.tile_epilogue(e, rows, first, width);
            },
        );
    }

    fn together(&self) -> usize {
        together(self.linear.micro, most_rows(self.kernel))
    }

    /// Blocks of `width` weight rows, one after the other.
    pub(super) fn each_block(
        &self,
        e: &mut Emitter<'_>,
        width: Value,
        block: &mut dyn FnMut(&mut Emitter<'_>, Member),
    ) {
        let (zero, micro) = (e.i64(0), self.linear.micro);
        if self.together() == 1 {
            return block(e, Member { n: zero, width, at: zero });
        }
        let rows = micro.block_rows() as i64;
        let each = results_bytes(micro, most_rows(self.kernel)) as i64 / rows;
        e.for_range(zero, width, rows, &[], |e, n, _| {
            let left = e.b.ins().isub(width, n);
            let most = e.i64(rows);
            let width = e.min(left, most);
            let at = e.scale(n, each);
            block(e, Member { n, width, at });
            vec![]
        });
    }

    /// The same of a block alone.
    fn one_block(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        (first, width): (Value, Value),
        (held, part): (Value, usize),
    ) {
        let rows = self.rows(e);
        for (weight, &c) in weights.iter().zip(&self.results) {
            let by_parts = |e: &mut Emitter<'_>| self.tiles(e, weight, first, width, (held, part), c);
            let Some(tiling) = whole(self.linear.micro, weight) else {
                by_parts(e);
                continue;
            };
            let most = e.i64((WHOLE_PANELS * tiling.micro.mr) as i64);
            let mut few = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, most);
            if tiling.ahead > 0 {
                let block = e.i64(tiling.micro.block_rows() as i64);
                let filled = e.b.ins().icmp(IntCC::Equal, width, block);
                few = e.b.ins().band(few, filled);
            }
            e.choose_path(few, |e| self.whole_tiles(e, weight, first, width, (tiling, held), c), by_parts);
        }
        self.tile_epilogue(e, rows, first, width);
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
                    let operands = TileOperands { x, weights, c, k: steps, accumulate: from, fetch: None };
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
        let tiling = streaming(self.linear.micro, weight);
        // Bytes that a block of k takes, of one row of x.
        let block_bytes = self.linear.micro.panel_bytes(BLOCK) as i64;
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        e.for_range(zero, k, part as i64, &[], |e, from, _| {
            let left = e.b.ins().isub(k, from);
            let length = e.i64(part as i64);
            let length = e.min(left, length);
            let steps = self.steps(e, length);
            self.each_block(e, width, &mut |e, Member { n, width, at }| {
                let wanted = tiling.streams.map(|_| {
                    let block = (n, self.linear.micro.block_rows());
                    next_block(e, weight, (first, width), block, (from, part))
                });
                let first = e.b.ins().iadd(first, n);
                let c = e.b.ins().iadd(c, at);
                hold(e, weight, first, (from, length), held, &tiling);
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
                    // Two rows a panel.
                    let fetch = wanted.zip(tiling.streams).map(|(wanted, stored)| {
                        let pair = e.b.ins().ushr_imm_u(t, i64::from(mr.trailing_zeros()));
                        let at = e.scale(pair, 2 * i64::from(stored));
                        e.b.ins().iadd(wanted, at)
                    });
                    let (weights, accumulate) = (held, from);
                    let operands = TileOperands { x: panel, weights, c, k: steps, accumulate, fetch };
                    tiling.run(e, &operands, left, width);
                    vec![]
                });
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
        e.for_range(zero, rows, micro.mr as i64, &[], |e, t, _| {
            let panel = e.scale(t, micro.panel_bytes(self.k) as i64);
            let x = e.b.ins().iadd(x, panel);
            let at = e.scale(t, micro.block_rows() as i64 * 4);
            let c = e.b.ins().iadd(c, at);
            let left = e.b.ins().isub(rows, t);
            tiling.run(e, &TileOperands { x, weights, c, k, accumulate: zero, fetch: None }, left, width);
            vec![]
        });
    }

    /// Steps of k in so many elements.
    fn steps(&self, e: &mut Emitter<'_>, length: Value) -> Value {
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
