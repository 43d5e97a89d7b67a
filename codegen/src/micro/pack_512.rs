//! Packing, assembled: 16 rows of x rounded to 8 bits in blocks, to 16 lanes of a panel for tiles of integers.
//!
//! A block of each row is read twice. First for its largest magnitude: those of 16 rows are brought into one vector, a
//! row a lane, and so are their scales. Then for its quants, four rows' to a register of bytes, and four such registers
//! to vectors of four quants of each row. Operation by operation that is `lower/round.rs`, which rounds what is left of
//! rows, to the same bits.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::BLOCK;

use super::dot::Done;
use super::tile::ZMM;
use super::tile_int8::{PANEL_BLOCK, STEP};
use super::{Code, MAGIC, Pack};

/// Rows of x, a lane each.
pub(super) const ROWS: usize = 16;
const VECTOR: i32 = 4 * ROWS as i32;
/// Rows whose quants share a register.
const FOUR: usize = 4;

const X: AsmRegister64 = gpr64::rdi;
const TO: AsmRegister64 = gpr64::rsi;
const BLOCKS: AsmRegister64 = gpr64::rdx;
const STACK: AsmRegister64 = gpr64::rsp;

/// Quants of both halves of a block, four rows a register; what those are made from.
const QUANTS: [[AsmRegisterZmm; FOUR]; 2] = [[zmm16, zmm17, zmm18, zmm19], [zmm20, zmm21, zmm22, zmm23]];
const INVERSE: AsmRegisterZmm = zmm24;
const SUM: AsmRegisterZmm = zmm25;
const NONE: AsmRegisterZmm = zmm26;
/// All bits but the sign.
const SIZE: AsmRegisterZmm = zmm27;
const TOP: AsmRegisterZmm = zmm28;
/// What rounds a float to the integer in its lower bits.
const ROUND: AsmRegisterZmm = zmm29;
/// Bytes of 1.
const ONES: AsmRegisterZmm = zmm30;
const SPARE: AsmRegisterZmm = zmm31;

/// With AVX-512 VNNI.
pub(super) fn pack_512(pack: Pack) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let mut again = a.create_label();
    let constants =
        [(SIZE, !(1 << 31)), (TOP, 127f32.to_bits()), (ROUND, MAGIC.to_bits()), (ONES, 0x0101_0101)];
    for (register, bits) in constants {
        a.mov(gpr32::eax, bits)?;
        a.vpbroadcastd(register, gpr32::eax)?;
    }
    a.vpxord(NONE, NONE, NONE)?;
    a.sub(STACK, VECTOR)?;
    a.set_label(&mut again)?;
    scales(a, pack)?;
    quants(a, pack)?;
    a.add(X, 4 * BLOCK as i32)?;
    a.add(TO, (pack.panel * PANEL_BLOCK) as i32)?;
    a.dec(BLOCKS)?;
    a.jnz(again)?;
    a.add(STACK, VECTOR)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// Half `half` of a block of row `row`.
fn x(pack: Pack, row: usize, half: usize) -> AsmMemoryOperand {
    zmmword_ptr(X + (row as i32 * pack.x_stride + half as i32 * VECTOR))
}

/// The `part`-th of what a block of a panel has for all its rows, 4 bytes each: scales, sums, quants by fours.
fn to(pack: Pack, part: usize) -> AsmMemoryOperand {
    zmmword_ptr(TO + (part * pack.panel * 4) as i32)
}

/// The rows' scales; what they are multiplied by to be rounded, on the stack.
fn scales(a: &mut CodeAssembler, pack: Pack) -> Done {
    for (row, &largest) in ZMM[..ROWS].iter().enumerate() {
        a.vpandd(largest, SIZE, x(pack, row, 0))?;
        a.vpandd(SPARE, SIZE, x(pack, row, 1))?;
        a.vmaxps(largest, largest, SPARE)?;
    }
    // Of two rows, then of four, what is side by side in 128 bits: a row a dword.
    for pair in ZMM[..ROWS].chunks(2) {
        a.vpunpckhdq(SPARE, pair[0], pair[1])?;
        a.vpunpckldq(pair[0], pair[0], pair[1])?;
        a.vmaxps(pair[0], pair[0], SPARE)?;
    }
    for four in ZMM[..ROWS].chunks(FOUR) {
        a.vpunpckhqdq(SPARE, four[0], four[2])?;
        a.vpunpcklqdq(four[0], four[0], four[2])?;
        a.vmaxps(four[0], four[0], SPARE)?;
    }
    // Then of the vector's quarters.
    for [one, other] in [[zmm0, zmm4], [zmm8, zmm12], [zmm0, zmm8]] {
        a.vshufi32x4(SPARE, one, other, 0b11_01_11_01)?;
        a.vshufi32x4(one, one, other, 0b10_00_10_00)?;
        a.vmaxps(one, one, SPARE)?;
    }
    let largest = zmm0;
    /// Greater, of numbers.
    const GREATER: u32 = 0x1e;
    a.vcmpps(k1, largest, NONE, GREATER)?;
    a.vdivps(SPARE, largest, TOP)?;
    a.vmovups(to(pack, 0), SPARE)?;
    a.vdivps(INVERSE.k1().z(), TOP, largest)?;
    a.vmovups(zmmword_ptr(STACK), INVERSE)
}

/// The rows' quants and -8 times their sums.
fn quants(a: &mut CodeAssembler, pack: Pack) -> Done {
    for first in (0..ROWS).step_by(FOUR) {
        for row in 0..FOUR {
            a.vbroadcastss(INVERSE, dword_ptr(STACK + 4 * (first + row) as i32))?;
            for half in 0..QUANTS.len() {
                let quant = ZMM[half * FOUR + row];
                a.vmulps(quant, INVERSE, x(pack, first + row, half))?;
                a.vaddps(quant, quant, ROUND)?;
                a.vpsubd(quant, quant, ROUND)?;
            }
        }
        for (half, quants) in QUANTS.iter().enumerate() {
            let (to, four) = (quants[first / FOUR], &ZMM[half * FOUR..]);
            a.vpackssdw(four[0], four[0], four[1])?;
            a.vpackssdw(four[2], four[2], four[3])?;
            a.vpacksswb(to, four[0], four[2])?;
        }
    }
    a.vpxord(SUM, SUM, SUM)?;
    for (half, [p, q, r, s]) in QUANTS.into_iter().enumerate() {
        // Quarter i of each of the four is quants 4 i to 4 i + 3 of its rows.
        let [low, high, more, most] = [zmm0, zmm1, zmm2, zmm3];
        a.vshufi32x4(low, p, q, 0b01_00_01_00)?;
        a.vshufi32x4(high, p, q, 0b11_10_11_10)?;
        a.vshufi32x4(more, r, s, 0b01_00_01_00)?;
        a.vshufi32x4(most, r, s, 0b11_10_11_10)?;
        let parts = [(low, more, 0b10_00_10_00), (low, more, 0b11_01_11_01), (high, most, 0b10_00_10_00)];
        for (i, (one, other, which)) in parts.into_iter().chain([(high, most, 0b11_01_11_01)]).enumerate() {
            a.vshufi32x4(SPARE, one, other, which)?;
            a.evex().vpdpbusd(SUM, ONES, SPARE)?;
            a.vmovdqu32(to(pack, 2 + half * (BLOCK / STEP / 2) + i), SPARE)?;
        }
    }
    a.vpslld(SUM, SUM, 3)?;
    a.vpsubd(SUM, NONE, SUM)?;
    a.vmovdqu32(to(pack, 1), SUM)
}
