//! Widening of blocks to bf16 with AVX-512 BF16, 64 elements at a time: half a block or less of a long format's, two
//! short blocks, or the last short one alone.
//!
//! Quants of four bits in groups of 32 or more are looked up: what the 16 numbers stand for in two groups, scaled and
//! rounded, fills a register, of which a word's lowest five bits choose one. Others are put together byte by byte,
//! widened to f32, scaled and rounded. The scales of a long block's groups are made once a block and lie below the
//! stack pointer, where the instructions that use them read each for all lanes.

use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::format::{Bits, Offset, Place, Reading, Scale, Times};
use lapidary_ir::{BLOCK, DType, Format};

use super::widen_512::scales_512;
use super::{COUNT, Constants, PLANES, TO, fetch, offset, scales_of, values};
use crate::micro::dot::{Done, YMM};
use crate::micro::tile::ZMM;
use crate::micro::{Code, Widen};

/// Elements at a time, and those that share a lane's worth of bytes: a group has no fewer.
pub(super) const UNIT: usize = 64;
pub(super) const LANE: usize = 16;
/// Where a long block's scales lie, and its offsets.
const STACK: AsmRegister64 = gpr64::rsp;
const KEPT: [i32; 2] = [-64, -128];
/// Scales of short blocks, and their offsets.
const SCALES: [usize; 2] = [8, 10];
/// The quants as bytes, and what is added to them.
pub(super) const QUANTS: usize = 6;
pub(super) const FIELD: usize = 7;
/// What is looked up with: what numbers of four bits stand for, four ones a word, which words are the second group's.
const NUMBERS: AsmRegisterZmm = zmm12;
const NIBBLE: AsmRegisterZmm = zmm13;
const SECOND: AsmRegisterZmm = zmm14;
/// Of `vpternlogd`: the first where the second has ones, or the third.
const CHOSEN_OR: u32 = 0xea;

/// The code.
pub(super) fn bf16_512(widen: Widen, format: &Format) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let mut unit = Unit::new(format);
    unit.ready(a)?;
    let fetched = |a: &mut CodeAssembler| {
        if widen.fetches { fetch(a, unit_bytes(format)) } else { Ok(()) }
    };
    let (mut again, mut last, mut done) = (a.create_label(), a.create_label(), a.create_label());
    let blocks = unit.elements() / format.block;
    if blocks == 1 {
        a.set_label(&mut again)?;
        fetched(a)?;
        unit.widen(a)?;
        unit.step(a, 1)?;
        a.dec(COUNT)?;
        a.jnz(again)?;
    } else {
        a.sub(COUNT, blocks as i32)?;
        a.jl(last)?;
        a.set_label(&mut again)?;
        fetched(a)?;
        unit.widen(a)?;
        unit.step(a, blocks)?;
        a.sub(COUNT, blocks as i32)?;
        a.jge(again)?;
        a.set_label(&mut last)?;
        a.add(COUNT, blocks as i32)?;
        a.jz(done)?;
        unit.lanes = format.block / LANE;
        unit.widen(a)?;
        a.set_label(&mut done)?;
    }
    a.vzeroupper()?;
    a.ret()?;
    unit.end(a)?;
    a.assemble(0)
}

/// Bytes of the first plane that a unit's elements take.
fn unit_bytes(format: &Format) -> usize {
    format.planes[0] * (UNIT / format.block).max(1)
}

/// Elements that are widened together: a long block, or short ones of [`UNIT`] elements.
pub(in crate::micro) struct Unit<'a> {
    pub(super) format: &'a Format,
    pub(super) constants: Constants,
    /// How many times 16 there are at a time.
    pub(super) lanes: usize,
    /// Of two units the order that they are taken in, 16 elements at a time.
    pub(super) order: [usize; 2 * UNIT / LANE],
}

/// A scale or an offset, as an operand or in a register.
enum Factor {
    Kept(AsmMemoryOperand),
    Held(AsmRegisterZmm),
}

