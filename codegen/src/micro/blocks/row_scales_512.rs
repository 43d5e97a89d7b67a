//! Scales and offsets of four weight rows apart, for `row_512.rs`: of each group those of the four, side by side in the
//! stack's frame, where a sum is multiplied by them as they lie.

use iced_x86::code_asm::{registers::gpr32, *};
use lapidary_ir::format::{Reading, Scale};
use lapidary_ir::{BLOCK, DType};

use super::bf16_512::both;
use super::row_512::{Apart, ELEMENTS, ROWS, SCALES, STACK, VECTOR, W, of_row};
use super::{Field, OR_MASKED, PLANES, eighth, fields_of, scales_of};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::rounded::ROW_BLOCKS;
use crate::micro::tile::ZMM;

/// Of 128 bits the dword of each row but the first.
const FROM_ROW: [AsmRegisterK; ROWS - 1] = [k3, k4, k5];
/// What four rows' floats are; how rows become lanes; bytes of four blocks; numbers as words, eight of each row.
const FLOATS: AsmRegisterZmm = zmm26;
const TURNED: AsmRegisterZmm = zmm27;
const WINDOWS: usize = 3;
const WORDS: [AsmRegisterZmm; 2] = [zmm1, zmm2];
/// Of `vpshufb`: no byte, 0.
const NOTHING: u8 = 0x80;

