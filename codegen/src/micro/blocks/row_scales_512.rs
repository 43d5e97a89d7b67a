//! Scales and offsets of four weight rows apart, for `row_512.rs`: of each group those of the four, side by side in the
//! stack's frame, where a sum is multiplied by them as they lie.

use iced_x86::code_asm::*;
use lapidary_ir::format::Scale;
use lapidary_ir::{BLOCK, DType};

use super::bf16_512::both;
use super::row_512::{APART, Apart, ELEMENTS, PRODUCTS, ROWS, SCALES, STACK, VECTOR, W, of_row};
use super::widen_512::scales_512;
use super::{PLANES, eighth, scales_of};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::lanes;
use crate::micro::raw::ROW_BLOCKS;
use crate::micro::tile::ZMM;

impl Apart<'_> {
    /// Where the scale (0) or offset (1) of an element of the step lies, of each row.
    pub(super) fn scale_at(&self, kind: usize, element: usize) -> AsmMemoryOperand {
        let format = self.format;
        let at = if format.block == BLOCK {
            kind * VECTOR as usize + element % ELEMENTS / BLOCK * 16
        } else {
            let group = element / format.group;
            let (list, i) = if both(format).is_some() { (0, 2 * group + kind) } else { (kind, group) };
            list * 4 * VECTOR as usize + i % 4 * VECTOR as usize + i / 4 * 16
        };
        STACK + (SCALES + at as i32)
    }

    /// An eighth of what offsets are worth: x's sums come times -8.
    fn eighth(&mut self, a: &mut CodeAssembler, offsets: AsmRegisterZmm) -> Done {
        let eighth = self.unit.constants.dwords(a, vec![eighth(self.format).to_bits()]);
        a.vmulps(offsets, offsets, dword_bcst(eighth))
    }

    /// The scales and offsets of short blocks: of each block those of four rows.
    pub(super) fn short_scales(&mut self, a: &mut CodeAssembler, blocks: usize) -> Done {
        for (kind, scale) in scales_of(self.format).enumerate() {
            let bytes = self.format.planes[scale.plane];
            let plane = [W, PLANES[1]][scale.plane];
            let t = zmm0;
            if scale.dtype == DType::BF16 && bytes == 2 && blocks == ROW_BLOCKS {
                // They follow one another.
                for (q, register) in XMM[..ROWS].iter().enumerate() {
                    let at = of_row(a, plane, q)?;
                    a.vmovq(*register, qword_ptr(at + scale.byte as i32))?;
                }
                a.vpunpcklqdq(xmm0, xmm0, xmm1)?;
                a.vpunpcklqdq(xmm2, xmm2, xmm3)?;
                a.vinserti128(ymm0, ymm0, xmm2, 1)?;
                let turned = self.unit.constants.dwords(a, (0..16).map(|i| i % 4 * 4 + i / 4).collect());
                a.vpmovzxwd(t, ymm0)?;
                a.vmovdqu32(zmm1, zmmword_ptr(turned))?;
                a.vpermd(t, zmm1, t)?;
                a.vpslld(t, t, 16)?;
            } else {
                a.vpxor(xmm0, xmm0, xmm0)?;
                a.vpxor(xmm1, xmm1, xmm1)?;
                for q in 0..ROWS {
                    let at = of_row(a, plane, q)?;
                    for block in 0..blocks {
                        let (x, lane) = (XMM[block / 2], block % 2 * 4 + q);
                        a.vpinsrw(x, x, word_ptr(at + (scale.byte + block * bytes) as i32), lane as u32)?;
                    }
                }
                a.vinserti128(ymm0, ymm0, xmm1, 1)?;
                if scale.dtype == DType::BF16 {
                    a.vpmovzxwd(t, ymm0)?;
                    a.vpslld(t, t, 16)?;
                } else {
                    a.vcvtph2ps(t, YMM[0])?;
                }
            }
            if kind > 0 {
                self.eighth(a, t)?;
            }
            a.vmovups(zmmword_ptr(STACK + (SCALES + kind as i32 * VECTOR)), t)?;
        }
        Ok(())
    }

    /// The scales and offsets of a long block's groups: of each group those of four rows.
    pub(super) fn long_scales(&mut self, a: &mut CodeAssembler) -> Done {
        let format = self.format;
        let pair = both(format);
        let lists: Vec<Vec<&Scale>> = match pair {
            Some(both) => vec![both.to_vec()],
            None => scales_of(format).map(|scale| vec![scale]).collect(),
        };
        let of = PRODUCTS[0];
        for (kind, scales) in lists.iter().enumerate() {
            a.mov(PLANES[0], W)?;
            for to in of {
                scales_512(a, &mut self.unit.constants, format, scales, to)?;
                a.add(PLANES[0], APART)?;
            }
            lanes::turn(a, of, 0)?;
            for (i, register) in of.into_iter().enumerate() {
                if kind > 0 || pair.is_some() && i % 2 == 1 {
                    self.eighth(a, ZMM[register])?;
                }
                let at = SCALES + (4 * kind + i) as i32 * VECTOR;
                a.vmovups(zmmword_ptr(STACK + at), ZMM[register])?;
            }
        }
        Ok(())
    }
}
