//! Dot products in integers, assembled: a row of x rounded to 8 bits in blocks, against quantised weight rows; long
//! ones go by `dot_groups.rs`.
//!
//! A block's products are summed exactly in i32; the sum is then scaled by both blocks' scales and added up in f32.
//! `vpdpbusd` (or `vpmaddubsw`) multiplies unsigned by signed bytes, so weights are shifted to be unsigned, by 8 or by
//! 128, and that times the sum of the block's x is taken off again.
//!
//! Of 4 bits a core has more to unpack than to read, so [`four_bits`] takes two blocks at a time, one a half of a
//! register: low nibbles of 32 bytes are both blocks' first halves, high nibbles their second. Scales are made for
//! eight blocks.

use iced_x86::code_asm::*;
use lapidary_ir::{BLOCK, DType};

use super::dot::{Done, X, X_SCALES, X_SUMS, YMM, fill, store_sums};
use super::{Code, DOT_ROWS, Dot, dot_groups};
use crate::micro;

/// With AVX-VNNI: the same instruction as AVX2 is encoded.
pub(super) fn dot_avx_vnni(dot: Dot) -> Code {
    dot_of(dot, Products::AvxVnni)
}

/// With AVX2.
pub(super) fn dot_avx2(dot: Dot) -> Code {
    dot_of(dot, Products::Avx2)
}

/// How bytes are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Products {
    /// `vpdpbusd` of AVX-VNNI.
    AvxVnni,
    /// `vpmaddubsw`.
    Avx2,
}

impl Products {
    fn encode(self, a: &mut CodeAssembler) -> &mut CodeAssembler {
        match self {
            Products::AvxVnni => a.vex(),
            Products::Avx2 => unreachable!("AVX2 has no such instruction"),
        }
    }
}

fn dot_of(dot: Dot, products: Products) -> Code {
    if dot.xs > 1 || micro::is_long(dot.dtype, dot.k) {
        return dot_groups::dot(dot, products == Products::AvxVnni);
    }
    let a = &mut CodeAssembler::new(64)?;
    let quant_bytes = micro::int8_quant_bytes(dot.k);
    a.lea(X_SCALES, ptr(X + quant_bytes as i32))?;
    a.lea(X_SUMS, ptr(X + (quant_bytes + dot.k / BLOCK * 4) as i32))?;
    for &sum in &YMM[..DOT_ROWS] {
        a.vpxor(sum, sum, sum)?;
    }
    if dot.dtype == DType::Q4 {
        four_bits(a, dot, products)?;
    } else {
        eight_bits(a, dot, products)?;
    }
    a.assemble(0)
}

/// Stores the sums and returns.
fn finish(a: &mut CodeAssembler, dot: Dot) -> Done {
    store_sums(a, dot)?;
    a.vzeroupper()?;
    a.ret()
}

/// What scaling a block's products takes: the upper halves' mask, x's scale, and a register to spare.
#[derive(Clone, Copy)]
struct Scaling {
    mask: AsmRegisterYmm,
    x_scale: AsmRegisterYmm,
    spare: AsmRegisterYmm,
}

impl Scaling {
    /// Adds the products of row `r`'s block `b` blocks on, integers, to its sum.
    fn add(self, a: &mut CodeAssembler, dot: Dot, (r, b): (usize, usize), product: AsmRegisterYmm) -> Done {
        let Scaling { mask, x_scale, spare } = self;
        a.vcvtdq2ps(product, product)?;
        a.vpbroadcastd(spare, dword_ptr(dot.scale(r, b)))?;
        a.vpand(spare, spare, mask)?;
        a.vmulps(spare, spare, x_scale)?;
        a.vfmadd231ps(YMM[r], product, spare)
    }
}

/// Blocks of 4 bits whose scales are made at a time.
const GROUP: usize = 8;

