//! Dot products in integers, assembled: a row of x rounded to 8 bits in blocks, against quantised weight rows.
//!
//! A block's products are summed exactly in i32; the sum is then scaled by both blocks' scales and added up in f32.
//! `vpdpbusd` (or `vpmaddubsw`) multiplies unsigned by signed bytes, so weights are shifted to be unsigned, by 8 or by
//! 128, and that times the sum of the block's x is taken off again.
//!
//! Of 4 bits a core has more to unpack than to read, so [`four_bits`] takes two blocks at a time, one a half of a register:
//! low nibbles of 32 bytes are both blocks' first halves, high nibbles their second. Scales are made for eight blocks.

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

/// Blocks of 4 bits whose scales are made at a time.
const GROUP: usize = 8;

struct Emit<'a> {
    a: &'a mut CodeAssembler,
    dot: Dot,
    vnni: bool,
}

fn dot_of(dot: Dot, vnni: bool) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let emit = &mut Emit { a, dot, vnni };
    emit.a.lea(SCALES, ptr(W + emit.quant_bytes()))?;
    emit.a.lea(X_SCALES, ptr(X + dot.k as i32))?;
    emit.a.lea(X_SUMS, ptr(X + (dot.k + dot.k / BLOCK * 4) as i32))?;
    for &sum in &SUMS[..dot.rows] {
        emit.a.vpxor(sum, sum, sum)?;
    }
    match dot.dtype {
        DType::Q4 => emit.four_bits()?,
        _ => emit.eight_bits()?,
    }
    emit.a.assemble(0)
}

/// A sum of each weight row.
const SUMS: [AsmRegisterYmm; 4] = [ymm0, ymm1, ymm2, ymm3];

type Done = Result<(), IcedError>;

