//! Linear kernels over many rows: outer products of weights held in scratch with panels of x.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use super::elementwise::store_along_row;
use super::hold::{hold, weight_row};
use super::linear::Job;
use super::tiling::Tiling;
use super::transpose;
use crate::emit::Emitter;
use crate::kernel::Epilogue;
use crate::micro::{Microkernel, TileOperands};
use crate::view::View;

/// Tiles of weights stored so, as they are held in scratch.
pub(super) fn tiling(micro: &'static Microkernel, stored: DType) -> Tiling {
    let weights = if micro.operands.is_quantised() { stored } else { micro.operands };
    Tiling { micro, weights, weight_stride: weight_row(micro, stored), c_stride: micro.mr * 4 }
}

/// Bytes of the results of a block with one panel: f32 (nr, mr), contiguous.
pub(super) fn block_bytes(micro: &Microkernel) -> usize {
    micro.block_rows() * micro.mr * 4
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
        for (weight, &c) in weights.iter().zip(&self.results) {
            self.tiles(e, weight, first, width, (held, part), c);
        }
        self.tile_epilogue(e, rows, first, width);
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
        let mr = self.micro.mr as i64;
        let tiling = tiling(self.micro, weight.dtype);
        // Bytes that a block of k takes, of one row of x.
        let block_bytes = self.micro.panel_bytes(BLOCK) as i64;
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        e.for_range(zero, k, part as i64, &[], |e, from, _| {
            let left = e.b.ins().isub(k, from);
            let length = e.i64(part as i64);
            let length = e.min(left, length);
            hold(e, weight, first, from, length, held, self.micro);
            let steps = self.steps(e, length);
            e.for_range(zero, rows, mr, &[], |e, t, _| {
                let panel = e.scale(t, self.micro.panel_bytes(self.k) as i64);
                let panel = e.b.ins().iadd(x, panel);
                // Parts start at whole blocks.
                let at = e.scale(from, mr * block_bytes / BLOCK as i64);
                let panel = e.b.ins().iadd(panel, at);
                // Block t / mr, of block_rows rows of mr words.
                let at = e.scale(t, self.micro.block_rows() as i64 * 4);
                let c = e.b.ins().iadd(c, at);
                let left = e.b.ins().isub(rows, t);
                let operands = TileOperands { x: panel, weights: held, c, k: steps, accumulate: from };
                tiling.run(e, &operands, left, width);
                vec![]
            });
            vec![]
        });
    }

    /// Steps of k in so many elements.
    fn steps(&self, e: &mut Emitter<'_>, length: Value) -> Value {
        match self.micro.operands {
            DType::BF16 => {
                let up = e.offset(length, 1);
                e.b.ins().ushr_imm_u(up, 1)
            }
            DType::Q8 => e.b.ins().ushr_imm_u(length, i64::from(BLOCK.trailing_zeros())),
            _ => length,
        }
    }

    /// Results, a block (nr, mr) a panel, finished where they lie, then to the output (rows, nr), four by four.
    fn tile_epilogue(&self, e: &mut Emitter<'_>, rows: Value, first: Value, width: Value) {
        let output = &self.kernel.outputs[self.output];
        let mr = self.micro.mr as i64;
        let stride = mr * 4;
        let zero = e.i64(0);
        e.for_range(zero, rows, mr, &[], |e, panel, _| {
            let at = e.scale(panel, self.micro.block_rows() as i64 * 4);
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
            vec![]
        });
    }

    /// The epilogue on a panel's block, `at` bytes into each weight's results, `width` weight rows of it.
    fn finish_block(&self, e: &mut Emitter<'_>, at: Value, width: Value) {
        if self.epilogue == Epilogue::Store {
            return;
        }
        let count = e.scale(width, self.micro.mr as i64);
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
