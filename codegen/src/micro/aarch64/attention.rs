//! Scores and weighted sums of cached rows as they lie, each widened once for all heads.

use lapidary_ir::{BLOCK, DType};

use super::asm::Assembler;
use super::float::widen;
use crate::micro::{Code, Mix, Scores};

/// Columns of a weighted sum that fit the registers with two heads' sums.
pub(crate) const COLUMNS: usize = 32;

/// Elements at a time.
const STEP: usize = 8;

/// Operands in the order that the procedure call standard passes them in; what is fetched ahead is left to the CPU.
const FIRST: u32 = 0;
const SECOND: u32 = 1;
const THIRD: u32 = 2;
const FOURTH: u32 = 3;
const COUNT: u32 = 4;
/// The rows' addresses.
const ROWS: u32 = 5;

/// Vectors: what is widened, what it is multiplied by, what that takes; sums. v8 to v15 are the caller's.
const VALUE: [u32; 2] = [0, 1];
const FACTORS: u32 = 2;
const ZERO: u32 = 6;
const SCALE: u32 = 7;
const SUMS: u32 = 16;

/// A block's scale of q8.
fn scale(a: &mut Assembler, address: u32, bytes: i32) {
    a.load_h(SCALE, address, bytes);
    a.widen_bf16(SCALE, SCALE);
}

/// At most two heads, of four keys each: two sums of four lanes a score.
pub(crate) fn scores(scores: Scores) -> Code {
    let Scores { dtype, k, rows, heads, q_stride, c_stride } = scores;
    let (queries, keys, c) = (FIRST, SECOND, THIRD);
    let row_bytes = dtype.row_bytes(k) as i32;
    let a = &mut Assembler::default();
    let query = |h: usize| ROWS + h as u32;
    let key = |r: usize| ROWS + (heads + r) as u32;
    let scales = |r: usize| ROWS + (heads + rows + r) as u32;
    let sum = |h: usize, r: usize, half: usize| SUMS + (2 * (h * rows + r) + half) as u32;
    (0..heads).for_each(|h| a.step(query(h), queries, h as i32 * q_stride));
    for r in 0..rows {
        a.step(key(r), keys, r as i32 * row_bytes);
        if dtype == DType::Q8 {
            a.step(scales(r), key(r), k as i32);
        }
    }
    (0..2 * heads * rows).for_each(|i| a.zero(SUMS + i as u32));
    a.zero(ZERO);
    a.mov(COUNT, (k / BLOCK) as u32);
    let again = a.label();
    let size = if dtype == DType::Q8 { 1 } else { dtype.bytes() as i32 };
    for eight in 0..BLOCK / STEP {
        for h in 0..heads as u32 {
            for half in 0..2 {
                a.load_q(FACTORS + 2 * h + half, query(h as usize), 32 * eight as i32 + 16 * half as i32);
            }
        }
        for r in 0..rows {
            widen(a, dtype, (key(r), (STEP * eight) as i32 * size), VALUE, ZERO);
            if dtype == DType::Q8 {
                scale(a, scales(r), 0);
                VALUE.into_iter().for_each(|value| a.multiply_element(value, value, (SCALE, 0)));
            }
            for h in 0..heads {
                for (half, value) in VALUE.into_iter().enumerate() {
                    a.multiply_add(sum(h, r, half), value, FACTORS + (2 * h + half) as u32);
                }
            }
        }
    }
    (0..heads).for_each(|h| a.step(query(h), query(h), 4 * BLOCK as i32));
    for r in 0..rows {
        a.step(key(r), key(r), BLOCK as i32 * size);
        if dtype == DType::Q8 {
            a.step(scales(r), scales(r), 2);
        }
    }
    a.subs(COUNT, COUNT, 1);
    a.branch_if_not_equal(again);
    for (h, r) in (0..heads).flat_map(|h| (0..rows).map(move |r| (h, r))) {
        let first = sum(h, r, 0);
        a.add_floats(first, first, sum(h, r, 1));
        a.sum_lanes(first, first);
        a.store_s(first, c, h as i32 * c_stride + 4 * r as i32);
    }
    a.ret();
    Ok(std::mem::take(a).finish())
}

/// At most two heads, of [`COLUMNS`].
pub(crate) fn mix(mix: Mix) -> Code {
    let Mix { dtype, k, column, columns, heads, weight_stride, c_stride } = mix;
    let (values, weights, c, count) = (FIRST, SECOND, THIRD, FOURTH);
    let a = &mut Assembler::default();
    let size = if dtype == DType::Q8 { 1 } else { dtype.bytes() as i32 };
    let (at, scales, second, other) = (ROWS, ROWS + 1, ROWS + 2, ROWS + 3);
    let sum = |h: usize, i: usize| SUMS + (h * columns / 4 + i) as u32;
    let all = || (0..heads).flat_map(|h| (0..columns / 4).map(move |i| (h, i)));
    let place = |h: usize| if h == 0 { c } else { other };
    a.step(at, values, column as i32 * size);
    a.step(scales, values, (k + column / BLOCK * 2) as i32);
    a.step(second, weights, weight_stride);
    a.step(other, c, c_stride);
    a.zero(ZERO);
    all().for_each(|(h, i)| a.load_q(sum(h, i), place(h), 16 * i as i32));
    let again = a.label();
    a.load_s_after(FACTORS, weights);
    if heads > 1 {
        a.load_s_after(FACTORS + 1, second);
    }
    for eight in 0..columns / STEP {
        if dtype == DType::Q8 && eight % (BLOCK / STEP) == 0 {
            scale(a, scales, (eight * STEP / BLOCK * 2) as i32);
        }
        widen(a, dtype, (at, (STEP * eight) as i32 * size), VALUE, ZERO);
        if dtype == DType::Q8 {
            VALUE.into_iter().for_each(|value| a.multiply_element(value, value, (SCALE, 0)));
        }
        for h in 0..heads {
            for (half, value) in VALUE.into_iter().enumerate() {
                a.multiply_add_element(sum(h, 2 * eight + half), value, (FACTORS + h as u32, 0));
            }
        }
    }
    a.step(at, at, dtype.row_bytes(k) as i32);
    a.step(scales, scales, dtype.row_bytes(k) as i32);
    a.subs(count, count, 1);
    a.branch_if_not_equal(again);
    all().for_each(|(h, i)| a.store_q(sum(h, i), place(h), 16 * i as i32));
    a.ret();
    Ok(std::mem::take(a).finish())
}
