//! Panels of queries: packed, told which keys they see, and divided by their denominators at the end.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use lapidary_ir::DType;

use super::super::super::elementwise::{load_along_row, store_along_row};
use super::super::super::lanes::transpose;
use super::super::super::softmax::key_range;
use super::super::fill;
use super::Tile;
use crate::emit::Emitter;
use crate::micro::UNSEEN;

impl Tile<'_> {
    /// Columns that stand for nobody see no key.
    pub(super) fn clear_ranges(&self, e: &mut Emitter<'_>) {
        let (zero, columns) = (e.i64(0), e.i64((self.shape.panels * self.shape.micro.mr) as i64));
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let at = e.scale(c, 4);
            let none = e.splat_int(0);
            for array in [self.low, self.high] {
                let at = e.b.ins().iadd(array, at);
                e.store_int(none, at, 0, 4);
            }
            vec![]
        });
    }

    pub(super) fn keep_range(&self, e: &mut Emitter<'_>, range: [Value; 3]) {
        for (at, value) in (0..).step_by(8).zip(range) {
            e.b.ins().store(MemFlagsData::new().with_notrap(), value, self.range, at);
        }
    }

    pub(super) fn kept_range(&self, e: &mut Emitter<'_>) -> [Value; 3] {
        [0, 8, 16].map(|at| e.b.ins().load(I64, MemFlagsData::new().with_notrap(), self.range, at))
    }

    /// Fills the columns' ranges and addresses. `seen` is the range of keys that any column before sees, and whether
    /// (not 0) there may be keys in it that none does, as positions that do not follow each other make them: returned
    /// with these columns', and then the range of these alone.
    pub(super) fn columns(
        &self,
        e: &mut Emitter<'_>,
        (first, rows): (Value, Value),
        (first_head, heads): (Value, Value),
        seen: &[Value],
    ) -> Vec<Value> {
        let flags = MemFlagsData::new().with_notrap();
        let (zero, keys) = (e.i64(0), self.op.keys(e));
        let start = [seen[0], seen[1], seen[2], keys, zero];
        e.for_range(zero, rows, 1, &start, |e, r, range| {
            let row = e.b.ins().iadd(first, r);
            let (low, high) = key_range(e, self.op.pos, self.op.window, row, keys);
            e.for_range(zero, heads, 1, &[], |e, h, _| {
                let column = e.b.ins().imul(r, heads);
                let column = e.b.ins().iadd(column, h);
                let head = e.b.ins().iadd(first_head, h);
                let at = e.scale(column, 4);
                for (array, value) in [(self.low, low), (self.high, high)] {
                    let at = e.b.ins().iadd(array, at);
                    let value = e.b.ins().ireduce(I32, value);
                    e.b.ins().store(flags, value, at, 0);
                }
                let at = e.scale(column, 8);
                for (array, view) in [(self.query_rows, self.op.q), (self.output_rows, self.op.output)] {
                    let base = e.base(view);
                    let address = e.at(view, base, &[(0, head), (1, row)]);
                    let at = e.b.ins().iadd(array, at);
                    e.b.ins().store(flags, address, at, 0);
                }
                vec![]
            });
            // A row that sees nothing has an empty range, which must not widen the others'.
            let some = e.b.ins().icmp(IntCC::SignedLessThan, low, high);
            let lower = e.min(range[0], low);
            let higher = e.b.ins().smax(range[1], high);
            let any = e.b.ins().icmp(IntCC::SignedLessThan, range[0], range[1]);
            let after = e.b.ins().icmp(IntCC::SignedGreaterThan, low, range[1]);
            let before = e.b.ins().icmp(IntCC::SignedLessThan, high, range[0]);
            let apart = e.b.ins().bor(after, before);
            let apart = e.b.ins().band(apart, any);
            let apart = e.b.ins().band(apart, some);
            let apart = e.b.ins().uextend(I64, apart);
            let own_low = e.min(range[3], low);
            let own_high = e.b.ins().smax(range[4], high);
            vec![
                e.b.ins().select(some, lower, range[0]),
                e.b.ins().select(some, higher, range[1]),
                e.b.ins().bor(range[2], apart),
                e.b.ins().select(some, own_low, range[3]),
                e.b.ins().select(some, own_high, range[4]),
            ]
        })
    }

    /// Queries to the panel; columns past the last are the last again.
    pub(super) fn pack(&self, e: &mut Emitter<'_>, columns: Value) {
        let (zero, n) = (e.i64(0), e.i64(self.op.head_dim as i64));
        let panel = self.shape.micro.mr as i64 * 4;
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let rows = self.addresses(e, self.query_rows, c, columns);
            let at = e.scale(c, 4);
            let to = e.b.ins().iadd(self.queries, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let values = rows.map(|row| load_along_row(e, self.op.q, Some(row), i, lanes));
                let by_element = transpose(e, values);
                if self.rounds() {
                    // A pair takes the place of one element of f32; head_dim is a multiple of 4.
                    let at = e.scale(i, panel / 2);
                    let to = e.b.ins().iadd(to, at);
                    for (j, pair) in by_element.chunks(2).enumerate().take(lanes.div_ceil(2)) {
                        e.store_pairs(pair[0], pair[1], to, j as i64 * panel);
                    }
                    return vec![];
                }
                let at = e.scale(i, panel);
                let to = e.b.ins().iadd(to, at);
                for (j, value) in by_element.into_iter().enumerate().take(lanes) {
                    e.store(DType::F32, value, to, j as i64 * panel, 4);
                }
                vec![]
            });
            vec![]
        });
    }

    /// Four columns' addresses from an array, the last one's again past the last.
    fn addresses(&self, e: &mut Emitter<'_>, array: Value, column: Value, columns: Value) -> [Value; 4] {
        let last = e.offset(columns, -1);
        std::array::from_fn(|i| {
            let c = e.offset(column, i as i64);
            let c = e.min(c, last);
            let at = e.scale(c, 8);
            let at = e.b.ins().iadd(array, at);
            e.b.ins().load(I64, MemFlagsData::new().with_notrap(), at, 0)
        })
    }

    pub(super) fn clear(&self, e: &mut Emitter<'_>) {
        let panel = self.shape.micro.mr;
        fill(e, self.sums, self.op.head_dim * panel, 0.0);
        fill(e, self.denominator, panel, 0.0);
        fill(e, self.highest, panel, UNSEEN);
    }

    /// Sums over denominators to the output; a row that saw nothing yields 0.
    pub(super) fn store(&self, e: &mut Emitter<'_>, columns: Value) {
        let panel = self.shape.micro.mr as i64 * 4;
        let (zero, n, none) = (e.i64(0), e.i64(self.op.head_dim as i64), e.splat(0.0));
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let rows = self.addresses(e, self.output_rows, c, columns);
            let at = e.scale(c, 4);
            let total = e.b.ins().iadd(self.denominator, at);
            let total = e.load(DType::F32, total, 0, 4);
            let some = e.b.ins().fcmp(FloatCC::GreaterThan, total, none);
            let sums = e.b.ins().iadd(self.sums, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let at = e.scale(i, panel);
                let at = e.b.ins().iadd(sums, at);
                let values: [Value; 4] = std::array::from_fn(|d| {
                    // In a tail the one element comes four times.
                    let d = if lanes == 4 { d as i64 } else { 0 };
                    let sum = e.load(DType::F32, at, d * panel, 4);
                    let value = e.b.ins().fdiv(sum, total);
                    e.choose(some, value, none)
                });
                let by_column = transpose(e, values);
                // From the last column down: what stands in for nobody goes where the last column's own goes after it.
                for (row, value) in rows.into_iter().zip(by_column).rev() {
                    store_along_row(e, self.op.output, value, row, i, lanes);
                }
                vec![]
            });
            vec![]
        });
    }
}
