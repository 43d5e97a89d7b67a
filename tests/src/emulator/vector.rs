//! Vector registers: operands, masks, and what only moves elements, as far as microkernels use it: AVX2, AVX-512 F, BW,
//! DQ and VL. `arithmetic` has what computes.
//!
//! After Intel's Software Developer's Manual, volume 2. A register is 16 dwords; what lies beyond an instruction's
//! width is zeroed. Elements that a mask leaves out are not read, not written, and kept or zeroed in the register.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::elements::*;
use super::scalar::mask;
use super::{Cpu, Fault};

/// Bytes of an instruction's elements, by which masks count.
fn element_bytes(i: &Instruction) -> usize {
    match i.mnemonic() {
        Mnemonic::Vmovdqu8 | Mnemonic::Vpaddb | Mnemonic::Vpbroadcastb => 1,
        Mnemonic::Vmovdqu16 | Mnemonic::Vcvtne2ps2bf16 | Mnemonic::Vpermw | Mnemonic::Vpbroadcastw => 2,
        Mnemonic::Vpsllw | Mnemonic::Vpsrlw | Mnemonic::Vpsraw => 2,
        Mnemonic::Vextractf64x4 | Mnemonic::Vextracti64x4 | Mnemonic::Vpxorq | Mnemonic::Vpandq => 8,
        _ => 4,
    }
}

/// Whether what it reads goes to many places, so that masks do not count what is read.
fn repeats(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Vpbroadcastb | M::Vpbroadcastw | M::Vpbroadcastd | M::Vbroadcastss | M::Vbroadcasti64x4
    )
}

impl Cpu {
    /// A vector operand, from a register or memory: what memory gives, then zeros; or one element for all lanes.
    pub(super) fn vector(&self, i: &Instruction, operand: u32) -> Result<Vector, Fault> {
        match i.op_kind(operand) {
            OpKind::Register if i.op_register(operand).is_vector_register() => {
                Ok(self.vectors[number(i.op_register(operand))])
            }
            OpKind::Memory => {
                let (at, size) = (self.address(i), i.memory_size());
                let mut value = [0; BYTES];
                if i.is_broadcast() {
                    if size.element_size() != 4 {
                        return Err(Fault::Unknown(*i));
                    }
                    self.read(i, at, &mut value[..4])?;
                    return Ok([from_bytes(value)[0]; LANES]);
                }
                let into = value.get_mut(..size.size()).ok_or(Fault::Unknown(*i))?;
                match i.op_mask() {
                    Register::None => self.read(i, at, into)?,
                    _ if repeats(i) => self.read(i, at, into)?,
                    k => {
                        let mask = self.masks[mask(k)];
                        for (e, element) in into.chunks_mut(size.element_size()).enumerate() {
                            if mask >> e & 1 == 1 {
                                self.read(i, at + (e * size.element_size()) as u64, element)?;
                            }
                        }
                    }
                }
                Ok(from_bytes(value))
            }
            _ => Err(Fault::Unknown(*i)),
        }
    }

    /// Sets the first operand, a vector register or memory.
    fn set(&mut self, i: &Instruction, value: Vector) -> Result<(), Fault> {
        let size = element_bytes(i);
        let mask = match i.op_mask() {
            Register::None => u64::MAX,
            k => self.masks[mask(k)],
        };
        let value = bytes(value);
        match i.op_kind(0) {
            OpKind::Memory => {
                let (at, all) = (self.address(i), i.memory_size().size());
                if mask == u64::MAX {
                    return self.write(i, at, value.get(..all).ok_or(Fault::Unknown(*i))?);
                }
                for e in (0..all / size).filter(|e| mask >> e & 1 == 1) {
                    self.write(i, at + (e * size) as u64, &value[e * size..(e + 1) * size])?;
                }
            }
            _ if !i.op_register(0).is_vector_register() => return Err(Fault::Unknown(*i)),
            _ => {
                let register = i.op_register(0);
                let before = bytes(self.vectors[number(register)]);
                self.vectors[number(register)] = from_bytes(std::array::from_fn(|at| {
                    if at >= width(register) || (mask >> (at / size) & 1 == 0 && i.zeroing_masking()) {
                        0
                    } else if mask >> (at / size) & 1 == 1 {
                        value[at]
                    } else {
                        before[at]
                    }
                }));
            }
        }
        Ok(())
    }

