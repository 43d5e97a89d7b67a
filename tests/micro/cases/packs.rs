//! Rows of x rounded to 8 bits, in panels.

use lapidary_codegen::micro::{MAGIC, Microkernel, Pack, Raw};
use lapidary_ir::BLOCK;

use super::{Case, Operand, Want};
use crate::operands::{Source, float_bytes};

/// Panels of as many rows and of more, rows side by side and apart.
pub(super) fn packs(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let sizes = [(1, 1, 0), (3, 1, 5), (3, 2, 0), (1, 5, 64)];
    sizes
        .into_iter()
        .map(|(panels, blocks, pad)| pack(micro, panels * micro.mr, blocks, pad, source))
        .collect()
}

fn pack(micro: &Microkernel, panel: usize, blocks: usize, pad: usize, source: &mut Source) -> Case {
    let (k, stride) = (blocks * BLOCK, blocks * BLOCK + pad);
    let mut x: Vec<f32> = (0..micro.mr * stride).map(|_| source.float()).collect();
    // Nothing at all, and what lies between two integers.
    x[..BLOCK].fill(0.0);
    for (i, value) in x[stride..][..BLOCK].iter_mut().enumerate() {
        *value = if i == 0 { 127.0 } else { i as f32 - 15.5 };
    }
    let words = panel * 4;
    let mut panels = vec![0xa5; blocks * words * (2 + BLOCK / 4)];
    for (row, x) in x.chunks(stride).enumerate() {
        for (x, block) in x[..k].chunks(BLOCK).zip(panels.chunks_mut(words * (2 + BLOCK / 4))) {
            let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let quants: Vec<i32> = x.iter().map(|x| round(x * inverse)).collect();
            let sum = -8 * quants.iter().sum::<i32>();
            let mut put = |part: usize, word: [u8; 4]| {
                block[part * words + row * 4..][..4].copy_from_slice(&word);
            };
            put(0, (largest / 127.0).to_le_bytes());
            put(1, sum.to_le_bytes());
            for (i, four) in quants.chunks(4).enumerate() {
                put(2 + i, std::array::from_fn(|q| four[q] as u8));
            }
        }
    }
    Case {
        raw: Raw::Pack(Pack { panel, x_stride: 4 * stride as i32 }),
        operands: vec![
            Operand::In(float_bytes(&x)),
            Operand::Out(vec![0xa5; panels.len()]),
            Operand::Number(blocks as u64),
        ],
        want: Want::Bytes(panels),
    }
}

/// The nearest integer, of two as near the even one.
fn round(x: f32) -> i32 {
    (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}
