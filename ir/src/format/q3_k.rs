//! Q3_K: blocks of 256 in groups of 16; 32 bytes with the third bit of each element, 64 bytes of quants as Q2_K has
//! them, 12 bytes of scales, d. Byte l of the first 32 holds in bit i the element 32 i + l. A scale has its low four
//! bits in the first 8 bytes of the 12, its upper two in the last 4. An element is d (s - 32) (q - 4).

use super::{Bits, Format, Numbers, Offset, Reading, Scale, Times, f16};

const SCALES: Numbers = Numbers::new(&[Bits::new(96, 4, 8), Bits::new(104, 2, 4)], Reading::Less(32));

pub(super) const FORMAT: Format = Format {
    name: "q3_k",
    gguf: Some(11),
    block: 256,
    planes: &[110],
    group: 16,
    quants: Numbers::new(&[Bits::new(32, 2, 32), Bits::new(0, 1, 32)], Reading::Less(4)),
    scale: Scale::f16_times(108, Times::Numbers(SCALES)),
    offset: Offset::None,
    dequantise: |planes, out| {
        let (high, rest) = planes[0].split_at(32);
        let (quants, scales) = rest.split_at(64);
        let d = f16(planes[0], 108);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let low = scales[group % 8] >> (group / 8 * 4) & 15;
            let up = scales[8 + group % 4] >> (group / 4 * 2) & 3;
            let scale = d * (f32::from(low | up << 4) - 32.0);
            let (half, shift, side) = (group / 8, group % 8 / 2, 16 * (group % 2));
            for (l, x) in out.iter_mut().enumerate() {
                let low = quants[32 * half + side + l] >> (2 * shift) & 3;
                let up = high[side + l] >> (4 * half + shift) & 1;
                *x = scale * (f32::from(low | up << 2) - 4.0);
            }
        }
    },
};