impl Emit<'_> {
    fn row_bytes(&self) -> i32 {
        self.dot.dtype.row_bytes(self.dot.k) as i32
    }

    fn quant_bytes(&self) -> i32 {
        self.row_bytes() - (self.dot.k / BLOCK * 2) as i32
    }

    /// Walks `count` times over `blocks` blocks, fetching the rows after these meanwhile.
    fn walk(&mut self, count: usize, blocks: usize, body: impl Fn(&mut Self) -> Done) -> Done {
        if count == 0 {
            return Ok(());
        }
        let bytes = blocks as i32 * self.quant_bytes() / (self.dot.k / BLOCK) as i32;
        let mut again = self.a.create_label();
        self.a.mov(COUNT, count as i64)?;
        self.a.set_label(&mut again)?;
        for r in 0..self.dot.rows as i32 {
            let next = (r + AHEAD * self.dot.rows as i32) * self.row_bytes();
            for line in (0..bytes).step_by(64) {
                self.a.prefetcht1(byte_ptr(W + (next + line)))?;
            }
            self.a.prefetcht1(byte_ptr(SCALES + next))?;
        }
        body(self)?;
        self.a.add(X, (blocks * BLOCK) as i32)?;
        self.a.add(X_SCALES, blocks as i32 * 4)?;
        self.a.add(X_SUMS, blocks as i32 * 4)?;
        self.a.add(W, bytes)?;
        self.a.add(SCALES, blocks as i32 * 2)?;
        self.a.dec(COUNT)?;
        self.a.jnz(again)
    }

    /// Stores the sums and returns.
    fn finish(&mut self) -> Done {
        for (r, &sum) in [xmm0, xmm1, xmm2, xmm3].iter().enumerate().take(self.dot.rows) {
            reduce(self.a, r)?;
            self.a.vmovss(dword_ptr(C + r as i32 * 4), sum)?;
        }
        self.a.vzeroupper()?;
        self.a.ret()
    }

    fn four_bits(&mut self) -> Done {
        let (rows, row_bytes, vnni) = (self.dot.rows, self.row_bytes(), self.vnni);
        let blocks = self.dot.k / BLOCK;
        let scales = [ymm4, ymm5, ymm6, ymm7];
        let (x_low, x_high, nibble, ones, lanes) = (ymm8, ymm9, ymm10, ymm11, ymm12);
        let (low, high, other) = (ymm13, ymm14, ymm15);
        let mut shift_by = self.a.create_label();
        let mut pairs: [_; GROUP / 2] = std::array::from_fn(|_| self.a.create_label());
        self.a.vpcmpeqd(ones, ones, ones)?;
        self.a.vpsrlw(ones, ones, 15)?;
        self.a.vpsllw(nibble, ones, 4)?;
        self.a.vpsubw(nibble, nibble, ones)?;
        self.a.vpackuswb(nibble, nibble, nibble)?;

        // Adds the products of the weights in `low`, times the scales in `high`'s place: see below.
        let products = |a: &mut CodeAssembler| -> Done {
            a.vpsrlw(high, low, 4)?;
            a.vpand(low, low, nibble)?;
            a.vpand(high, high, nibble)?;
            if vnni {
                a.vpxor(other, other, other)?;
                a.evex().vpdpbusd(other, low, x_low)?;
                a.evex().vpdpbusd(other, high, x_high)
            } else {
                a.vpmaddubsw(low, low, x_low)?;
                a.vpmaddubsw(high, high, x_high)?;
                // Four products of at most 15 * 127 each: no overflow.
                a.vpaddw(low, low, high)?;
                a.vpmaddwd(other, low, ones)
            }
        };

        self.walk(blocks / GROUP, GROUP, |emit| {
            let a = &mut *emit.a;
            let (x_scales, shift) = (low, high);
            a.vmovups(x_scales, ptr(X_SCALES))?;
            a.vcvtdq2ps(shift, ymmword_ptr(X_SUMS))?;
            a.vbroadcastss(other, dword_ptr(shift_by))?;
            a.vmulps(shift, shift, other)?;
            for (r, (&scale, &sum)) in scales.iter().zip(&SUMS).enumerate().take(rows) {
                a.vpmovzxwd(scale, xmmword_ptr(SCALES + r as i32 * row_bytes))?;
                a.vpslld(scale, scale, 16)?;
                a.vmulps(scale, scale, x_scales)?;
                a.vfmadd231ps(sum, scale, shift)?;
            }
            for (pair, &table) in (0..).zip(&pairs) {
                let x = pair * 2 * BLOCK as i32;
                a.vpmovzxbd(lanes, qword_ptr(table))?;
                a.vmovdqu(xmm8, xmmword_ptr(X + x))?;
                a.vinserti128(x_low, x_low, xmmword_ptr(X + (x + 32)), 1)?;
                a.vmovdqu(xmm9, xmmword_ptr(X + (x + 16)))?;
                a.vinserti128(x_high, x_high, xmmword_ptr(X + (x + 48)), 1)?;
                for (r, (&scale, &sum)) in scales.iter().zip(&SUMS).enumerate().take(rows) {
                    a.vmovdqu(low, ymmword_ptr(W + (r as i32 * row_bytes + pair * BLOCK as i32)))?;
                    products(a)?;
                    a.vcvtdq2ps(other, other)?;
                    a.vpermps(high, lanes, scale)?;
                    a.vfmadd231ps(sum, other, high)?;
                }
            }
            Ok(())
        })?;
        // The blocks left over, in the lower halves.
        let a = &mut *self.a;
        for b in 0..(blocks % GROUP) as i32 {
            let (x_scale, shift, mask) = (ymm4, xmm5, ymm6);
            a.vpcmpeqd(mask, mask, mask)?;
            a.vpslld(mask, mask, 16)?;
            a.vbroadcastss(x_scale, dword_ptr(X_SCALES + b * 4))?;
            a.vmovd(shift, dword_ptr(X_SUMS + b * 4))?;
            a.vpslld(shift, shift, 3)?;
            a.vmovdqu(xmm8, xmmword_ptr(X + b * BLOCK as i32))?;
            a.vmovdqu(xmm9, xmmword_ptr(X + (b * BLOCK as i32 + 16)))?;
            for (r, &sum) in SUMS.iter().enumerate().take(rows) {
                a.vmovdqu(xmm13, xmmword_ptr(W + (r as i32 * row_bytes + b * BLOCK as i32 / 2)))?;
                products(a)?;
                a.vpsubd(other, other, ymm5)?;
                a.vcvtdq2ps(other, other)?;
                a.vpbroadcastd(high, dword_ptr(SCALES + (r as i32 * row_bytes + 2 * b - 2)))?;
                a.vpand(high, high, mask)?;
                a.vmulps(high, high, x_scale)?;
                a.vfmadd231ps(sum, other, high)?;
            }
        }
        self.finish()?;
        // Minus what weights are shifted by, and each pair's lanes.
        self.a.set_label(&mut shift_by)?;
        self.a.dd_f32(&[-8.0])?;
        for (pair, table) in (0u8..).zip(&mut pairs) {
            self.a.set_label(table)?;
            self.a.db(&std::array::from_fn::<u8, 8, _>(|lane| 2 * pair + lane as u8 / 4))?;
        }
        Ok(())
    }

    fn eight_bits(&mut self) -> Done {
        let Dot { k, rows, .. } = self.dot;
        let (row_bytes, vnni) = (self.row_bytes(), self.vnni);
        let (x, x_scale, start, mask, byte, ones) = (ymm4, ymm5, ymm6, ymm7, ymm8, ymm9);
        let (w, product, scale, zero) = (ymm10, ymm11, ymm12, ymm13);
        let a = &mut *self.a;
        a.vpxor(zero, zero, zero)?;
        a.vpcmpeqd(mask, mask, mask)?;
        a.vpslld(mask, mask, 16)?;
        a.mov(gpr32::eax, 0x8080_8080u32)?;
        a.vmovd(xmm8, gpr32::eax)?;
        a.vpbroadcastd(byte, xmm8)?;
        a.mov(gpr32::eax, 0x0001_0001u32)?;
        a.vmovd(xmm9, gpr32::eax)?;
        a.vpbroadcastd(ones, xmm9)?;
        let block = |a: &mut CodeAssembler, b: i32| -> Done {
            a.vmovdqu(x, ptr(X + b * BLOCK as i32))?;
            a.vbroadcastss(x_scale, dword_ptr(X_SCALES + b * 4))?;
            if vnni {
                a.vmovd(xmm14, dword_ptr(X_SUMS + b * 4))?;
                a.vpslld(xmm14, xmm14, 7)?;
                a.vpsubd(start, zero, ymm14)?;
            }
            for (r, &sum) in SUMS.iter().enumerate().take(rows) {
                let at = W + (r as i32 * row_bytes + b * BLOCK as i32);
                if vnni {
                    a.vpxor(w, byte, ymmword_ptr(at))?;
                    a.vmovdqa(product, start)?;
                    a.evex().vpdpbusd(product, w, x)?;
                } else {
                    // Weights keep their sign, where the instruction's i16 sums would overflow.
                    a.vmovdqu(product, ymmword_ptr(at))?;
                    a.vpabsb(w, product)?;
                    a.vpsignb(ymm14, x, product)?;
                    a.vpmaddubsw(product, w, ymm14)?;
                    a.vpmaddwd(product, product, ones)?;
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
        let (step, blocks) = (2, k / BLOCK);
        self.walk(blocks / step, step, |emit| (0..step as i32).try_for_each(|b| block(emit.a, b)))?;
        (0..(blocks % step) as i32).try_for_each(|b| block(self.a, b))?;
        self.finish()
    }
}
