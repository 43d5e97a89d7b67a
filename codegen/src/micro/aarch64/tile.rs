//! Tiles of f32: each of `columns / 4` vectors of x times each of `nr` weights, elements of a register.

use super::asm::Assembler;
use crate::micro::{Code, Tile};

const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const COUNT: u32 = 3;
const ACCUMULATE: u32 = 4;
/// The weight rows' addresses.
const ROWS: u32 = 5;

/// Vectors: x, of two steps; weights in turn; sums, of which the caller's v8 to v15 are some.
const XS: u32 = 0;
const WEIGHTS: [u32; 4] = [4, 5, 6, 7];
const SUMS: u32 = 8;

/// Lanes of a vector.
const LANES: usize = 4;
/// How many steps of k the loop is unrolled by.
const UNROLL: u32 = 4;

/// At most 24 registers of sums, of at most two vectors of x and 12 weight rows.
pub(crate) fn tile_f32(tile: Tile) -> Code {
    let vectors = tile.columns / LANES;
    let a = &mut Assembler::default();
    let sum = |n: usize, v: usize| SUMS + (n * vectors + v) as u32;
    let all = || (0..tile.nr).flat_map(|n| (0..vectors).map(move |v| (n, v)));
    let c = |n: usize, v: usize| n as i32 * tile.c_stride + v as i32 * 16;
    let x_step = tile.panel as i32 * 4;
    a.keep();
    for n in 0..tile.nr {
        a.step(ROWS + n as u32, W, n as i32 * tile.weight_stride);
    }
    all().for_each(|(n, v)| a.zero(sum(n, v)));
    let fresh = a.forward_if_zero(ACCUMULATE);
    all().for_each(|(n, v)| a.load_q(sum(n, v), C, c(n, v)));
    a.land(fresh);

    // At most four steps, two at a time.
    let steps = |a: &mut Assembler, count: usize| {
        let x = |step: usize, v: usize| XS + (step % 2 * vectors + v) as u32;
        for first in (0..count).step_by(2) {
            let together = first..count.min(first + 2);
            for step in together.clone() {
                (0..vectors).for_each(|v| a.load_q(x(step, v), X, step as i32 * x_step + v as i32 * 16));
            }
            for n in 0..tile.nr {
                let (w, row) = (WEIGHTS[n % WEIGHTS.len()], ROWS + n as u32);
                match together.len() {
                    1 => a.load_s(w, row, first as i32 * 4),
                    _ => a.load_d(w, row, first as i32 * 4),
                }
                for step in together.clone() {
                    for v in 0..vectors {
                        a.multiply_add_element(sum(n, v), x(step, v), (w, (step % 2) as u32));
                    }
                }
            }
        }
        a.step(X, X, count as i32 * x_step);
        (0..tile.nr as u32).for_each(|n| a.step(ROWS + n, ROWS + n, 4 * count as i32));
    };
    a.subs(COUNT, COUNT, UNROLL);
    let short = a.forward_if_less();
    let again = a.label();
    steps(a, UNROLL as usize);
    a.subs(COUNT, COUNT, UNROLL);
    a.branch_if_not_less(again);
    a.land(short);
    a.adds(COUNT, COUNT, UNROLL);
    let done = a.forward_if_zero(COUNT);
    let one = a.label();
    steps(a, 1);
    a.subs(COUNT, COUNT, 1);
    a.branch_if_not_equal(one);
    a.land(done);

    all().for_each(|(n, v)| a.store_q(sum(n, v), C, c(n, v)));
    a.give_back();
    a.ret();
    Ok(std::mem::take(a).finish())
}
