//! Q2_K: blocks of 256 in groups of 16; a byte for each group (its scale low, its minimum high), 64 bytes of quants, d,
//! dmin. For each 128 elements there are 32 bytes of quants: bits 0 and 1 hold the first 32, and so on. An element is
//! d s q - dmin m.

use super::{Bits, Format, Numbers, Offset, Reading, Scale, Times, f16};

const NIBBLES: &[Bits] = &[Bits::new(0, 4, 16)];

pub(super) const FORMAT: Format = Format {
    name: "q2_k",
    gguf: Some(10),
    block: 256,
    planes: &[84],
    group: 16,
    quants: Numbers::new(&[Bits::new(16, 2, 32)], Reading::Less(0)),
    scale: Scale::f16_times(80, Times::Numbers(Numbers::new(NIBBLES, Reading::Less(0)))),
    offset: Offset::Minus(Scale::f16_times(
        82,
        Times::Numbers(Numbers { first: 16, ..Numbers::new(NIBBLES, Reading::Less(0)) }),
    )),
    dequantise: |planes, out| {
        let (scales, quants) = planes[0].split_at(16);
        let (d, dmin) = (f16(planes[0], 80), f16(planes[0], 82));
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let (scale, min) = (scales[group] & 15, scales[group] >> 4);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
            for (x, byte) in out.iter_mut().zip(&quants[32 * half + 16 * side..]) {
                *x = scale * f32::from(byte >> shift & 3) - min;
            }
        }
    },
};
