//! Vectors of 8 and of 16 lanes that widen what caches hold: what scores and weighted sums are written over.

use iced_x86::code_asm::{registers::gpr32, *};
use lapidary_ir::DType;

use super::dot::{Done, YMM};
use super::tile::Vector;

/// What differs between the two widths, beside what tiles need.
pub(super) trait Cached: Vector {
    /// Lanes of f32.
    const LANES: usize = Self::BYTES as usize / 4;

    /// A mask of the upper halves of dwords.
    fn upper_halves(self, a: &mut CodeAssembler) -> Done;

    /// A block's scale in all lanes, of the dword at `at` the upper half.
    fn scale(self, a: &mut CodeAssembler, at: AsmMemoryOperand, mask: Self) -> Done;

    /// As many elements as lanes, from `at` on, as f32; of q8 quants times their scale.
    fn widen(self, a: &mut CodeAssembler, dtype: DType, at: AsmMemoryOperand, scale: Self) -> Done;

    /// Adds x y, lane by lane.
    fn multiply_add(self, a: &mut CodeAssembler, x: Self, y: Self) -> Done {
        self.add_product(a, x, y, DType::F32)
    }

    /// Halves added up until there are 8 lanes, of register `i`. Clobbers register 15.
    fn fold(a: &mut CodeAssembler, i: usize) -> Done;
}

impl Cached for AsmRegisterZmm {
    fn upper_halves(self, a: &mut CodeAssembler) -> Done {
        a.mov(gpr32::eax, 0xffff_0000u32)?;
        a.vpbroadcastd(self, gpr32::eax)
    }
    fn scale(self, a: &mut CodeAssembler, at: AsmMemoryOperand, mask: Self) -> Done {
        a.vpandd(self, mask, dword_bcst(at))
    }
    fn widen(self, a: &mut CodeAssembler, dtype: DType, at: AsmMemoryOperand, scale: Self) -> Done {
        match dtype {
            DType::Q8 => {
                a.vpmovsxbd(self, xmmword_ptr(at))?;
                a.vcvtdq2ps(self, self)?;
                a.vmulps(self, self, scale)
            }
            DType::BF16 => {
                a.vpmovzxwd(self, ymmword_ptr(at))?;
                a.vpslld(self, self, 16)
            }
            DType::F16 => a.vcvtph2ps(self, ymmword_ptr(at)),
            DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => a.vmovups(self, zmmword_ptr(at)),
        }
    }
    fn fold(a: &mut CodeAssembler, i: usize) -> Done {
        a.vextractf64x4(ymm15, Self::ALL[i], 1)?;
        a.vaddps(YMM[i], YMM[i], ymm15)
    }
}

impl Cached for AsmRegisterYmm {
    fn upper_halves(self, a: &mut CodeAssembler) -> Done {
        a.vpcmpeqd(self, self, self)?;
        a.vpslld(self, self, 16)
    }
    fn scale(self, a: &mut CodeAssembler, at: AsmMemoryOperand, mask: Self) -> Done {
        a.vpbroadcastd(self, dword_ptr(at))?;
        a.vpand(self, self, mask)
    }
    fn widen(self, a: &mut CodeAssembler, dtype: DType, at: AsmMemoryOperand, scale: Self) -> Done {
        match dtype {
            DType::Q8 => {
                a.vpmovsxbd(self, qword_ptr(at))?;
                a.vcvtdq2ps(self, self)?;
                a.vmulps(self, self, scale)
            }
            DType::BF16 => {
                a.vpmovzxwd(self, xmmword_ptr(at))?;
                a.vpslld(self, self, 16)
            }
            DType::F16 => a.vcvtph2ps(self, xmmword_ptr(at)),
            DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => a.vmovups(self, ymmword_ptr(at)),
        }
    }
    fn fold(_: &mut CodeAssembler, _: usize) -> Done {
        Ok(())
    }
}
