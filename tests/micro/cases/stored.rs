//! Products of weights as they are stored, which are widened meanwhile, and products beside which others are.

use lapidary_codegen::micro::{self, Fetched, Microkernel, Raw, StoredTile, Streams, Tile, Widened};
use lapidary_ir::DType;

use super::widenings::nearest_bf16;
use super::{Case, Operand, Want, before, dot};
use crate::operands::{Source, Values};

pub(super) fn tiles(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    for weights in DType::ALL.into_iter().filter(|d| d.is_quantised()) {
        let Some(elements) = micro.elements_stored(weights) else { continue };
        // Others' sums of small numbers are not exact in any order.
        if source.values == Values::Small && !micro::raw_reads(weights) {
            continue;
        }
        for &(columns, nr) in micro.shapes {
            for rounds in [1, 2, 3] {
                cases.push(tile(micro, source, (columns, nr), weights, (rounds, elements)));
            }
        }
        // More steps than widening takes, as many, and fewer.
        for (rows, steps) in [(4, 9), (8, 8), (16, 2), (4, 1)] {
            for widens in [true, false] {
                cases.push(beside(micro, source, (rows, steps), (weights, elements), widens));
            }
        }
    }
    cases
}

/// Products of weights that are widened already, beside which the first elements of others are, twice as many as the
/// rows that follow have: what is looked at is what they are widened to, or the sums.
fn beside(
    micro: &Microkernel,
    source: &mut Source,
    (rows, steps): (usize, usize),
    (weights, elements): (DType, usize),
    widens: bool,
) -> Case {
    let (columns, nr) = micro.shapes[0];
    let (k, stored) = (steps * micro.kr, 3 * elements);
    let (x, xs) = panel(micro, source, columns, k);
    let (held, ws) = source.rows(DType::BF16, nr, k, 64);
    let (c, old) = before(source, nr * micro.mr);
    let (rows_bytes, values) = source.rows(weights, rows, stored, 0);
    let stride = elements * 2 * 2 + 64;
    let tile = Tile {
        operands: DType::BF16,
        weights: DType::BF16,
        columns,
        nr,
        panel: micro.mr,
        weight_stride: (k * 2 + 64) as i32,
        c_stride: micro.mr as i32 * 4,
        ahead: 0,
        fours: false,
        streams: Some(Streams {
            fetched: Fetched { rows: 1, stride: 64, lines: 1 },
            widened: Some(Widened { weights, k: stored, rows: rows as i32, stride: stride as i32 }),
        }),
    };
    let before = vec![0xa5; rows * stride];
    let (c, to, want) = if widens {
        let mut want = before.clone();
        for (row, values) in want.chunks_mut(stride).zip(&values) {
            let words = values[..2 * elements].iter().flat_map(|&v| nearest_bf16(v as f32).to_le_bytes());
            row.iter_mut().zip(words).for_each(|(to, byte)| *to = byte);
        }
        (Operand::Work(c), Operand::Out(before), Want::Bytes(want))
    } else {
        let sums = ws.iter().flat_map(|w| xs.iter().map(move |x| (w, x)));
        let sums = sums.zip(&old).map(|((w, x), &c)| Some(dot(c.into(), w.iter().zip(x.iter().copied()))));
        let want = Want::Floats(sums.collect());
        (Operand::Out(c), Operand::Work(before), want)
    };
    let last = weights.format().map_or(0, |f| f.plane_at(f.planes.len() - 1, stored));
    Case {
        raw: Raw::Tile(tile),
        operands: vec![
            Operand::In(x),
            Operand::In(held),
            c,
            Operand::Number((k / 2) as u64),
            Operand::Number(1),
            Operand::Number(0),
            Operand::In(rows_bytes),
            Operand::Within(6, last),
            to,
            Operand::Number(2),
        ],
        want,
    }
}

/// So many rows of x in a panel, and what they are worth; rows beyond them hold NaN.
fn panel(micro: &Microkernel, source: &mut Source, columns: usize, k: usize) -> (Vec<u8>, Vec<Vec<f64>>) {
    let mut x = vec![0xff; k * micro.mr * 2];
    let rows = (0..columns).map(|t| {
        let row = source.row(DType::BF16, k);
        for (i, element) in row.bytes.chunks(2).enumerate() {
            let place = (i / 2 * micro.mr + t) * 2 + i % 2;
            x[place * 2..][..2].copy_from_slice(element);
        }
        row.values
    });
    let values = rows.collect();
    (x, values)
}

fn tile(
    micro: &Microkernel,
    source: &mut Source,
    (columns, nr): (usize, usize),
    weights: DType,
    (rounds, elements): (usize, usize),
) -> Case {
    let (k, streams) = (rounds * elements, [1, 4][rounds % 2]);
    let (x, xs) = panel(micro, source, columns, k);
    let (rows, ws) = source.rows(weights, nr, k, 0);
    let rounded = |w: &f64| f64::from(f32::from_bits(u32::from(nearest_bf16(*w as f32)) << 16));
    let ws: Vec<Vec<f64>> = ws.iter().map(|row| row.iter().map(rounded).collect()).collect();
    let c_row = micro.mr + 16;
    let (c, _) = before(source, nr * c_row);
    let mut want = vec![None; nr * c_row];
    for (n, row) in ws.iter().enumerate() {
        for (t, x) in xs.iter().enumerate() {
            want[n * c_row + t] = Some(dot(0.0, row.iter().zip(x.iter().copied())));
        }
    }
    Case {
        raw: Raw::StoredTile(StoredTile {
            weights,
            k,
            columns,
            panel: micro.mr,
            c_stride: c_row as i32 * 4,
            streams,
        }),
        operands: vec![
            Operand::In(x),
            Operand::In(rows),
            Operand::Out(c),
            Operand::Work(vec![0xa5; micro.stored_bytes(weights)]),
        ],
        want: Want::Floats(want),
    }
}
