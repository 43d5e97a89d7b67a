//! AVX2 and AVX-512 weighted sums, assembled: rows of values as they lie, each times a weight, added to rows of f32.
//!
//! `c[h][i] += sum over j of weights[h][j] values[j][i]` for the columns `i` of the code's own: a row of values is
//! widened in registers once for all heads. Columns are whole blocks of 32.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::{Code, Mix};

type Done = Result<(), IcedError>;

const VALUES: AsmRegister64 = gpr64::rdi;
const WEIGHTS: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;
const NEXT: AsmRegister64 = gpr64::r8;

/// Rows ahead that are fetched into the first cache.
const AHEAD: i32 = 8;

/// Columns that fit the registers, of 16 and of 8 lanes, with two heads' sums.
pub(super) const COLUMNS_512: usize = 128;
pub(super) const COLUMNS_256: usize = 32;

impl Mix {
    /// Where elements from `i` of a row lie, and their block's scale as a dword's upper half.
    fn at(self, i: usize) -> (i32, i32) {
        let i = self.column + i;
        match self.dtype {
            DType::Q8 => (i as i32, (self.k + i / BLOCK * 2) as i32 - 2),
            plain => (plain.row_bytes(i) as i32, 0),
        }
    }
}

/// AVX-512: 16 lanes.
pub(super) fn mix_512(mix: Mix) -> Code {
    const ALL: [AsmRegisterZmm; 28] = [
        zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13, zmm14, zmm15,
        zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26, zmm27,
    ];
    let a = &mut CodeAssembler::new(64)?;
    let vectors = mix.columns / 16;
    let sums = |h: usize, v: usize| ALL[h * vectors + v];
    let (shares, value, scale, mask) = ([zmm28, zmm29], zmm30, zmm27, zmm31);
    if mix.dtype == DType::Q8 {
        a.mov(gpr32::eax, 0xffff_0000u32)?;
        a.vpbroadcastd(mask, gpr32::eax)?;
    }
    for h in 0..mix.heads {
        for v in 0..vectors {
            a.vmovups(sums(h, v), ptr(C + (h as i32 * mix.c_stride + v as i32 * 64)))?;
        }
    }
    rows(a, mix, &mut |a| {
        for (h, &share) in shares.iter().enumerate().take(mix.heads) {
            a.vbroadcastss(share, dword_ptr(WEIGHTS + h as i32 * mix.weight_stride))?;
        }
        for v in 0..vectors {
            let (at, scale_at) = mix.at(v * 16);
            match mix.dtype {
                DType::Q8 => {
                    if v % 2 == 0 {
                        a.vpandd(scale, mask, dword_bcst(VALUES + scale_at))?;
                    }
                    a.vpmovsxbd(value, xmmword_ptr(VALUES + at))?;
                    a.vcvtdq2ps(value, value)?;
                    a.vmulps(value, value, scale)?;
                }
                DType::BF16 => {
                    a.vpmovzxwd(value, ymmword_ptr(VALUES + at))?;
                    a.vpslld(value, value, 16)?;
                }
                DType::F16 => a.vcvtph2ps(value, ymmword_ptr(VALUES + at))?,
                _ => a.vmovups(value, zmmword_ptr(VALUES + at))?,
            }
            for (h, &share) in shares.iter().enumerate().take(mix.heads) {
                a.vfmadd231ps(sums(h, v), value, share)?;
            }
        }
        Ok(())
    })?;
    for h in 0..mix.heads {
        for v in 0..vectors {
            a.vmovups(ptr(C + (h as i32 * mix.c_stride + v as i32 * 64)), sums(h, v))?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// AVX2 with FMA and F16C: 8 lanes.
pub(super) fn mix_256(mix: Mix) -> Code {
    const ALL: [AsmRegisterYmm; 8] = [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7];
    let a = &mut CodeAssembler::new(64)?;
    let vectors = mix.columns / 8;
    let sums = |h: usize, v: usize| ALL[h * vectors + v];
    let (shares, value, scale, mask) = ([ymm8, ymm9], ymm10, ymm11, ymm12);
    if mix.dtype == DType::Q8 {
        a.vpcmpeqd(mask, mask, mask)?;
        a.vpslld(mask, mask, 16)?;
    }
    for h in 0..mix.heads {
        for v in 0..vectors {
            a.vmovups(sums(h, v), ptr(C + (h as i32 * mix.c_stride + v as i32 * 32)))?;
        }
    }
    rows(a, mix, &mut |a| {
        for (h, &share) in shares.iter().enumerate().take(mix.heads) {
            a.vbroadcastss(share, dword_ptr(WEIGHTS + h as i32 * mix.weight_stride))?;
        }
        for v in 0..vectors {
            let (at, scale_at) = mix.at(v * 8);
            match mix.dtype {
                DType::Q8 => {
                    if v % 4 == 0 {
                        a.vpbroadcastd(scale, dword_ptr(VALUES + scale_at))?;
                        a.vpand(scale, scale, mask)?;
                    }
                    a.vpmovsxbd(value, qword_ptr(VALUES + at))?;
                    a.vcvtdq2ps(value, value)?;
                    a.vmulps(value, value, scale)?;
                }
                DType::BF16 => {
                    a.vpmovzxwd(value, xmmword_ptr(VALUES + at))?;
                    a.vpslld(value, value, 16)?;
                }
                DType::F16 => a.vcvtph2ps(value, xmmword_ptr(VALUES + at))?,
                _ => a.vmovups(value, ymmword_ptr(VALUES + at))?,
            }
            for (h, &share) in shares.iter().enumerate().take(mix.heads) {
                a.vfmadd231ps(sums(h, v), value, share)?;
            }
        }
        Ok(())
    })?;
    for h in 0..mix.heads {
        for v in 0..vectors {
            a.vmovups(ptr(C + (h as i32 * mix.c_stride + v as i32 * 32)), sums(h, v))?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// The loop over rows of values; there is at least one.
fn rows(a: &mut CodeAssembler, mix: Mix, body: &mut dyn FnMut(&mut CodeAssembler) -> Done) -> Done {
    let row_bytes = mix.dtype.row_bytes(mix.k) as i32;
    let (from, to) = (mix.at(0).0, mix.at(mix.columns).0);
    let fetched = mix.dtype.row_bytes(mix.columns) as i32;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    for line in (from..to).step_by(64) {
        a.prefetcht0(byte_ptr(VALUES + (AHEAD * row_bytes + line)))?;
    }
    for line in (0..fetched).step_by(64) {
        a.prefetcht1(byte_ptr(NEXT + line))?;
    }
    body(a)?;
    a.add(VALUES, row_bytes)?;
    a.add(NEXT, fetched)?;
    a.add(WEIGHTS, 4)?;
    a.dec(COUNT)?;
    a.jnz(again)
}
