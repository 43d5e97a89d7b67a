//! Dot products in integers with long weight rows, assembled: a row of x, or some, rounded to 8 bits in blocks.
//!
//! Eight blocks at a time. A block's products are summed exactly in i32, and the blocks' sums brought to a lane each;
//! these are scaled by both blocks' scales and added up in f32. So a result has eight sums that blocks go to in turn,
//! which are added up across at the end. Weights are read and unpacked once for all rows of x.
//!
//! `vpdpbusd` (or `vpmaddubsw`) multiplies unsigned by signed bytes, so weights are shifted to be unsigned, by 8 or by
//! 128, and that times the sum of the block's x is taken off again; without VNNI those of 8 bits keep their sign, which
//! x takes over.
//!
//! Weights of 4 bits go in pairs of blocks, one a half of a register: low nibbles of 32 bytes are both blocks' first
//! halves, high nibbles their second.

use iced_x86::code_asm::*;
use lapidary_ir::{BLOCK, DType};

use super::blocks::Constants;
use super::dot::{Done, X, X_SCALES, X_SUMS, XMM, YMM, store_sums};
use super::{Code, Dot};
use crate::micro;

/// Blocks whose products are added up at a time.
const GROUP: usize = 8;
/// Registers after those of sums: weights'; of half a group's sums, a row of x each; and to work in.
const WEIGHTS: usize = 4;
const HALVES: usize = 8;
const T: [AsmRegisterYmm; 4] = [ymm12, ymm13, ymm14, ymm15];
/// The second of these.
const LOWER: AsmRegisterXmm = xmm13;

/// With AVX2, or AVX-VNNI too.
pub(super) fn dot(dot: Dot, vnni: bool) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let quant_bytes = micro::int8_quant_bytes(dot.k);
    a.lea(X_SCALES, ptr(X + quant_bytes as i32))?;
    a.lea(X_SUMS, ptr(X + (quant_bytes + dot.k / BLOCK * 4) as i32))?;
    for &sum in &YMM[..dot.rows * dot.xs] {
        a.vxorps(sum, sum, sum)?;
    }
    let mut products = Products { dot, vnni, constants: Constants::default() };
    dot.walk(a, GROUP * BLOCK, &mut |a, n| {
        (0..dot.rows).try_for_each(|r| {
            if dot.dtype == DType::Q4 {
                products.four_bits(a, r, n / BLOCK)
            } else {
                products.eight_bits(a, r, n / BLOCK)
            }
        })
    })?;
    store_sums(a, dot)?;
    a.vzeroupper()?;
    a.ret()?;
    products.constants.emit(a)?;
    a.assemble(0)
}

/// What goes from group to group.
struct Products {
    dot: Dot,
    vnni: bool,
    constants: Constants,
}

impl Products {
    /// The label of a register of these bytes.
    fn all(&mut self, a: &mut CodeAssembler, byte: u8) -> AsmMemoryOperand {
        ymmword_ptr(self.constants.bytes(a, &[byte; 32]))
    }

    /// The label of ones of 16 bits.
    fn ones(&mut self, a: &mut CodeAssembler) -> AsmMemoryOperand {
        ymmword_ptr(self.constants.dwords(a, vec![0x0001_0001; 8]))
    }

    /// Quants of row `t` of x, `n` elements on.
    fn x(&self, t: usize, n: usize) -> AsmMemoryOperand {
        ymmword_ptr(X + (t as i32 * self.dot.x_stride + n as i32))
    }

    /// Some blocks, at most a group, of weight row `r`.
    fn four_bits(&mut self, a: &mut CodeAssembler, r: usize, blocks: usize) -> Done {
        let (nibble, ones) = (self.all(a, 15), self.ones(a));
        let pairs = blocks.div_ceil(2);
        for pair in 0..pairs {
            let at = self.dot.weight(r, 2 * pair * BLOCK);
            let [low, high] = [0, 1].map(|half| WEIGHTS + 2 * pair + half);
            match 2 * pair + 1 < blocks {
                true => a.vmovdqu(YMM[high], ymmword_ptr(at))?,
                // The other half is 0, whatever x is there.
                false => a.vmovdqu(XMM[high], xmmword_ptr(at))?,
            }
            let [low, high] = [low, high].map(|i| YMM[i]);
            a.vpand(low, high, nibble)?;
            a.vpsrlw(high, high, 4)?;
            a.vpand(high, high, nibble)?;
        }
        for t in 0..self.dot.xs {
            // The products of a pair in register `to`; another one is clobbered.
            let pair = |a: &mut CodeAssembler, pair: usize, to: AsmRegisterYmm, other: AsmRegisterYmm| {
                let [low, high] = [0, 1].map(|half| YMM[WEIGHTS + 2 * pair + half]);
                let [first, second] = [0, 1].map(|half| self.x(t, (2 * pair + half) * BLOCK));
                if pair >= pairs {
                    return a.vpxor(to, to, to);
                }
                if self.vnni {
                    a.vpxor(to, to, to)?;
                    a.vex().vpdpbusd(to, low, first)?;
                    return a.vex().vpdpbusd(to, high, second);
                }
                a.vpmaddubsw(to, low, first)?;
                a.vpmaddubsw(other, high, second)?;
                a.vpaddw(to, to, other)
            };
            if self.vnni {
                for (i, &to) in T.iter().enumerate() {
                    pair(a, i, to, to)?;
                }
                a.vphaddd(T[0], T[0], T[1])?;
                a.vphaddd(T[1], T[2], T[3])?;
            } else {
                // Sums of eight products of at most 15 * 127 each fit 16 bits.
                for (i, to) in [(0, 0), (2, 1)] {
                    pair(a, i, T[to], T[to + 1])?;
                    pair(a, i + 1, T[to + 1], T[to + 2])?;
                    a.vphaddw(T[to], T[to], T[to + 1])?;
                    a.vpmaddwd(T[to], T[to], ones)?;
                }
            }
            a.vphaddd(T[0], T[0], T[1])?;
            // Pairs' first blocks lie in the lower half.
            let order = self.constants.dwords(a, vec![0, 4, 1, 5, 2, 6, 3, 7]);
            a.vmovdqu(T[1], ymmword_ptr(order))?;
            a.vpermd(T[0], T[1], T[0])?;
            self.shift(a, t, blocks, 3)?;
            self.add(a, (t, r), blocks)?;
        }
        Ok(())
    }

