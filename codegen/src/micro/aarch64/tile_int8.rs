//! Tiles in integers by `sdot` or `smmla`: x rounded to 8 bits in blocks, against quantised weight rows held signed.
//!
//! A block's products are summed exactly in i32, then scaled by x's scale and the weights' and added up in f32. Both
//! instructions do that in the same order, so that a result has the same bits. Sums begin at the bits of a float
//! ([`MAGIC`]): that taken off, they are floats, sooner than by a conversion.

use lapidary_ir::{BLOCK, DType};

use super::asm::Assembler;
use crate::micro::{Code, Held, MAGIC, Tile, Widen, tile_int8};

/// Operands, as the procedure call standard passes them; one to spare; the weight rows' (or pairs') addresses.
const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const COUNT: u32 = 3;
const ACCUMULATE: u32 = 4;
const SPARE: u32 = 5;
const ROWS: u32 = 6;

/// Vectors: weights, x, what sums begin at, sums of f32, and of a block's products. v8 to v15 are the caller's.
const WEIGHTS: u32 = 0;
const XS: u32 = 4;
const START: u32 = 8;
const TOTALS: u32 = 16;
const SUMS: u32 = 24;

/// Lanes of a vector.
const LANES: usize = 4;
/// Elements of k whose products one lane of `sdot` adds up.
const STEP: usize = 4;
/// Rows whose weights are in registers at a time.
const GROUP: usize = 4;

/// With FEAT_DotProd: four columns of x a register, each times a weight row's four elements; at most 8 registers of
/// sums.
pub(crate) fn tile_sdot(tile: Tile) -> Code {
    let (vectors, panel) = (tile.columns / LANES, tile.panel as i32);
    let mut a = Assembler::default();
    let index = |n: usize, v: usize| (n * vectors + v) as u32;
    let all = || (0..tile.nr).flat_map(|n| (0..vectors).map(move |v| (n, v)));
    let c = |n: usize, v: usize| n as i32 * tile.c_stride + v as i32 * 16;
    for n in 0..tile.nr {
        a.step(ROWS + n as u32, W, n as i32 * tile.weight_stride);
    }
    start(&mut a, &mut |a| all().for_each(|(n, v)| a.load_q(TOTALS + index(n, v), C, c(n, v))));

    let again = a.label();
    for sum in 0..index(tile.nr, 0) {
        a.copy(SUMS + sum, START);
    }
    for half in 0..BLOCK / 16 {
        for first in (0..tile.nr).step_by(GROUP) {
            let rows = first..tile.nr.min(first + GROUP);
            for n in rows.clone() {
                a.load_q(WEIGHTS + (n - first) as u32, ROWS + n as u32, half as i32 * 16);
            }
            for step in 0..16 / STEP {
                // The registers of two steps in turn.
                let x = |v: usize| XS + (step % 2 * vectors + v) as u32;
                let at = (2 + half * 16 / STEP + step) as i32 * panel * 4;
                (0..vectors).for_each(|v| a.load_q(x(v), X, at + v as i32 * 16));
                for n in rows.clone() {
                    for v in 0..vectors {
                        let w = (WEIGHTS + (n - first) as u32, step as u32);
                        a.sdot_element(SUMS + index(n, v), x(v), w);
                    }
                }
            }
        }
    }
    (0..vectors).for_each(|v| a.load_q(XS + v as u32, X, v as i32 * 16));
    for n in 0..tile.nr {
        let scale = WEIGHTS + (n % GROUP) as u32;
        a.load_s(scale, ROWS + n as u32, BLOCK as i32);
        for v in 0..vectors {
            let sum = SUMS + index(n, v);
            a.subtract_floats(sum, sum, START);
            a.multiply(sum, sum, XS + v as u32);
            a.multiply_add_element(TOTALS + index(n, v), sum, (scale, 0));
        }
    }
    next(&mut a, tile, tile.nr, Held::Signed.block_bytes(tile.weights));
    a.branch_if_not_equal(again);

    all().for_each(|(n, v)| a.store_q(TOTALS + index(n, v), C, c(n, v)));
    a.give_back();
    a.ret();
    Ok(a.finish())
}

