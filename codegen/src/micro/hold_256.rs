//! Blocks of quantised weight rows, held for tiles with AVX2 and with AVX-VNNI, one by one: quants unsigned, whole or
//! in halves, then the scale as f32.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::fill;
use super::{Code, Held, Widen};

/// How far ahead weights are fetched, in bytes.
const AHEAD: i32 = 1024;

/// As [`Held::Halves`] says.
pub(super) fn hold_halves(widen: Widen) -> Code {
    hold(widen, Held::Halves)
}

/// As [`Held::Whole`] says.
pub(super) fn hold_whole(widen: Widen) -> Code {
    hold(widen, Held::Whole)
}

/// Of the operands the second is where the scales begin.
fn hold(widen: Widen, held: Held) -> Code {
    let (from, scales, to, count) = (gpr64::rdi, gpr64::rsi, gpr64::rdx, gpr64::rcx);
    let a = &mut CodeAssembler::new(64)?;
    let (upper, lower, nibble, sign) = (ymm0, ymm1, ymm2, ymm3);
    let bytes = held.block_bytes(widen.from) as i32;
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
        if held.halves(widen.from) == 2 {
            a.vpand(lower, upper, nibble)?;
            a.vmovdqu(ymmword_ptr(to + BLOCK as i32), lower)?;
            a.vpsrlw(upper, upper, 4)?;
            a.vpand(upper, upper, nibble)?;
        }
    }
    a.vmovdqu(ymmword_ptr(to), upper)?;
    a.movzx(gpr32::eax, word_ptr(scales))?;
    a.shl(gpr32::eax, 16)?;
    a.mov(dword_ptr(to + (bytes - 4)), gpr32::eax)?;
    a.add(from, widen.from.row_bytes(BLOCK) as i32 - 2)?;
    a.add(scales, 2)?;
    a.add(to, bytes)?;
    a.dec(count)?;
    a.jnz(again)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}
