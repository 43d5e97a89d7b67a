//! Dot products in integers, assembled: a row of x rounded to 8 bits in blocks, against quantised weight rows.
//!
//! A block's products are summed exactly in i32; the sum is then scaled by both blocks' scales and added up in f32.
//! `vpdpbusd` (or `vpmaddubsw`) multiplies unsigned by signed bytes, so weights are shifted to be unsigned, by 8 or by
//! 128, and the sum starts at minus that times the sum of the block's x.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::{AHEAD, reduce};
use super::{Code, Dot};

const X: AsmRegister64 = gpr64::rdi;
const W: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;
const SCALES: AsmRegister64 = gpr64::r9;
const X_SCALES: AsmRegister64 = gpr64::r10;
const X_SUMS: AsmRegister64 = gpr64::r11;

/// With AVX-512 VNNI.
pub(super) fn dot_vnni(dot: Dot) -> Code {
    dot_of(dot, true)
}

/// With AVX2.
pub(super) fn dot_avx2(dot: Dot) -> Code {
    dot_of(dot, false)
}

fn dot_of(dot: Dot, vnni: bool) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let Dot { dtype, k, rows, .. } = dot;
    let row_bytes = dtype.row_bytes(k) as i32;
    let quant_bytes = row_bytes - (k / BLOCK * 2) as i32;
    let block_bytes = if dtype == DType::Q4 { BLOCK as i32 / 2 } else { BLOCK as i32 };
    let sums = [ymm0, ymm1, ymm2, ymm3];
    let (x, x_scale, start, mask, byte, ones) = (ymm4, ymm5, ymm6, ymm7, ymm8, ymm9);
    let (w, product, scale, zero) = (ymm10, ymm11, ymm12, ymm13);
    // Weights of 8 bits keep their sign where the instruction's i16 sums would overflow.
    let signed = dtype == DType::Q8 && !vnni;

    for &sum in &sums[..rows] {
        a.vpxor(sum, sum, sum)?;
    }
    a.vpxor(zero, zero, zero)?;
    a.vpcmpeqd(mask, mask, mask)?;
    a.vpslld(mask, mask, 16)?;
    a.mov(gpr32::eax, if dtype == DType::Q4 { 0x0f0f_0f0fu32 } else { 0x8080_8080 })?;
    a.vmovd(xmm8, gpr32::eax)?;
    a.vpbroadcastd(byte, xmm8)?;
    a.mov(gpr32::eax, 0x0001_0001u32)?;
    a.vmovd(xmm9, gpr32::eax)?;
    a.vpbroadcastd(ones, xmm9)?;
    a.lea(SCALES, ptr(W + quant_bytes))?;
    a.lea(X_SCALES, ptr(X + k as i32))?;
    a.lea(X_SUMS, ptr(X + (k + k / BLOCK * 4) as i32))?;

    let block = |a: &mut CodeAssembler, b: i32| -> Result<(), IcedError> {
        a.vmovdqu(x, ptr(X + b * BLOCK as i32))?;
        a.vbroadcastss(x_scale, dword_ptr(X_SCALES + b * 4))?;
        if !signed {
            a.vmovd(xmm14, dword_ptr(X_SUMS + b * 4))?;
            a.vpslld(xmm14, xmm14, if dtype == DType::Q4 { 3 } else { 7 })?;
            a.vpsubd(start, zero, ymm14)?;
        }
        for (r, &sum) in sums.iter().enumerate().take(rows) {
            let at = W + (r as i32 * row_bytes + b * block_bytes);
            let mut by = x;
            if dtype == DType::Q4 {
                a.vmovdqu(xmm10, xmmword_ptr(at))?;
                a.vpsrld(xmm11, xmm10, 4)?;
                a.vinserti128(w, w, xmm11, 1)?;
                a.vpand(w, w, byte)?;
            } else if signed {
                a.vmovdqu(product, ymmword_ptr(at))?;
                a.vpabsb(w, product)?;
                a.vpsignb(ymm14, x, product)?;
                by = ymm14;
            } else {
                a.vpxor(w, byte, ymmword_ptr(at))?;
            }
            if vnni {
                a.vmovdqa(product, start)?;
                a.evex().vpdpbusd(product, w, by)?;
            } else {
                a.vpmaddubsw(product, w, by)?;
                a.vpmaddwd(product, product, ones)?;
                if !signed {
                    a.vpaddd(product, product, start)?;
                }
            }
            a.vcvtdq2ps(product, product)?;
            a.vpbroadcastd(scale, dword_ptr(SCALES + (r as i32 * row_bytes + 2 * b - 2)))?;
            a.vpand(scale, scale, mask)?;
            a.vmulps(scale, scale, x_scale)?;
            a.vfmadd231ps(sum, product, scale)?;
        }
        Ok(())
    };

    // A line of memory at a time.
    let step = 64 / block_bytes;
    let blocks = (k / BLOCK) as i32;
    if blocks >= step {
        let mut again = a.create_label();
        a.mov(COUNT, i64::from(blocks / step))?;
        a.set_label(&mut again)?;
        for r in 0..rows as i32 {
            let next = (r + AHEAD * rows as i32) * row_bytes;
            a.prefetcht1(byte_ptr(W + next))?;
            a.prefetcht1(byte_ptr(SCALES + next))?;
        }
        for b in 0..step {
            block(a, b)?;
        }
        a.add(X, step * BLOCK as i32)?;
        a.add(X_SCALES, step * 4)?;
        a.add(X_SUMS, step * 4)?;
        a.add(W, step * block_bytes)?;
        a.add(SCALES, step * 2)?;
        a.dec(COUNT)?;
        a.jnz(again)?;
    }
    for b in 0..blocks % step {
        block(a, b)?;
    }
    for (r, &sum) in [xmm0, xmm1, xmm2, xmm3].iter().enumerate().take(rows) {
        reduce(a, r)?;
        a.vmovss(dword_ptr(C + r as i32 * 4), sum)?;
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}
