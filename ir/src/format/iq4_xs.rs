//! IQ4_XS: blocks of 256 in groups of 32; d, 2 bytes with the upper two bits of each group's scale, 4 with their low
//! four, 128 bytes of nibbles: 16 bytes a group, low first. An element is d (s - 32) table(q), the table IQ4_NL's.

use super::iq4_nl::TABLE;
use super::{Bits, Format, Numbers, Offset, Reading, Scale, Times, f16};

const SCALES: Numbers = Numbers::new(&[Bits::new(4, 4, 1), Bits::new(2, 2, 1)], Reading::Less(32));

pub(super) const FORMAT: Format = Format {
    name: "iq4_xs",
    gguf: Some(23),
    block: 256,
    planes: &[136],
    group: 32,
    quants: Numbers::new(&[Bits::new(8, 4, 16)], Reading::Table(&TABLE)),
    scale: Scale::f16_times(0, Times::Numbers(SCALES)),
    offset: Offset::None,
    dequantise: |planes, out| {
        let d = f16(planes[0], 0);
        let high = u16::from_le_bytes([planes[0][2], planes[0][3]]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let low = planes[0][4 + group / 2] >> (group % 2 * 4) & 15;
            let up = (high >> (2 * group) & 3) as u8;
            let scale = d * (f32::from(low | up << 4) - 32.0);
            for (j, &byte) in planes[0][8 + 16 * group..][..16].iter().enumerate() {
                out[j] = scale * f32::from(TABLE[usize::from(byte & 15)]);
                out[16 + j] = scale * f32::from(TABLE[usize::from(byte >> 4)]);
            }
        }
    },
};
