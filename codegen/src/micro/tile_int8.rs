//! Tiles in integers, assembled: x rounded to 8 bits in blocks, against quantised weight rows.
//!
//! A block's products are summed exactly, then scaled by both blocks' scales and added to f32 results in memory.
//! Weights are held unsigned; what the shift adds is taken off again: x's panel holds -8 times the sum of each block.
//!
//! With AVX2 weights are held in halves of 4 bits: one of 8 bits is 16 times its upper half and its lower half, two
//! rows to multiply by. A whole block of such products fits sums of 16 bits (32 / 2 of at most 15 * 127), so that a
//! step is `vpmaddubsw` and `vpaddw`; with AVX-512 the same in twice the width. With VNNI (`tile_vnni.rs`) a step is
//! `vpdpbusd`, of weights of either width.

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::Done;
use super::tile::Vector;
use super::{Code, Held, Tile};

/// Elements of k whose products one 32-bit lane adds up.
pub(super) const STEP: usize = 4;

/// Bytes that a block of one row of x takes in a panel: its scale (f32), -8 times the sum of its quants (i32), and
/// these. A panel holds, block by block, each of the three for all rows; the quants four of a row at a time.
pub(super) const PANEL_BLOCK: usize = 4 + 4 + BLOCK;

/// Halves of 4 bits that a weight has.
fn halves(weights: DType) -> usize {
    Held::Halves.halves(weights)
}

fn halved_block(weights: DType) -> usize {
    Held::Halves.block_bytes(weights)
}

