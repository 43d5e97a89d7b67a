//! Dot products in integers: rows of x rounded to 8 bits in blocks, against quantised weight rows as they lie.
//!
//! Four blocks at a time. A block's products are summed exactly in i32 and the four sums brought to a lane each; these
//! are scaled by both blocks' scales and added up in f32, so that a result has four sums, which are added up across at
//! the end. Weights are read and unpacked once for all rows of x, the only row of x once for all weight rows. Sums
//! begin at the bits of a float ([`MAGIC`]): that taken off, they are floats. Weights of 4 bits stay unsigned, and what
//! is taken off has 8 times the sum of the block's x in it.
//!
//! `sdot` adds up four products a lane; without it they are multiplied to 16 bits (`smull`), of which as many are added
//! up as fit.

use lapidary_ir::{BLOCK, DType};

use super::asm::Assembler;
use crate::micro::{self, Code, Dot, MAGIC};

/// Blocks that are scaled at a time, and groups of a turn of the loop.
const GROUP: usize = 4;
const TURN: usize = 4;
/// What addresses of quants are ahead by, in bytes: short offsets go both ways.
const MIDDLE: i32 = 256;

/// Operands, as the procedure call standard passes them, and registers that are free.
const X: u32 = 0;
const W: u32 = 1;
const C: u32 = 2;
const FREE: u32 = 3;

/// Vectors: blocks' sums; what passes by, a pair of two blocks in turn; what stays for a group, a pair a block; the
/// rest by name. v8 to v15 are the caller's.
const PRODUCTS: u32 = 0;
const PASSING: u32 = 4;
const KEPT: u32 = 16;
/// The mask of nibbles; of weights of 8 bits [`MAGIC`].
const NIBBLE: u32 = 24;
const START: u32 = 25;
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
    /// Registers: for each row of x its quants, scales and sums, for each weight row its quants and scales.
    xs: Vec<[u32; 3]>,
    rows: Vec<(u32, u32)>,
    /// A register to spare.
    spare: u32,
}

