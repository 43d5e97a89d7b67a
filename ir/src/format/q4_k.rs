//! Q4_K: blocks of 256 in groups of 32; d, dmin, 12 bytes of scales and minima of 6 bits, 128 bytes of quants. For each
//! 64 elements there are 32 bytes: the low nibbles hold the first 32, the high ones the others. An element is
//! d s q - dmin m.

use super::{Bits, Format, Numbers, Offset, Reading, Scale, Times, f16};

pub(super) const FORMAT: Format = Format {
    name: "q4_k",
    gguf: Some(12),
    block: 256,
    planes: &[144],
    group: 32,
    quants: Numbers::new(&[Bits::new(16, 4, 32)], Reading::Less(0)),
    scale: SCALE,
    offset: Offset::Minus(MIN),
    dequantise: |planes, out| {
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_and_min(planes[0], group);
            for (x, byte) in out.iter_mut().zip(&planes[0][16 + group / 2 * 32..]) {
                *x = scale * f32::from(byte >> (group % 2 * 4) & 15) - min;
            }
        }
    },
};

/// Of Q4_K and Q5_K.
pub(super) const SCALE: Scale = Scale::f16_times(0, Times::SixBits { byte: 4, second: false });
/// Of Q4_K and Q5_K.
pub(super) const MIN: Scale = Scale::f16_times(2, Times::SixBits { byte: 4, second: true });

/// d s and dmin m of a group of a block of Q4_K or Q5_K.
pub(super) fn scale_and_min(block: &[u8], group: usize) -> (f32, f32) {
    let b = &block[4..16];
    let (scale, min) = if group < 4 {
        (b[group] & 63, b[group + 4] & 63)
    } else {
        ((b[group + 4] & 15) | (b[group - 4] >> 6) << 4, (b[group + 4] >> 4) | (b[group] >> 6) << 4)
    };
    (f16(block, 0) * f32::from(scale), f16(block, 2) * f32::from(min))
}
