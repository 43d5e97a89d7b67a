//! Q5_K: as Q4_K, with 32 bytes between scales and nibbles: bit i of byte l is the fifth bit of the element 32 i + l.

use super::q4_k::{MIN, SCALE, scale_and_min};
use super::{Bits, Format, Numbers, Offset, Reading};

pub(super) const FORMAT: Format = Format {
    name: "q5_k",
    gguf: Some(13),
    block: 256,
    planes: &[176],
    group: 32,
    quants: Numbers::new(&[Bits::new(48, 4, 32), Bits::new(16, 1, 32)], Reading::Less(0)),
    scale: SCALE,
    offset: Offset::Minus(MIN),
    dequantise: |planes, out| {
        let (high, nibbles) = (&planes[0][16..48], &planes[0][48..]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_and_min(planes[0], group);
            for (l, x) in out.iter_mut().enumerate() {
                let low = nibbles[group / 2 * 32 + l] >> (group % 2 * 4) & 15;
                let up = high[l] >> group & 1;
                *x = scale * f32::from(low | up << 4) - min;
            }
        }
    },
};