impl Apart<'_> {
    /// Where the scale (0) or offset (1) of an element of the step lies, of each row.
    pub(super) fn scale_at(&self, kind: usize, element: usize) -> AsmMemoryOperand {
        let format = self.format;
        let at = if format.block == BLOCK {
            kind * VECTOR as usize + element % ELEMENTS / BLOCK * 16
        } else {
            let group = element / format.group;
            let (list, i) = if both(format).is_some() { (0, 2 * group + kind) } else { (kind, group) };
            list * 4 * VECTOR as usize + i * 16
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
                    let at = of_row(plane, q);
                    a.vmovq(*register, qword_ptr(at + scale.byte as i32))?;
                }
                a.vpunpcklqdq(xmm0, xmm0, xmm1)?;
                a.vpunpcklqdq(xmm2, xmm2, xmm3)?;
                a.vinserti128(ymm0, ymm0, xmm2, 1)?;
                a.vpmovzxwd(t, ymm0)?;
                a.vpermd(t, TURNED, t)?;
                a.vpslld(t, t, 16)?;
            } else {
                a.vpxor(xmm0, xmm0, xmm0)?;
                a.vpxor(xmm1, xmm1, xmm1)?;
                for q in 0..ROWS {
                    let at = of_row(plane, q);
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

    /// What scales and offsets want in registers.
    pub(super) fn ready_scales(&mut self, a: &mut CodeAssembler) -> Done {
        for (mask, q) in FROM_ROW.into_iter().zip(1..) {
            a.mov(gpr32::eax, 1 << q)?;
            a.kmovd(mask, gpr32::eax)?;
        }
        let turned = self.unit.constants.dwords(a, (0..16).map(|i| i % 4 * 4 + i / 4).collect());
        a.vmovdqu32(TURNED, zmmword_ptr(turned))
    }

    /// The scales and offsets of a long block's groups: of each group those of four rows. A row has 128 bits of a
    /// register until its numbers are put together, as words.
    pub(super) fn long_scales(&mut self, a: &mut CodeAssembler) -> Done {
        let format = self.format;
        let lists: Vec<Vec<&Scale>> = match both(format) {
            Some(both) => vec![both.to_vec()],
            None => scales_of(format).map(|scale| vec![scale]).collect(),
        };
        for (kind, scales) in lists.iter().enumerate() {
            self.floats(a, scales, kind)?;
            let numbers = format.block / format.group * scales.len();
            let Some((fields, reading)) = fields_of(format, scales, 0..numbers) else {
                unreachable!("groups of long blocks have integers")
            };
            for (i, field) in fields.iter().enumerate() {
                if i == 0 || fields[i - 1].from != field.from {
                    self.windows(a, field.from as i32)?;
                }
                for (half, to) in WORDS.into_iter().enumerate().take(numbers / 8) {
                    let to_bit = fields[..i].iter().map(|field| field.width).sum();
                    self.words(a, field, half, reading, (to, to_bit))?;
                }
            }
            for (half, words) in WORDS.into_iter().enumerate().take(numbers / 8) {
                let at = SCALES + (4 * kind + 2 * half) as i32 * VECTOR;
                self.scaled(a, words, reading, at)?;
            }
        }
        Ok(())
    }

    /// The floats of four blocks that their groups' integers are multiplied by, side by side, in every 128 bits: of a
    /// scale and an offset that take turns, each in every other's. An eighth of what offsets are worth.
    fn floats(&mut self, a: &mut CodeAssembler, scales: &[&Scale], kind: usize) -> Done {
        let (numbers, places) = (zmm0, zmm1);
        // Two halves of a row, of which the first or the second is the scale's; or both are wanted.
        let byte = scales[0].byte;
        let (from, second) = if scales.len() == 1 && byte >= 2 { (byte - 2, 1) } else { (byte, 0) };
        a.vmovd(xmm0, dword_ptr(W + from as i32))?;
        for (masked, q) in [zmm0.k3(), zmm0.k4(), zmm0.k5()].into_iter().zip(1..) {
            let at = of_row(W, q);
            a.vpbroadcastd(masked, dword_ptr(at + from as i32))?;
        }
        a.vcvtph2ps(ymm0, xmm0)?;
        let turn = |lane: usize| second + lane / 4 % scales.len();
        let of = |lane: usize| (lane % 4 * 2 + turn(lane)) as u32;
        let of = self.unit.constants.dwords(a, (0..16).map(of).collect());
        a.vmovdqu32(places, zmmword_ptr(of))?;
        a.vpermps(FLOATS, places, numbers)?;
        match (scales.len(), kind) {
            (1, 0) => Ok(()),
            (1, _) => self.eighth(a, FLOATS),
            _ => {
                let worth = [1.0, eighth(self.format)];
                let worth = (0..16).map(|lane| worth[turn(lane)].to_bits()).collect();
                let worth = self.unit.constants.dwords(a, worth);
                a.vmulps(FLOATS, FLOATS, zmmword_ptr(worth))
            }
        }
    }

    /// 16 bytes of each of the four blocks.
    fn windows(&self, a: &mut CodeAssembler, from: i32) -> Done {
        let x = ZMM[WINDOWS];
        a.vmovdqu(XMM[WINDOWS], xmmword_ptr(W + from))?;
        for q in 1..ROWS {
            let at = of_row(W, q);
            a.vinserti32x4(x, x, xmmword_ptr(at + from), q as u32)?;
        }
        Ok(())
    }

    /// A field of eight numbers of each row, from bit `to_bit` of their words on.
    fn words(
        &mut self,
        a: &mut CodeAssembler,
        field: &Field,
        half: usize,
        reading: Reading,
        (to, to_bit): (AsmRegisterZmm, usize),
    ) -> Done {
        let constants = &mut self.unit.constants;
        let signed = matches!(reading, Reading::Signed);
        let x = if to_bit == 0 { to } else { zmm4 };
        // Of a dword the first word is of the first four numbers.
        let of = |word: usize| 8 * half + word / 2 + word % 2 * 4;
        let bytes: Vec<u8> = (0..8)
            .flat_map(|word| match field.bytes[of(word)] {
                byte if signed => [NOTHING, byte],
                byte => [byte, NOTHING],
            })
            .collect();
        let places = constants.bytes(a, &bytes.repeat(4));
        a.vpshufb(x, ZMM[WINDOWS], zmmword_ptr(places))?;
        if signed {
            return a.vpsraw(x, x, 8);
        }
        let down: Vec<i32> = (0..8).map(|word| field.shifts[of(word)] as i32 - to_bit as i32).collect();
        let each = |by: &dyn Fn(i32) -> i32| -> Vec<u8> {
            down.iter().flat_map(|&down| (by(down) as u16).to_le_bytes()).collect::<Vec<_>>().repeat(4)
        };
        if down.iter().any(|&down| down > 0) {
            let by = constants.bytes(a, &each(&|down| down.max(0)));
            a.vpsrlvw(x, x, zmmword_ptr(by))?;
        }
        if down.iter().any(|&down| down < 0) {
            let by = constants.bytes(a, &each(&|down| -down.min(0)));
            a.vpsllvw(x, x, zmmword_ptr(by))?;
        }
        let mask = constants.dwords(a, vec![(((1u32 << field.width) - 1) << to_bit) * 0x0001_0001]);
        if to_bit == 0 {
            return a.vpandd(to, to, dword_bcst(mask));
        }
        a.vpternlogd(to, x, dword_bcst(mask), OR_MASKED)
    }

    /// Stores what the numbers of words are worth, four numbers of four rows a register.
    fn scaled(&mut self, a: &mut CodeAssembler, words: AsmRegisterZmm, reading: Reading, at: i32) -> Done {
        let (low, high) = (zmm0, words);
        if let Reading::Less(zero @ 1..) = reading {
            let zero = self.unit.constants.dwords(a, vec![zero as u32 * 0x0001_0001; 16]);
            a.vpsubw(words, words, zmmword_ptr(zero))?;
        }
        a.vpermd(words, TURNED, words)?;
        if let Reading::Less(0) = reading {
            let mask = self.unit.constants.dwords(a, vec![0xffff]);
            a.vpandd(low, words, dword_bcst(mask))?;
            a.vpsrld(high, words, 16)?;
        } else {
            a.vpslld(low, words, 16)?;
            a.vpsrad(low, low, 16)?;
            a.vpsrad(high, words, 16)?;
        }
        for (x, at) in [(low, at), (high, at + VECTOR)] {
            a.vcvtdq2ps(x, x)?;
            a.vmulps(x, x, FLOATS)?;
            a.vmovups(zmmword_ptr(STACK + at), x)?;
        }
        Ok(())
    }
}
