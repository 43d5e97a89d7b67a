//! Quants and scales of 16 weight rows brought into registers, transposed: what `lanes_512.rs` multiplies.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lapidary_ir::format::{Bits, Place, Reading};
use lapidary_ir::{BLOCK, DType};

use super::lanes_512::{
    FIELD, FLOATS, INTEGERS, LANES, Lifted, QUANTS, Rows, SCALE, SPARE, STACK, T, TURNED, VECTOR, WINDOW,
    Window,
};
use super::{OR_MASKED, eighth, halves, offset, scales_of};
use crate::micro::dot::{Done, XMM, YMM};
use crate::micro::lanes;
use crate::micro::tile::ZMM;

impl Rows<'_> {
    /// A dword in every lane.
    fn each(&mut self, a: &mut CodeAssembler, dword: u32) -> AsmMemoryOperand {
        dword_bcst(self.constants.dwords(a, vec![dword]))
    }

    /// A window, transposed: dword i of row r in lane r of the i-th register. Clobbers [`SPARE`].
    pub(super) fn turn(&self, a: &mut CodeAssembler, byte: usize, into: [usize; 4]) -> Done {
        let row_bytes = self.format.row_bytes(self.lanes.k) as i32;
        lanes::load(a, into, (row_bytes, byte as i32), (&mut std::iter::empty(), 0))?;
        lanes::turn(a, into, SPARE)
    }

    /// A window, from the frame if it is there; else it is put there if it is wanted again.
    fn window(&mut self, a: &mut CodeAssembler, byte: usize, into: [usize; 4]) -> Result<Window, IcedError> {
        if let Some(&(at, true)) = self.kept.get(&byte) {
            return Ok(Window::Kept(at));
        }
        self.turn(a, byte, into)?;
        if let Some((at, is_there)) = self.kept.get_mut(&byte) {
            for (i, register) in (0..).zip(into) {
                a.vmovdqa32(zmmword_ptr(STACK + (*at + i * VECTOR)), ZMM[register])?;
            }
            *is_there = true;
        }
        Ok(Window::Held(into))
    }

    /// The block's scale and offset of each row. Clobbers windows' registers.
    pub(super) fn floats(&mut self, a: &mut CodeAssembler) -> Done {
        for (kind, scale) in scales_of(self.format).enumerate() {
            let (to, half) = (FLOATS[kind], TURNED[0][0]);
            let within = self.integers.filter(|from| (*from..from + WINDOW).contains(&scale.byte));
            match within.filter(|_| scale.plane == 0) {
                Some(from) => {
                    let byte = scale.byte - from;
                    let mut word = ZMM[INTEGERS[byte / 4]];
                    if byte % 4 > 0 {
                        a.vpsrld(ZMM[half], word, (byte % 4 * 8) as i32)?;
                        word = ZMM[half];
                    }
                    a.vpmovdw(YMM[half], word)?;
                }
                None => {
                    let parts = [half, TURNED[0][1]];
                    for (part, register) in parts.into_iter().enumerate() {
                        a.vpxor(XMM[register], XMM[register], XMM[register])?;
                        for r in 0..LANES / 2 {
                            let word = word_ptr(self.at(scale.plane, part * LANES / 2 + r, scale.byte));
                            a.vpinsrw(XMM[register], XMM[register], word, r as u32)?;
                        }
                    }
                    a.vinserti128(YMM[half], YMM[half], XMM[parts[1]], 1)?;
                }
            }
            if scale.dtype == DType::BF16 {
                a.vpmovzxwd(ZMM[to], YMM[half])?;
                a.vpslld(ZMM[to], ZMM[to], 16)?;
            } else {
                a.vcvtph2ps(ZMM[to], YMM[half])?;
            }
            if kind > 0 {
                let eighth = self.each(a, eighth(self.format).to_bits());
                a.vmulps(ZMM[to], ZMM[to], eighth)?;
            }
        }
        Ok(())
    }

    /// A group's scale, or what x's sum is worth, times -8: in which register, of two groups in 32 elements one each.
    /// Clobbers [`FIELD`].
    pub(super) fn scale(
        &mut self,
        a: &mut CodeAssembler,
        kind: usize,
        group: usize,
    ) -> Result<usize, IcedError> {
        let scale = [Some(&self.format.scale), offset(self.format)][kind];
        let (Some((places, reading)), Some(from)) =
            (scale.and_then(|scale| scale.times.places(group)), self.integers)
        else {
            return Ok(FLOATS[kind]);
        };
        let to = SCALE[kind][group % (BLOCK / self.format.group.min(BLOCK))];
        let x = ZMM[to];
        let mut width = 0;
        for (f, place) in places.iter().enumerate() {
            let byte = place.byte - from;
            let source = ZMM[INTEGERS[byte / 4]];
            let bit = (byte % 4 * 8 + place.shift) as i32;
            if let Reading::Signed = reading {
                let down = if bit < 24 {
                    a.vpslld(x, source, 24 - bit)?;
                    x
                } else {
                    source
                };
                a.vpsrad(x, down, 24)?;
                continue;
            }
            let mask = self.each(a, ((1 << place.width) - 1) << width);
            let through = if f == 0 { x } else { FIELD };
            let moved = shifted(a, through, source, bit - width)?;
            if f == 0 {
                a.vpandd(x, moved, mask)?;
            } else {
                a.vpternlogd(x, moved, mask, OR_MASKED)?;
            }
            width += place.width as i32;
        }
        if let Reading::Less(zero @ 1..) = reading {
            let zero = self.each(a, zero as u32);
            a.vpsubd(x, x, zero)?;
        }
        a.vcvtdq2ps(x, x)?;
        a.vmulps(x, x, ZMM[FLOATS[kind]])?;
        Ok(to)
    }

    /// How far up the quants of the 32 elements from `first` take the least to unpack.
    fn lift(&self, first: usize) -> Lifted {
        let bits = self.format.quants.bits;
        let width: usize = bits.iter().map(|bits| bits.width).sum();
        let Reading::Less(_) = self.format.quants.reading else { return Lifted(0) };
        let moved = |lift: usize| {
            let mut to = lift;
            let mut moved = 0;
            for bits in bits {
                let places = halves(bits, first);
                moved += places.iter().filter(|place| bits.run > 1 && place.shift != to).count();
                to += bits.width;
            }
            // Four registers each; against one instruction for every row and group.
            4 * moved + if lift > 0 { self.lanes.rows * (BLOCK / self.format.group).max(1) } else { 0 }
        };
        Lifted((0..=8 - width).min_by_key(|lift| moved(*lift)).unwrap_or(0))
    }

    /// Quants of the 32 elements from `first`, unsigned, four a register.
    pub(super) fn unpack(&mut self, a: &mut CodeAssembler, first: usize) -> Result<Lifted, IcedError> {
        let lifted = self.lift(first);
        let mut to = lifted.0;
        for (f, bits) in self.format.quants.bits.iter().enumerate() {
            if bits.run == 1 {
                self.single_bits(a, bits.place(first).byte, to)?;
            } else {
                self.fields(a, bits, (first, to), f == 0)?;
            }
            to += bits.width;
        }
        match self.format.quants.reading {
            Reading::Less(_) => {}
            Reading::Signed => {
                let sign = self.each(a, 0x8080_8080);
                QUANTS.into_iter().try_for_each(|quant| a.vpxord(ZMM[quant], ZMM[quant], sign))?;
            }
            Reading::Table(table) => {
                let bytes: Vec<u8> = table.iter().map(|&v| (i32::from(v) + 128) as u8).collect();
                let table = self.constants.bytes(a, &bytes.repeat(4));
                a.vmovdqu32(T, zmmword_ptr(table))?;
                QUANTS.into_iter().try_for_each(|quant| a.vpshufb(ZMM[quant], T, ZMM[quant]))?;
            }
        }
        Ok(lifted)
    }

    /// A field of the 32 elements from `first`, from bit `to` of each byte; others' bits stay, but of the first.
    fn fields(
        &mut self,
        a: &mut CodeAssembler,
        bits: &Bits,
        (first, to): (usize, usize),
        is_first: bool,
    ) -> Done {
        let places: [Place; 2] = halves(bits, first);
        let low = self.window(a, places[0].byte, TURNED[0])?;
        let same = places[0].byte == places[1].byte;
        let high = if same { low } else { self.window(a, places[1].byte, TURNED[1])? };
        let mask = (((1u32 << bits.width) - 1) << to) * 0x0101_0101;
        let mask = self.each(a, mask);
        for (half, (window, place)) in [low, high].into_iter().zip(places).enumerate() {
            let down = place.shift as i32 - to as i32;
            for i in 0..4 {
                let quant = ZMM[QUANTS[4 * half + i]];
                let through = if is_first { quant } else { FIELD };
                let moved = match window {
                    Window::Held(registers) => shifted(a, through, ZMM[registers[i]], down)?,
                    Window::Kept(at) => {
                        a.vmovdqa32(through, zmmword_ptr(STACK + (at + i as i32 * VECTOR)))?;
                        shifted(a, through, through, down)?
                    }
                };
                match (is_first, bits.width) {
                    (true, 8) if moved == quant => {}
                    (true, 8) => a.vmovdqa32(quant, moved)?,
                    (true, _) => a.vpandd(quant, moved, mask)?,
                    (false, _) => a.vpternlogd(quant, moved, mask, OR_MASKED)?,
                }
            }
        }
        Ok(())
    }

    /// A bit of each element, from four bytes that follow one another: as bit `to` of its quant.
    fn single_bits(&mut self, a: &mut CodeAssembler, byte: usize, to: usize) -> Done {
        let [p, q, ..] = TURNED[0];
        for quarter in 0..4 {
            let into = if quarter == 0 { p } else { q };
            a.vmovd(XMM[into], dword_ptr(self.at(0, 4 * quarter, byte)))?;
            for r in 1..4 {
                let row = dword_ptr(self.at(0, 4 * quarter + r, byte));
                a.vpinsrd(XMM[into], XMM[into], row, r as u32)?;
            }
            if quarter > 0 {
                a.vinserti32x4(ZMM[p], ZMM[p], XMM[q], quarter as u32)?;
            }
        }
        let bit = self.constants.dwords(a, vec![(1 << to) * 0x0101_0101; LANES]);
        a.vmovdqu32(FIELD, zmmword_ptr(bit))?;
        for (step, quant) in QUANTS.into_iter().enumerate() {
            // Each lane's byte of these four elements, four times; each of them looks at its own bit.
            let places: Vec<u8> = (0..VECTOR as usize).map(|i| (i % 16 / 4 * 4 + step / 2) as u8).collect();
            let places = self.constants.bytes(a, &places);
            let each: Vec<u8> = (0..VECTOR as usize).map(|i| 1 << (step % 2 * 4 + i % 4)).collect();
            let each = self.constants.bytes(a, &each);
            a.vpshufb(ZMM[q], ZMM[p], zmmword_ptr(places))?;
            a.vptestmb(k1, ZMM[q], zmmword_ptr(each))?;
            a.vpaddb(ZMM[quant].k1(), ZMM[quant], FIELD)?;
        }
        Ok(())
    }
}

/// Bits moved down in dwords: through `to`, or as they are. What comes from a byte's neighbour is masked after.
fn shifted(
    a: &mut CodeAssembler,
    to: AsmRegisterZmm,
    from: AsmRegisterZmm,
    down: i32,
) -> Result<AsmRegisterZmm, IcedError> {
    match down {
        0 => return Ok(from),
        1.. => a.vpsrld(to, from, down)?,
        _ => a.vpslld(to, from, -down)?,
    }
    Ok(to)
}