/// With FEAT_I8MM: two columns of x and two weight rows a register, eight elements of k at a time; at most 8 registers
/// of sums.
pub(crate) fn tile_smmla(tile: Tile) -> Code {
    let (columns, rows, panel) = (tile.columns / 2, tile.nr / 2, tile.panel as i32);
    let mut a = Assembler::default();
    let index = |n: usize, t: usize| (n * columns + t) as u32;
    let all = || (0..rows).flat_map(|n| (0..columns).map(move |t| (n, t)));
    let c = |n: usize, t: usize| 2 * n as i32 * tile.c_stride + t as i32 * 8;
    for n in 0..rows {
        a.step(ROWS + n as u32, W, 2 * n as i32 * tile.weight_stride);
    }
    start(&mut a, &mut |a| {
        for (n, t) in all() {
            let total = TOTALS + index(n, t);
            a.load_d(total, C, c(n, t));
            a.load_d(XS, C, c(n, t) + tile.c_stride);
            a.zip_lower(total, total, XS);
        }
    });

    let again = a.label();
    for sum in 0..index(rows, 0) {
        a.copy(SUMS + sum, START);
    }
    for step in 0..BLOCK / 8 {
        (0..rows).for_each(|n| a.load_q(WEIGHTS + n as u32, ROWS + n as u32, step as i32 * 16));
        let at = (2 + 2 * step as i32) * panel * 4;
        for t in (0..columns).step_by(2) {
            let x = XS + t as u32;
            a.load_q(x, X, at + t as i32 * 16);
            a.load_q(x + 1, X, at + t as i32 * 16 + 16);
            for (n, t) in (0..rows).flat_map(|n| [(n, t), (n, t + 1)]) {
                a.smmla(SUMS + index(n, t), WEIGHTS + n as u32, XS + t as u32);
            }
        }
    }
    for t in (0..columns as u32).step_by(2) {
        a.load_q(XS + t, X, t as i32 * 8);
        a.splat_upper_double(XS + t + 1, XS + t);
        a.splat_double(XS + t, XS + t);
    }
    for n in 0..rows {
        a.load_q(WEIGHTS + n as u32, ROWS + n as u32, 2 * BLOCK as i32);
        for t in 0..columns {
            let sum = SUMS + index(n, t);
            a.subtract_floats(sum, sum, START);
            a.multiply(sum, sum, XS + t as u32);
            a.multiply_add(TOTALS + index(n, t), sum, WEIGHTS + n as u32);
        }
    }
    next(&mut a, tile, rows, 2 * Held::Pairs.block_bytes(tile.weights));
    a.branch_if_not_equal(again);

    for (n, t) in all() {
        let total = TOTALS + index(n, t);
        a.store_d(total, C, c(n, t));
        a.zip_upper(total, total, total);
        a.store_d(total, C, c(n, t) + tile.c_stride);
    }
    a.give_back();
    a.ret();
    Ok(a.finish())
}

/// Starts the 8 registers of sums: from 0, or as `load` finds them.
fn start(a: &mut Assembler, load: &mut dyn FnMut(&mut Assembler)) {
    a.keep();
    a.mov(SPARE, MAGIC.to_bits());
    a.splat(START, SPARE);
    (TOTALS..SUMS).for_each(|total| a.zero(total));
    let fresh = a.forward_if_zero(ACCUMULATE);
    load(a);
    a.land(fresh);
}

/// Steps on to the next block, of weights of so many bytes, and counts it.
fn next(a: &mut Assembler, tile: Tile, rows: usize, bytes: usize) {
    a.step(X, X, (tile.panel * tile_int8::PANEL_BLOCK) as i32);
    for n in 0..rows as u32 {
        a.step(ROWS + n, ROWS + n, bytes as i32);
    }
    a.subs(COUNT, COUNT, 1);
}

/// Holds blocks of a weight row: see [`Held::Signed`].
pub(crate) fn hold_signed(widen: Widen) -> Code {
    hold(widen, Held::Signed)
}

/// Holds blocks of a weight row: see [`Held::Pairs`].
pub(crate) fn hold_pairs(widen: Widen) -> Code {
    hold(widen, Held::Pairs)
}

fn hold(widen: Widen, held: Held) -> Code {
    let (from, scales, to, count) = (0, 1, 2, 3);
    let (low, high, scale, nibble, eight) = (0, 1, 2, 3, 4);
    let mut a = Assembler::default();
    a.splat_bytes(nibble, 0x0f);
    a.splat_bytes(eight, 8);
    let again = a.label();
    a.load_q(low, from, 0);
    if widen.from == DType::Q4 {
        // The second half of the elements are the bytes' upper halves.
        a.high_nibbles(high, low);
        a.and(low, low, nibble);
        a.sub_bytes(low, low, eight);
        a.sub_bytes(high, high, eight);
    } else {
        a.load_q(high, from, 16);
    }
    a.load_h(scale, scales, 0);
    a.widen_bf16(scale, scale);
    let bytes = held.block_bytes(widen.from) as i32;
    if held == Held::Pairs {
        for (at, half) in [(0, low), (32, high)] {
            a.store_d(half, to, at);
            a.zip_upper(half, half, half);
            a.store_d(half, to, at + 16);
        }
        a.splat_word(scale, scale);
        a.store_d(scale, to, 2 * BLOCK as i32);
        a.step(to, to, 2 * bytes);
    } else {
        a.store_q(low, to, 0);
        a.store_q(high, to, 16);
        a.store_s(scale, to, BLOCK as i32);
        a.step(to, to, bytes);
    }
    a.step(from, from, if widen.from == DType::Q4 { 16 } else { 32 });
    a.step(scales, scales, 2);
    a.subs(count, count, 1);
    a.branch_if_not_equal(again);
    a.ret();
    Ok(a.finish())
}
