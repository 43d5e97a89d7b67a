//! Quants and scales of 8 weight rows brought into registers, transposed: what `lanes_256.rs` multiplies.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lapidary_ir::DType;
use lapidary_ir::format::{Offset, Reading, Scale};

use super::lanes_256::{LANES, QUANTS, Quants, Rows, STACK, STEPS, T, VECTOR, WORK};
use super::{halves, offset};
use crate::micro::dot::{Done, XMM, YMM};

impl Rows<'_> {
    /// A float of each row, in register `to`.
    fn floats(&self, a: &mut CodeAssembler, scale: &Scale, to: usize) -> Done {
        a.vpxor(XMM[to], XMM[to], XMM[to])?;
        for r in 0..LANES {
            a.vpinsrw(XMM[to], XMM[to], word_ptr(self.at(scale.plane, r, scale.byte)), r as u32)?;
        }
        if scale.dtype == DType::BF16 {
            a.vpmovzxwd(YMM[to], XMM[to])?;
            a.vpslld(YMM[to], YMM[to], 16)
        } else {
            a.vcvtph2ps(YMM[to], XMM[to])
        }
    }

    /// All groups' scales, and what x's sums are worth, times -8, to the frame.
    pub(super) fn scales(&mut self, a: &mut CodeAssembler) -> Done {
        let (float, x, field) = (9, ymm11, ymm12);
        let groups = self.format.block / self.format.group;
        let eighth = match self.format.offset {
            Offset::Plus(_) => -0.125f32,
            Offset::None | Offset::Minus(_) => 0.125,
        };
        let eighth = self.constants.dwords(a, vec![eighth.to_bits(); LANES]);
        let integers = |scale: &Scale| (0..groups).filter_map(|j| scale.times.places(j)).collect::<Vec<_>>();
        let kinds: Vec<&Scale> = [&self.format.scale].into_iter().chain(offset(self.format)).collect();
        let all: Vec<_> = kinds.iter().map(|scale| integers(scale)).collect();
        let lowest = all.iter().flatten().flat_map(|(places, _)| places).map(|p| p.byte).min();
        // Integers lie within 16 bytes.
        let from = lowest.map(|byte| byte.min(self.format.planes[0] - 16));
        let window = [0, 1, 2, 3];
        if let Some(byte) = from {
            self.window(a, byte, window, 4)?;
        }
        for (kind, (scale, integers)) in kinds.into_iter().zip(all).enumerate() {
            self.floats(a, scale, float)?;
            let offset = kind > 0;
            if integers.is_empty() {
                if offset {
                    a.vmulps(YMM[float], YMM[float], ymmword_ptr(eighth))?;
                }
                a.vmovups(ymmword_ptr(STACK + self.frame.scales[kind]), YMM[float])?;
            }
            for (j, (places, reading)) in (0..).zip(integers) {
                let mut width = 0;
                for (f, place) in places.iter().enumerate() {
                    let byte = place.byte - from.unwrap_or(0);
                    let source = YMM[window[byte / 4]];
                    let bit = (byte % 4 * 8 + place.shift) as i32;
                    if let Reading::Signed = reading {
                        a.vpslld(x, source, 24 - bit)?;
                        a.vpsrad(x, x, 24)?;
                        continue;
                    }
                    let to = if f == 0 { x } else { field };
                    a.vpsrld(to, source, bit)?;
                    let mask = self.constants.dwords(a, vec![(1 << place.width) - 1; LANES]);
                    a.vpand(to, to, ymmword_ptr(mask))?;
                    if f > 0 {
                        a.vpslld(to, to, width)?;
                        a.vpor(x, x, to)?;
                    }
                    width += place.width as i32;
                }
                if let Reading::Less(zero @ 1..) = reading {
                    let zero = self.constants.dwords(a, vec![zero as u32; LANES]);
                    a.vpsubd(x, x, ymmword_ptr(zero))?;
                }
                a.vcvtdq2ps(x, x)?;
                a.vmulps(x, x, YMM[float])?;
                if offset {
                    a.vmulps(x, x, ymmword_ptr(eighth))?;
                }
                a.vmovups(ymmword_ptr(STACK + self.frame.scales[kind] + j * VECTOR), x)?;
            }
        }
        Ok(())
    }

    /// Quants of the 32 elements from `first`, as [`Quants`] says, four a register.
    pub(super) fn unpack(
        &mut self,
        a: &mut CodeAssembler,
        first: usize,
    ) -> Result<[usize; STEPS], IcedError> {
        let [p, q, r, s, spare, t, u, v, w] = QUANTS;
        let (lowest, others) = (self.format.quants.bits[0], &self.format.quants.bits[1..]);
        let places = halves(&lowest, first);
        let (low, high) = ([p, q, r, s], [t, u, v, w]);
        self.window(a, places[0].byte, low, spare)?;
        let second = if places[0].byte == places[1].byte {
            low
        } else {
            self.window(a, places[1].byte, high, spare)?;
            high
        };
        self.fields(a, second, high, places[1].shift as i32, lowest.width, 0)?;
        self.fields(a, low, low, places[0].shift as i32, lowest.width, 0)?;
        let mut width = lowest.width;
        for bits in others {
            if bits.run == 1 {
                self.single_bits(a, bits.place(first).byte, width, [low, high])?;
            } else {
                for (quants, place) in [low, high].into_iter().zip(halves(bits, first)) {
                    let [fields @ .., spare] = WORK;
                    self.window(a, place.byte, fields, spare)?;
                    let down = place.shift as i32 - width as i32;
                    self.fields(a, fields, fields, down, bits.width, width)?;
                    for (quants, field) in quants.into_iter().zip(fields) {
                        a.vpor(YMM[quants], YMM[quants], YMM[field])?;
                    }
                }
            }
            width += bits.width;
        }
        let all: [usize; STEPS] = std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] });
        self.read(a, all)?;
        Ok(all)
    }

    /// Fields of `width` bits in every byte, brought down by so many bits, to bit `to_bit`.
    fn fields(
        &mut self,
        a: &mut CodeAssembler,
        from: [usize; 4],
        to: [usize; 4],
        down: i32,
        width: usize,
        to_bit: usize,
    ) -> Done {
        if width == 8 {
            return Ok(());
        }
        let mask = ((1u32 << width) - 1) << to_bit;
        let mask = self.constants.dwords(a, vec![mask * 0x0101_0101; LANES]);
        for (from, to) in from.into_iter().zip(to).map(|(from, to)| (YMM[from], YMM[to])) {
            match down {
                0 => a.vpand(to, from, ymmword_ptr(mask))?,
                down => {
                    if down > 0 {
                        a.vpsrlw(to, from, down)?;
                    } else {
                        a.vpsllw(to, from, -down)?;
                    }
                    a.vpand(to, to, ymmword_ptr(mask))?;
                }
            }
        }
        Ok(())
    }

    /// A bit of each element, from four bytes that follow one another: to bit `to_bit` of its quant.
    fn single_bits(
        &mut self,
        a: &mut CodeAssembler,
        byte: usize,
        to_bit: usize,
        quants: [[usize; 4]; 2],
    ) -> Done {
        let [p, q, r, s, _] = WORK;
        for (row, register) in [p, q, r, s].into_iter().enumerate() {
            a.vmovd(XMM[register], dword_ptr(self.at(0, row, byte)))?;
            let upper = xmmword_ptr(self.at(0, row + 4, byte));
            a.vinserti128(YMM[register], YMM[register], upper, 1)?;
        }
        let [p, q, r, s] = [p, q, r, s].map(|i| YMM[i]);
        a.vpunpckldq(p, p, q)?;
        a.vpunpckldq(r, r, s)?;
        a.vpunpcklqdq(p, p, r)?;
        let bit = self.constants.dwords(a, vec![(1 << to_bit) * 0x0101_0101; LANES]);
        for (step, quant) in quants.into_iter().flatten().enumerate() {
            // Each lane's byte of these four elements, four times; each of them looks at its own bit.
            let places: Vec<u8> = (0..VECTOR as usize).map(|i| (i % 16 / 4 * 4 + step / 2) as u8).collect();
            let places = self.constants.bytes(a, &places);
            let each: Vec<u8> = (0..VECTOR as usize).map(|i| 1 << (step % 2 * 4 + i % 4)).collect();
            let each = self.constants.bytes(a, &each);
            a.vpshufb(q, p, ymmword_ptr(places))?;
            a.vpand(q, q, ymmword_ptr(each))?;
            a.vpcmpeqb(q, q, ymmword_ptr(each))?;
            a.vpand(q, q, ymmword_ptr(bit))?;
            a.vpor(YMM[quant], YMM[quant], q)?;
        }
        Ok(())
    }

    /// The label of a table of quants, twice, as they are multiplied.
    pub(super) fn table(&mut self, a: &mut CodeAssembler, table: &[i8; 16]) -> CodeLabel {
        let zero = if matches!(self.quants, Quants::Signed) { 0 } else { 128 };
        let bytes: Vec<u8> = table.iter().map(|&v| (i32::from(v) + zero) as u8).collect();
        self.constants.bytes(a, &bytes.repeat(2))
    }

    /// Brings bits to the numbers that are multiplied.
    fn read(&mut self, a: &mut CodeAssembler, quants: [usize; STEPS]) -> Done {
        let signed = matches!(self.quants, Quants::Signed);
        match self.format.quants.reading {
            Reading::Less(_) => {}
            Reading::Signed => {
                let sign = self.constants.dwords(a, vec![0x8080_8080; LANES]);
                for quant in quants.into_iter().filter(|_| !signed) {
                    a.vpxor(YMM[quant], YMM[quant], ymmword_ptr(sign))?;
                }
            }
            Reading::Table(table) => {
                let table = self.table(a, table);
                a.vmovdqu(T, ymmword_ptr(table))?;
                for quant in quants {
                    a.vpshufb(YMM[quant], T, YMM[quant])?;
                }
            }
        }
        for (step, quant) in (0..).zip(quants).filter(|_| signed) {
            a.vmovdqu(ymmword_ptr(STACK + self.frame.signed + step * VECTOR), YMM[quant])?;
            a.vpabsb(YMM[quant], YMM[quant])?;
        }
        Ok(())
    }
}
