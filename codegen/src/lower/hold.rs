//! Weights brought into the form that products take, in this thread's scratch.
//!
//! In: rows of a weight as they lie, in any format. Out: the same rows in the microkernel's operands, f32, bf16 or
//! blocks of integers, at a stride of [`weight_row`] or [`widened_row`]. Raw code does it where there is some
//! ([`widening`]), else CLIF, which reads every format by its description.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType};

use super::linear::fixed;
use super::tiling::Tiling;
use crate::emit::{BlockRow, Emitter, Features};
use crate::micro::{self, Held, Microkernel, Raw, Widen};
use crate::view::View;

/// Bytes of a weight row widened to bf16 in scratch, and a little more, lest rows share cache sets.
pub(super) fn widened_row(k: usize) -> usize {
    (k.next_multiple_of(32) + 32) * 2
}

/// The raw code that widens a weight to the operands' type, if there is one and there is something to do; `fetches`
/// says whether it fetches what follows in a row.
pub(super) fn widening(
    weight: &View,
    micro: &Microkernel,
    fetches: bool,
    features: &Features,
) -> Option<(&'static Microkernel, Raw)> {
    let copied = weight.dtype == micro.operands && !weight.dtype.is_quantised();
    if copied && !micro.is_configured() {
        return None;
    }
    let widen = Widen { from: weight.dtype, to: micro.operands, fetches };
    Some((micro::widening(features, widen)?, Raw::Widen(widen)))
}

/// Bytes from one weight row in scratch to the next: not a power of two, lest rows share cache sets.
pub(super) fn weight_row(micro: &Microkernel, stored: DType) -> usize {
    held_row(micro, stored, micro.part())
}

/// The same of rows of which `n` elements are held.
pub(super) fn held_row(micro: &Microkernel, stored: DType, n: usize) -> usize {
    micro.held_bytes(stored, n) + 64
}

/// Holds `length` elements from `from` of the block's weight rows as tiles read them; rows past the end are the last
/// row again. An odd length of bf16 is filled up with a 0.
pub(super) fn hold(
    e: &mut Emitter<'_>,
    weight: &View,
    first: Value,
    span: (Value, Value),
    to: Value,
    tiling: &Tiling,
) {
    let Tiling { micro, weight_stride: stride, .. } = *tiling;
    // Where x streams something else fetches what comes next.
    let fetches = tiling.streams.is_none();
    let last = e.i64(fixed(weight, 0) as i64 - 1);
    let (zero, rows) = (e.i64(0), e.i64(micro.block_rows() as i64));
    e.for_range(zero, rows, 1, &[], |e, n, _| {
        let row = e.b.ins().iadd(first, n);
        let row = e.min(row, last);
        let base = e.base(weight);
        let row = e.step(weight, 0, base, row);
        let held = if micro.has_fours() { Some(Held::Pairs) } else { micro.held() };
        let at = match held {
            Some(held) => held.row(e, n, stride as i64),
            None => e.scale(n, stride as i64),
        };
        let to = e.b.ins().iadd(to, at);
        hold_row(e, weight, row, span, to, (micro, fetches));
        vec![]
    });
}

/// `length` elements from `from` of one weight row, as f32, bf16 or, by raw code alone, blocks of integers.
pub(super) fn hold_row(
    e: &mut Emitter<'_>,
    weight: &View,
    row: Value,
    (from, length): (Value, Value),
    to: Value,
    (micro, fetches): (&Microkernel, bool),
) {
    if let Some((_, raw)) = widening(weight, micro, fetches, &e.features) {
        widen_row(e, weight, raw, row, (from, length), to, Form::of(micro));
    } else if let Some(format) = weight.dtype.format() {
        dequantise(
            e,
            BlockRow { format, address: row, k: fixed(weight, 1) },
            from,
            length,
            to,
            Form::of(micro),
        );
    } else {
        let row = e.step(weight, 1, row, from);
        hold_floats(e, weight, row, length, to, Form::of(micro));
    }
}

/// What floats are held as: their type, and bytes from four of them to the next four over 4.
#[derive(Clone, Copy)]
struct Form {
    operands: DType,
    pitch: i64,
}

impl Form {
    /// What a microkernel reads.
    fn of(micro: &Microkernel) -> Form {
        let size = if micro.operands == DType::BF16 { 2 } else { 4 };
        Form { operands: micro.operands, pitch: size * if micro.has_fours() { 2 } else { 1 } }
    }
}

