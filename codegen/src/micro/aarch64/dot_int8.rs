//! Dot products in integers: rows of x rounded to 8 bits in blocks, against quantised weight rows as they lie.
//!
//! Four blocks at a time. A block's products are summed exactly in i32 and the four sums brought to a lane each; these
//! are scaled by both blocks' scales and added up in f32, so that a result has four sums, which are added up across at
//! the end. Weights are read and unpacked once for all rows of x. Those of 4 bits stay unsigned, and 8 times the sum of
//! the block's x is taken off again.
//!
//! `sdot` adds up four products a lane; without it they are multiplied to 16 bits (`smull`), of which as many are added
//! up as fit.

use lapidary_ir::{BLOCK, DType};

use super::asm::Assembler;
use crate::micro::{self, Code, Dot};

/// Blocks that are scaled at a time.
const GROUP: usize = 4;

/// Operands, as the procedure call standard passes them, and registers that are free.
const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const FREE: u32 = 3;

/// Vectors: blocks' sums; x; weights, a pair a block; the rest by name. v8 to v15 are the caller's.
const PRODUCTS: u32 = 0;
const XS: u32 = 4;
const WEIGHTS: u32 = 16;
const NIBBLE: u32 = 24;
const EIGHT: u32 = 25;
const SCALE: u32 = 26;
const UPPER: u32 = 27;
const SUMS: u32 = 28;

/// With FEAT_DotProd.
pub(crate) fn dot_sdot(dot: Dot) -> Code {
    dot_of(dot, true)
}

/// With what every CPU has.
pub(crate) fn dot_smull(dot: Dot) -> Code {
    dot_of(dot, false)
}

/// What goes from group to group.
struct Products {
    dot: Dot,
    has_sdot: bool,
    /// Registers: for each row of x its quants and scales, for each weight row its quants and scales.
    xs: Vec<(u32, u32)>,
    rows: Vec<(u32, u32)>,
    /// Registers: bytes from a row's scales to its sums; how many groups are left; one to spare.
    sums_at: u32,
    count: u32,
    spare: u32,
}

fn dot_of(dot: Dot, has_sdot: bool) -> Code {
    let Dot { dtype, k, rows, xs, .. } = dot;
    let (blocks, row_bytes) = (k / BLOCK, dtype.row_bytes(k) as i32);
    let a = &mut Assembler::default();
    let mut free = FREE..18;
    let mut take = || free.next().unwrap_or_else(|| unreachable!("as many rows as registers hold"));
    let [sums_at, count, spare] = [take(), take(), take()];
    let mut both = || (take(), take());
    let products = Products {
        dot,
        has_sdot,
        xs: (0..xs).map(|_| both()).collect(),
        rows: (0..rows).map(|_| both()).collect(),
        sums_at,
        count,
        spare,
    };
    for (t, &(quants, scales)) in (0..).zip(&products.xs) {
        a.step(quants, X, t * dot.x_stride);
        a.step(scales, quants, micro::int8_quant_bytes(k) as i32);
    }
    for (r, &(quants, scales)) in (0..).zip(&products.rows) {
        a.step(quants, W, r * row_bytes);
        a.step(scales, quants, row_bytes - 2 * blocks as i32);
    }
    (0..(xs * rows) as u32).for_each(|sum| a.zero(SUMS + sum));
    if dtype == DType::Q4 {
        a.splat_bytes(NIBBLE, 0x0f);
        a.splat_small(EIGHT, 8);
        a.mov(sums_at, 4 * blocks as u32);
    }
    if blocks >= GROUP {
        a.mov(products.count, (blocks / GROUP) as u32);
        let again = a.label();
        products.blocks(a, GROUP);
        products.next(a);
        a.branch_if_not_equal(again);
    }
    if !blocks.is_multiple_of(GROUP) {
        products.blocks(a, blocks % GROUP);
    }
    for t in 0..xs {
        for r in 0..rows {
            let sum = SUMS + (t * rows + r) as u32;
            a.sum_lanes(sum, sum);
            a.store_s(sum, C, t as i32 * dot.c_stride + 4 * r as i32);
        }
    }
    a.ret();
    Ok(std::mem::take(a).finish())
}