    /// One vector instruction.
    pub(super) fn vector_step(&mut self, i: &Instruction) -> Result<(), Fault> {
        // General registers as a result.
        if i.mnemonic() == Mnemonic::Vmovd && i.op_register(0).is_gpr32() {
            let word = self.vector(i, 1)?[0];
            self.general[super::scalar::number(i.op_register(0))] = u64::from(word);
            return Ok(());
        }
        // Masks: greater, and no number on either side.
        if i.mnemonic() == Mnemonic::Vcmpps && i.op_register(0).is_k() {
            if i.immediate8() != 30 || i.op_mask() != Register::None {
                return Err(Fault::Unknown(*i));
            }
            let (a, b) = (self.vector(i, 1)?, self.vector(i, 2)?);
            let greater = |lane: usize| f32::from_bits(a[lane]) > f32::from_bits(b[lane]);
            let lanes = (0..width(i.op_register(1)) / 4).filter(|&lane| greater(lane));
            self.masks[mask(i.op_register(0))] = lanes.fold(0, |all, lane| all | 1 << lane);
            return Ok(());
        }
        if i.mnemonic() == Mnemonic::Vptestmb && i.op_mask() == Register::None {
            let (a, b) = (self.vector(i, 1)?, self.vector(i, 2)?);
            let common = (0..width(i.op_register(1))).filter(|&at| byte(&a, at) & byte(&b, at) != 0);
            self.masks[mask(i.op_register(0))] = common.fold(0, |all, at| all | 1 << at);
            return Ok(());
        }
        let value = self.result(i)?;
        self.set(i, value)
    }

