//! Q5_0: blocks of 32; d, a word with the fifth bit of each element, then 16 bytes as Q4_0 has them. An element is
//! d (q - 16).

use super::{Bits, Format, Numbers, Offset, Reading, Scale, f16};

pub(super) const FORMAT: Format = Format {
    name: "q5_0",
    gguf: Some(6),
    block: 32,
    planes: &[22],
    group: 32,
    quants: Numbers::new(&[Bits::new(6, 4, 16), Bits::new(2, 1, 1)], Reading::Less(16)),
    scale: Scale::f16(0),
    offset: Offset::None,
    dequantise: |planes, out| {
        let d = f16(planes[0], 0);
        for (x, q) in out.iter_mut().zip(fives(&planes[0][2..])) {
            *x = d * (f32::from(q) - 16.0);
        }
    },
};

/// 32 numbers of five bits: a word with their fifth bits, then their nibbles.
pub(super) fn fives(bytes: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    std::array::from_fn(|i| {
        let nibble = bytes[4 + i % 16] >> (i / 16 * 4) & 15;
        nibble | ((high >> i & 1) as u8) << 4
    })
}
