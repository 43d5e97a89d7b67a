//! Blocks of quantised weight rows, held for tiles with AVX-512 VNNI as [`Held::Whole`](super::Held::Whole) says:
//! quants unsigned, then the scale as f32. Four blocks at a time, what is left over one by one.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::Done;
use super::{Code, Held, Widen};

/// Blocks at a time.
const FOUR: i32 = 4;
/// How far ahead weights are fetched, in bytes.
const AHEAD: i32 = 1024;
const LINE: i32 = 64;

const FROM: AsmRegister64 = gpr64::rdi;
const SCALES: AsmRegister64 = gpr64::rsi;
const TO: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;

/// What quants of four bits are masked by, or which bit of eight is turned.
const MASK: AsmRegisterZmm = zmm5;
const MASK_256: AsmRegisterYmm = ymm5;
/// The second, fourth .. 16 bytes, in words.
const ODD: u32 = 0xff00_ff00;

/// Of the operands the second is where the scales begin.
pub(super) fn hold_whole(widen: Widen) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let hold = Hold { widen, quants: widen.from.row_bytes(BLOCK) as i32 - 2 };
    let [mut four, mut rest, mut one, mut done] = std::array::from_fn(|_| a.create_label());
    a.mov(gpr32::eax, if widen.from == DType::Q4 { 0x0f0f_0f0fu32 } else { 0x8080_8080 })?;
    a.vpbroadcastd(MASK, gpr32::eax)?;
    a.mov(gpr32::eax, ODD)?;
    a.kmovd(k1, gpr32::eax)?;
    a.sub(COUNT, FOUR)?;
    a.jl(rest)?;
    a.set_label(&mut four)?;
    if widen.fetches {
        for line in (0..FOUR * hold.quants).step_by(LINE as usize) {
            a.prefetcht0(byte_ptr(FROM + (AHEAD + line)))?;
        }
    }
    hold.four(a)?;
    hold.step(a, FOUR)?;
    a.sub(COUNT, FOUR)?;
    a.jge(four)?;
    a.set_label(&mut rest)?;
    a.add(COUNT, FOUR)?;
    a.jz(done)?;
    a.set_label(&mut one)?;
    hold.one(a, 0)?;
    hold.step(a, 1)?;
    a.dec(COUNT)?;
    a.jnz(one)?;
    a.set_label(&mut done)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

struct Hold {
    widen: Widen,
    /// Bytes of a block's quants as they are stored.
    quants: i32,
}

impl Hold {
    /// Where a block is held.
    fn to(&self, block: i32) -> AsmMemoryOperand {
        TO + block * Held::Whole.block_bytes(self.widen.from) as i32
    }

    /// On past so many blocks.
    fn step(&self, a: &mut CodeAssembler, blocks: i32) -> Done {
        a.add(FROM, blocks * self.quants)?;
        a.add(SCALES, 2 * blocks)?;
        a.add(TO, blocks * Held::Whole.block_bytes(self.widen.from) as i32)
    }

    fn four(&self, a: &mut CodeAssembler) -> Done {
        if self.widen.from != DType::Q4 {
            return (0..FOUR).try_for_each(|block| self.one(a, block));
        }
        a.vmovdqu32(zmm0, zmmword_ptr(FROM))?;
        // Of the first and second blocks each twice, and of the others: the second half of the elements are the bytes'
        // upper halves.
        for (pair, which, x, y) in [(0, 0b01_01_00_00, zmm1, ymm1), (2, 0b11_11_10_10, zmm2, ymm2)] {
            a.vshufi32x4(x, zmm0, zmm0, which)?;
            a.vpsrlw(x.k1(), x, 4)?;
            a.vpandd(x, x, MASK)?;
            a.vmovdqu(ymmword_ptr(self.to(pair)), y)?;
            a.vextracti64x4(ymmword_ptr(self.to(pair + 1)), x, 1)?;
        }
        (0..FOUR).try_for_each(|block| self.scale(a, block))
    }

    fn one(&self, a: &mut CodeAssembler, block: i32) -> Done {
        let from = FROM + block * self.quants;
        if self.widen.from == DType::Q4 {
            a.vmovdqu(xmm0, xmmword_ptr(from))?;
            a.vinserti128(ymm0, ymm0, xmm0, 1)?;
            a.vpsrlw(zmm0.k1(), zmm0, 4)?;
            a.vpand(ymm0, ymm0, MASK_256)?;
        } else {
            a.vpxor(ymm0, MASK_256, ymmword_ptr(from))?;
        }
        a.vmovdqu(ymmword_ptr(self.to(block)), ymm0)?;
        self.scale(a, block)
    }

    fn scale(&self, a: &mut CodeAssembler, block: i32) -> Done {
        a.movzx(gpr32::eax, word_ptr(SCALES + 2 * block))?;
        a.shl(gpr32::eax, 16)?;
        a.mov(dword_ptr(self.to(block) + BLOCK as i32), gpr32::eax)
    }
}
