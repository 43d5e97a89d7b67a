//! Rows of x rounded to 8 bits in blocks of 32, a scale, 8 times the sum less, and quants a block; or to bf16; or as
//! they are, in f32.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use crate::emit::Emitter;
use crate::micro::{self, Microkernel, ROW_BLOCKS, RowUnit};

/// How rows of x are rounded to 8 bits.
#[derive(Clone, Copy)]
pub(super) struct Rounding {
    /// Their length.
    pub(super) k: usize,
    /// Whether quants lie in pairs of blocks.
    pub(super) paired: bool,
    /// Whether sums are held times 8, beside a float: see [`micro::int8_row_bytes`].
    pub(super) magic: bool,
}

/// Rounds rows of x to 8 bits in blocks, as [`micro::int8_row_bytes`] lays them out: a block's largest magnitude
/// is 127.
pub(super) fn round_rows(
    e: &mut Emitter<'_>,
    x: Value,
    stride: i64,
    rows: Value,
    Rounding { k, paired, magic }: Rounding,
    to: Value,
) {
    let half = BLOCK as i64 / 2;
    let quant_bytes = micro::int8_quant_bytes(k) as i64;
    for_blocks(e, (x, stride), (to, micro::int8_row_bytes(k)), rows, k, |e, to, b, block| {
        let at = e.scale(b, BLOCK as i64);
        let mut at = e.b.ins().iadd(to, at);
        if paired {
            // A pair's second block starts after the first one's first half.
            let one = e.i64(1);
            let odd = e.b.ins().band(b, one);
            let back = e.scale(odd, half);
            at = e.b.ins().isub(at, back);
        }
        for (quants, byte) in block.quants.into_iter().zip([0, if paired { 2 * half } else { half }]) {
            e.store_int(quants, at, byte, 4);
        }
        let at = e.scale(b, 4);
        let at = e.b.ins().iadd(to, at);
        e.store(DType::F32, block.scale, at, quant_bytes, 1);
        let sum = if magic {
            let times = e.scale_int(block.sum, 8);
            let base = e.splat_int(micro::MAGIC.to_bits() as i32);
            e.b.ins().iadd(times, base)
        } else {
            block.sum
        };
        e.store_int(sum, at, quant_bytes + (k / BLOCK * 4) as i64, 1);
    });
}

/// Rows of x that are rounded for weight rows in lanes.
pub(super) struct LaneRows {
    /// Their length.
    pub(super) k: usize,
    /// What multiplies them, in calls of so many rows at most.
    pub(super) micro: &'static Microkernel,
    pub(super) most: usize,
    /// If it is one row for [`micro::Raw::Row`]: how it lies, as [`RowUnit::quants`] says.
    pub(super) alone: Option<[usize; 3]>,
}

impl LaneRows {
    /// Bytes from one row to the next of a panel, and from one block of a row to the next.
    fn strides(&self) -> (usize, usize) {
        let panel = self.micro.lane_panel(self.most);
        let block = micro::lane_row_bytes(self.micro.operands, BLOCK);
        if panel > 1 { (block, panel * block) } else { (self.k / BLOCK * block, block) }
    }

    /// Where row `t` begins, a panel's first or one that shares its panel with the rows before it.
    pub(super) fn at(&self, e: &mut Emitter<'_>, t: Value) -> Value {
        let (panel, row) = (self.micro.lane_panel(self.most), self.strides().0 as i64);
        if panel == 1 || self.most <= panel {
            return e.scale(t, row);
        }
        let mask = e.i64(panel as i64 - 1);
        let within = e.b.ins().band(t, mask);
        let first = e.b.ins().isub(t, within);
        let first = e.scale(first, micro::lane_row_bytes(self.micro.operands, self.k) as i64);
        let within = e.scale(within, row);
        e.b.ins().iadd(first, within)
    }

    /// Rounds `rows` rows of one panel to the operands' type, as [`micro::lane_row_bytes`] lays them out, to `to`.
    pub(super) fn round(&self, e: &mut Emitter<'_>, (x, stride): (Value, i64), rows: Value, to: Value) {
        let (row, block) = self.strides();
        let (k, operands) = (self.k, self.micro.operands);
        if !operands.is_quantised() {
            return for_values(e, (x, stride), (to, row), rows, k, |e, to, b, values| {
                let at = e.scale(b, block as i64);
                let to = e.b.ins().iadd(to, at);
                for (byte, value) in (0..).step_by(4 * operands.bytes()).zip(values) {
                    e.store(operands, value, to, byte, 4);
                }
            });
        }
        if let Some(layout) = self.alone {
            return for_blocks(e, (x, stride), (to, row), rows, k, |e, to, b, rounded| {
                let [half, block, pair] = layout.map(|bytes| bytes as i64);
                let last = e.i64(ROW_BLOCKS as i64 - 1);
                let within = e.b.ins().band(b, last);
                let unit = e.b.ins().isub(b, within);
                let at = e.scale(unit, (RowUnit::BYTES / ROW_BLOCKS) as i64);
                let to = e.b.ins().iadd(to, at);
                let [odd, second] = [e.b.ins().band_imm_u(within, 1), e.b.ins().ushr_imm_u(within, 1)];
                let [numbers, odd, second] =
                    [(within, 4), (odd, block), (second, pair)].map(|(i, bytes)| e.scale(i, bytes));
                let numbers = e.b.ins().iadd(to, numbers);
                let at = e.b.ins().iadd(odd, second);
                let at = e.b.ins().iadd(to, at);
                let places = [RowUnit::SCALES, RowUnit::SUMS, RowUnit::FIRSTS, RowUnit::WORTH];
                rounded.store(e, numbers, places.map(i64::from), (at, [0, half]));
            });
        }
        for_blocks(e, (x, stride), (to, row), rows, k, |e, to, b, rounded| {
            let at = e.scale(b, block as i64);
            let to = e.b.ins().iadd(to, at);
            rounded.store(e, to, [0, 4, 8, 12], (to, [16, 32]));
        });
    }
}

