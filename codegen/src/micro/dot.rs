//! AVX2 and AVX-512 dot products, assembled: one row of x, or some, against weight rows that each are a stream of
//! memory. Each weight is loaded and widened once for all of them; each row of x has sums of its own.
//!
//! Weights widen to f32 in registers; of quantised rows a block's sum is taken without its scale, which is the upper
//! half of a broadcast dword. The rows after these are fetched into the second cache meanwhile.

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};

use super::tile::ZMM;
use super::{Code, Dot};

pub(super) type Done = Result<(), IcedError>;

pub(super) const X: AsmRegister64 = gpr64::rdi;
const W: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
const COUNT: AsmRegister64 = gpr64::rcx;
const SCALES: AsmRegister64 = gpr64::r9;
/// Of x rounded to 8 bits: its blocks' scales, and the sums of their quants.
pub(super) const X_SCALES: AsmRegister64 = gpr64::r10;
pub(super) const X_SUMS: AsmRegister64 = gpr64::r11;

/// How many bytes ahead of what is summed the second cache is filled, in whole calls' rows.
const AHEAD: usize = 16 << 10;

pub(super) const YMM: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];
pub(super) const XMM: [AsmRegisterXmm; 16] =
    [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15];

impl Dot {
    fn row_bytes(self) -> i32 {
        self.dtype.row_bytes(self.k) as i32
    }

    /// Bytes that `n` elements' quants take.
    fn bytes(self, n: usize) -> i32 {
        if self.dtype == DType::Q8 {
            n as i32
        } else if self.dtype == DType::Q4 {
            n as i32 / 2
        } else {
            self.dtype.row_bytes(n) as i32
        }
    }

    /// The weights of row `r`, `n` elements on.
    pub(super) fn weight(self, r: usize, n: usize) -> CodeAsmResult {
        W + (r as i32 * self.row_bytes() + self.bytes(n))
    }

    /// A dword whose upper half is the scale of row `r`'s block `block` blocks on.
    pub(super) fn scale(self, r: usize, block: usize) -> CodeAsmResult {
        SCALES + (r as i32 * self.row_bytes() + 2 * block as i32 - 2)
    }

    /// Fetches these bytes from `W` on of the rows ahead.
    fn fetch(self, a: &mut CodeAssembler, bytes: Range<i32>) -> Done {
        let call = self.rows * self.row_bytes() as usize;
        let ahead = (call * AHEAD.div_ceil(call.max(1))) as i32;
        for r in 0..self.rows as i32 {
            for line in bytes.clone().step_by(64) {
                a.prefetcht1(byte_ptr(W + (ahead + r * self.row_bytes() + line)))?;
            }
        }
        Ok(())
    }

    /// Walks k in steps of `step` elements: the body is told how many of them it is to do, `step` in a loop and once
    /// what is left. Later rows are fetched in the same order, their scales last.
    pub(super) fn walk(
        self,
        a: &mut CodeAssembler,
        step: usize,
        body: &mut dyn FnMut(&mut CodeAssembler, usize) -> Done,
    ) -> Done {
        if self.dtype.is_quantised() {
            a.lea(SCALES, ptr(W + self.bytes(self.k)))?;
        }
        if self.k >= step {
            let mut again = a.create_label();
            a.mov(COUNT, (self.k / step) as i64)?;
            a.set_label(&mut again)?;
            self.fetch(a, 0..self.bytes(step))?;
            body(a, step)?;
            if self.operands == DType::Q8 {
                a.add(X, step as i32)?;
                a.add(X_SCALES, (step / BLOCK) as i32 * 4)?;
                a.add(X_SUMS, (step / BLOCK) as i32 * 4)?;
            } else {
                a.add(X, step as i32 * 4)?;
            }
            a.add(W, self.bytes(step))?;
            if self.dtype.is_quantised() {
                a.add(SCALES, (step / BLOCK) as i32 * 2)?;
            }
            a.dec(COUNT)?;
            a.jnz(again)?;
            // W is at the first row's scales, but for what is left of k.
            self.fetch(a, self.bytes(self.k % step)..self.row_bytes() - self.bytes(self.k))?;
        }
        if !self.k.is_multiple_of(step) { body(a, self.k % step) } else { Ok(()) }
    }
}