fn dot_of(dot: Dot, has_sdot: bool) -> Code {
    let Dot { dtype, k, rows, xs, .. } = dot;
    let (blocks, row_bytes) = (k / BLOCK, dtype.row_bytes(k) as i32);
    let a = &mut Assembler::default();
    let mut free = FREE..18;
    let mut take = || free.next().unwrap_or_else(|| unreachable!("as many rows as registers hold"));
    let [count, spare] = [take(), take()];
    // The first rows keep the operands' registers.
    let xs_at = (0..xs).map(|t| [if t == 0 { X } else { take() }, take(), take()]).collect();
    let rows_at = (0..rows).map(|r| (if r == 0 { W } else { take() }, take())).collect();
    let products = Products { dot, has_sdot, xs: xs_at, rows: rows_at, spare };
    for (t, &[_, scales, sums]) in (0..).zip(&products.xs) {
        a.step(scales, X, t * dot.x_stride + micro::int8_quant_bytes(k) as i32);
        a.step(sums, scales, 4 * blocks as i32);
    }
    for (r, &(_, scales)) in (1..).zip(&products.rows) {
        a.step(scales, W, r * row_bytes - 2 * blocks as i32);
    }
    // The operands' registers change last.
    for (t, &[quants, ..]) in products.xs.iter().enumerate().rev() {
        a.step(quants, X, t as i32 * dot.x_stride + MIDDLE);
    }
    for (r, &(quants, _)) in products.rows.iter().enumerate().rev() {
        a.step(quants, W, r as i32 * row_bytes + MIDDLE);
    }
    (0..(xs * rows) as u32).for_each(|sum| a.zero(SUMS + sum));
    if dtype == DType::Q4 {
        a.splat_bytes(NIBBLE, 0x0f);
    }
    a.mov(spare, MAGIC.to_bits());
    if dtype != DType::Q4 {
        a.splat(NIBBLE, spare);
    }
    if has_sdot {
        a.first_lane(START, spare);
    } else {
        a.splat(START, spare);
    }
    let turn = GROUP * TURN;
    if blocks >= turn {
        a.mov(count, (blocks / turn) as u32);
        let again = a.label();
        (0..TURN).for_each(|group| products.blocks(a, group, GROUP));
        products.next(a);
        a.subs(count, count, 1);
        a.branch_if_not_equal(again);
    }
    for group in 0..(blocks % turn).div_ceil(GROUP) {
        products.blocks(a, group, GROUP.min(blocks % turn - group * GROUP));
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
    /// Bytes of a block's quants.
    fn bytes(&self) -> usize {
        self.dot.dtype.row_bytes(BLOCK) - 2
    }

    /// Steps on by a turn.
    fn next(&self, a: &mut Assembler) {
        let step = |a: &mut Assembler, register: u32, bytes: usize| {
            a.step(register, register, (TURN * GROUP * bytes) as i32);
        };
        for &[quants, scales, sums] in &self.xs {
            step(a, quants, BLOCK);
            step(a, scales, 4);
            if self.dot.dtype == DType::Q4 {
                step(a, sums, 4);
            }
        }
        for &(quants, scales) in &self.rows {
            step(a, quants, self.bytes());
            step(a, scales, 2);
        }
    }

    /// So many blocks, at most a group, of all rows, so many groups on. What stays in registers meanwhile is a weight
    /// row for all rows of x; or the only row of x for all weight rows.
    fn blocks(&self, a: &mut Assembler, group: usize, blocks: usize) {
        let here = |b: u32| group * GROUP + b as usize;
        let sum = |t: usize, r: usize| SUMS + (t * self.rows.len() + r) as u32;
        if let ([x], [_, _, ..]) = (self.xs.as_slice(), self.rows.as_slice()) {
            (0..blocks as u32).for_each(|b| load_x(a, x, here(b), kept(b)));
            for (r, row) in self.rows.iter().enumerate() {
                let load = |a: &mut Assembler, b: u32| self.load_weights(a, row, here(b), passing(b));
                self.meet(a, blocks, load, |b| (passing(b), kept(b)));
                self.scales(a, row, (group, blocks));
                self.add_up(a, x, (group, blocks), sum(0, r));
            }
            return;
        }
        for (r, row) in self.rows.iter().enumerate() {
            (0..blocks as u32).for_each(|b| self.load_weights(a, row, here(b), kept(b)));
            self.scales(a, row, (group, blocks));
            for (t, x) in self.xs.iter().enumerate() {
                self.meet(a, blocks, |a, b| load_x(a, x, here(b), passing(b)), |b| (kept(b), passing(b)));
                self.add_up(a, x, (group, blocks), sum(t, r));
            }
        }
    }

    /// A block of a weight row, unpacked.
    fn load_weights(&self, a: &mut Assembler, row: &(u32, u32), block: usize, [low, high]: [u32; 2]) {
        let (quants, at) = (row.0, (block * self.bytes()) as i32 - MIDDLE);
        a.load_q(low, quants, at);
        if self.dot.dtype == DType::Q4 {
            // The upper half of a block lies in the high nibbles.
            a.high_nibbles(high, low);
            a.and(low, low, NIBBLE);
        } else {
            a.load_q(high, quants, at + 16);
        }
    }

    /// The scales of blocks of a weight row.
    fn scales(&self, a: &mut Assembler, &(_, scales): &(u32, u32), (group, blocks): (usize, usize)) {
        let at = (2 * group * GROUP) as i32;
        match blocks {
            1 => a.load_h(SCALE, scales, at),
            2 | 3 => a.load_s(SCALE, scales, at),
            _ => a.load_d(SCALE, scales, at),
        }
        if blocks == 3 {
            a.step(self.spare, scales, at + 4);
            a.load_third_half(SCALE, self.spare);
        }
        a.widen_bf16(SCALE, SCALE);
    }

    /// A row of x against a weight row: products of blocks, each of which is loaded by `load`, if it is not there, to
    /// where weights and x lie by `places`.
    fn meet(
        &self,
        a: &mut Assembler,
        blocks: usize,
        load: impl Fn(&mut Assembler, u32),
        places: impl Fn(u32) -> ([u32; 2], [u32; 2]),
    ) {
        let is_q4 = self.dot.dtype == DType::Q4;
        for b in 0..GROUP as u32 {
            let product = PRODUCTS + b;
            if b >= blocks as u32 {
                a.zero(product);
                continue;
            }
            load(a, b);
            let ([low, high], [first, second]) = places(b);
            if self.has_sdot {
                a.copy(product, START);
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
    }

    /// Scales a group's products and adds them to a result's sums. Clobbers what passes by.
    fn add_up(
        &self,
        a: &mut Assembler,
        &[_, scales, sums]: &[u32; 3],
        (group, blocks): (usize, usize),
        sum: u32,
    ) {
        let [p, q, r, s] = [0, 1, 2, 3].map(|b| PRODUCTS + b);
        a.add_pairs(p, p, q);
        a.add_pairs(r, r, s);
        a.add_pairs(p, p, r);
        if !self.has_sdot {
            a.add_words(p, p, START);
        }
        let at = (4 * group * GROUP) as i32;
        if self.dot.dtype == DType::Q4 {
            self.of_blocks(a, PASSING, (sums, at), blocks);
            a.subtract_floats(p, p, PASSING);
        } else {
            a.subtract_floats(p, p, NIBBLE);
        }
        self.of_blocks(a, PASSING + 1, (scales, at), blocks);
        a.multiply(PASSING + 1, PASSING + 1, SCALE);
        a.multiply_add(sum, p, PASSING + 1);
    }

    /// A word of each of so many blocks; those missing in a group are 0. Clobbers the spare register.
    fn of_blocks(&self, a: &mut Assembler, to: u32, (from, at): (u32, i32), blocks: usize) {
        match blocks {
            1 => a.load_s(to, from, at),
            2 | 3 => a.load_d(to, from, at),
            _ => a.load_q(to, from, at),
        }
        if blocks == 3 {
            a.step(self.spare, from, at + 8);
            a.load_third_word(to, self.spare);
        }
    }
}

/// Where a block's halves lie: of what stays for a group, and of what passes by, in turn.
fn kept(block: u32) -> [u32; 2] {
    [KEPT + 2 * block, KEPT + 2 * block + 1]
}

fn passing(block: u32) -> [u32; 2] {
    [PASSING + 2 * (block % 2), PASSING + 2 * (block % 2) + 1]
}

/// A block of a row of x.
fn load_x(a: &mut Assembler, &[quants, ..]: &[u32; 3], block: usize, [first, second]: [u32; 2]) {
    let at = (block * BLOCK) as i32 - MIDDLE;
    a.load_q(first, quants, at);
    a.load_q(second, quants, at + 16);
}