/// Vectors as tiles of integers use them.
pub(super) trait Integers: Vector {
    fn copy(self, a: &mut CodeAssembler, from: Self) -> Done;
    /// Adds to each 32 bits four products of bytes, those of w unsigned.
    fn add_fours(self, a: &mut CodeAssembler, w: Self, x: Self) -> Done;
    /// In each 16 bits two such products.
    fn twos(self, a: &mut CodeAssembler, w: Self, x: Self) -> Done;
    fn add_words(self, a: &mut CodeAssembler, other: Self) -> Done;
    /// 1 in each 16 bits.
    fn ones(self, a: &mut CodeAssembler) -> Done;
    /// Each two words' sum, in 32 bits.
    fn pairs(self, a: &mut CodeAssembler, ones: Self) -> Done;
    fn add(self, a: &mut CodeAssembler, other: Self) -> Done;
    fn add_at(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Done;
    /// 16 times each 32 bits.
    fn sixteenfold(self, a: &mut CodeAssembler) -> Done;
    /// Integers to floats, each times one of those there.
    fn scale(self, a: &mut CodeAssembler, by: AsmMemoryOperand) -> Done;
    /// Floats times others, and those there added.
    fn times_plus(self, a: &mut CodeAssembler, by: Self, at: AsmMemoryOperand) -> Done;
}

macro_rules! integers {
    ($vector:ty, $encoding:ident, $all_ones:expr) => {
        impl Integers for $vector {
            fn copy(self, a: &mut CodeAssembler, from: Self) -> Done {
                a.vmovaps(self, from)
            }
            fn add_fours(self, a: &mut CodeAssembler, w: Self, x: Self) -> Done {
                a.$encoding().vpdpbusd(self, w, x)
            }
            fn twos(self, a: &mut CodeAssembler, w: Self, x: Self) -> Done {
                a.vpmaddubsw(self, w, x)
            }
            fn add_words(self, a: &mut CodeAssembler, other: Self) -> Done {
                a.vpaddw(self, self, other)
            }
            fn ones(self, a: &mut CodeAssembler) -> Done {
                $all_ones(a, self)?;
                a.vpsrlw(self, self, 15)
            }
            fn pairs(self, a: &mut CodeAssembler, ones: Self) -> Done {
                a.vpmaddwd(self, self, ones)
            }
            fn add(self, a: &mut CodeAssembler, other: Self) -> Done {
                a.vpaddd(self, self, other)
            }
            fn add_at(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Done {
                a.vpaddd(self, self, at)
            }
            fn sixteenfold(self, a: &mut CodeAssembler) -> Done {
                a.vpslld(self, self, 4)
            }
            fn scale(self, a: &mut CodeAssembler, by: AsmMemoryOperand) -> Done {
                a.vcvtdq2ps(self, self)?;
                a.vmulps(self, self, by)
            }
            fn times_plus(self, a: &mut CodeAssembler, by: Self, at: AsmMemoryOperand) -> Done {
                a.vfmadd213ps(self, by, at)
            }
        }
    };
}

integers!(AsmRegisterYmm, vex, |a: &mut CodeAssembler, y: AsmRegisterYmm| a.vpcmpeqd(y, y, y));
integers!(AsmRegisterZmm, evex, |a: &mut CodeAssembler, z: AsmRegisterZmm| a.vpternlogd(z, z, z, 0xff));

/// How many vectors of x a tile has.
pub(super) fn vectors<V: Vector>(tile: Tile) -> usize {
    tile.columns * 4 / V::BYTES as usize
}

/// Where the results of a weight row with a vector of x are.
pub(super) fn result<V: Vector>(tile: Tile, n: usize, v: usize) -> AsmMemoryOperand {
    gpr64::rdx + (n as i32 * tile.c_stride + v as i32 * V::BYTES)
}

/// Makes the results 0 if they are not added to.
pub(super) fn begin<V: Vector>(a: &mut CodeAssembler, tile: Tile) -> Done {
    let accumulate = gpr64::r8;
    let mut ready = a.create_label();
    a.test(accumulate, accumulate)?;
    a.jnz(ready)?;
    let zero = V::ALL[0];
    zero.zero(a)?;
    for n in 0..tile.nr {
        (0..vectors::<V>(tile)).try_for_each(|v| zero.store(a, result::<V>(tile, n, v)))?;
    }
    a.set_label(&mut ready)?;
    // Another label may follow.
    a.zero_bytes()
}

/// AVX2: 8 lanes, at most 12 sums; k is counted in blocks.
pub(super) fn tile_256(tile: Tile) -> Code {
    tile_of::<AsmRegisterYmm>(tile)
}

/// AVX-512: 16 lanes, at most 24 sums; k is counted in blocks.
pub(super) fn tile_512(tile: Tile) -> Code {
    tile_of::<AsmRegisterZmm>(tile)
}

fn tile_of<V: Integers>(tile: Tile) -> Code {
    let (x, weights, k) = (gpr64::rdi, gpr64::rsi, gpr64::rcx);
    let a = &mut CodeAssembler::new(64)?;
    begin::<V>(a, tile)?;
    // As many rows at a time as have sums in registers.
    let rows = tile.nr / halves(tile.weights);
    for first in (0..tile.nr).step_by(rows) {
        let cursors = (gpr64::r9, gpr64::r10, gpr64::r11);
        a.mov(cursors.0, x)?;
        a.lea(cursors.1, ptr(weights + first as i32 * tile.weight_stride))?;
        a.mov(cursors.2, k)?;
        blocks::<V>(a, tile, rows, cursors, &|n, v| result::<V>(tile, first + n, v))?;
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// All blocks of `rows` weight rows, from where x and weights point, as many as the third register counts.
fn blocks<V: Integers>(
    a: &mut CodeAssembler,
    tile: Tile,
    rows: usize,
    (x, weights, count): (AsmRegister64, AsmRegister64, AsmRegister64),
    c: &dyn Fn(usize, usize) -> AsmMemoryOperand,
) -> Done {
    let (vectors, halves) = (vectors::<V>(tile), halves(tile.weights));
    let lane_bytes = tile.panel as i32 * 4;
    let sum = |n: usize, half: usize, v: usize| V::ALL[(n * halves + half) * vectors + v];
    let (xs, others) = V::ALL[rows * halves * vectors..].split_at(vectors);
    let [w, product, ..] = *others else {
        unreachable!("a tile leaves registers for a weight and a product")
    };
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    for step in 0..BLOCK / STEP {
        for (v, &register) in xs.iter().enumerate() {
            register.load(a, x + ((2 + step as i32) * lane_bytes + v as i32 * V::BYTES))?;
        }
        for n in 0..rows {
            for half in 0..halves {
                let at = n as i32 * tile.weight_stride + (half * BLOCK + step * STEP) as i32;
                w.broadcast(a, weights + at)?;
                for (v, &register) in xs.iter().enumerate() {
                    let sum = sum(n, half, v);
                    if step == 0 {
                        sum.twos(a, w, register)?;
                    } else {
                        product.twos(a, w, register)?;
                        sum.add_words(a, product)?;
                    }
                }
            }
        }
    }
    let ones = product;
    ones.ones(a)?;
    for n in 0..rows {
        w.broadcast(a, weights + (n as i32 * tile.weight_stride + halved_block(tile.weights) as i32 - 4))?;
        for v in 0..vectors {
            let (total, lanes) = (sum(n, 0, v), v as i32 * V::BYTES);
            total.pairs(a, ones)?;
            // Shifted by 8; of two halves by 128, which is 16 times 8.
            total.add_at(a, x + (lane_bytes + lanes))?;
            if halves == 2 {
                let lower = sum(n, 1, v);
                lower.pairs(a, ones)?;
                total.sixteenfold(a)?;
                total.add(a, lower)?;
            }
            total.scale(a, x + lanes)?;
            total.times_plus(a, w, c(n, v))?;
            total.store(a, c(n, v))?;
        }
    }
    a.add(x, tile.panel as i32 * PANEL_BLOCK as i32)?;
    a.add(weights, halved_block(tile.weights) as i32)?;
    a.dec(count)?;
    a.jnz(again)
}