    fn eight_bits(&mut self, a: &mut CodeAssembler, r: usize, blocks: usize) -> Done {
        let (dot, sign, ones) = (self.dot, self.all(a, 128), self.ones(a));
        for half in [0, T.len()] {
            let left = blocks.saturating_sub(half).min(T.len());
            let weight = |i: usize| ymmword_ptr(dot.weight(r, (half + i) * BLOCK));
            for i in 0..left {
                let w = YMM[WEIGHTS + i];
                match self.vnni {
                    true => {
                        a.vmovdqu(w, weight(i))?;
                        a.vpxor(w, w, sign)?;
                    }
                    false => a.vpabsb(w, weight(i))?,
                }
            }
            for t in 0..dot.xs {
                for (i, &to) in T.iter().enumerate() {
                    let (w, x) = (YMM[WEIGHTS + i], self.x(t, (half + i) * BLOCK));
                    if i >= left || self.vnni {
                        a.vpxor(to, to, to)?;
                    }
                    if i >= left {
                        continue;
                    }
                    if self.vnni {
                        a.vex().vpdpbusd(to, w, x)?;
                        continue;
                    }
                    a.vmovdqu(to, x)?;
                    a.vpsignb(to, to, weight(i))?;
                    // Two products of at most 127 * 127 each: no overflow.
                    a.vpmaddubsw(to, w, to)?;
                    a.vpmaddwd(to, to, ones)?;
                }
                a.vphaddd(T[0], T[0], T[1])?;
                a.vphaddd(T[2], T[2], T[3])?;
                a.vphaddd(T[0], T[0], T[2])?;
                let first = YMM[HALVES + t];
                if half == 0 {
                    a.vmovdqa(first, T[0])?;
                    continue;
                }
                a.vperm2i128(T[1], first, T[0], 0x20)?;
                a.vperm2i128(T[0], first, T[0], 0x31)?;
                a.vpaddd(T[0], T[0], T[1])?;
                if self.vnni {
                    self.shift(a, t, blocks, 7)?;
                }
                self.add(a, (t, r), blocks)?;
            }
        }
        Ok(())
    }

    /// A dword of each of so many blocks of row `t` of x; those missing in a group are 0. Clobbers the last register.
    fn of_blocks(
        &mut self,
        a: &mut CodeAssembler,
        (from, t): (AsmRegister64, usize),
        blocks: usize,
        to: AsmRegisterYmm,
    ) -> Done {
        let at = ymmword_ptr(from + t as i32 * self.dot.x_stride);
        if blocks == GROUP {
            return a.vmovdqu(to, at);
        }
        let there: Vec<u32> = (0..GROUP).map(|b| if b < blocks { u32::MAX } else { 0 }).collect();
        let there = self.constants.dwords(a, there);
        a.vmovdqu(T[3], ymmword_ptr(there))?;
        a.vpmaskmovd(to, T[3], at)
    }

    /// Takes what weights are shifted by, a power of two, off the blocks' sums in the first register.
    fn shift(&mut self, a: &mut CodeAssembler, t: usize, blocks: usize, log: i32) -> Done {
        self.of_blocks(a, (X_SUMS, t), blocks, T[1])?;
        a.vpslld(T[1], T[1], log)?;
        a.vpsubd(T[0], T[0], T[1])
    }

    /// Adds the blocks' sums in the first register to those of row `t` of x and weight row `r`, scaled.
    fn add(&mut self, a: &mut CodeAssembler, (t, r): (usize, usize), blocks: usize) -> Done {
        let missing = (GROUP - blocks) as i32 * 2;
        self.of_blocks(a, (X_SCALES, t), blocks, T[1])?;
        a.vcvtdq2ps(T[0], T[0])?;
        a.vmulps(T[0], T[0], T[1])?;
        // Where there are fewer, they are the row's last.
        let scales = xmmword_ptr(self.dot.scale(r, 0) + (2 - missing));
        if missing == 0 {
            a.vpmovzxwd(T[1], scales)?;
        } else {
            a.vmovdqu(LOWER, scales)?;
            a.vpsrldq(LOWER, LOWER, missing)?;
            a.vpmovzxwd(T[1], LOWER)?;
        }
        a.vpslld(T[1], T[1], 16)?;
        a.vfmadd231ps(YMM[t * self.dot.rows + r], T[0], T[1])
    }
}
