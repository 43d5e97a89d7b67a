//! Dot products in integers by `sdot`: a row of x rounded to 8 bits in blocks, against quantised weight rows.
//!
//! A block's products are summed exactly in i32; the sum is then scaled by both blocks' scales and added up in f32.
//! `sdot` multiplies signed by signed bytes, so weights of 4 bits are shifted to be signed and x's sums are not needed.

use lapidary_ir::{BLOCK, DType};

use super::asm::Assembler;
use crate::micro::{self, Code, Dot};

/// Operands, as the procedure call standard passes them; count and scales of x beside.
const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const X_SCALES: u32 = 3;
const COUNT: u32 = 12;
const IMMEDIATE: u32 = 13;
/// First of the rows' addresses: quants, then scales.
const ROWS: u32 = 4;
const SCALES: u32 = 8;

/// Vectors; v8 to v15 are the caller's.
const X_LOW: u32 = 0;
const X_HIGH: u32 = 1;
const X_SCALE: u32 = 2;
const LOW: u32 = 4;
const HIGH: u32 = 5;
const PRODUCT: u32 = 6;
const SCALE: u32 = 7;
const SUMS: u32 = 16;
const NIBBLE: u32 = 20;
const EIGHT: u32 = 21;

/// With FEAT_DotProd.
pub(crate) fn dot_sdot(dot: Dot) -> Code {
    let Dot { dtype, k, rows, .. } = dot;
    let row_bytes = dtype.row_bytes(k);
    let quant_bytes = row_bytes - k / BLOCK * 2;
    let mut a = Assembler::default();
    let offset = |a: &mut Assembler, d: u32, n: u32, bytes: usize| {
        a.mov(IMMEDIATE, bytes as u32);
        a.add(d, n, IMMEDIATE);
    };
    offset(&mut a, X_SCALES, X, micro::int8_quant_bytes(k));
    for r in 0..rows {
        offset(&mut a, ROWS + r as u32, W, r * row_bytes);
        offset(&mut a, SCALES + r as u32, W, r * row_bytes + quant_bytes);
        a.zero(SUMS + r as u32);
    }
    a.splat_bytes(NIBBLE, 0x0f);
    a.splat_bytes(EIGHT, 8);
    a.mov(COUNT, (k / BLOCK) as u32);

    let again = a.label();
    a.load_pair(X_LOW, X_HIGH, X);
    a.load_s(X_SCALE, X_SCALES);
    for r in 0..rows as u32 {
        if dtype == DType::Q4 {
            // The upper half of a block lies in the high nibbles.
            a.load_q(LOW, ROWS + r);
            a.high_nibbles(HIGH, LOW);
            a.and(LOW, LOW, NIBBLE);
            a.sub_bytes(LOW, LOW, EIGHT);
            a.sub_bytes(HIGH, HIGH, EIGHT);
        } else {
            a.load_pair(LOW, HIGH, ROWS + r);
        }
        a.zero(PRODUCT);
        a.sdot(PRODUCT, LOW, X_LOW);
        a.sdot(PRODUCT, HIGH, X_HIGH);
        a.convert_to_float(PRODUCT, PRODUCT);
        a.load_h(SCALE, SCALES + r);
        a.widen_bf16(SCALE, SCALE);
        a.multiply_s(SCALE, SCALE, X_SCALE);
        a.multiply_add(SUMS + r, PRODUCT, SCALE);
    }
    a.subs(COUNT, COUNT, 1);
    a.branch_if_not_equal(again);
    for r in 0..rows as u32 {
        a.sum_lanes(SUMS + r, SUMS + r);
        a.store_s(SUMS + r, C, 4 * r);
    }
    a.ret();
    Ok(a.finish())
}
