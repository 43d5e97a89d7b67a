//! Linear kernels over one row or few: dot products of weight rows with rows of x as they lie.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::elementwise::store_along_row;
use super::hold::hold_row;
use super::linear::{Job, Operand, fixed};
use super::linear_epilogue::gating;
use crate::emit::Emitter;
use crate::micro::{self, Block, Dot, Emit, Microkernel, Raw};
use crate::view::View;

pub(super) fn raw_dot(weight: &View, operands: DType, rows: usize) -> Raw {
    Raw::Dot(Dot::of_one_row(operands, read_as(weight, operands), fixed(weight, 1), rows))
}

/// The type that raw code reads weights in for x held as `operands`: their own, or that which they are widened to
/// before.
pub(super) fn read_as(weight: &View, operands: DType) -> DType {
    let as_it_lies = operands == DType::Q8 || micro::raw_reads(weight.dtype);
    if as_it_lies { weight.dtype } else { DType::F32 }
}

/// Weight rows that are taken at a time: of those that raw code does not read one, which is widened before.
pub(super) fn dot_rows(weight: &View, micro: &Microkernel) -> usize {
    if micro::raw_reads(weight.dtype) { micro.dot_rows(weight.dtype, fixed(weight, 1)) } else { 1 }
}

/// Rows of x and weight rows that go together, besides one row of x: see [`Microkernel::dot_shapes`].
pub(super) fn shapes(micro: &Microkernel, weight: &View) -> &'static [(usize, usize)] {
    let short = matches!(micro.emit, Emit::PairedDot(_)) && !micro::is_long(weight.dtype, fixed(weight, 1));
    if short && micro.operands == DType::Q8 {
        return &[];
    }
    micro.dot_shapes(read_as(weight, micro.operands))
}

/// Dot products of some rows of x, `x_stride` bytes apart, with some weight rows.
pub(super) fn raw_dots_of(
    weight: &View,
    micro: &Microkernel,
    x_stride: i64,
    (xs, rows): (usize, usize),
) -> Raw {
    Raw::Dot(Dot {
        operands: micro.operands,
        dtype: read_as(weight, micro.operands),
        k: fixed(weight, 1),
        rows,
        xs,
        x_stride: x_stride as i32,
        c_stride: micro.block_rows() as i32 * 4,
    })
}

