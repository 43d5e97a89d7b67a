//! AVX2 and AVX-512 widening, assembled: blocks of 32 elements of a weight row to f32 or bf16, for tiles to read.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::fill;
use super::{Code, Widen, tile_int8};

const FROM: AsmRegister64 = gpr64::rdi;
const SCALES: AsmRegister64 = gpr64::rsi;
const TO: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;

/// How far ahead weights are fetched, in bytes.
const AHEAD: i32 = 1024;

/// Values of the 16 nibbles.
fn nibbles() -> [f32; 16] {
    std::array::from_fn(|i| i as f32 - 8.0)
}

/// Steps the operands on by a block and goes round.
fn next(a: &mut CodeAssembler, widen: Widen, again: CodeLabel) -> Result<(), IcedError> {
    a.add(FROM, block_bytes(widen.from))?;
    a.add(SCALES, 2)?;
    a.add(TO, widen.to.row_bytes(BLOCK) as i32)?;
    a.dec(COUNT)?;
    a.jnz(again)
}

/// Bytes of a block's elements, its scale apart.
fn block_bytes(dtype: DType) -> i32 {
    match dtype {
        DType::Q8 => BLOCK as i32,
        DType::Q4 => BLOCK as i32 / 2,
        plain => plain.row_bytes(BLOCK) as i32,
    }
}

/// AVX-512; to bf16 with AVX-512 BF16; for integer tiles.
pub(super) fn widen_512(widen: Widen) -> Code {
    if widen.to == DType::Q8 {
        return tile_int8::hold_whole(widen);
    }
    let a = &mut CodeAssembler::new(64)?;
    let (low, high, scale, q, values, mask) = (zmm0, zmm1, zmm2, zmm3, zmm4, zmm5);
    let (mut again, mut table) = (a.create_label(), a.create_label());
    if widen.from.is_quantised() {
        a.mov(gpr32::eax, 0xffff_0000u32)?;
        a.vpbroadcastd(mask, gpr32::eax)?;
    }
    if widen.from == DType::Q4 {
        a.vmovups(values, ptr(table))?;
    }
    a.set_label(&mut again)?;
    a.prefetcht0(byte_ptr(FROM + AHEAD))?;
    match widen.from {
        DType::Q4 => {
            a.vpmovzxbd(q, xmmword_ptr(FROM))?;
            a.vpermps(low, q, values)?;
            a.vpsrld(q, q, 4)?;
            a.vpermps(high, q, values)?;
        }
        DType::Q8 => {
            a.vpmovsxbd(low, xmmword_ptr(FROM))?;
            a.vpmovsxbd(high, xmmword_ptr(FROM + 16))?;
            a.vcvtdq2ps(low, low)?;
            a.vcvtdq2ps(high, high)?;
        }
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
        _ => {
            a.vmovups(low, zmmword_ptr(FROM))?;
            a.vmovups(high, zmmword_ptr(FROM + 64))?;
        }
    }
    if widen.from.is_quantised() {
        a.vpandd(scale, mask, dword_bcst(SCALES - 2))?;
        a.vmulps(low, low, scale)?;
        a.vmulps(high, high, scale)?;
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
    if widen.from == DType::Q4 {
        a.set_label(&mut table)?;
        a.dd_f32(&nibbles())?;
    }
    a.assemble(0)
}

/// AVX2 with F16C, to f32 or for integer tiles.
pub(super) fn widen_256(widen: Widen) -> Code {
    if widen.to == DType::Q8 {
        return tile_int8::hold_halves(widen);
    }
    let a = &mut CodeAssembler::new(64)?;
    let (scale, mask, nibble, eight) = (ymm4, ymm5, ymm6, ymm7);
    let eights = [ymm0, ymm1, ymm2, ymm3];
    let mut again = a.create_label();
    a.vpcmpeqd(mask, mask, mask)?;
    a.vpsrld(nibble, mask, 28)?;
    a.vpslld(mask, mask, 16)?;
    fill(a, 7, 8)?;
    a.set_label(&mut again)?;
    a.prefetcht0(byte_ptr(FROM + AHEAD))?;
    if widen.from.is_quantised() {
        a.vpbroadcastd(scale, dword_ptr(SCALES - 2))?;
        a.vpand(scale, scale, mask)?;
    }
    for (i, &x) in eights.iter().enumerate() {
        let i = i as i32;
        match widen.from {
            DType::Q4 => {
                a.vpmovzxbd(x, qword_ptr(FROM + i % 2 * 8))?;
                if i >= 2 {
                    a.vpsrld(x, x, 4)?;
                }
                a.vpand(x, x, nibble)?;
                a.vpsubd(x, x, eight)?;
                a.vcvtdq2ps(x, x)?;
            }
            DType::Q8 => {
                a.vpmovsxbd(x, qword_ptr(FROM + i * 8))?;
                a.vcvtdq2ps(x, x)?;
            }
            DType::BF16 => {
                a.vpmovzxwd(x, xmmword_ptr(FROM + i * 16))?;
                a.vpslld(x, x, 16)?;
            }
            DType::F16 => a.vcvtph2ps(x, xmmword_ptr(FROM + i * 16))?,
            _ => a.vmovups(x, ymmword_ptr(FROM + i * 32))?,
        }
        if widen.from.is_quantised() {
            a.vmulps(x, x, scale)?;
        }
        a.vmovups(ymmword_ptr(TO + i * 32), x)?;
    }
    next(a, widen, again)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}
