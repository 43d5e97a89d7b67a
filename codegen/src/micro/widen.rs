//! AVX2 and AVX-512 widening, assembled: a weight row to f32 or bf16, 32 floats or a block at a time, for tiles to
//! read.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::{Code, Widen, blocks};

const FROM: AsmRegister64 = gpr64::rdi;
const TO: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;

/// How far ahead weights are fetched, in bytes.
const AHEAD: i32 = 1024;

/// Steps the operands on by a block and goes round.
fn next(a: &mut CodeAssembler, widen: Widen, again: CodeLabel) -> Result<(), IcedError> {
    a.add(FROM, widen.from.row_bytes(BLOCK) as i32)?;
    a.add(TO, widen.to.row_bytes(BLOCK) as i32)?;
    a.dec(COUNT)?;
    a.jnz(again)
}

/// AVX-512; to bf16 with AVX-512 BF16.
pub(super) fn widen_512(widen: Widen) -> Code {
    if let Some(format) = widen.from.format() {
        return blocks::widen_512(widen, format);
    }
    let a = &mut CodeAssembler::new(64)?;
    let (low, high) = (zmm0, zmm1);
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    if widen.fetches {
        a.prefetcht0(byte_ptr(FROM + AHEAD))?;
    }
    if (widen.from, widen.to) == (DType::BF16, DType::BF16) {
        a.vmovups(low, zmmword_ptr(FROM))?;
        a.vmovups(zmmword_ptr(TO), low)?;
        next(a, widen, again)?;
        a.vzeroupper()?;
        a.ret()?;
        return a.assemble(0);
    }
    match widen.from {
        DType::BF16 => {
            a.vpmovzxwd(low, ymmword_ptr(FROM))?;
            a.vpmovzxwd(high, ymmword_ptr(FROM + 32))?;
            a.vpslld(low, low, 16)?;
            a.vpslld(high, high, 16)?;
        }
        DType::F16 => {
            a.vcvtph2ps(low, ymmword_ptr(FROM))?;
            a.vcvtph2ps(high, ymmword_ptr(FROM + 32))?;
        }
        DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {
            a.vmovups(low, zmmword_ptr(FROM))?;
            a.vmovups(high, zmmword_ptr(FROM + 64))?;
        }
    }
    if widen.to == DType::BF16 {
        a.vcvtne2ps2bf16(low, high, low)?;
        a.vmovups(zmmword_ptr(TO), low)?;
    } else {
        a.vmovups(zmmword_ptr(TO), low)?;
        a.vmovups(zmmword_ptr(TO + 64), high)?;
    }
    next(a, widen, again)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// AVX2 with F16C, to f32.
pub(super) fn widen_256(widen: Widen) -> Code {
    if let Some(format) = widen.from.format() {
        return blocks::widen_256(widen, format);
    }
    let a = &mut CodeAssembler::new(64)?;
    let eights = [ymm0, ymm1, ymm2, ymm3];
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    if widen.fetches {
        a.prefetcht0(byte_ptr(FROM + AHEAD))?;
    }
    for (i, &x) in eights.iter().enumerate() {
        let i = i as i32;
        match widen.from {
            DType::BF16 => {
                a.vpmovzxwd(x, xmmword_ptr(FROM + i * 16))?;
                a.vpslld(x, x, 16)?;
            }
            DType::F16 => a.vcvtph2ps(x, xmmword_ptr(FROM + i * 16))?,
            DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {
                a.vmovups(x, ymmword_ptr(FROM + i * 32))?
            }
        }
        a.vmovups(ymmword_ptr(TO + i * 32), x)?;
    }
    next(a, widen, again)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}
