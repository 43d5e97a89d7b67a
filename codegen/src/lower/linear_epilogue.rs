//! What linear kernels do with the sums of tiles: panel by panel, finished where they lie or by rows, then to the
//! output.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::elementwise::store_along_row;
use super::linear::Job;
use super::linear_lanes::row_bytes;
use super::transpose;
use crate::emit::{Emitter, Features};
use crate::kernel::{Epilogue, Linear};
use crate::micro::{self, Microkernel, Raw, Turn};
use crate::view::View;

/// Bytes of a row of a panel's results by rows.
fn turned_row(micro: &Microkernel) -> usize {
    micro.block_rows().next_multiple_of(4) * 4
}

/// Bytes of a panel's results by rows, whole fours of rows.
pub(super) fn turned_bytes(micro: &Microkernel) -> usize {
    micro.mr.next_multiple_of(4) * turned_row(micro)
}

/// The raw code that brings a panel's sums to rows of the output, if the CPU has some that does what is to be done to
/// them.
pub(super) fn turning(
    linear: &Linear,
    output: &View,
    features: &Features,
) -> Option<(&'static Microkernel, Raw)> {
    let (panel, gated) = (linear.micro.mr, linear.epilogue == Epilogue::Gate);
    let plain = gated || linear.epilogue == Epilogue::Store;
    let turn = Turn { panel, by_rows: false, gated, out_stride: 0 };
    to_rows(turn, linear, output, features).filter(|_| panel.is_multiple_of(16) && plain)
}

/// The raw code that gates the sums of weight rows in lanes, if that is to be done and the CPU has some.
pub(super) fn gating(
    linear: &Linear,
    output: &View,
    features: &Features,
) -> Option<(&'static Microkernel, Raw)> {
    let gated = linear.epilogue == Epilogue::Gate && (linear.micro.has_lanes() || linear.few.is_some());
    let turn = Turn { panel: row_bytes(linear.micro) / 4, by_rows: true, gated, out_stride: 0 };
    to_rows(turn, linear, output, features).filter(|_| gated)
}

/// The raw code that brings sums to rows of the output, if the CPU has some.
fn to_rows(
    turn: Turn,
    linear: &Linear,
    output: &View,
    features: &Features,
) -> Option<(&'static Microkernel, Raw)> {
    let out_stride = i32::try_from(output.step_bytes(0)).ok().filter(|stride| *stride < 1 << 26)?;
    let rows = output.dtype == DType::F32 && output.inner_stride() == 1;
    let sides = linear.micro.block_rows().is_multiple_of(16);
    let micro = micro::turning(features).filter(|_| sides && rows)?;
    Some((micro, Raw::Turn(Turn { out_stride, ..turn })))
}

impl Job<'_> {
    /// The epilogue of a block's panels of rows `row` to `end`, whose results lie one after the other from `block`
    /// bytes on.
    pub(super) fn tile_epilogue(
        &self,
        e: &mut Emitter<'_>,
        block: Value,
        (row, end): (Value, Value),
        first: Value,
        width: Value,
    ) {
        let micro = self.linear.micro;
        let rows = self.rows(e);
        e.for_range(row, end, micro.mr as i64, &[], |e, panel, _| {
            let at = e.b.ins().isub(panel, row);
            let at = e.scale(at, micro.block_rows() as i64 * 4);
            let at = e.b.ins().iadd(block, at);
            self.panel_epilogue(e, (panel, at), rows, first, width);
            vec![]
        });
    }

    /// Results of a panel, a block (nr, mr) at so many bytes, finished where they lie, then to the output (rows, nr),
    /// four by four.
    pub(super) fn panel_epilogue(
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
        let left = e.b.ins().isub(rows, panel);
        let columns = e.i64(mr);
        let columns = e.min(left, columns);
        if let Some((_, raw)) = turning(&self.linear, output, &e.features) {
            let [sums, second] = [0, self.results.len() - 1].map(|i| e.b.ins().iadd(self.results[i], at));
            let out = e.base(output);
            let out = e.at(output, out, &[(0, panel), (1, first)]);
            return e.call_raw(raw, &[sums, second, out, columns, width]);
        }
        let stride = mr * 4;
        let zero = e.i64(0);
        self.finish_block(e, at, width);
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
