//! Arithmetic of vector registers: AVX2, FMA, F16C, AVX-VNNI, AVX-512 F, BW, VL, VNNI and BF16, as far as microkernels
//! use them.
//!
//! After Intel's Software Developer's Manual, volume 2; `vector` has what moves elements, and masks.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::elements::*;
use super::{Cpu, Fault};

impl Cpu {
    /// What an instruction that computes sets its first operand to.
    pub(super) fn computed(&self, i: &Instruction) -> Result<Vector, Fault> {
        use Mnemonic as M;
        let vector = |operand| self.vector(i, operand);
        let float = |operand| Ok::<_, Fault>(self.vector(i, operand)?.map(f32::from_bits));
        let count = u32::from(i.immediate8());
        // Shifts are by a constant.
        let shift = |f: &dyn Fn(u32) -> u32| -> Result<Vector, Fault> {
            match i.op_kind(2) {
                OpKind::Immediate8 => Ok(vector(1)?.map(f)),
                _ => Err(Fault::Unknown(*i)),
            }
        };
        Ok(match i.mnemonic() {
            M::Vpaddb => {
                let (a, b) = (vector(1)?, vector(2)?);
                byte_lanes(|at| byte(&a, at).wrapping_add(byte(&b, at)))
            }
            M::Vpsubb => {
                let (a, b) = (vector(1)?, vector(2)?);
                byte_lanes(|at| byte(&a, at).wrapping_sub(byte(&b, at)))
            }
            M::Vpsrlvw => {
                let (from, counts) = (vector(1)?, vector(2)?);
                half_lanes(|at| half(&from, at).checked_shr(half(&counts, at).into()).unwrap_or(0))
            }
            M::Vpsllvw => {
                let (from, counts) = (vector(1)?, vector(2)?);
                half_lanes(|at| half(&from, at).checked_shl(half(&counts, at).into()).unwrap_or(0))
            }
            M::Vpxor | M::Vpxord | M::Vpxorq | M::Vxorps => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| a[lane] ^ b[lane])
            }
            M::Vpand | M::Vpandd | M::Vpandq | M::Vandps => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| a[lane] & b[lane])
            }
            M::Vpandnd => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| !a[lane] & b[lane])
            }
            M::Vpor | M::Vpord | M::Vorps => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| a[lane] | b[lane])
            }
            // Of each three bits the one of the immediate that they count.
            M::Vpternlogd => {
                let (a, b, c) = (vector(0)?, vector(1)?, vector(2)?);
                let bit = |lane: usize, at: usize| {
                    let place = (a[lane] >> at & 1) << 2 | (b[lane] >> at & 1) << 1 | c[lane] >> at & 1;
                    (count >> place & 1) << at
                };
                lanes(|lane| (0..32).fold(0, |all, at| all | bit(lane, at)))
            }
            // Into a vector alone; into a mask it has another shape.
            M::Vpcmpeqd if i.op_register(0).is_vector_register() => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| if a[lane] == b[lane] { u32::MAX } else { 0 })
            }
            M::Vpcmpeqb if i.op_register(0).is_vector_register() => {
                let (a, b) = (vector(1)?, vector(2)?);
                byte_lanes(|at| if byte(&a, at) == byte(&b, at) { u8::MAX } else { 0 })
            }
            M::Vpaddd => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| a[lane].wrapping_add(b[lane]))
            }
            M::Vpsubd => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| a[lane].wrapping_sub(b[lane]))
            }
            M::Vpaddw => {
                let (a, b) = (vector(1)?, vector(2)?);
                half_lanes(|at| half(&a, at).wrapping_add(half(&b, at)))
            }
            M::Vpsubw => {
                let (a, b) = (vector(1)?, vector(2)?);
                half_lanes(|at| half(&a, at).wrapping_sub(half(&b, at)))
            }
            M::Vpslld => shift(&|word| word.checked_shl(count).unwrap_or(0))?,
            M::Vpsrld => shift(&|word| word.checked_shr(count).unwrap_or(0))?,
            M::Vpsrad => shift(&|word| (word as i32 >> count.min(31)) as u32)?,
            M::Vprold => shift(&|word| word.rotate_left(count))?,
            M::Vprolvd => {
                let (from, counts) = (vector(1)?, vector(2)?);
                lanes(|lane| from[lane].rotate_left(counts[lane]))
            }
            M::Vpsrlvd => {
                let (from, counts) = (vector(1)?, vector(2)?);
                lanes(|lane| from[lane].checked_shr(counts[lane]).unwrap_or(0))
            }
            M::Vpsrlw => shift(&|word| halves(word, &|half| half.checked_shr(count).unwrap_or(0)))?,
            M::Vpsllw => shift(&|word| halves(word, &|half| half.checked_shl(count).unwrap_or(0)))?,
            M::Vpsraw => shift(&|word| halves(word, &|half| (half as i16 >> count.min(15)) as u16))?,
            M::Vphaddd => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| {
                    let (group, at) = (lane / 4 * 4, lane % 4);
                    let from = if at < 2 { &a } else { &b };
                    from[group + at % 2 * 2].wrapping_add(from[group + at % 2 * 2 + 1])
                })
            }
            M::Vphaddw => {
                let (a, b) = (vector(1)?, vector(2)?);
                half_lanes(|at| {
                    let (group, at) = (at / 8 * 8, at % 8);
                    let from = if at < 4 { &a } else { &b };
                    let pair = group + at % 4 * 2;
                    half(from, pair).wrapping_add(half(from, pair + 1))
                })
            }
            M::Vcvtdq2ps => {
                let from = vector(1)?;
                float_lanes(|lane| from[lane] as i32 as f32)
            }
            M::Vcvtph2ps => {
                let from = vector(1)?;
                float_lanes(|lane| f16(half(&from, lane)))
            }
            // The lower half of the results are the third operand's.
            M::Vcvtne2ps2bf16 => {
                let (upper, lower) = (float(1)?, float(2)?);
                let each = width(i.op_register(0)) / 4;
                half_lanes(|at| match at {
                    at if at < each => to_bf16(lower[at]),
                    at if at < 2 * each => to_bf16(upper[at - each]),
                    _ => 0,
                })
            }
            M::Vaddps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| a[lane] + b[lane])
            }
            M::Vsubps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| a[lane] - b[lane])
            }
            M::Vdivps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| a[lane] / b[lane])
            }
            // The second source where either is no number, and of zeros.
            M::Vmaxps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
            }
            M::Vminps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
            }
            M::Vmulps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| a[lane] * b[lane])
            }
            // Within each 128 bits.
            M::Vhaddps => {
                let (a, b) = (float(1)?, float(2)?);
                float_lanes(|lane| {
                    let (group, at) = (lane / 4 * 4, lane % 4);
                    let from = if at < 2 { &a } else { &b };
                    from[group + at % 2 * 2] + from[group + at % 2 * 2 + 1]
                })
            }
            M::Vfmadd231ps => {
                let (c, a, b) = (float(0)?, float(1)?, float(2)?);
                float_lanes(|lane| a[lane].mul_add(b[lane], c[lane]))
            }
            M::Vfmadd213ps => {
                let (b, a, c) = (float(0)?, float(1)?, float(2)?);
                float_lanes(|lane| a[lane].mul_add(b[lane], c[lane]))
            }
            M::Vfnmadd231ps => {
                let (c, a, b) = (float(0)?, float(1)?, float(2)?);
                float_lanes(|lane| (-a[lane]).mul_add(b[lane], c[lane]))
            }
            M::Vfmadd231ss => {
                let (c, a, b) = (float(0)?, float(1)?, float(2)?);
                float_lanes(|lane| if lane == 0 { a[0].mul_add(b[0], c[0]) } else { c[lane] })
            }
            // Unsigned bytes of the second operand times signed ones of the third.
            M::Vpdpbusd => {
                let (sums, a, b) = (vector(0)?, vector(1)?, vector(2)?);
                lanes(|lane| {
                    let product = |at: usize| {
                        i32::from(byte(&a, 4 * lane + at)) * i32::from(byte(&b, 4 * lane + at) as i8)
                    };
                    (sums[lane] as i32).wrapping_add((0..4).map(product).sum()) as u32
                })
            }
            M::Vpmaddubsw => {
                let (a, b) = (vector(1)?, vector(2)?);
                half_lanes(|at| {
                    let product = |at: usize| i32::from(byte(&a, at)) * i32::from(byte(&b, at) as i8);
                    saturate(product(2 * at) + product(2 * at + 1))
                })
            }
            M::Vpmaddwd => {
                let (a, b) = (vector(1)?, vector(2)?);
                lanes(|lane| {
                    let product = |at: usize| i32::from(half(&a, at) as i16) * i32::from(half(&b, at) as i16);
                    product(2 * lane).wrapping_add(product(2 * lane + 1)) as u32
                })
            }
            M::Vpabsb => {
                let from = vector(1)?;
                byte_lanes(|at| (byte(&from, at) as i8).unsigned_abs())
            }
            M::Vpsignb => {
                let (a, b) = (vector(1)?, vector(2)?);
                byte_lanes(|at| match (byte(&b, at) as i8).signum() {
                    0 => 0,
                    1 => byte(&a, at),
                    _ => (byte(&a, at) as i8).wrapping_neg() as u8,
                })
            }
            // Each product fused with its sum, the odd elements' first; denormals are 0 on the way.
            M::Vdpbf16ps => {
                let (sums, a, b) = (float(0)?, vector(1)?, vector(2)?);
                float_lanes(|lane| {
                    let add = |sum: f32, at: usize| {
                        flush(bf16(half(&a, at)).mul_add(bf16(half(&b, at)), flush(sum)))
                    };
                    add(add(sums[lane], 2 * lane + 1), 2 * lane)
                })
            }
            _ => return Err(Fault::Unknown(*i)),
        })
    }
}
