//! Our own in 8 bits: blocks of 32, quants -127..=127, a bf16 scale each. A row is its quants, then its scales.

use super::{BLOCK, Bits, Format, Numbers, Offset, Reading, Scale, Times};
use crate::types::DType;

pub(super) const FORMAT: Format = Format {
    name: "q8",
    gguf: None,
    block: BLOCK,
    planes: &[BLOCK, 2],
    group: BLOCK,
    quants: Numbers::new(&[Bits::new(0, 8, BLOCK)], Reading::Signed),
    scale: SCALE,
    offset: Offset::None,
    dequantise: |planes, out| {
        let scale = half::bf16::from_le_bytes([planes[1][0], planes[1][1]]).to_f32();
        for (x, &q) in out.iter_mut().zip(planes[0]) {
            *x = scale * f32::from(q as i8);
        }
    },
};

/// Of both of our own: bf16 in a plane of its own.
pub(super) const SCALE: Scale = Scale { dtype: DType::BF16, plane: 1, byte: 0, times: Times::One };
