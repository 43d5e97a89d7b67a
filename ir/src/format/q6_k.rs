//! Q6_K: blocks of 256 in groups of 16; 128 bytes with the low four bits, 64 with the upper two, 16 scales of 8 bits,
//! d. For each 128 elements there are 64 bytes of nibbles (low the first 64, high the others) and 32 bytes of pairs. An
//! element is d s (q - 32).

use super::{Bits, Format, Numbers, Offset, Reading, Scale, Times, f16};

const SCALES: Numbers = Numbers::new(&[Bits::new(192, 8, 16)], Reading::Signed);

pub(super) const FORMAT: Format = Format {
    name: "q6_k",
    gguf: Some(14),
    block: 256,
    planes: &[210],
    group: 16,
    quants: Numbers::new(&[Bits::new(0, 4, 64), Bits::new(128, 2, 32)], Reading::Less(32)),
    scale: Scale::f16_times(208, Times::Numbers(SCALES)),
    offset: Offset::None,
    dequantise: |planes, out| {
        let (low, rest) = planes[0].split_at(128);
        let (high, scales) = rest.split_at(64);
        let d = f16(planes[0], 208);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let scale = d * f32::from(scales[group] as i8);
            // Which 128, which 32 of these, which half of those.
            let (half, quarter, side) = (group / 8, group % 8 / 2, 16 * (group % 2));
            for (l, x) in out.iter_mut().enumerate() {
                let low = low[64 * half + 32 * (quarter % 2) + side + l] >> (quarter / 2 * 4) & 15;
                let up = high[32 * half + side + l] >> (2 * quarter) & 3;
                *x = scale * (f32::from(low | up << 4) - 32.0);
            }
        }
    },
};
