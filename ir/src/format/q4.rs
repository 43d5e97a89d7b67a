//! Our own in 4 bits: blocks of 32, quants -8..=7, a bf16 scale each. A row is its quants (byte j of a block's 16 holds
//! element j low, element 16 + j high, as q + 8), then its scales.

use super::{BLOCK, Bits, Format, Numbers, Offset, Reading, q8};

pub(super) const FORMAT: Format = Format {
    name: "q4",
    gguf: None,
    block: BLOCK,
    planes: &[BLOCK / 2, 2],
    group: BLOCK,
    quants: Numbers::new(&[Bits::new(0, 4, BLOCK / 2)], Reading::Less(8)),
    scale: q8::SCALE,
    offset: Offset::None,
    dequantise: |planes, out| {
        let scale = half::bf16::from_le_bytes([planes[1][0], planes[1][1]]).to_f32();
        for (j, &byte) in planes[0].iter().enumerate() {
            out[j] = scale * (f32::from(byte & 15) - 8.0);
            out[16 + j] = scale * (f32::from(byte >> 4) - 8.0);
        }
    },
};
