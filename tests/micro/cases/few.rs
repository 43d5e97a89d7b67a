//! Products of few rows: dot products, and weight rows in lanes.

use lapidary_codegen::micro::{
    self, DOT_ROWS, Dot, Emit, Lanes, Microkernel, ROW_BLOCKS, Raw, Row, RowUnit, int8_quant_bytes,
    int8_row_bytes,
};
use lapidary_ir::{BLOCK, DType};

use super::{Case, Operand, Want, dot};
use crate::operands::{Source, Values, float_bytes};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

pub(super) fn dots(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    let mut add = |dtype: DType, k: usize| {
        let together = micro.dot_shapes(dtype).iter().copied();
        for (xs, rows) in [(1, 1), (1, 2), (1, DOT_ROWS)].into_iter().chain(together) {
            let pad = if xs == 1 { 0 } else { k % 3 };
            let (x, values) = match micro.operands {
                DType::Q8 => {
                    let (bytes, rows): (Vec<_>, _) =
                        (0..xs).map(|_| rounded_x(micro, dtype, k, source)).unzip();
                    (bytes.concat(), rows)
                }
                _ => source.rows(DType::F32, xs, k, 4 * pad),
            };
            let (weights, ws) = source.rows(dtype, rows, k, 0);
            let c_row = rows + pad;
            let mut want = vec![None; xs * c_row];
            for (t, x) in values.iter().enumerate() {
                for (n, w) in ws.iter().enumerate() {
                    want[t * c_row + n] = Some(dot(0.0, w.iter().zip(x.iter().copied())));
                }
            }
            let one = Dot::of_one_row(micro.operands, dtype, k, rows);
            let x_row = if micro.operands == DType::Q8 { int8_row_bytes(k) } else { (k + pad) * 4 };
            let (x_stride, c_stride) = (x_row as i32, c_row as i32 * 4);
            cases.push(Case {
                raw: Raw::Dot(if xs == 1 { one } else { Dot { xs, x_stride, c_stride, ..one } }),
                operands: vec![
                    Operand::In(x),
                    Operand::In(weights),
                    Operand::Out(vec![0xa5; 4 * xs * c_row]),
                ],
                want: Want::Floats(want),
            });
        }
    };
    for dtype in FLOATS.into_iter().filter(|_| micro.operands != DType::Q8) {
        [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 67, 131].into_iter().for_each(|k| add(dtype, k));
    }
    for dtype in [DType::Q8, DType::Q4] {
        [1, 2, 3, 4, 5, 7, 8, 9, 16, 21, 36, 58, 67]
            .into_iter()
            .for_each(|blocks| add(dtype, blocks * BLOCK));
    }
    cases
}

/// Whether quants of x lie in pairs of blocks.
fn is_paired(micro: &Microkernel, weights: DType) -> bool {
    matches!(micro.emit, Emit::PairedDot(_)) && weights == DType::Q4
}

/// A row of x rounded to 8 bits: quants, if asked both first halves of a pair of blocks, then both second halves;
/// scales; sums.
fn rounded_x(micro: &Microkernel, weights: DType, k: usize, source: &mut Source) -> (Vec<u8>, Vec<f64>) {
    let quants: Vec<i64> = (0..k).map(|_| source.quant(-127, 127)).collect();
    let scales: Vec<f32> = (0..k / BLOCK).map(|_| source.scale()).collect();
    let mut bytes = vec![0; int8_quant_bytes(k)];
    for (i, &quant) in quants.iter().enumerate() {
        let (pair, block, half, rest) = (i / 64, i / 32 % 2, i / 16 % 2, i % 16);
        let at = if is_paired(micro, weights) { 64 * pair + 32 * half + 16 * block + rest } else { i };
        bytes[at] = quant as i8 as u8;
    }
    bytes.extend(float_bytes(&scales));
    for block in quants.chunks(BLOCK) {
        let sum = block.iter().sum::<i64>() as i32;
        match micro.emit {
            Emit::RawDot(_) => bytes.extend((micro::MAGIC + 8.0 * sum as f32).to_le_bytes()),
            _ => bytes.extend(sum.to_le_bytes()),
        }
    }
    bytes.resize(int8_row_bytes(k), 0);
    (bytes, quants.iter().enumerate().map(|(i, &q)| q as f64 * f64::from(scales[i / BLOCK])).collect())
}

pub(super) fn lanes(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let (own, all) = (|d: &DType| micro::raw_reads(*d), matches!(micro.emit, Emit::BlockLanes(_)));
    let mut cases = vec![];
    let reads = |d: &DType| match micro.operands {
        DType::BF16 | DType::F32 => *d == DType::BF16,
        _ => d.is_quantised() && (all || own(d)),
    };
    for dtype in DType::ALL.into_iter().filter(reads) {
        let block = dtype.format().map_or(BLOCK, |f| f.block);
        // Sums of scales that are integers of many bits are not exact.
        if source.values == Values::Small && block > BLOCK {
            continue;
        }
        let lengths = if block > BLOCK { vec![1, 3] } else { vec![1, 2, 3, 6, 7, 8, 9, 10, 16, 21, 22] };
        for blocks in lengths.into_iter().filter(|blocks| (blocks * block).is_multiple_of(micro.kr)) {
            let most = micro.mr;
            for (most, rows) in [(1, 1), (3, 1), (3, 2), (3, 3), (most, 1 + blocks % 8), (most, most)] {
                let pads = if micro.operands.is_quantised() { vec![0] } else { vec![0, BLOCK] };
                for pad in pads {
                    cases.push(lane_case(micro, (dtype, blocks * block, pad), (most, rows), source));
                }
            }
            if micro.has_row() {
                cases.push(row_case((dtype, blocks * block), 1 + blocks % 3, source));
            }
        }
    }
    cases
}

