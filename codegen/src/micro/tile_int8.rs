//! Tiles in integers, assembled: x rounded to 8 bits in blocks, against quantised weight rows.
//!
//! A block's products are summed exactly, then scaled by both blocks' scales and added to f32 results in memory.
//! Weights are held unsigned; what the shift adds is taken off again: x's panel holds -8 times the sum of each block.
//!
//! With AVX2 weights are held in halves of 4 bits: one of 8 bits is 16 times its upper half and its lower half, two
//! rows to multiply by. A whole block of such products fits sums of 16 bits (32 / 2 of at most 15 * 127), so that a
//! step is `vpmaddubsw` and `vpaddw`. With AVX-512 VNNI (`tile_vnni.rs`) a step is `vpdpbusd`, of weights of either
//! width.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::{Done, YMM, fill};
use super::{Code, Held, Tile, Widen};

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

/// Holds blocks of a weight row for tiles with AVX2: see [`Held::Halves`].
pub(super) fn hold_halves(widen: Widen) -> Code {
    let halved = halves(widen.from) == 2;
    let (from, scales, to, count) = (gpr64::rdi, gpr64::rsi, gpr64::rdx, gpr64::rcx);
    /// How far ahead weights are fetched, in bytes.
    const AHEAD: i32 = 1024;
    let a = &mut CodeAssembler::new(64)?;
    let (upper, lower, nibble, sign) = (ymm0, ymm1, ymm2, ymm3);
    let bytes = if halved { 2 * BLOCK as i32 } else { BLOCK as i32 };
    let mut again = a.create_label();
    fill(a, 2, 0x0f0f_0f0f)?;
    fill(a, 3, 0x8080_8080)?;
    a.set_label(&mut again)?;
    if widen.fetches {
        a.prefetcht0(byte_ptr(from + AHEAD))?;
    }
    if widen.from == DType::Q4 {
        // The second half of the elements are the bytes' upper halves.
        a.vmovdqu(xmm0, xmmword_ptr(from))?;
        a.vpsrlw(xmm1, xmm0, 4)?;
        a.vinserti128(upper, upper, xmm1, 1)?;
        a.vpand(upper, upper, nibble)?;
    } else {
        a.vpxor(upper, sign, ymmword_ptr(from))?;
        if halved {
            a.vpand(lower, upper, nibble)?;
            a.vmovdqu(ymmword_ptr(to + BLOCK as i32), lower)?;
            a.vpsrlw(upper, upper, 4)?;
            a.vpand(upper, upper, nibble)?;
        }
    }
    a.vmovdqu(ymmword_ptr(to), upper)?;
    a.movzx(gpr32::eax, word_ptr(scales))?;
    a.shl(gpr32::eax, 16)?;
    a.mov(dword_ptr(to + bytes), gpr32::eax)?;
    a.add(from, if widen.from == DType::Q4 { BLOCK as i32 / 2 } else { BLOCK as i32 })?;
    a.add(scales, 2)?;
    a.add(to, bytes + 4)?;
    a.dec(count)?;
    a.jnz(again)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// AVX2: 8 lanes, at most 12 sums; k is counted in blocks.
pub(super) fn tile_256(tile: Tile) -> Code {
    let (x, weights, c, k, accumulate) = (gpr64::rdi, gpr64::rsi, gpr64::rdx, gpr64::rcx, gpr64::r8);
    let a = &mut CodeAssembler::new(64)?;
    let vectors = tile.columns / 8;
    let at = |n: usize, v: usize| c + (n as i32 * tile.c_stride + v as i32 * 32);
    let mut ready = a.create_label();
    a.test(accumulate, accumulate)?;
    a.jnz(ready)?;
    a.vxorps(ymm0, ymm0, ymm0)?;
    for n in 0..tile.nr {
        for v in 0..vectors {
            a.vmovups(ymmword_ptr(at(n, v)), ymm0)?;
        }
    }
    a.set_label(&mut ready)?;
    // As many rows at a time as have sums in registers.
    let rows = tile.nr / halves(tile.weights);
    for first in (0..tile.nr).step_by(rows) {
        let cursors = (gpr64::r9, gpr64::r10, gpr64::r11);
        a.mov(cursors.0, x)?;
        a.lea(cursors.1, ptr(weights + first as i32 * tile.weight_stride))?;
        a.mov(cursors.2, k)?;
        blocks(a, tile, rows, cursors, &|n, v| at(first + n, v))?;
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// All blocks of `rows` weight rows, from where x and weights point, as many as the third register counts.
fn blocks(
    a: &mut CodeAssembler,
    tile: Tile,
    rows: usize,
    (x, weights, count): (AsmRegister64, AsmRegister64, AsmRegister64),
    c: &dyn Fn(usize, usize) -> AsmMemoryOperand,
) -> Done {
    let (vectors, halves) = (tile.columns / 8, halves(tile.weights));
    let lane_bytes = tile.panel as i32 * 4;
    let sum = |n: usize, half: usize, v: usize| YMM[(n * halves + half) * vectors + v];
    let used = rows * halves * vectors;
    let xs = &YMM[used..used + vectors];
    let (w, product) = (ymm14, ymm15);
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    for step in 0..BLOCK / STEP {
        for (v, &register) in xs.iter().enumerate() {
            a.vmovdqu(register, ymmword_ptr(x + ((2 + step as i32) * lane_bytes + v as i32 * 32)))?;
        }
        for n in 0..rows {
            for half in 0..halves {
                let at = n as i32 * tile.weight_stride + (half * BLOCK + step * STEP) as i32;
                a.vpbroadcastd(w, dword_ptr(weights + at))?;
                for (v, &register) in xs.iter().enumerate() {
                    let sum = sum(n, half, v);
                    if step == 0 {
                        a.vpmaddubsw(sum, w, register)?;
                    } else {
                        a.vpmaddubsw(product, w, register)?;
                        a.vpaddw(sum, sum, product)?;
                    }
                }
            }
        }
    }
    let ones = product;
    a.vpcmpeqd(ones, ones, ones)?;
    a.vpsrlw(ones, ones, 15)?;
    let result = xs[0];
    for n in 0..rows {
        let scale = n as i32 * tile.weight_stride + halved_block(tile.weights) as i32 - 4;
        a.vbroadcastss(w, dword_ptr(weights + scale))?;
        for v in 0..vectors {
            let (total, lanes) = (sum(n, 0, v), v as i32 * 32);
            a.vpmaddwd(total, total, ones)?;
            if halves == 2 {
                let lower = sum(n, 1, v);
                a.vpmaddwd(lower, lower, ones)?;
                // Shifted by 128, which is 16 times 8.
                a.vpaddd(total, total, ymmword_ptr(x + (lane_bytes + lanes)))?;
                a.vpslld(total, total, 4)?;
                a.vpaddd(total, total, lower)?;
            } else {
                a.vpaddd(total, total, ymmword_ptr(x + (lane_bytes + lanes)))?;
            }
            a.vcvtdq2ps(total, total)?;
            a.vmulps(total, total, ymmword_ptr(x + lanes))?;
            a.vmovups(result, ymmword_ptr(c(n, v)))?;
            a.vfmadd231ps(result, total, w)?;
            a.vmovups(ymmword_ptr(c(n, v)), result)?;
        }
    }
    a.add(x, tile.panel as i32 * PANEL_BLOCK as i32)?;
    a.add(weights, halved_block(tile.weights) as i32)?;
    a.dec(count)?;
    a.jnz(again)
}

/// As many multiply-adds as registers alone allow: rounds of twelve sums of a step each.
pub(super) fn multiply_256(a: &mut CodeAssembler) -> Done {
    for &sum in &YMM[..12] {
        a.vpmaddubsw(ymm13, ymm12, ymm12)?;
        a.vpaddw(sum, sum, ymm13)?;
    }
    Ok(())
}