impl<'a> Unit<'a> {
    pub(in crate::micro) fn new(format: &'a Format) -> Unit<'a> {
        Unit {
            format,
            constants: Constants::default(),
            lanes: UNIT / LANE,
            order: std::array::from_fn(|i| i),
        }
    }

    /// How many they are.
    pub(in crate::micro) fn elements(&self) -> usize {
        self.format.block.max(UNIT)
    }

    /// Widens those that [`PLANES`] point at, to [`TO`].
    fn widen(&mut self, a: &mut CodeAssembler) -> Done {
        (0..self.pieces()).try_for_each(|i| self.piece(a, i))
    }

    /// Pieces that they come in.
    pub(in crate::micro) fn pieces(&self) -> usize {
        self.elements() / UNIT
    }

    /// Widens a piece of them, after those before it.
    pub(in crate::micro) fn piece(&mut self, a: &mut CodeAssembler, i: usize) -> Done {
        if self.format.block < UNIT {
            for (kind, scale) in scales_of(self.format).enumerate() {
                self.short_scales(a, scale, SCALES[kind])?;
            }
        } else if i == 0 {
            self.keep_scales(a)?;
        }
        let first = i * UNIT;
        if self.table().is_some() { self.look_up(a, first) } else { self.put_together(a, first) }
    }

    fn step(&self, a: &mut CodeAssembler, blocks: usize) -> Done {
        for (plane, bytes) in PLANES.into_iter().zip(self.format.planes) {
            a.add(plane, (blocks * bytes) as i32)?;
        }
        a.add(TO, (blocks * self.format.block * 2) as i32)
    }

    /// Puts down what the code reads, behind it.
    pub(in crate::micro) fn end(&mut self, a: &mut CodeAssembler) -> Done {
        self.constants.emit(a)
    }

    /// Makes the scales of a long block's groups.
    fn keep_scales(&mut self, a: &mut CodeAssembler) -> Done {
        let format = self.format;
        let each: Vec<Vec<&Scale>> = match both(format) {
            Some(both) => vec![both.to_vec()],
            None => scales_of(format).map(|scale| vec![scale]).collect(),
        };
        for (scales, at) in each.iter().zip(KEPT) {
            scales_512(a, &mut self.constants, format, scales, SCALES[0])?;
            a.vmovups(zmmword_ptr(STACK + at), ZMM[SCALES[0]])?;
        }
        Ok(())
    }

    /// The scale (0) or offset (1) of the elements from `first`.
    fn factor(&self, kind: usize, first: usize) -> Factor {
        if self.format.block < UNIT {
            return Factor::Held(ZMM[SCALES[kind] + first / self.format.block]);
        }
        let group = (first / self.format.group) as i32;
        let at = match both(self.format) {
            Some(_) => KEPT[0] + 8 * group + 4 * kind as i32,
            None => KEPT[kind] + 4 * group,
        };
        Factor::Kept(dword_bcst(STACK + at))
    }

    /// Numbers that stand for elements from `first`, scaled, and their offset.
    fn scaled(
        &self,
        a: &mut CodeAssembler,
        x: AsmRegisterZmm,
        numbers: AsmRegisterZmm,
        first: usize,
    ) -> Done {
        match self.factor(0, first) {
            Factor::Held(scale) => a.vmulps(x, numbers, scale)?,
            Factor::Kept(scale) => a.vmulps(x, numbers, scale)?,
        }
        match (&self.format.offset, self.factor(1, first)) {
            (Offset::None, _) => Ok(()),
            (Offset::Minus(_), Factor::Held(offset)) => a.vsubps(x, x, offset),
            (Offset::Minus(_), Factor::Kept(offset)) => a.vsubps(x, x, offset),
            (Offset::Plus(_), Factor::Held(offset)) => a.vaddps(x, x, offset),
            (Offset::Plus(_), Factor::Kept(offset)) => a.vaddps(x, x, offset),
        }
    }

    /// The floats of short blocks, in every lane of a register each.
    fn short_scales(&mut self, a: &mut CodeAssembler, scale: &Scale, to: usize) -> Done {
        let blocks = self.lanes * LANE / self.format.block;
        let bytes = self.format.planes[scale.plane];
        let at = |block: usize| PLANES[scale.plane] + (scale.byte + block * bytes) as i32;
        if scale.dtype == DType::BF16 && bytes == 2 && blocks == 2 {
            let upper = self.constants.dwords(a, vec![0xffff_0000]);
            a.vpbroadcastd(ZMM[to + 1], dword_ptr(at(0)))?;
            a.vpslld(ZMM[to], ZMM[to + 1], 16)?;
            return a.vpandd(ZMM[to + 1], ZMM[to + 1], dword_bcst(upper));
        }
        for block in 0..blocks {
            let to = to + block;
            a.vpbroadcastw(ZMM[to], word_ptr(at(block)))?;
            if scale.dtype == DType::BF16 {
                a.vpslld(ZMM[to], ZMM[to], 16)?;
            } else {
                a.vcvtph2ps(ZMM[to], YMM[to])?;
            }
        }
        Ok(())
    }

    /// Where 16 elements have a field, `lane` times 16 from element `first`: bytes that follow one another.
    pub(super) fn place(&self, bits: &Bits, first: usize, lane: usize) -> Place {
        let within = first % (2 * UNIT);
        let element = first - within + self.order[within / LANE + lane] * LANE;
        let (block, within) = (element / self.format.block, element % self.format.block);
        let place = bits.place(within);
        Place { byte: place.byte + block * self.format.planes[0], ..place }
    }

    /// Quants of four bits, by a table of what they stand for in two groups.
    fn look_up(&mut self, a: &mut CodeAssembler, first: usize) -> Done {
        let bits = &self.format.quants.bits[0];
        let places: Vec<Place> = (0..self.lanes).map(|lane| self.place(bits, first, lane)).collect();
        let at = |lane: usize| PLANES[0] + places[lane].byte as i32;
        let to = TO + first as i32 * 2;
        let (table, low, high) = (zmm0, zmm1, zmm2);
        self.scaled(a, zmm0, NUMBERS, first)?;
        if self.lanes < UNIT / LANE {
            // 16 numbers: of a word the lowest four bits choose.
            a.vcvtne2ps2bf16(zmm0, zmm0, zmm0)?;
            for (lane, place) in places.iter().enumerate() {
                a.vpmovzxbw(ymm1, xmmword_ptr(at(lane)))?;
                a.vpsrlw(ymm1, ymm1, place.shift as i32)?;
                a.vpermw(ymm1, ymm1, ymm0)?;
                a.vmovups(ymmword_ptr(to + lane as i32 * 32), ymm1)?;
            }
            return Ok(());
        }
        self.scaled(a, zmm1, NUMBERS, first + BLOCK)?;
        a.vcvtne2ps2bf16(table, zmm1, zmm0)?;
        if self.is_split() && places[2].byte != places[0].byte + LANE {
            a.vmovdqu(xmm1, xmmword_ptr(at(0)))?;
            a.vinserti128(ymm1, ymm1, xmmword_ptr(at(2)), 1)?;
            a.vpmovzxbw(low, ymm1)?;
        } else {
            a.vpmovzxbw(low, ymmword_ptr(at(0)))?;
        }
        a.vpsrlw(high, low, 4)?;
        if self.is_split() {
            a.vpternlogd(low, NIBBLE, SECOND, CHOSEN_OR)?;
        } else {
            a.vpandd(low, low, NIBBLE)?;
        }
        a.vpord(high, high, SECOND)?;
        a.vpermw(low, low, table)?;
        a.vpermw(high, high, table)?;
        if !self.is_split() {
            a.vmovups(zmmword_ptr(to), low)?;
            return a.vmovups(zmmword_ptr(to + 64), high);
        }
        for (half, x, y) in [(0, low, ymm1), (32, high, ymm2)] {
            a.vmovups(ymmword_ptr(to + half), y)?;
            a.vextracti64x4(ymmword_ptr(to + 64 + half), x, 1)?;
        }
        Ok(())
    }

    /// Whether 16 bytes hold a group's quants of four bits, and not 32 those of two groups.
    fn is_split(&self) -> bool {
        self.place(&self.format.quants.bits[0], 0, 1).shift > 0
    }

    /// What looking up wants in registers, before anything is widened.
    pub(in crate::micro) fn ready(&mut self, a: &mut CodeAssembler) -> Done {
        let Some(numbers) = self.table() else { return Ok(()) };
        let numbers = self.constants.dwords(a, numbers.map(|v| f32::from(v).to_bits()).to_vec());
        a.vmovups(NUMBERS, zmmword_ptr(numbers))?;
        let nibble = self.constants.dwords(a, vec![0x000f_000f]);
        a.vpbroadcastd(NIBBLE, dword_ptr(nibble))?;
        // Of which of the table's groups each word is.
        let second: Vec<u32> =
            (0..16).map(|i| if self.is_split() && i < 8 { 0 } else { 0x0010_0010 }).collect();
        let second = self.constants.dwords(a, second);
        a.vmovups(SECOND, zmmword_ptr(second))
    }

    /// What the numbers of four bits stand for, if they are looked up.
    fn table(&self) -> Option<[i8; 16]> {
        values(&self.format.quants).filter(|_| self.format.group >= BLOCK)
    }

    /// Quants of any kind, as bytes.
    fn put_together(&mut self, a: &mut CodeAssembler, first: usize) -> Done {
        let to = TO + first as i32 * 2;
        let lies = matches!(self.format.quants.reading, Reading::Signed);
        // Bytes wait where the last elements go.
        let waiting = to + (LANE * self.lanes) as i32;
        if !lies {
            self.quants(a, first)?;
            if self.lanes == UNIT / LANE {
                a.vmovdqu32(zmmword_ptr(waiting), ZMM[QUANTS])?;
            } else {
                a.vmovdqu(ymmword_ptr(waiting), YMM[QUANTS])?;
            }
        }
        for lane in 0..self.lanes {
            let x = ZMM[lane % 2];
            let byte = self.place(&self.format.quants.bits[0], first, lane).byte;
            let from = if lies { PLANES[0] + byte as i32 } else { waiting + (LANE * lane) as i32 };
            a.vpmovsxbd(x, xmmword_ptr(from))?;
            a.vcvtdq2ps(x, x)?;
            self.scaled(a, x, x, first + LANE * lane)?;
            if lane % 2 == 1 {
                a.vcvtne2ps2bf16(zmm0, zmm1, zmm0)?;
                a.vmovups(zmmword_ptr(to + (lane / 2 * 64) as i32), zmm0)?;
            }
        }
        Ok(())
    }
}

/// A scale and an offset of up to eight groups each that can be made together, in turn.
pub(super) fn both(format: &Format) -> Option<[&Scale; 2]> {
    let both = [&format.scale, offset(format)?];
    let beside = both[1].byte == both[0].byte + 2 && format.block == 8 * format.group;
    let six = both.iter().all(|s| s.dtype == DType::F16 && matches!(s.times, Times::SixBits { .. }));
    (beside && six).then_some(both)
}
