//! Linear kernels over many rows: outer products of weights held in scratch with panels of x.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use super::elementwise::store_along_row;
use super::hold::{held_row, hold, weight_row};
use super::linear::{Job, fixed};
use super::tiling::Tiling;
use super::transpose;
use crate::emit::Emitter;
use crate::kernel::{Epilogue, Linear};
use crate::micro::{Microkernel, TileOperands};
use crate::view::View;

/// Tiles of weights stored so, as they are held in scratch.
pub(super) fn tiling(micro: &'static Microkernel, stored: DType) -> Tiling {
    let weights = if micro.operands.is_quantised() { stored } else { micro.operands };
    let (weight_stride, c_stride) = (weight_row(micro, stored), micro.mr * 4);
    Tiling { micro, weights, weight_stride, c_stride, ahead: 0, fours: micro.has_fours() }
}

/// Panels of calls that take blocks of weight rows whole: more of them would not stay in the second cache beside these.
const WHOLE_PANELS: usize = 2;
/// The most bytes of such a block in scratch.
const WHOLE_BYTES: usize = 1 << 20;

/// Tiles for calls of few rows, which take all of k at a time, for memory serves rows best in the order of their bytes:
/// of weight rows as they lie, if the unit reads those, and the rows after them are fetched meanwhile; else held whole.
pub(super) fn whole(micro: &'static Microkernel, weight: &View) -> Option<Tiling> {
    let (k, c_stride) = (fixed(weight, 1), micro.mr * 4);
    if micro.is_configured() && weight.dtype == micro.operands && weight.inner_stride() == 1 {
        let weight_stride = weight.step_bytes(0) as usize;
        let ahead = micro.block_rows() * weight_stride;
        let fours = micro.has_fours();
        return Some(Tiling { micro, weights: micro.operands, weight_stride, c_stride, ahead, fours });
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

/// Bytes of the results of a block with one panel: f32 (nr, mr), contiguous.
pub(super) fn block_bytes(micro: &Microkernel) -> usize {
    micro.block_rows() * micro.mr * 4
}

/// Bytes of a row of a panel's results by rows.
fn turned_row(micro: &Microkernel) -> usize {
    micro.block_rows().next_multiple_of(4) * 4
}

/// Bytes of a panel's results by rows, whole fours of rows.
pub(super) fn turned_bytes(micro: &Microkernel) -> usize {
    micro.mr.next_multiple_of(4) * turned_row(micro)
}

impl Job<'_> {
    /// Outer products of `width` weight rows from `first` with every panel of x, for each of the tile's weights; then
    /// the epilogue.
    pub(super) fn tile_block(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        first: Value,
        width: Value,
        held: Value,
        part: usize,
    ) {
        let rows = self.rows(e);
        if let Some(tilings) = by_panels(&self.linear, weights) {
            return self.panels(e, weights, (first, width), &tilings, (held, part));
        }
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
            hold(e, weight, first, (zero, k), to, (micro, tiling.weight_stride));
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
                    let operands = TileOperands { x, weights, c, k: steps, accumulate: from };
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
            hold(e, weight, first, (from, length), held, (tiling.micro, tiling.weight_stride));
            let steps = self.steps(e, length);
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
                let operands = TileOperands { x: panel, weights: held, c, k: steps, accumulate: from };
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
            hold(e, weight, first, (zero, k), held, (micro, tiling.weight_stride));
            held
        };
        let k = self.steps(e, k);
        e.for_range(zero, rows, micro.mr as i64, &[], |e, t, _| {
            let panel = e.scale(t, micro.panel_bytes(self.k) as i64);
            let x = e.b.ins().iadd(x, panel);
            let at = e.scale(t, micro.block_rows() as i64 * 4);
            let c = e.b.ins().iadd(c, at);
            let left = e.b.ins().isub(rows, t);
            tiling.run(e, &TileOperands { x, weights, c, k, accumulate: zero }, left, width);
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

    /// The epilogue of every panel, whose results lie one after the other.
    fn tile_epilogue(&self, e: &mut Emitter<'_>, rows: Value, first: Value, width: Value) {
        let (zero, micro) = (e.i64(0), self.linear.micro);
        e.for_range(zero, rows, micro.mr as i64, &[], |e, panel, _| {
            let at = e.scale(panel, micro.block_rows() as i64 * 4);
            self.panel_epilogue(e, (panel, at), rows, first, width);
            vec![]
        });
    }

    /// Results of a panel, a block (nr, mr) at so many bytes, finished where they lie, then to the output (rows, nr),
    /// four by four.
    fn panel_epilogue(
        &self,
        e: &mut Emitter<'_>,
        (panel, at): (Value, Value),
        rows: Value,
        first: Value,
        width: Value,
    ) {
        if let Some(turned) = &self.turned {
            return self.program_epilogue(e, (panel, at), rows, (first, width), turned);
        }
        let output = &self.kernel.outputs[self.output];
        let mr = self.linear.micro.mr as i64;
        let stride = mr * 4;
        let zero = e.i64(0);
        self.finish_block(e, at, width);
        let left = e.b.ins().isub(rows, panel);
        let columns = e.i64(mr);
        let columns = e.min(left, columns);
        e.for_range(zero, columns, 4, &[], |e, column, _| {
            let t = e.b.ins().iadd(panel, column);
            let lane = e.scale(column, 4);
            let at = e.b.ins().iadd(at, lane);
            e.for_range(zero, width, 4, &[], |e, n, _| {
                let c = e.b.ins().iadd(self.results[0], at);
                let lane = e.scale(n, stride);
                let c = e.b.ins().iadd(c, lane);
                let finished = std::array::from_fn(|i| e.load(DType::F32, c, i as i64 * stride, 4));
                let by_row = transpose(e, finished);
                let column = e.b.ins().iadd(first, n);
                let left = e.b.ins().isub(width, n);
                for (i, value) in by_row.into_iter().enumerate() {
                    let row = e.offset(t, i as i64);
                    let inside = e.b.ins().icmp(IntCC::SignedLessThan, row, rows);
                    e.when(inside, |e| {
                        let out = e.base(output);
                        let out = e.step(output, 0, out, row);
                        store_some(e, output, value, out, column, left);
                    });
                }
                vec![]
            });
            vec![]
        });
    }

    /// Results of a panel, a block (nr, mr), brought to rows in `turned`, finished there and to the output.
    fn program_epilogue(
        &self,
        e: &mut Emitter<'_>,
        (panel, block): (Value, Value),
        rows: Value,
        (first, width): (Value, Value),
        turned: &[Value],
    ) {
        let output = &self.kernel.outputs[self.output];
        let micro = self.linear.micro;
        let (mr, stride, row_bytes) = (micro.mr as i64, micro.mr as i64 * 4, turned_row(micro) as i64);
        let zero = e.i64(0);
        let left = e.b.ins().isub(rows, panel);
        let columns = e.i64(mr);
        let columns = e.min(left, columns);
        e.for_range(zero, columns, 4, &[], |e, column, _| {
            let lane = e.scale(column, 4);
            let at = e.b.ins().iadd(block, lane);
            let row = e.scale(column, row_bytes);
            e.for_range(zero, width, 4, &[], |e, n, _| {
                let lane = e.scale(n, stride);
                let at = e.b.ins().iadd(at, lane);
                let lane = e.scale(n, 4);
                let to = e.b.ins().iadd(row, lane);
                for (&c, &turned) in self.results.iter().zip(turned) {
                    let c = e.b.ins().iadd(c, at);
                    let four = std::array::from_fn(|i| e.load(DType::F32, c, i as i64 * stride, 4));
                    let to = e.b.ins().iadd(turned, to);
                    for (i, value) in transpose(e, four).into_iter().enumerate() {
                        e.store(DType::F32, value, to, i as i64 * row_bytes, 4);
                    }
                }
                vec![]
            });
            vec![]
        });
        e.for_range(zero, columns, 1, &[], |e, column, _| {
            let t = e.b.ins().iadd(panel, column);
            let out = e.base(output);
            let out = e.at(output, out, &[(0, t), (1, first)]);
            let row = e.scale(column, row_bytes);
            let sums: Vec<Value> = turned.iter().map(|&at| e.b.ins().iadd(at, row)).collect();
            self.finish_row(e, (t, first), width, &sums, out);
            vec![]
        });
    }

    /// The epilogue on a panel's block, `at` bytes into each weight's results, `width` weight rows of it.
    fn finish_block(&self, e: &mut Emitter<'_>, at: Value, width: Value) {
        if self.linear.epilogue == Epilogue::Store {
            return;
        }
        let count = e.scale(width, self.linear.micro.mr as i64);
        let blocks: Vec<Value> = self.results.iter().map(|&c| e.b.ins().iadd(c, at)).collect();
        e.for_lanes(count, &[], |e, i, lanes, _| {
            let at = e.scale(i, 4);
            let places: Vec<Value> = blocks.iter().map(|&c| e.b.ins().iadd(c, at)).collect();
            let sums: Vec<Value> = places.iter().map(|&c| e.load(DType::F32, c, 0, lanes)).collect();
            let value = self.finish(e, &sums);
            e.store(DType::F32, value, places[0], 0, lanes);
            vec![]
        });
    }
}

/// Stores four elements of a row from column `i`, or the first `left` of them.
fn store_some(e: &mut Emitter<'_>, output: &View, value: Value, row: Value, i: Value, left: Value) {
    let four = e.i64(4);
    let whole = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, left, four);
    e.choose_path(
        whole,
        |e| store_along_row(e, output, value, row, i, 4),
        |e| {
            for lane in 0..3u8 {
                let at = e.i64(i64::from(lane));
                let inside = e.b.ins().icmp(IntCC::SignedLessThan, at, left);
                e.when(inside, |e| {
                    let element = e.shuffle(value, value, [lane; 4]);
                    let i = e.offset(i, i64::from(lane));
                    store_along_row(e, output, element, row, i, 1);
                });
            }
        },
    );
}