impl Products {
    /// Steps on by a group, and counts it.
    fn next(&self, a: &mut Assembler) {
        let bytes = self.dot.dtype.row_bytes(BLOCK) - 2;
        for &(quants, scales) in &self.xs {
            a.step(quants, quants, (GROUP * BLOCK) as i32);
            a.step(scales, scales, 4 * GROUP as i32);
        }
        for &(quants, scales) in &self.rows {
            a.step(quants, quants, (GROUP * bytes) as i32);
            a.step(scales, scales, 2 * GROUP as i32);
        }
        a.subs(self.count, self.count, 1);
    }

    /// So many blocks, at most a group, of all rows.
    fn blocks(&self, a: &mut Assembler, blocks: usize) {
        for (r, &(quants, scales)) in self.rows.iter().enumerate() {
            for b in 0..blocks as u32 {
                let (low, high) = (WEIGHTS + 2 * b, WEIGHTS + 2 * b + 1);
                if self.dot.dtype == DType::Q4 {
                    // The upper half of a block lies in the high nibbles.
                    a.load_q(low, quants, 16 * b as i32);
                    a.high_nibbles(high, low);
                    a.and(low, low, NIBBLE);
                } else {
                    a.load_pair(low, high, quants, 32 * b as i32);
                }
            }
            match blocks {
                1 => a.load_h(SCALE, scales, 0),
                2 | 3 => a.load_s(SCALE, scales, 0),
                _ => a.load_d(SCALE, scales, 0),
            }
            if blocks == 3 {
                a.step(self.spare, scales, 4);
                a.load_third_half(SCALE, self.spare);
            }
            a.widen_bf16(SCALE, SCALE);
            for (t, &x) in self.xs.iter().enumerate() {
                self.meet(a, blocks, x, SUMS + (t * self.rows.len() + r) as u32);
            }
        }
    }

    /// A row of x against the blocks in registers.
    fn meet(&self, a: &mut Assembler, blocks: usize, (quants, scales): (u32, u32), sum: u32) {
        let is_q4 = self.dot.dtype == DType::Q4;
        for b in 0..GROUP as u32 {
            let product = PRODUCTS + b;
            if b >= blocks as u32 {
                a.zero(product);
                continue;
            }
            let (low, high) = (WEIGHTS + 2 * b, WEIGHTS + 2 * b + 1);
            let (first, second) = (XS + 2 * (b % 2), XS + 2 * (b % 2) + 1);
            a.load_pair(first, second, quants, 32 * b as i32);
            if self.has_sdot {
                a.zero(product);
                a.sdot(product, low, first);
                a.sdot(product, high, second);
                continue;
            }
            a.multiply_bytes(product, low, first);
            a.multiply_add_upper_bytes(product, low, first);
            if is_q4 {
                // Four products of at most 15 * 127 each.
                a.multiply_add_bytes(product, high, second);
                a.multiply_add_upper_bytes(product, high, second);
                a.pair_halves(product, product);
            } else {
                // Two products of at most 128 * 127 each.
                a.multiply_bytes(UPPER, high, second);
                a.multiply_add_upper_bytes(UPPER, high, second);
                a.pair_halves(product, product);
                a.add_pair_halves(product, UPPER);
            }
        }
        let [p, q, r, s] = [0, 1, 2, 3].map(|b| PRODUCTS + b);
        a.add_pairs(p, p, q);
        a.add_pairs(r, r, s);
        a.add_pairs(p, p, r);
        if is_q4 {
            a.add(self.spare, scales, self.sums_at);
            self.of_blocks(a, XS, self.spare, blocks);
            a.multiply_subtract_words(p, XS, EIGHT);
        }
        a.convert_to_float(p, p);
        self.of_blocks(a, XS + 1, scales, blocks);
        a.multiply(XS + 1, XS + 1, SCALE);
        a.multiply_add(sum, p, XS + 1);
    }

    /// A word of each of so many blocks; those missing in a group are 0. Clobbers the spare register.
    fn of_blocks(&self, a: &mut Assembler, to: u32, from: u32, blocks: usize) {
        match blocks {
            1 => a.load_s(to, from, 0),
            2 | 3 => a.load_d(to, from, 0),
            _ => a.load_q(to, from, 0),
        }
        if blocks == 3 {
            a.step(self.spare, from, 8);
            a.load_third_word(to, self.spare);
        }
    }
}