/// Elements of a quantised or plain row by raw code, whole blocks, of which `from` begins one; of a plain one the rest
/// too.
fn widen_row(
    e: &mut Emitter<'_>,
    weight: &View,
    raw: Raw,
    row: Value,
    (from, length): (Value, Value),
    to: Value,
    form: Form,
) {
    let block = weight.dtype.format().map_or(BLOCK, |f| f.block);
    let log = i64::from(block.trailing_zeros());
    let blocks = e.b.ins().ushr_imm_u(length, log);
    let none = e.i64(0);
    let some = e.b.ins().icmp(IntCC::SignedGreaterThan, blocks, none);
    if let Some(format) = weight.dtype.format() {
        let block = e.b.ins().ushr_imm_u(from, log);
        let plane = |e: &mut Emitter<'_>, plane: usize| {
            let at = e.scale(block, format.planes[plane] as i64);
            let at = e.offset(at, format.plane_at(plane, fixed(weight, 1)) as i64);
            e.b.ins().iadd(row, at)
        };
        let (elements, rest) = (plane(e, 0), plane(e, format.planes.len() - 1));
        e.when(some, |e| e.call_raw(raw, &[elements, rest, to, blocks]));
        return;
    }
    let row = e.step(weight, 1, row, from);
    e.when(some, |e| e.call_raw(raw, &[row, row, to, blocks]));
    let done = e.scale(blocks, BLOCK as i64);
    let left = e.b.ins().isub(length, done);
    let row = e.step(weight, 1, row, done);
    let at = e.scale(done, form.pitch);
    let to = e.b.ins().iadd(to, at);
    hold_floats(e, weight, row, left, to, form);
}

/// `length` floats as f32 or bf16. An odd length of bf16 is filled up with a 0.
fn hold_floats(e: &mut Emitter<'_>, weight: &View, row: Value, length: Value, to: Value, form: Form) {
    let Form { operands, pitch } = form;
    let fours = operands == DType::BF16 && pitch == 4;
    let zero = e.i64(0);
    let bytes = weight.dtype.bytes() as i64;
    let mask = e.i64(!15);
    let whole = e.b.ins().band(length, mask);
    e.for_range(zero, whole, 16, &[], |e, i, _| {
        let at = e.scale(i, bytes);
        let row = e.b.ins().iadd(row, at);
        let at = e.scale(i, pitch);
        let to = e.b.ins().iadd(to, at);
        if weight.dtype == operands && !fours {
            e.copy(row, to, 16 * pitch);
            return vec![];
        }
        let values: [Value; 4] =
            std::array::from_fn(|v| e.load_readonly(weight.dtype, row, v as i64 * 4 * bytes, 4));
        for (v, value) in values.into_iter().enumerate() {
            e.store(operands, value, to, v as i64 * 4 * pitch, 4);
        }
        vec![]
    });
    let lanes = if fours { 4 } else { 1 };
    e.for_range(whole, length, lanes as i64, &[], |e, i, _| {
        let at = e.scale(i, bytes);
        let row = e.b.ins().iadd(row, at);
        let at = e.scale(i, pitch);
        let to = e.b.ins().iadd(to, at);
        let value = e.load_readonly(weight.dtype, row, 0, lanes);
        e.store(operands, value, to, 0, lanes);
        vec![]
    });
    if operands == DType::BF16 && !fours {
        let at = e.scale(length, pitch);
        let to = e.b.ins().iadd(to, at);
        let none = e.splat(0.0);
        e.store(operands, none, to, 0, 1);
    }
}

/// Elements `from..from + length` of one quantised row; both are multiples of [`BLOCK`].
fn dequantise(e: &mut Emitter<'_>, row: BlockRow, from: Value, length: Value, to: Value, form: Form) {
    let (zero, step) = (e.i64(0), row.format.group.min(BLOCK));
    e.for_range(zero, length, step as i64, &[], |e, i, _| {
        let at = e.scale(i, form.pitch);
        let to = e.b.ins().iadd(to, at);
        let first = e.b.ins().iadd(from, i);
        let group = e.load_group(row, first);
        for element in (0..step as i64).step_by(4) {
            let at = e.offset(first, element);
            let quants = e.load_quants(row, at);
            let value = e.scaled(quants, group);
            e.store(form.operands, value, to, element * form.pitch, 4);
        }
        vec![]
    });
}
