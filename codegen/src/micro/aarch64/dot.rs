//! Dot products in f32: one row of x, or some, against weight rows as they lie, each widened once for all of them.
//!
//! Eight elements at a time, in two sums of four lanes a result; what is left goes to the first, at last one by one to
//! its first lane. Of quantised rows a block's sum is taken without its scale.

use lapidary_ir::{BLOCK, DType};

use super::asm::Assembler;
use super::float::{Nibbles, integers, widen};
use crate::micro::{Code, Dot};

const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const COUNT: u32 = 3;
/// First of the rows' addresses.
const FREE: u32 = 4;

/// Vectors: x, weights widened, and what that takes; sums. v8 to v15 are the caller's.
const XS: [u32; 2] = [0, 1];
const WEIGHTS: [u32; 2] = [2, 3];
const NIBBLES: Nibbles = Nibbles { mask: 4, eight: 5 };
const ZERO: u32 = 6;
const SCALE: u32 = 7;
const PARTS: u32 = 16;
const SUMS: u32 = 24;

/// Elements at a time.
const STEP: usize = 8;

/// Of one row of x, or several and plain weights: at most eight registers of sums.
pub(crate) fn dot_f32(dot: Dot) -> Code {
    let Dot { dtype, k, rows, xs, .. } = dot;
    let a = &mut Assembler::default();
    let row_bytes = dtype.row_bytes(k) as i32;
    let x = |t: usize| FREE + t as u32;
    let w = |r: usize| FREE + (xs + r) as u32;
    (0..xs).for_each(|t| a.step(x(t), X, t as i32 * dot.x_stride));
    (0..rows).for_each(|r| a.step(w(r), W, r as i32 * row_bytes));
    (SUMS..SUMS + 8).for_each(|sum| a.zero(sum));
    a.zero(ZERO);
    let sum = |t: usize, r: usize, half: usize| SUMS + (2 * (t * rows + r) + half) as u32;
    if dtype.is_quantised() {
        quantised(a, dot, &|r| w(r), &|r| FREE + (xs + rows + r) as u32, &|r| sum(0, r, 0));
    } else {
        let size = dtype.bytes() as i32;
        let next = |a: &mut Assembler, n: usize| {
            (0..xs).for_each(|t| a.step(x(t), x(t), 4 * n as i32));
            (0..rows).for_each(|r| a.step(w(r), w(r), size * n as i32));
        };
        let load = |a: &mut Assembler, t: usize, at: usize| {
            (0..2).for_each(|half| a.load_q(XS[half], x(t), (4 * at + 16 * half) as i32));
        };
        let eight = |a: &mut Assembler, at: usize| {
            if xs == 1 {
                load(a, 0, at);
            }
            for r in 0..rows {
                widen(a, dtype, (w(r), size * at as i32), WEIGHTS, ZERO);
                for t in 0..xs {
                    if xs > 1 {
                        load(a, t, at);
                    }
                    (0..2).for_each(|half| a.multiply_add(sum(t, r, half), XS[half], WEIGHTS[half]));
                }
            }
        };
        // Two steps a turn; the last one is taken alone if their number is odd.
        if k >= 2 * STEP {
            a.mov(COUNT, (k / (2 * STEP)) as u32);
            let again = a.label();
            [0, STEP].into_iter().for_each(|at| eight(a, at));
            next(a, 2 * STEP);
            a.subs(COUNT, COUNT, 1);
            a.branch_if_not_equal(again);
        }
        if k / STEP % 2 == 1 {
            eight(a, 0);
            next(a, STEP);
        }
        let mut left = k % STEP;
        while left > 0 {
            let n = if left >= 4 { 4 } else { 1 };
            for r in 0..rows {
                let to = WEIGHTS[0];
                match (size, n) {
                    (4, 1) => a.load_s(to, w(r), 0),
                    (4, _) => a.load_q(to, w(r), 0),
                    (_, 1) => a.load_h(to, w(r), 0),
                    _ => a.load_d(to, w(r), 0),
                }
                match dtype {
                    DType::BF16 => a.widen_bf16(to, to),
                    DType::F16 => a.widen_f16(to, to),
                    DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {}
                }
                for t in 0..xs {
                    if n == 1 {
                        a.load_s(XS[0], x(t), 0)
                    } else {
                        a.load_q(XS[0], x(t), 0)
                    }
                    a.multiply_add(sum(t, r, 0), XS[0], to);
                }
            }
            next(a, n);
            left -= n;
        }
    }
    for t in 0..xs {
        for r in 0..rows {
            let [first, second] = [sum(t, r, 0), sum(t, r, 1)];
            a.add_floats(first, first, second);
            a.sum_lanes(first, first);
            a.store_s(first, C, t as i32 * dot.c_stride + 4 * r as i32);
        }
    }
    a.ret();
    Ok(std::mem::take(a).finish())
}

/// All blocks of quantised rows against one row of x.
fn quantised(
    a: &mut Assembler,
    dot: Dot,
    w: &dyn Fn(usize) -> u32,
    scales: &dyn Fn(usize) -> u32,
    sum: &dyn Fn(usize) -> u32,
) {
    let Dot { dtype, k, rows, .. } = dot;
    let bytes = (dtype.row_bytes(k) - k / BLOCK * 2) as i32;
    let x = FREE;
    (0..rows).for_each(|r| a.step(scales(r), w(r), bytes));
    NIBBLES.ready(a);
    a.mov(COUNT, (k / BLOCK) as u32);
    let again = a.label();
    let part = |r: usize, half: usize| PARTS + (2 * r + half) as u32;
    (0..2 * rows).for_each(|i| a.zero(PARTS + i as u32));
    for eight in 0..BLOCK / STEP {
        (0..2).for_each(|half| a.load_q(XS[half], x, 32 * eight as i32 + 16 * half as i32));
        for r in 0..rows {
            // Of Q4 the second half of the elements are the bytes' upper halves.
            let at = if dtype == DType::Q4 { eight as i32 % 2 * 8 } else { eight as i32 * 8 };
            a.load_d(WEIGHTS[0], w(r), at);
            if dtype == DType::Q4 {
                NIBBLES.split(a, WEIGHTS[0], eight >= BLOCK / STEP / 2);
            }
            integers(a, WEIGHTS);
            (0..2).for_each(|half| a.multiply_add(part(r, half), XS[half], WEIGHTS[half]));
        }
    }
    for r in 0..rows {
        a.load_h(SCALE, scales(r), 0);
        a.widen_bf16(SCALE, SCALE);
        a.add_floats(part(r, 0), part(r, 0), part(r, 1));
        a.multiply_add_element(sum(r), part(r, 0), (SCALE, 0));
        a.step(w(r), w(r), dtype.row_bytes(BLOCK) as i32 - 2);
        a.step(scales(r), scales(r), 2);
    }
    a.step(x, x, 4 * BLOCK as i32);
    a.subs(COUNT, COUNT, 1);
    a.branch_if_not_equal(again);
}
