//! Products of weights as they are stored, which are widened meanwhile.

use lapidary_codegen::micro::{self, Microkernel, Raw, StoredTile};
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
                cases.push(tile(micro, source, (columns, nr), weights, rounds * elements));
            }
        }
    }
    cases
}

fn tile(
    micro: &Microkernel,
    source: &mut Source,
    (columns, nr): (usize, usize),
    weights: DType,
    k: usize,
) -> Case {
    // Rows of x beyond the tile's columns hold NaN.
    let mut x = vec![0xff; k * micro.mr * 2];
    let mut xs = vec![vec![]; columns];
    for (t, values) in xs.iter_mut().enumerate() {
        let row = source.row(DType::BF16, k);
        for (i, element) in row.bytes.chunks(2).enumerate() {
            let place = (i / 2 * micro.mr + t) * 2 + i % 2;
            x[place * 2..][..2].copy_from_slice(element);
        }
        *values = row.values;
    }
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
        raw: Raw::StoredTile(StoredTile { weights, k, columns, panel: micro.mr, c_stride: c_row as i32 * 4 }),
        operands: vec![
            Operand::In(x),
            Operand::In(rows),
            Operand::Out(c),
            Operand::Work(vec![0xa5; micro.stored_bytes(weights)]),
        ],
        want: Want::Floats(want),
    }
}