impl Rounded {
    /// Stores the scale, -8 times the sum of quants, the same of their first half, and what the first of these sums is
    /// worth, so many bytes from `to` on; and the quants' halves from `at` on.
    fn store(
        self,
        e: &mut Emitter<'_>,
        to: Value,
        [scale, sum, first, worth]: [i64; 4],
        (at, halves): (Value, [i64; 2]),
    ) {
        e.store(DType::F32, self.scale, to, scale, 1);
        let eighth = e.scale_int(self.sum, -8);
        e.store_int(eighth, to, sum, 1);
        let firsts = e.scale_int(self.first, -8);
        e.store_int(firsts, to, first, 1);
        let floats = e.b.ins().fcvt_from_sint(F32X4, eighth);
        let scaled = e.b.ins().fmul(floats, self.scale);
        e.store(DType::F32, scaled, to, worth, 1);
        for (half, byte) in self.quants.into_iter().zip(halves) {
            e.store_int(half, at, byte, 4);
        }
    }
}

/// Rounds each block of rows of x, `stride` bytes apart, for `store`: it gets where the row's result goes, of so many
/// bytes a row, and the block's number.
fn for_blocks(
    e: &mut Emitter<'_>,
    (x, stride): (Value, i64),
    (to, row_bytes): (Value, usize),
    rows: Value,
    k: usize,
    mut store: impl FnMut(&mut Emitter<'_>, Value, Value, Rounded),
) {
    for_values(e, (x, stride), (to, row_bytes), rows, k, |e, to, b, values| {
        let block = round_block(e, values);
        store(e, to, b, block);
    });
}

/// The same of blocks that are not rounded yet.
fn for_values(
    e: &mut Emitter<'_>,
    (x, stride): (Value, i64),
    (to, row_bytes): (Value, usize),
    rows: Value,
    k: usize,
    mut store: impl FnMut(&mut Emitter<'_>, Value, Value, [Value; BLOCK / 4]),
) {
    let (zero, blocks) = (e.i64(0), e.i64((k / BLOCK) as i64));
    e.for_range(zero, rows, 1, &[], |e, t, _| {
        let at = e.scale(t, stride);
        let x = e.b.ins().iadd(x, at);
        let at = e.scale(t, row_bytes as i64);
        let to = e.b.ins().iadd(to, at);
        e.for_range(zero, blocks, 1, &[], |e, b, _| {
            let at = e.scale(b, BLOCK as i64 * 4);
            let x = e.b.ins().iadd(x, at);
            let values = std::array::from_fn(|v| e.load(DType::F32, x, v as i64 * 16, 4));
            store(e, to, b, values);
            vec![]
        });
        vec![]
    });
}

/// A block of x rounded to 8 bits.
pub(super) struct Rounded {
    /// The quants, two vectors of 16 (I8X16).
    pub(super) quants: [Value; 2],
    /// Their scale, in every lane.
    pub(super) scale: Value,
    /// Their sum (I32X4), in every lane.
    pub(super) sum: Value,
    /// The sum of the first half of them (I32X4), in every lane.
    pub(super) first: Value,
}

/// The largest magnitude of a block, in every lane.
pub(super) fn largest_of_block(e: &mut Emitter<'_>, values: &[Value; BLOCK / 4]) -> Value {
    let none = e.splat(0.0);
    let largest = values.iter().fold(none, |most, &v| {
        let size = e.b.ins().fabs(v);
        e.fmax(size, most)
    });
    let largest = e.max_lanes(largest);
    e.b.ins().splat(F32X4, largest)
}

/// Rounds a block to 8 bits: its largest magnitude is 127.
pub(super) fn round_block(e: &mut Emitter<'_>, values: [Value; BLOCK / 4]) -> Rounded {
    let none = e.splat(0.0);
    let largest = largest_of_block(e, &values);
    let top = e.splat(127.0);
    let scale = e.b.ins().fdiv(largest, top);
    let inverse = e.b.ins().fdiv(top, largest);
    let some = e.b.ins().fcmp(FloatCC::GreaterThan, largest, none);
    let inverse = e.choose(some, inverse, none);
    let quants = values.map(|v| {
        let v = e.b.ins().fmul(v, inverse);
        e.round_to_int(v)
    });
    let [first, second] = [0, BLOCK / 8].map(|from| {
        let half = &quants[from..from + BLOCK / 8];
        half[1..].iter().fold(half[0], |sum, &q| e.b.ins().iadd(sum, q))
    });
    let sum = e.b.ins().iadd(first, second);
    let [sum, first] = [sum, first].map(|lanes| e.sum_int_lanes(lanes));
    Rounded { quants: e.narrow_int8(&quants), scale, sum, first }
}
