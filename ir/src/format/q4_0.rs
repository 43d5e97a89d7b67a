//! Q4_0: blocks of 32; d, then 16 bytes, of which byte j holds element j low, element 16 + j high. An element is
//! d (q - 8).

use super::{Bits, Format, Numbers, Offset, Reading, Scale, f16};

pub(super) const FORMAT: Format = Format {
    name: "q4_0",
    gguf: Some(2),
    block: 32,
    planes: &[18],
    group: 32,
    quants: Numbers::new(&[Bits::new(2, 4, 16)], Reading::Less(8)),
    scale: Scale::f16(0),
    offset: Offset::None,
    dequantise: |planes, out| {
        let d = f16(planes[0], 0);
        for (j, &byte) in planes[0][2..].iter().enumerate() {
            out[j] = d * (f32::from(byte & 15) - 8.0);
            out[16 + j] = d * (f32::from(byte >> 4) - 8.0);
        }
    },
};