impl Job<'_> {
    /// Dot products of `width` weight rows from `first`, for each of the tile's weights; then the epilogue.
    pub(super) fn dot_block(&self, e: &mut Emitter<'_>, weights: &[View], first: Value, width: Value) {
        let nr = self.linear.micro.block_rows() as i64;
        let n = fixed(&weights[0], 0) as i64;
        let rows = self.rows(e);
        let (x, x_stride) = if let Operand::Rows { int8: Some(scratch), .. } = self.x {
            (scratch, micro::int8_row_bytes(self.k) as i64)
        } else {
            self.plain_rows(e)
        };
        for (weight, &c) in weights.iter().zip(&self.results) {
            let base = e.base(weight);
            if let Emit::RawDot(_) | Emit::PairedDot(_) = self.linear.micro.emit {
                let base = e.step(weight, 0, base, first);
                self.raw_dots(e, weight, base, width, (x, x_stride), c);
                continue;
            }
            let last = e.i64(n - 1);
            let weights = (0..nr)
                .map(|i| {
                    let row = e.offset(first, i);
                    let row = e.min(row, last);
                    e.step(weight, 0, base, row)
                })
                .collect();
            let block = Block { dtype: weight.dtype, weights, k: self.k, x, x_stride, rows, c };
            let Emit::Dot(emit) = self.linear.micro.emit else {
                unreachable!("dot products alone read rows")
            };
            emit(e, &block);
        }
        self.row_epilogue(e, first, width, (nr * 4, 0));
    }

    /// The epilogue on results (rows, nr) that lie `stride` bytes a row, from byte `from` of it; then to the output.
    pub(super) fn row_epilogue(
        &self,
        e: &mut Emitter<'_>,
        first: Value,
        width: Value,
        (stride, from): (i64, i64),
    ) {
        let output = &self.kernel.outputs[self.output];
        let (row, end) = self.span(e);
        if let Some((_, raw)) = gating(&self.linear, output, &e.features) {
            let [sums, second] = [0, 1].map(|i| e.offset(self.results[i], from));
            let out = e.base(output);
            let out = e.at(output, out, &[(0, row), (1, first)]);
            let rows = e.b.ins().isub(end, row);
            return e.call_raw(raw, &[sums, second, out, rows, width]);
        }
        e.for_range(row, end, 1, &[], |e, t, _| {
            let out = e.base(output);
            let out = e.at(output, out, &[(0, t), (1, first)]);
            let at = e.b.ins().isub(t, row);
            let at = e.scale(at, stride);
            let at = e.offset(at, from);
            let c: Vec<Value> = self.results.iter().map(|&c| e.b.ins().iadd(c, at)).collect();
            self.finish_row(e, (t, first), width, &c, out);
            vec![]
        });
    }

    /// The epilogue on a row of each weight's sums, `width` of them from column `first`, and to the output at `out`.
    pub(super) fn finish_row(
        &self,
        e: &mut Emitter<'_>,
        (t, first): (Value, Value),
        width: Value,
        sums: &[Value],
        out: Value,
    ) {
        let output = &self.kernel.outputs[self.output];
        let row = self.then.as_ref().map(|then| (then, then.row(e, &[(0, t)])));
        e.for_lanes(width, &[], |e, i, lanes, _| {
            let at = e.scale(i, 4);
            let values: Vec<Value> = sums
                .iter()
                .map(|&c| {
                    let at = e.b.ins().iadd(c, at);
                    e.load(DType::F32, at, 0, lanes)
                })
                .collect();
            let value = match &row {
                Some((then, row)) => {
                    let column = e.b.ins().iadd(first, i);
                    then.value(e, row, &values, column, lanes)
                }
                None => self.finish(e, &values),
            };
            store_along_row(e, output, value, out, i, lanes);
            vec![]
        });
    }

    /// Dot products of `width` weight rows from `base` by raw code, some at a time; each of these meets every row of x,
    /// as many together as there is code for.
    fn raw_dots(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        base: Value,
        width: Value,
        x: (Value, i64),
        c: Value,
    ) {
        let at_a_time = dot_rows(weight, self.linear.micro);
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        let spans = if at_a_time == 1 {
            vec![(zero, width, 1)]
        } else {
            let mask = e.i64(!(at_a_time as i64 - 1));
            let whole = e.b.ins().band(width, mask);
            vec![(zero, whole, at_a_time), (whole, width, 1)]
        };
        for (from, to, count) in spans {
            e.for_range(from, to, count as i64, &[], |e, n, _| {
                let mut weights = e.step(weight, 0, base, n);
                if let (Operand::Rows { widened: Some(scratch), .. }, false) =
                    (self.x, micro::raw_reads(weight.dtype))
                {
                    hold_row(e, weight, weights, (zero, k), scratch, (self.linear.micro, true));
                    weights = scratch;
                }
                let at = e.scale(n, 4);
                let c = e.b.ins().iadd(c, at);
                self.dots_of_rows(e, weight, weights, count, x, c);
                vec![]
            });
        }
    }

    /// Dot products of `count` weight rows with every row of x: the most rows that there is code for as often as they
    /// fit, then fewer.
    fn dots_of_rows(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        weights: Value,
        count: usize,
        (x, x_stride): (Value, i64),
        c: Value,
    ) {
        let micro = self.linear.micro;
        let nr = micro.block_rows() as i64;
        let rows = self.rows(e);
        let most = self.kernel.capacity.of(self.kernel.outputs[0].axes[0].dim);
        let mut done = e.i64(0);
        let shapes = shapes(micro, weight).iter().filter(|shape| shape.0 <= most);
        for &(xs, of) in shapes.chain([&(1, count)]) {
            let at_a_time = of.min(count);
            let mask = e.i64(!(xs as i64 - 1));
            let end = e.b.ins().band(rows, mask);
            e.for_range(done, end, xs as i64, &[], |e, t, _| {
                let at = e.scale(t, x_stride);
                let x = e.b.ins().iadd(x, at);
                let at = e.scale(t, nr * 4);
                let c = e.b.ins().iadd(c, at);
                for n in (0..count).step_by(at_a_time) {
                    let weights = e.offset(weights, n as i64 * weight.step_bytes(0));
                    let c = e.offset(c, n as i64 * 4);
                    let raw = match xs {
                        1 => raw_dot(weight, micro.operands, at_a_time),
                        _ => raw_dots_of(weight, micro, x_stride, (xs, at_a_time)),
                    };
                    e.call_raw(raw, &[x, weights, c]);
                }
                vec![]
            });
            done = end;
        }
    }
}
