//! Widening of weights, to floats and to what tiles of integers read.

use lapidary_codegen::micro::{self, Emit, Held, MICROKERNELS, Microkernel, Quantised, Raw, Widen};
use lapidary_codegen::target::Target;
use lapidary_ir::{BLOCK, DType};

use super::{Case, Operand, Want};
use crate::operands::Source;

pub(super) fn widenings(micro: &Microkernel, targets: &[Target], source: &mut Source) -> Vec<Case> {
    // To what the tiles read that are chosen with this row.
    let holds = matches!(micro.emit, Emit::RawHold(_));
    let mut forms: Vec<(DType, Option<Held>)> = if holds { vec![] } else { vec![(DType::F32, None)] };
    let widen = Widen { from: DType::Q8, to: if holds { DType::Q8 } else { DType::F32 }, fetches: true };
    for target in
        targets.iter().filter(|t| micro::widening(&t.features, widen).is_some_and(|w| w.name == micro.name))
    {
        let tiles = || MICROKERNELS.iter().filter(|m| m.is_packed() && (m.runs_on)(&target.features));
        if holds {
            forms.extend(tiles().find(|m| m.operands == DType::Q8).map(|m| (m.operands, m.held())));
        } else {
            let floats = tiles().filter(|m| m.operands != DType::Q8);
            forms.extend(floats.map(|m| (m.operands, None)));
        }
    }
    forms.sort_unstable();
    forms.dedup();
    let mut cases = vec![];
    for (to, layout) in forms {
        for from in DType::ALL.into_iter().filter(|d| d.is_float()) {
            if to == DType::Q8 && Quantised::of([from].into_iter()) != Quantised::Own {
                continue;
            }
            for blocks in [1, 2, 5] {
                let k = blocks * from.format().map_or(BLOCK, |f| f.block);
                let row = source.row(from, k);
                let last = from.format().map_or(0, |f| f.plane_at(f.planes.len() - 1, k));
                let want: Vec<u8> = match (to, layout) {
                    (_, Some(layout)) => held(from, layout, &row.bytes, blocks),
                    (DType::BF16, _) => {
                        row.values.iter().flat_map(|&v| nearest_bf16(v as f32).to_le_bytes()).collect()
                    }
                    _ => row.values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
                };
                cases.push(Case {
                    raw: Raw::Widen(Widen { from, to, fetches: blocks.is_multiple_of(2) }),
                    operands: vec![
                        Operand::In(row.bytes),
                        Operand::Within(0, last),
                        Operand::Out(vec![0xa5; want.len()]),
                        Operand::Number(blocks as u64),
                    ],
                    want: Want::Bytes(want),
                });
            }
        }
    }
    cases
}

/// The nearest bf16, of two as near the even one; there are no denormals here.
pub(super) fn nearest_bf16(x: f32) -> u16 {
    let (below, rest) = ((x.to_bits() >> 16) as u16, x.to_bits() & 0xffff);
    below + u16::from(rest > 0x8000 || rest == 0x8000 && below & 1 == 1)
}

/// Bytes from a row's block to its next.
pub(super) fn pitch(layout: Held, weights: DType) -> usize {
    layout.block_bytes(weights) * if layout == Held::Pairs { 2 } else { 1 }
}

/// Writes a block as integer tiles read it; what is another row's stays.
pub(super) fn hold(layout: Held, weights: DType, (quants, scale): (&[i64], f32), to: &mut [u8]) {
    let quants = quants.iter().map(|q| (q + layout.shift(weights)) as u8);
    let scale = scale.to_le_bytes();
    if layout == Held::Pairs {
        quants.enumerate().for_each(|(i, q)| to[i / 8 * 16 + i % 8] = q);
        to[2 * BLOCK..2 * BLOCK + 8].copy_from_slice(&[scale, scale].concat());
        return;
    }
    let mut block: Vec<u8> = match layout.halves(weights) {
        2 => quants.clone().map(|q| q >> 4).chain(quants.map(|q| q & 15)).collect(),
        _ => quants.collect(),
    };
    block.extend(scale);
    to[..block.len()].copy_from_slice(&block);
}

/// A row's blocks as integer tiles read them.
fn held(from: DType, layout: Held, row: &[u8], blocks: usize) -> Vec<u8> {
    let (quants, scales) = row.split_at(row.len() - 2 * blocks);
    let pitch = pitch(layout, from);
    let mut held = vec![0xa5; blocks * pitch];
    for (b, block) in quants.chunks(quants.len() / blocks).enumerate() {
        let quants: Vec<i64> = match from {
            DType::Q4 => {
                let half = |shift: u8| block.iter().map(move |q| i64::from(q >> shift & 15) - 8);
                half(0).chain(half(4)).collect()
            }
            _ => block.iter().map(|&q| i64::from(q as i8)).collect(),
        };
        let scale = f32::from_le_bytes([0, 0, scales[2 * b], scales[2 * b + 1]]);
        hold(layout, from, (&quants, scale), &mut held[b * pitch..]);
    }
    held
}
