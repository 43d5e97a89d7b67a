//! Q5_1: blocks of 32; d, m, then numbers of five bits as Q5_0 has them. An element is d q + m.

use super::q5_0::fives;
use super::{Bits, Format, Numbers, Offset, Reading, Scale, f16};

pub(super) const FORMAT: Format = Format {
    name: "q5_1",
    gguf: Some(7),
    block: 32,
    planes: &[24],
    group: 32,
    quants: Numbers::new(&[Bits::new(8, 4, 16), Bits::new(4, 1, 1)], Reading::Less(0)),
    scale: Scale::f16(0),
    offset: Offset::Plus(Scale::f16(2)),
    dequantise: |planes, out| {
        let (d, m) = (f16(planes[0], 0), f16(planes[0], 2));
        for (x, q) in out.iter_mut().zip(fives(&planes[0][4..])) {
            *x = d * f32::from(q) + m;
        }
    },
};