    /// What a vector instruction sets its first operand to.
    fn result(&self, i: &Instruction) -> Result<Vector, Fault> {
        use Mnemonic as M;
        let vector = |operand| self.vector(i, operand);
        let count = u32::from(i.immediate8());
        Ok(match i.mnemonic() {
            M::Vmovups
            | M::Vmovaps
            | M::Vmovdqu
            | M::Vmovdqa
            | M::Vmovdqu8
            | M::Vmovdqu16
            | M::Vmovdqu32
            | M::Vmovdqa32 => vector(1)?,
            M::Vmovss if i.op_count() == 2 => vector(1)?,
            M::Vmovd => match i.op_kind(1) {
                OpKind::Register if i.op_register(1).is_vector_register() => vector(1)?,
                _ => {
                    let word = self.scalar_source(i, 1)? as u32;
                    lanes(|lane| if lane == 0 { word } else { 0 })
                }
            },
            M::Vpbroadcastd | M::Vbroadcastss => match i.op_kind(1) {
                OpKind::Register if i.op_register(1).is_gpr32() => [self.scalar_source(i, 1)? as u32; LANES],
                _ => [vector(1)?[0]; LANES],
            },
            M::Vpbroadcastw => half_lanes({
                let from = vector(1)?;
                move |_| half(&from, 0)
            }),
            M::Vpbroadcastb => byte_lanes({
                let from = vector(1)?;
                move |_| byte(&from, 0)
            }),
            M::Vmovq => {
                let from = vector(1)?;
                lanes(|lane| if lane < 2 { from[lane] } else { 0 })
            }
            // Within each 128 bits.
            M::Vpshufb => {
                let (from, places) = (vector(1)?, vector(2)?);
                byte_lanes(|at| match byte(&places, at) {
                    place if place < 128 => byte(&from, at / 16 * 16 + usize::from(place % 16)),
                    _ => 0,
                })
            }
            M::Vbroadcasti64x4 => {
                let from = vector(1)?;
                lanes(|lane| from[lane % 8])
            }
            M::Vinserti64x4 => {
                let (into, from, first) = (vector(1)?, vector(2)?, 8 * (count as usize & 1));
                lanes(|lane| if lane / 8 * 8 == first { from[lane % 8] } else { into[lane] })
            }
            M::Vpinsrw => {
                let (into, word) = (vector(1)?, self.scalar_source(i, 2)? as u16);
                half_lanes(|at| if at == (count & 7) as usize { word } else { half(&into, at) })
            }
            M::Vpinsrd => {
                let (into, word) = (vector(1)?, self.scalar_source(i, 2)? as u32);
                lanes(|lane| if lane == (count & 3) as usize { word } else { into[lane] })
            }
            M::Vpmovdw => {
                let from = vector(1)?;
                half_lanes(|at| from.get(at).map_or(0, |dword| *dword as u16))
            }
            M::Vpmovzxbd => {
                let from = vector(1)?;
                lanes(|lane| u32::from(byte(&from, lane)))
            }
            M::Vpmovsxbd => {
                let from = vector(1)?;
                lanes(|lane| i32::from(byte(&from, lane) as i8) as u32)
            }
            M::Vpmovzxbw => {
                let from = vector(1)?;
                half_lanes(|at| u16::from(byte(&from, at)))
            }
            M::Vpmovzxwd => {
                let from = vector(1)?;
                lanes(|lane| u32::from(half(&from, lane)))
            }
            M::Vpermps | M::Vpermd => {
                let (index, from) = (vector(1)?, vector(2)?);
                let among = width(i.op_register(0)) / 4;
                lanes(|lane| from[index[lane] as usize % among])
            }
            M::Vpermw => {
                let (index, from) = (vector(1)?, vector(2)?);
                let among = width(i.op_register(0)) / 2;
                half_lanes(|at| half(&from, half(&index, at) as usize % among))
            }
            // Within each 128 bits, of either first those of the one, then those of the other; what is too large is as
            // large as can be.
            M::Vpackssdw => {
                let (a, b) = (vector(1)?, vector(2)?);
                half_lanes(|at| {
                    let from = if at % 8 < 4 { &a } else { &b };
                    (from[at / 8 * 4 + at % 4] as i32).clamp(i16::MIN.into(), i16::MAX.into()) as u16
                })
            }
            M::Vpacksswb => {
                let (a, b) = (vector(1)?, vector(2)?);
                byte_lanes(|at| {
                    let from = if at % 16 < 8 { &a } else { &b };
                    let word = half(from, at / 16 * 8 + at % 8) as i16;
                    word.clamp(i8::MIN.into(), i8::MAX.into()) as u8
                })
            }
            // Within each 128 bits.
            M::Vpunpckldq | M::Vpunpckhdq => {
                let (a, b) = (vector(1)?, vector(2)?);
                let upper = if i.mnemonic() == M::Vpunpckhdq { 2 } else { 0 };
                lanes(|lane| {
                    let from = if lane % 2 == 0 { &a } else { &b };
                    from[lane / 4 * 4 + upper + lane % 4 / 2]
                })
            }
            M::Vpunpcklqdq | M::Vpunpckhqdq => {
                let (a, b) = (vector(1)?, vector(2)?);
                let upper = if i.mnemonic() == M::Vpunpckhqdq { 2 } else { 0 };
                lanes(|lane| {
                    let from = if lane % 4 < 2 { &a } else { &b };
                    from[lane / 4 * 4 + upper + lane % 2]
                })
            }
            M::Vextractf128 | M::Vextracti128 => {
                let (from, first) = (vector(1)?, 4 * (count as usize & 1));
                lanes(|lane| if lane < 4 { from[first + lane] } else { 0 })
            }
            M::Vextractf64x4 | M::Vextracti64x4 => {
                let (from, first) = (vector(1)?, 8 * (count as usize & 1));
                lanes(|lane| if lane < 8 { from[first + lane] } else { 0 })
            }
            M::Vinserti128 | M::Vinsertf128 | M::Vinserti32x4 => {
                let quarters = width(i.op_register(0)) / 16;
                let (into, from, first) = (vector(1)?, vector(2)?, 4 * (count as usize % quarters));
                lanes(|lane| if (first..first + 4).contains(&lane) { from[lane - first] } else { into[lane] })
            }
            // Of quarters: two of one, two of the other.
            M::Vshufi32x4 if width(i.op_register(0)) == BYTES => {
                let (a, b, count) = (vector(1)?, vector(2)?, count as usize);
                let quarter = |lane: usize| count >> (2 * (lane / 4)) & 3;
                lanes(|lane| if lane < 8 { &a } else { &b }[quarter(lane) * 4 + lane % 4])
            }
            M::Vperm2i128 => {
                let (a, b, count) = (vector(1)?, vector(2)?, count as usize);
                let quarter = |lane: usize| count >> (lane / 4 * 4) & 15;
                lanes(|lane| match quarter(lane) {
                    from @ 0..2 if lane < 8 => a[from * 4 + lane % 4],
                    from @ 2..4 if lane < 8 => b[(from - 2) * 4 + lane % 4],
                    _ => 0,
                })
            }
            M::Vpsrldq => {
                let (from, count) = (vector(1)?, count as usize);
                byte_lanes(|at| if at % 16 + count < 16 { byte(&from, at + count) } else { 0 })
            }
            // What is left out is not read.
            M::Vpmaskmovd if i.op_kind(2) == OpKind::Memory => {
                let (mask, mut value) = (vector(1)?, [0; BYTES]);
                let dwords = value.chunks_mut(4).take(width(i.op_register(0)) / 4);
                for (lane, dword) in dwords.enumerate().filter(|(lane, _)| mask[*lane] >> 31 == 1) {
                    self.read(i, self.address(i) + 4 * lane as u64, dword)?;
                }
                from_bytes(value)
            }
            _ => return self.computed(i),
        })
    }
}
