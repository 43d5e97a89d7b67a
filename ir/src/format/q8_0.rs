//! Q8_0: blocks of 32; d, then 32 bytes. An element is d q.

use super::{Bits, Format, Numbers, Offset, Reading, Scale, f16};

pub(super) const FORMAT: Format = Format {
    name: "q8_0",
    gguf: Some(8),
    block: 32,
    planes: &[34],
    group: 32,
    quants: Numbers::new(&[Bits::new(2, 8, 32)], Reading::Signed),
    scale: Scale::f16(0),
    offset: Offset::None,
    dequantise: |planes, out| {
        let d = f16(planes[0], 0);
        for (x, &q) in out.iter_mut().zip(&planes[0][2..]) {
            *x = d * f32::from(q as i8);
        }
    },
};