fn lane_case(
    micro: &Microkernel,
    (dtype, k, pad): (DType, usize, usize),
    (most, rows): (usize, usize),
    source: &mut Source,
) -> Case {
    let nr = micro.shapes[0].1;
    let (x, xs) = match micro.operands {
        floats @ (DType::BF16 | DType::F32) => source.rows(floats, rows, k, 0),
        _ => {
            let (bytes, values): (Vec<_>, _) = (0..rows).map(|_| lane_row(k, source)).unzip();
            let mut bytes = panel_of(bytes, micro.lane_panel(most));
            if micro.has_tiled_lanes(most) {
                bytes.resize(micro.lane_rows(most) * k / BLOCK * micro::LANE_BLOCK, 0xa5);
            }
            (bytes, values)
        }
    };
    let (weights, ws) = source.rows(dtype, nr, k, pad);
    let weight_stride = (dtype.row_bytes(k) + pad) as i32;
    let c_row = nr + k / BLOCK % 3;
    let mut want = vec![None; most * c_row];
    for t in 0..rows {
        for n in 0..nr {
            want[t * c_row + n] = Some(dot(0.0, ws[n].iter().zip(xs[t].iter().copied())));
        }
    }
    Case {
        raw: Raw::Lanes(Lanes {
            streams: if rows.is_multiple_of(2) { 4 } else { 1 },
            dtype,
            k,
            rows: most,
            weight_stride,
            c_stride: c_row as i32 * 4,
            sums: micro.sums(),
        }),
        operands: vec![
            Operand::In(x),
            Operand::In(weights),
            Operand::Out(vec![0xa5; 4 * most * c_row]),
            Operand::Number(rows as u64),
        ],
        want: Want::Floats(want),
    }
}

/// One row of x against four times so many weight rows.
fn row_case((dtype, k): (DType, usize), each: usize, source: &mut Source) -> Case {
    let (blocks, x) = lane_row(k, source);
    let mut bytes = vec![0xa5; RowUnit::row_bytes(k)];
    let [half, block, pair] = RowUnit::quants(dtype);
    for (i, from) in blocks.chunks(micro::LANE_BLOCK).enumerate() {
        let (unit, i) = (i / ROW_BLOCKS * RowUnit::BYTES, i % ROW_BLOCKS);
        let numbers = [RowUnit::SCALES, RowUnit::SUMS, RowUnit::FIRSTS, RowUnit::WORTH];
        let numbers = numbers.map(|at| (at as usize + 4 * i, 4));
        let quants = [0, half].map(|at| (i % 2 * block + i / 2 * pair + at, BLOCK / 2));
        let mut from = from;
        for (at, n) in numbers.into_iter().chain(quants) {
            bytes[unit + at..][..n].copy_from_slice(&from[..n]);
            from = &from[n..];
        }
    }
    let (weights, ws) = source.rows(dtype, 4 * each, k, 0);
    Case {
        raw: Raw::Row(Row { dtype, k }),
        operands: vec![
            Operand::In(bytes),
            Operand::In(weights),
            Operand::Out(vec![0xa5; 4 * (4 * each + 1)]),
            Operand::Number(each as u64),
        ],
        want: Want::Floats(
            ws.iter().map(|w| Some(dot(0.0, w.iter().zip(x.iter().copied())))).chain([None]).collect(),
        ),
    }
}

/// Rows of x, of which so many have their blocks side by side: those that are not there are left out at the end, and
/// between blocks are bytes that nobody reads.
fn panel_of(rows: Vec<Vec<u8>>, panel: usize) -> Vec<u8> {
    if panel == 1 {
        return rows.concat();
    }
    let mut bytes = vec![];
    for block in 0..rows[0].len() / micro::LANE_BLOCK {
        bytes.resize(block * panel * micro::LANE_BLOCK, 0xa5);
        rows.iter().for_each(|row| bytes.extend(&row[block * micro::LANE_BLOCK..][..micro::LANE_BLOCK]));
    }
    bytes
}

/// A row of x rounded to 8 bits, block by block: the scale, -8 times the sum of quants, the same of the first half of
/// them, the scale times the first sum, the quants.
fn lane_row(k: usize, source: &mut Source) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut values) = (vec![], vec![]);
    for _ in 0..k / BLOCK {
        let scale = source.scale();
        let quants: Vec<i64> = (0..BLOCK).map(|_| source.quant(-127, 127)).collect();
        bytes.extend(scale.to_le_bytes());
        let sum = |quants: &[i64]| -8 * quants.iter().sum::<i64>() as i32;
        bytes.extend(sum(&quants).to_le_bytes());
        bytes.extend(sum(&quants[..BLOCK / 2]).to_le_bytes());
        bytes.extend((scale * sum(&quants) as f32).to_le_bytes());
        bytes.extend(quants.iter().map(|&q| q as i8 as u8));
        values.extend(quants.iter().map(|&q| q as f64 * f64::from(scale)));
    }
    (bytes, values)
}
