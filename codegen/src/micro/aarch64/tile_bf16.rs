//! Tiles of bf16 by `bfmmla`: two weight rows times two rows of x a register, four elements of k at a time.
//!
//! Both operands lie in fours of k, as the instruction reads them; or as other tiles' do, x in pairs of elements and
//! weights by rows, and are zipped in registers.

use super::asm::Assembler;
use crate::micro::{Code, Tile};

const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const COUNT: u32 = 3;
const ACCUMULATE: u32 = 4;
/// The weight rows' addresses, and how many bytes of them are done.
const ROWS: u32 = 5;
const DONE: u32 = 17;

/// Vectors: x, two pairs of k of 8 rows and one to spare; two weight rows; sums, of which the caller's v8 to v15 are
/// some.
const XS: [u32; 5] = [0, 1, 2, 3, 4];
const WEIGHTS: [u32; 2] = [5, 6];
const SPARE: u32 = 7;
const SUMS: u32 = 8;

/// With FEAT_BF16: at most 24 registers of sums, of at most 8 columns and 12 weight rows; k is a multiple of 4.
pub(crate) fn tile_bfmmla(tile: Tile) -> Code {
    let (columns, x_step) = (tile.columns / 2, tile.panel as i32 * 4);
    let a = &mut Assembler::default();
    let sum = |n: usize, t: usize| SUMS + (n / 2 * columns + t) as u32;
    let all = || (0..tile.nr).step_by(2).flat_map(|n| (0..columns).map(move |t| (n, t)));
    let c = |n: usize, t: usize| n as i32 * tile.c_stride + t as i32 * 8;
    let is_pair = |n: usize| n + 1 < tile.nr;
    a.keep();
    for n in 0..tile.nr {
        a.step(ROWS + n as u32, W, n as i32 * tile.weight_stride);
    }
    a.mov(DONE, 0);
    all().for_each(|(n, t)| a.zero(sum(n, t)));
    let fresh = a.forward_if_zero(ACCUMULATE);
    for (n, t) in all() {
        a.load_d(sum(n, t), C, c(n, t));
        if is_pair(n) {
            a.load_d(SPARE, C, c(n + 1, t));
            a.zip_lower(sum(n, t), sum(n, t), SPARE);
        }
    }
    a.land(fresh);

    let again = a.label();
    let [p, q, r, s, spare] = XS;
    let xs = if tile.fours {
        (0..columns as u32).for_each(|t| a.load_q(XS[0] + t, X, t as i32 * 16));
        [p, q, r, s]
    } else {
        a.load_q(p, X, 0);
        a.load_q(r, X, x_step);
        a.zip_lower_words(spare, p, r);
        a.zip_upper_words(p, p, r);
        if columns == 4 {
            a.load_q(q, X, 16);
            a.load_q(s, X, x_step + 16);
            a.zip_lower_words(r, q, s);
            a.zip_upper_words(q, q, s);
        }
        [spare, p, r, q]
    };
    for n in (0..tile.nr).step_by(2) {
        let [w, other] = WEIGHTS;
        let w = if n % 4 == 0 { w } else { SPARE };
        if tile.fours {
            a.load_q(w, ROWS + n as u32, 0);
            a.step(ROWS + n as u32, ROWS + n as u32, 16);
        } else {
            a.load_d_at(w, ROWS + n as u32, DONE);
            // Of the last row alone both halves are its own, and one is not looked at.
            a.load_d_at(other, ROWS + if is_pair(n) { n as u32 + 1 } else { n as u32 }, DONE);
            a.zip_lower(w, w, other);
        }
        (0..columns).for_each(|t| a.bfmmla(sum(n, t), w, xs[t]));
    }
    a.step(X, X, 2 * x_step);
    if !tile.fours {
        a.step(DONE, DONE, 8);
    }
    a.subs(COUNT, COUNT, 2);
    a.branch_if_not_equal(again);

    for (n, t) in all() {
        a.store_d(sum(n, t), C, c(n, t));
        if is_pair(n) {
            a.zip_upper(SPARE, sum(n, t), sum(n, t));
            a.store_d(SPARE, C, c(n + 1, t));
        }
    }
    a.give_back();
    a.ret();
    Ok(std::mem::take(a).finish())
}
