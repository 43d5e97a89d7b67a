//! AVX2 and AVX-512 scores, assembled: queries of several heads against rows of keys as they lie, each key widened once
//! for all.
//!
//! Meanwhile rows of memory that are read next, the block's values, are fetched into the second cache.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::dot::{XMM, reduce};
use super::{Code, Scores};

const Q: AsmRegister64 = gpr64::rdi;
const KEYS: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const NEXT: AsmRegister64 = gpr64::rcx;
const COUNT: AsmRegister64 = gpr64::r8;
const SCALES: AsmRegister64 = gpr64::r9;

/// AVX-512, 16 lanes: two heads at most, of four keys each.
pub(super) fn scores_512(scores: Scores) -> Code {
    const SUMS: [AsmRegisterZmm; 8] = [zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23];
    let Scores { dtype, rows, heads, q_stride, c_stride, .. } = scores;
    let (row_bytes, block_bytes) = (scores.row_bytes(), scores.block_bytes());
    let sum = |h: usize, r: usize| SUMS[h * rows + r];
    let (key, scale, mask) = (zmm2, zmm3, zmm4);
    let queries = [zmm0, zmm1];
    let a = &mut CodeAssembler::new(64)?;
    if dtype == DType::Q8 {
        a.mov(gpr32::eax, 0xffff_0000u32)?;
        a.vpbroadcastd(mask, gpr32::eax)?;
    }
    for &sum in &SUMS[..heads * rows] {
        a.vpxord(sum, sum, sum)?;
    }
    scores.walk(a, &mut |a| {
        for half in 0..2i32 {
            for (h, &q) in queries.iter().enumerate().take(heads) {
                a.vmovups(q, ptr(Q + (h as i32 * q_stride + half * 64)))?;
            }
            for r in 0..rows {
                let at = KEYS + (r as i32 * row_bytes + half * block_bytes / 2);
                match dtype {
                    DType::Q8 => {
                        a.vpandd(scale, mask, dword_bcst(SCALES + (r as i32 * row_bytes - 2)))?;
                        a.vpmovsxbd(key, xmmword_ptr(at))?;
                        a.vcvtdq2ps(key, key)?;
                        a.vmulps(key, key, scale)?;
                    }
                    DType::BF16 => {
                        a.vpmovzxwd(key, ymmword_ptr(at))?;
                        a.vpslld(key, key, 16)?;
                    }
                    DType::F16 => a.vcvtph2ps(key, ymmword_ptr(at))?,
                    _ => a.vmovups(key, zmmword_ptr(at))?,
                }
                for (h, &q) in queries.iter().enumerate().take(heads) {
                    a.vfmadd231ps(sum(h, r), key, q)?;
                }
            }
        }
        Ok(())
    })?;
    for h in 0..heads {
        for r in 0..rows {
            add_up(a, sum(h, r))?;
            a.vmovss(dword_ptr(C + (h as i32 * c_stride + r as i32 * 4)), xmm0)?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// AVX2 with FMA and F16C, 8 lanes: so many too.
pub(super) fn scores_256(scores: Scores) -> Code {
    const SUMS: [AsmRegisterYmm; 8] = [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7];
    let Scores { dtype, rows, heads, q_stride, c_stride, .. } = scores;
    let (row_bytes, block_bytes) = (scores.row_bytes(), scores.block_bytes());
    let sum = |h: usize, r: usize| h * rows + r;
    let (key, scale, mask) = (ymm8, ymm9, ymm10);
    let queries = [ymm11, ymm12];
    let a = &mut CodeAssembler::new(64)?;
    if dtype == DType::Q8 {
        a.vpcmpeqd(mask, mask, mask)?;
        a.vpslld(mask, mask, 16)?;
    }
    for &sum in &SUMS[..heads * rows] {
        a.vpxor(sum, sum, sum)?;
    }
    scores.walk(a, &mut |a| {
        for quarter in 0..4i32 {
            for (h, &q) in queries.iter().enumerate().take(heads) {
                a.vmovups(q, ptr(Q + (h as i32 * q_stride + quarter * 32)))?;
            }
            for r in 0..rows {
                let at = KEYS + (r as i32 * row_bytes + quarter * block_bytes / 4);
                match dtype {
                    DType::Q8 => {
                        a.vpbroadcastd(scale, dword_ptr(SCALES + (r as i32 * row_bytes - 2)))?;
                        a.vpand(scale, scale, mask)?;
                        a.vpmovsxbd(key, qword_ptr(at))?;
                        a.vcvtdq2ps(key, key)?;
                        a.vmulps(key, key, scale)?;
                    }
                    DType::BF16 => {
                        a.vpmovzxwd(key, xmmword_ptr(at))?;
                        a.vpslld(key, key, 16)?;
                    }
                    DType::F16 => a.vcvtph2ps(key, xmmword_ptr(at))?,
                    _ => a.vmovups(key, ymmword_ptr(at))?,
                }
                for (h, &q) in queries.iter().enumerate().take(heads) {
                    a.vfmadd231ps(SUMS[sum(h, r)], key, q)?;
                }
            }
        }
        Ok(())
    })?;
    for h in 0..heads {
        for r in 0..rows {
            reduce(a, sum(h, r))?;
            a.vmovss(dword_ptr(C + (h as i32 * c_stride + r as i32 * 4)), XMM[sum(h, r)])?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

impl Scores {
    fn row_bytes(self) -> i32 {
        self.dtype.row_bytes(self.k) as i32
    }

    /// Bytes of a block, without its scale.
    fn block_bytes(self) -> i32 {
        if self.dtype == DType::Q8 { BLOCK as i32 } else { self.dtype.row_bytes(BLOCK) as i32 }
    }

    /// Walks k in blocks, and fetches rows that are read next.
    fn walk(
        self,
        a: &mut CodeAssembler,
        body: &mut dyn FnMut(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        if self.dtype == DType::Q8 {
            a.lea(SCALES, ptr(KEYS + self.k as i32))?;
        }
        let mut again = a.create_label();
        a.mov(COUNT, (self.k / BLOCK) as i64)?;
        a.set_label(&mut again)?;
        // In the order they lie in, which memory serves best.
        let fetched = self.rows as i32 * self.dtype.row_bytes(BLOCK) as i32;
        for line in (0..fetched).step_by(64) {
            a.prefetcht1(byte_ptr(NEXT + line))?;
        }
        body(a)?;
        a.add(Q, BLOCK as i32 * 4)?;
        a.add(KEYS, self.block_bytes())?;
        a.add(NEXT, fetched)?;
        if self.dtype == DType::Q8 {
            a.add(SCALES, 2)?;
        }
        a.dec(COUNT)?;
        a.jnz(again)
    }
}

/// The sum of sixteen lanes, in the first of register 0. Clobbers register 1.
fn add_up(a: &mut CodeAssembler, sum: AsmRegisterZmm) -> Result<(), IcedError> {
    a.vextractf64x4(ymm1, sum, 1)?;
    a.vmovaps(zmm0, sum)?;
    a.vaddps(ymm0, ymm0, ymm1)?;
    a.vextractf128(xmm1, ymm0, 1)?;
    a.vaddps(xmm0, xmm0, xmm1)?;
    a.vhaddps(xmm0, xmm0, xmm0)?;
    a.vhaddps(xmm0, xmm0, xmm0)
}
