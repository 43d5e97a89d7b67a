//! Vector registers as dwords, words, bytes and floats.

use iced_x86::Register;

pub(super) const LANES: usize = 16;
pub(super) const BYTES: usize = 4 * LANES;

/// A vector register, 32 bits a lane.
pub(super) type Vector = [u32; LANES];

/// A vector register's number.
pub(super) fn number(register: Register) -> usize {
    let first = match register {
        r if r.is_zmm() => Register::ZMM0,
        r if r.is_ymm() => Register::YMM0,
        _ => Register::XMM0,
    };
    register as usize - first as usize
}

/// A vector register's bytes.
pub(super) fn width(register: Register) -> usize {
    match register {
        r if r.is_zmm() => 64,
        r if r.is_ymm() => 32,
        _ => 16,
    }
}

pub(super) fn bytes(vector: Vector) -> [u8; BYTES] {
    std::array::from_fn(|at| vector[at / 4].to_le_bytes()[at % 4])
}

pub(super) fn from_bytes(bytes: [u8; BYTES]) -> Vector {
    std::array::from_fn(|lane| u32::from_le_bytes(std::array::from_fn(|at| bytes[4 * lane + at])))
}

/// Lane by lane.
pub(super) fn lanes(f: impl Fn(usize) -> u32) -> Vector {
    std::array::from_fn(f)
}

pub(super) fn float_lanes(f: impl Fn(usize) -> f32) -> Vector {
    std::array::from_fn(|lane| f(lane).to_bits())
}

/// Halves of 16 bits.
pub(super) fn half(vector: &Vector, at: usize) -> u16 {
    (vector[at / 2] >> (16 * (at % 2))) as u16
}

pub(super) fn half_lanes(f: impl Fn(usize) -> u16) -> Vector {
    lanes(|lane| u32::from(f(2 * lane)) | u32::from(f(2 * lane + 1)) << 16)
}

pub(super) fn byte(vector: &Vector, at: usize) -> u8 {
    vector[at / 4].to_le_bytes()[at % 4]
}

pub(super) fn byte_lanes(f: impl Fn(usize) -> u8) -> Vector {
    lanes(|lane| u32::from_le_bytes(std::array::from_fn(|at| f(4 * lane + at))))
}

/// Denormals are 0.
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// A bf16's value, denormals as 0.
pub(super) fn bf16(bits: u16) -> f32 {
    flush(f32::from_bits(u32::from(bits) << 16))
}

/// To the nearest bf16, ties to even; denormals are 0, NaN stays one.
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = flush(x).to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// An f16's value: exact.
pub(super) fn f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, bits >> 10 & 31, u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        31 if fraction == 0 => f32::INFINITY.to_bits(),
        31 => 0x7fc0_0000 | fraction << 13,
        _ => (u32::from(exponent) + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

pub(super) fn saturate(x: i32) -> u16 {
    x.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16 as u16
}

/// Both halves of a dword.
pub(super) fn halves(word: u32, f: &dyn Fn(u16) -> u16) -> u32 {
    u32::from(f(word as u16)) | u32::from(f((word >> 16) as u16)) << 16
}