type CodeAsmResult = AsmMemoryOperand;

/// AVX-512: 16 lanes; at most 24 sums, two a row of x and weight row.
pub(super) fn dot_512(dot: Dot) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let Dot { rows, xs, .. } = dot;
    let sum = |t: usize, r: usize, half: usize| ZMM[8 + 2 * (t * rows + r) + half];
    let at = |t: usize, k: usize| ptr(X + (t as i32 * dot.x_stride + k as i32 * 4));
    for &sum in &ZMM[8..8 + 2 * rows * xs] {
        a.vpxord(sum, sum, sum)?;
    }
    let mut table = a.create_label();
    match dot.dtype {
        DType::Q8 | DType::Q4 => {
            let (low, high, product, scale) = (zmm0, zmm1, zmm2, zmm3);
            let (values, mask) = (zmm4, zmm5);
            a.mov(gpr32::eax, 0xffff_0000u32)?;
            a.vpbroadcastd(mask, gpr32::eax)?;
            if dot.dtype == DType::Q4 {
                a.vmovups(values, ptr(table))?;
            }
            // Four blocks of 4 bits, two of 8: a line of memory.
            let step = if dot.dtype == DType::Q4 { 4 * BLOCK } else { 2 * BLOCK };
            dot.walk(a, step, &mut |a, n| {
                for block in 0..n / BLOCK {
                    let k = block * BLOCK;
                    for r in 0..rows {
                        if dot.dtype == DType::Q4 {
                            a.vpmovzxbd(high, xmmword_ptr(dot.weight(r, k)))?;
                            a.vpermps(low, high, values)?;
                            a.vpsrld(high, high, 4)?;
                            a.vpermps(high, high, values)?;
                        } else {
                            a.vpmovsxbd(low, xmmword_ptr(dot.weight(r, k)))?;
                            a.vcvtdq2ps(low, low)?;
                            a.vpmovsxbd(high, xmmword_ptr(dot.weight(r, k + 16)))?;
                            a.vcvtdq2ps(high, high)?;
                        }
                        a.vpandd(scale, mask, dword_bcst(dot.scale(r, block)))?;
                        for t in 0..xs {
                            a.vmulps(product, low, at(t, k))?;
                            a.vfmadd231ps(product, high, at(t, k + 16))?;
                            a.vfmadd231ps(sum(t, r, block % 2), product, scale)?;
                        }
                    }
                }
                Ok(())
            })?;
        }
        plain @ (DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Bool | DType::Block(_)) => {
            let (ws, x) = ([zmm0, zmm1, zmm2, zmm3], zmm4);
            dot.walk(a, 32, &mut |a, n| {
                for (half, k) in (0..n).step_by(16).enumerate() {
                    let some = n - k < 16;
                    let part = |register: AsmRegisterZmm| if some { register.k1().z() } else { register };
                    if some {
                        a.mov(gpr32::eax, (1i32 << (n - k)) - 1)?;
                        a.kmovw(k1, gpr32::eax)?;
                    }
                    for (r, &w) in ws.iter().enumerate().take(rows) {
                        match plain {
                            DType::BF16 => {
                                a.vpmovzxwd(part(w), ymmword_ptr(dot.weight(r, k)))?;
                                a.vpslld(w, w, 16)?;
                            }
                            DType::F16 => a.vcvtph2ps(part(w), ymmword_ptr(dot.weight(r, k)))?,
                            DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {
                                a.vmovups(part(w), zmmword_ptr(dot.weight(r, k)))?;
                            }
                        }
                    }
                    for t in 0..xs {
                        if rows == 1 && !some {
                            a.vfmadd231ps(sum(t, 0, half), ws[0], at(t, k))?;
                            continue;
                        }
                        a.vmovups(part(x), at(t, k))?;
                        for (r, &w) in ws.iter().enumerate().take(rows) {
                            a.vfmadd231ps(sum(t, r, half), w, x)?;
                        }
                    }
                }
                Ok(())
            })?;
        }
    }
    for t in 0..xs {
        for r in 0..rows {
            a.vaddps(zmm0, sum(t, r, 0), sum(t, r, 1))?;
            a.vextractf64x4(ymm1, zmm0, 1)?;
            a.vaddps(ymm0, ymm0, ymm1)?;
            reduce(a, 0, 1)?;
            a.vmovss(dword_ptr(C + (t as i32 * dot.c_stride + r as i32 * 4)), xmm0)?;
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    if dot.dtype == DType::Q4 {
        a.set_label(&mut table)?;
        a.dd_f32(&std::array::from_fn::<f32, 16, _>(|i| i as f32 - 8.0))?;
    }
    a.assemble(0)
}

/// The sum of register `i`'s eight lanes, in its first. Clobbers register `spare`.
pub(super) fn reduce(a: &mut CodeAssembler, i: usize, spare: usize) -> Done {
    a.vextractf128(XMM[spare], YMM[i], 1)?;
    a.vaddps(XMM[i], XMM[i], XMM[spare])?;
    a.vhaddps(XMM[i], XMM[i], XMM[i])?;
    a.vhaddps(XMM[i], XMM[i], XMM[i])
}

/// Stores the sums of registers' lanes, one register a weight row of each row of x.
pub(super) fn store_sums(a: &mut CodeAssembler, dot: Dot) -> Done {
    for (i, &sum) in XMM.iter().enumerate().take(dot.xs * dot.rows) {
        let (t, r) = ((i / dot.rows) as i32, (i % dot.rows) as i32);
        reduce(a, i, 15)?;
        a.vmovss(dword_ptr(C + (t * dot.c_stride + r * 4)), sum)?;
    }
    Ok(())
}

/// Fills register `i` with a dword. Clobbers eax.
pub(super) fn fill(a: &mut CodeAssembler, i: usize, bits: u32) -> Done {
    a.mov(gpr32::eax, bits)?;
    a.vmovd(XMM[i], gpr32::eax)?;
    a.vpbroadcastd(YMM[i], XMM[i])
}

/// AVX2 with FMA and F16C: 8 lanes; at most 8 sums, two a row of x and weight row; of quantised rows one row of x.
pub(super) fn dot_256(dot: Dot) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let Dot { rows, xs, .. } = dot;
    match dot.dtype {
        DType::Q8 | DType::Q4 => quantised_256(a, dot)?,
        plain @ (DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Bool | DType::Block(_)) => {
            // Two sums a row of x and weight row.
            let sum = |t: usize, r: usize, half: usize| 2 * (t * rows + r) + half;
            for &sum in &YMM[..2 * rows * xs] {
                a.vxorps(sum, sum, sum)?;
            }
            let (x, ws) = (ymm15, [ymm11, ymm12, ymm13, ymm14].split_at(4 - rows).1.to_vec());
            let at = |t: usize, k: usize| X + (t as i32 * dot.x_stride + k as i32 * 4);
            let widen = |a: &mut CodeAssembler, w: AsmRegisterYmm, r: usize, k: usize| match plain {
                DType::BF16 => {
                    a.vpmovzxwd(w, xmmword_ptr(dot.weight(r, k)))?;
                    a.vpslld(w, w, 16)
                }
                DType::F16 => a.vcvtph2ps(w, xmmword_ptr(dot.weight(r, k))),
                DType::F32 | DType::I32 | DType::Bool | DType::Block(_) => {
                    a.vmovups(w, ymmword_ptr(dot.weight(r, k)))
                }
            };
            let mut tail = 0;
            dot.walk(a, 32, &mut |a, n| {
                for (i, k) in (0..n / 8 * 8).step_by(8).enumerate() {
                    for (r, &w) in ws.iter().enumerate() {
                        widen(a, w, r, k)?;
                    }
                    for t in 0..xs {
                        if rows == 1 {
                            a.vfmadd231ps(YMM[sum(t, 0, i % 2)], ws[0], ymmword_ptr(at(t, k)))?;
                            continue;
                        }
                        a.vmovups(x, ymmword_ptr(at(t, k)))?;
                        for (r, &w) in ws.iter().enumerate() {
                            a.vfmadd231ps(YMM[sum(t, r, i % 2)], w, x)?;
                        }
                    }
                }
                tail = n % 8;
                Ok(())
            })?;
            for first in (0..2 * rows * xs).step_by(2) {
                a.vaddps(YMM[first], YMM[first], YMM[first + 1])?;
                reduce(a, first, 15)?;
            }
            // At most seven more, one by one.
            let after = dot.k % 32 / 8 * 8;
            for k in after..after + tail {
                for r in 0..rows {
                    if plain == DType::F32 {
                        a.vmovss(xmm15, dword_ptr(dot.weight(r, k)))?;
                    } else {
                        a.movzx(gpr32::eax, word_ptr(dot.weight(r, k)))?;
                        if plain == DType::BF16 {
                            a.shl(gpr32::eax, 16)?;
                        }
                        a.vmovd(xmm15, gpr32::eax)?;
                        if plain == DType::F16 {
                            a.vcvtph2ps(xmm15, xmm15)?;
                        }
                    }
                    for t in 0..xs {
                        a.vfmadd231ss(XMM[sum(t, r, 0)], xmm15, dword_ptr(at(t, k)))?;
                    }
                }
            }
            for t in 0..xs {
                for r in 0..rows {
                    let c = C + (t as i32 * dot.c_stride + r as i32 * 4);
                    a.vmovss(dword_ptr(c), XMM[sum(t, r, 0)])?;
                }
            }
        }
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

fn quantised_256(a: &mut CodeAssembler, dot: Dot) -> Done {
    let rows = dot.rows;
    let sums = &YMM[..rows];
    let xs = [ymm4, ymm5, ymm6, ymm7];
    let (shift, minus_eight, nibble, mask) = (ymm8, ymm9, ymm10, ymm11);
    let (product, w, q, scale) = (ymm12, ymm13, ymm14, ymm15);
    for &sum in sums {
        a.vxorps(sum, sum, sum)?;
    }
    a.vpcmpeqd(mask, mask, mask)?;
    a.vpsrld(nibble, mask, 28)?;
    a.vpslld(mask, mask, 16)?;
    fill(a, 9, (-8f32).to_bits())?;
    let step = if dot.dtype == DType::Q4 { 4 * BLOCK } else { 2 * BLOCK };
    dot.walk(a, step, &mut |a, n| {
        for block in 0..n / BLOCK {
            let k = block * BLOCK;
            for (i, &x) in xs.iter().enumerate() {
                a.vmovups(x, ptr(X + (k + 8 * i) as i32 * 4))?;
            }
            if dot.dtype == DType::Q4 {
                // Nibbles are q + 8: each block's sum starts at -8 times the sum of its x.
                a.vaddps(shift, xs[0], xs[1])?;
                a.vaddps(q, xs[2], xs[3])?;
                a.vaddps(shift, shift, q)?;
                a.vmulps(shift, shift, minus_eight)?;
            }
            for (r, &sum) in sums.iter().enumerate() {
                if dot.dtype == DType::Q4 {
                    a.vmovaps(product, shift)?;
                    for half in 0..2 {
                        a.vpmovzxbd(w, qword_ptr(dot.weight(r, k) + half as i32 * 8))?;
                        a.vpand(q, w, nibble)?;
                        a.vcvtdq2ps(q, q)?;
                        a.vfmadd231ps(product, q, xs[half])?;
                        a.vpsrld(w, w, 4)?;
                        a.vcvtdq2ps(w, w)?;
                        a.vfmadd231ps(product, w, xs[half + 2])?;
                    }
                } else {
                    for (i, &x) in xs.iter().enumerate() {
                        a.vpmovsxbd(w, qword_ptr(dot.weight(r, k + 8 * i)))?;
                        a.vcvtdq2ps(w, w)?;
                        if i == 0 {
                            a.vmulps(product, w, x)?;
                        } else {
                            a.vfmadd231ps(product, w, x)?;
                        }
                    }
                }
                a.vpbroadcastd(scale, dword_ptr(dot.scale(r, block)))?;
                a.vpand(scale, scale, mask)?;
                a.vfmadd231ps(sum, product, scale)?;
            }
        }
        Ok(())
    })?;
    store_sums(a, dot)
}
