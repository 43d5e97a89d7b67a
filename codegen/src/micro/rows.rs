//! AVX-512 BF16 dot products of several rows of x, assembled: rows of both operands as they lie, k in lanes.
//!
//! For calls of few rows: each weight is loaded once for all of them, and nothing is broadcast or widened.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};

use super::{Code, Rows};

const X: AsmRegister64 = gpr64::rdi;
const W: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;

/// Elements of a step: a register of bf16.
const STEP: usize = 32;

/// How far ahead weights are fetched, in groups of rows.
const AHEAD: i32 = 2;

/// At most 24 sums.
pub(super) fn rows_bf16(rows: Rows) -> Code {
    const ALL: [AsmRegisterZmm; 24] = [
        zmm8, zmm9, zmm10, zmm11, zmm12, zmm13, zmm14, zmm15, zmm16, zmm17, zmm18, zmm19, zmm20, zmm21,
        zmm22, zmm23, zmm24, zmm25, zmm26, zmm27, zmm28, zmm29, zmm30, zmm31,
    ];
    let Rows { k, rows: count, nr, x_stride, weight_stride, c_stride } = rows;
    let sum = |t: usize, n: usize| ALL[t * nr + n];
    let ws = [zmm0, zmm1, zmm2];
    let x = zmm3;
    let a = &mut CodeAssembler::new(64)?;
    for &sum in &ALL[..count * nr] {
        a.vpxord(sum, sum, sum)?;
    }
    if k >= STEP {
        let mut again = a.create_label();
        a.mov(COUNT, (k / STEP) as i64)?;
        a.set_label(&mut again)?;
        for (n, &w) in ws.iter().enumerate().take(nr) {
            a.vmovups(w, zmmword_ptr(W + n as i32 * weight_stride))?;
            a.prefetcht1(byte_ptr(W + (n as i32 + AHEAD * nr as i32) * weight_stride))?;
        }
        for t in 0..count {
            a.vmovups(x, zmmword_ptr(X + t as i32 * x_stride))?;
            for (n, &w) in ws.iter().enumerate().take(nr) {
                a.vdpbf16ps(sum(t, n), w, x)?;
            }
        }
        a.add(X, STEP as i32 * 2)?;
        a.add(W, STEP as i32 * 2)?;
        a.dec(COUNT)?;
        a.jnz(again)?;
    }
    if !k.is_multiple_of(STEP) {
        a.mov(gpr32::eax, (1u32 << (k % STEP)) - 1)?;
        a.kmovd(k1, gpr32::eax)?;
        for (n, &w) in ws.iter().enumerate().take(nr) {
            a.vmovdqu16(w.k1().z(), ptr(W + n as i32 * weight_stride))?;
        }
        for t in 0..count {
            a.vmovdqu16(x.k1().z(), ptr(X + t as i32 * x_stride))?;
            for (n, &w) in ws.iter().enumerate().take(nr) {
                a.vdpbf16ps(sum(t, n), w, x)?;
            }
        }
    }
    for t in 0..count {
        for n in 0..nr {
            a.vextractf64x4(ymm1, sum(t, n), 1)?;
            a.vmovaps(zmm0, sum(t, n))?;
            a.vaddps(ymm0, ymm0, ymm1)?;
            reduce(a)?;
            a.vmovss(dword_ptr(C + (t as i32 * c_stride + n as i32 * 4)), xmm0)?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// The sum of register 0's eight lanes, in its first. Clobbers register 1.
pub(super) fn reduce(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.vextractf128(xmm1, ymm0, 1)?;
    a.vaddps(xmm0, xmm0, xmm1)?;
    a.vhaddps(xmm0, xmm0, xmm0)?;
    a.vhaddps(xmm0, xmm0, xmm0)
}
