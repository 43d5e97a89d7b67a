//! Q4_1: blocks of 32; d, m, then 16 bytes as Q4_0 has them. An element is d q + m.

use super::{Bits, Format, Numbers, Offset, Reading, Scale, f16};

pub(super) const FORMAT: Format = Format {
    name: "q4_1",
    gguf: Some(3),
    block: 32,
    planes: &[20],
    group: 32,
    quants: Numbers::new(&[Bits::new(4, 4, 16)], Reading::Less(0)),
    scale: Scale::f16(0),
    offset: Offset::Plus(Scale::f16(2)),
    dequantise: |planes, out| {
        let (d, m) = (f16(planes[0], 0), f16(planes[0], 2));
        for (j, &byte) in planes[0][4..].iter().enumerate() {
            out[j] = d * f32::from(byte & 15) + m;
            out[16 + j] = d * f32::from(byte >> 4) + m;
        }
    },
};