fn four_bits(a: &mut CodeAssembler, dot: Dot, how: Products) -> Done {
    let scales = [ymm4, ymm5, ymm6, ymm7];
    let (nibble, ones) = (ymm10, ymm11);
    let (low, high, other) = (ymm13, ymm14, ymm15);
    // Of one row there is room for two sums, and for each pair's lanes.
    let alone = dot.rows == 1;
    let sum = |r: usize, pair: usize| if alone { YMM[pair % 2] } else { YMM[r] };
    let lanes = |pair: usize| if alone { [ymm6, ymm7, ymm8, ymm9][pair] } else { ymm12 };
    let mut shift_by = a.create_label();
    let mut pairs: [_; GROUP / 2] = std::array::from_fn(|_| a.create_label());
    fill(a, 10, 0x0f0f_0f0f)?;
    fill(a, 11, 0x0001_0001)?;
    if alone {
        for (pair, &table) in pairs.iter().enumerate() {
            a.vpmovzxbd(lanes(pair), qword_ptr(table))?;
        }
    }

    // The products of the bytes in `low` with x's first and second halves, in `other`. Clobbers `low` and `high`.
    let products = |a: &mut CodeAssembler, x: [AsmMemoryOperand; 2]| -> Done {
        a.vpsrlw(high, low, 4)?;
        a.vpand(low, low, nibble)?;
        a.vpand(high, high, nibble)?;
        if how != Products::Avx2 {
            a.vpxor(other, other, other)?;
            how.encode(a).vpdpbusd(other, low, x[0])?;
            how.encode(a).vpdpbusd(other, high, x[1])
        } else {
            a.vpmaddubsw(low, low, x[0])?;
            a.vpmaddubsw(high, high, x[1])?;
            // Four products of at most 15 * 127 each: no overflow.
            a.vpaddw(low, low, high)?;
            a.vpmaddwd(other, low, ones)
        }
    };
    let group = |a: &mut CodeAssembler| -> Done {
        let (x_scales, shift) = (low, high);
        a.vmovups(x_scales, ptr(X_SCALES))?;
        a.vcvtdq2ps(shift, ymmword_ptr(X_SUMS))?;
        a.vbroadcastss(other, dword_ptr(shift_by))?;
        a.vmulps(shift, shift, other)?;
        for (r, &scale) in scales.iter().enumerate().take(dot.rows) {
            a.vpmovzxwd(scale, xmmword_ptr(dot.scale(r, 0) + 2))?;
            a.vpslld(scale, scale, 16)?;
            a.vmulps(scale, scale, x_scales)?;
            a.vfmadd231ps(sum(r, 1), scale, shift)?;
        }
        for (pair, &table) in pairs.iter().enumerate() {
            let k = pair * 2 * BLOCK;
            let x = [ymmword_ptr(X + k as i32), ymmword_ptr(X + k as i32 + 32)];
            if !alone {
                a.vpmovzxbd(lanes(pair), qword_ptr(table))?;
            }
            for (r, &scale) in scales.iter().enumerate().take(dot.rows) {
                a.vmovdqu(low, ymmword_ptr(dot.weight(r, k)))?;
                products(a, x)?;
                a.vcvtdq2ps(other, other)?;
                a.vpermps(high, lanes(pair), scale)?;
                a.vfmadd231ps(sum(r, pair), other, high)?;
            }
        }
        Ok(())
    };
    // A block left over, in the lower halves.
    let single = |a: &mut CodeAssembler, b: usize| -> Done {
        let scaling = Scaling { mask: ymm6, x_scale: ymm4, spare: high };
        let shift = xmm5;
        a.vpcmpeqd(scaling.mask, scaling.mask, scaling.mask)?;
        a.vpslld(scaling.mask, scaling.mask, 16)?;
        a.vbroadcastss(scaling.x_scale, dword_ptr(X_SCALES + b as i32 * 4))?;
        a.vmovd(shift, dword_ptr(X_SUMS + b as i32 * 4))?;
        a.vpslld(shift, shift, 3)?;
        let first = (b / 2 * 2 * BLOCK + b % 2 * 16) as i32;
        // Where upper halves reach beyond it weights are 0.
        let x = [ymmword_ptr(X + first), ymmword_ptr(X + (first + 32))];
        for r in 0..dot.rows {
            a.vmovdqu(xmm13, xmmword_ptr(dot.weight(r, b * BLOCK)))?;
            products(a, x)?;
            a.vpsubd(other, other, ymm5)?;
            scaling.add(a, dot, (r, b), other)?;
        }
        Ok(())
    };
    dot.walk(a, GROUP * BLOCK, &mut |a, n| match n / BLOCK {
        GROUP => group(a),
        left => (0..left).try_for_each(|b| single(a, b)),
    })?;
    if alone {
        a.vaddps(ymm0, ymm0, ymm1)?;
    }
    finish(a, dot)?;
    // Minus what weights are shifted by, and each pair's lanes.
    a.set_label(&mut shift_by)?;
    a.dd_f32(&[-8.0])?;
    for (pair, table) in (0u8..).zip(&mut pairs) {
        a.set_label(table)?;
        a.db(&std::array::from_fn::<u8, 8, _>(|lane| 2 * pair + lane as u8 / 4))?;
    }
    Ok(())
}

fn eight_bits(a: &mut CodeAssembler, dot: Dot, how: Products) -> Done {
    let vnni = how != Products::Avx2;
    let scaling = Scaling { mask: ymm7, x_scale: ymm5, spare: ymm12 };
    let (x, start, byte, ones) = (ymm4, ymm6, ymm8, ymm9);
    let (w, product, zero) = (ymm10, ymm11, ymm13);
    a.vpxor(zero, zero, zero)?;
    a.vpcmpeqd(scaling.mask, scaling.mask, scaling.mask)?;
    a.vpslld(scaling.mask, scaling.mask, 16)?;
    fill(a, 8, 0x8080_8080)?;
    fill(a, 9, 0x0001_0001)?;
    let block = |a: &mut CodeAssembler, b: usize| -> Done {
        a.vmovdqu(x, ptr(X + (b * BLOCK) as i32))?;
        a.vbroadcastss(scaling.x_scale, dword_ptr(X_SCALES + b as i32 * 4))?;
        if vnni {
            a.vmovd(xmm14, dword_ptr(X_SUMS + b as i32 * 4))?;
            a.vpslld(xmm14, xmm14, 7)?;
            a.vpsubd(start, zero, ymm14)?;
        }
        for r in 0..dot.rows {
            let at = ymmword_ptr(dot.weight(r, b * BLOCK));
            if vnni {
                a.vpxor(w, byte, at)?;
                a.vmovdqa(product, start)?;
                how.encode(a).vpdpbusd(product, w, x)?;
            } else {
                // Weights keep their sign, where the instruction's i16 sums would overflow.
                a.vmovdqu(product, at)?;
                a.vpabsb(w, product)?;
                a.vpsignb(ymm14, x, product)?;
                a.vpmaddubsw(product, w, ymm14)?;
                a.vpmaddwd(product, product, ones)?;
            }
            scaling.add(a, dot, (r, b), product)?;
        }
        Ok(())
    };
    // A line of memory at a time.
    dot.walk(a, 2 * BLOCK, &mut |a, n| (0..n / BLOCK).try_for_each(|b| block(a, b)))?;
    finish(a, dot)
}
