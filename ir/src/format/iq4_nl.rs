//! IQ4_NL: as Q4_0, nibbles count in a table. An element is d table(q).

use super::{Bits, Format, Numbers, Offset, Reading, Scale, f16};

/// What a nibble stands for.
pub(super) const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const FORMAT: Format = Format {
    name: "iq4_nl",
    gguf: Some(20),
    block: 32,
    planes: &[18],
    group: 32,
    quants: Numbers::new(&[Bits::new(2, 4, 16)], Reading::Table(&TABLE)),
    scale: Scale::f16(0),
    offset: Offset::None,
    dequantise: |planes, out| {
        let d = f16(planes[0], 0);
        for (j, &byte) in planes[0][2..].iter().enumerate() {
            out[j] = d * f32::from(TABLE[usize::from(byte & 15)]);
            out[16 + j] = d * f32::from(TABLE[usize::from(byte >> 4)]);
        }
    },
};
