//! Products of many rows: tiles of floats and of integers.

use lapidary_codegen::micro::{Fetched, Held, Microkernel, Raw, Streams, Tile};
use lapidary_ir::{BLOCK, DType};

use super::widenings::{hold, pitch};
use super::{Case, Operand, Want, before, dot};
use crate::operands::{Source, float_bytes};

pub(super) fn tiles(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    // Elements of k in one step of k.
    let step = if micro.operands == DType::BF16 { 2 } else { 1 };
    let whole = step.max(micro.kr);
    let lengths: Vec<usize> = match micro.is_configured() {
        true => [1, 2, 3, 16].iter().map(|n| n * micro.kr).collect(),
        false => [1, 2, 3, 4, 5, 7, 8, 33].iter().map(|n| n * whole).collect(),
    };
    // Half the weight rows too, where few rows of x wait for memory.
    let halves =
        micro.shapes.iter().filter(|_| micro.is_configured()).map(|&(columns, nr)| (columns, nr / 2));
    for (columns, nr) in micro.shapes.iter().copied().chain(halves) {
        for (at, &k) in lengths.iter().enumerate() {
            let forms = if micro.has_fours() { vec![false, true] } else { vec![false] };
            for (accumulate, fours) in
                [false, true].into_iter().flat_map(|a| forms.iter().map(move |f| (a, *f)))
            {
                let pad = [0, 16][at % 2];
                // Elements of a row of x that follow one another.
                let run = if fours { 4 } else { step };
                // Rows of x beyond the tile's columns hold NaN.
                let mut x = vec![0xff; k * micro.mr * micro.operands.bytes()];
                let (size, mut xs) = (micro.operands.bytes(), vec![vec![]; columns]);
                for (t, values) in xs.iter_mut().enumerate() {
                    let row = source.row(micro.operands, k);
                    for (i, element) in row.bytes.chunks(size).enumerate() {
                        let place = (i / run * micro.mr + t) * run + i % run;
                        x[place * size..][..size].copy_from_slice(element);
                    }
                    *values = row.values;
                }
                let (mut weights, ws) = source.rows(micro.operands, nr, k, pad * size);
                if fours {
                    weights = in_fours(&weights, (k + pad) * size, k);
                }
                let c_row = micro.mr + pad;
                let (c, old) = before(source, nr * c_row);
                let mut want = vec![None; nr * c_row];
                for n in 0..nr {
                    for t in 0..columns {
                        let start = if accumulate { f64::from(old[n * c_row + t]) } else { 0.0 };
                        want[n * c_row + t] = Some(dot(start, ws[n].iter().zip(xs[t].iter().copied())));
                    }
                }
                let tile = Tile {
                    operands: micro.operands,
                    weights: micro.operands,
                    columns,
                    nr,
                    panel: micro.mr,
                    weight_stride: ((k + pad) * size) as i32,
                    c_stride: c_row as i32 * 4,
                    ahead: if micro.is_configured() { 1024 * pad as i32 } else { 0 },
                    fours,
                    streams: (micro.is_configured() && pad > 0).then_some(Streams {
                        fetched: Fetched { rows: 2, stride: 128, lines: 1 },
                        widened: None,
                    }),
                };
                let mut operands = vec![
                    Operand::In(x),
                    Operand::In(weights),
                    Operand::Out(c),
                    Operand::Number((k / step) as u64),
                    Operand::Number(accumulate.into()),
                ];
                // What is fetched may lie anywhere.
                operands.extend(tile.streams.map(|_| Operand::Number(0)));
                cases.push(Case { raw: Raw::Tile(tile), operands, want: Want::Floats(want) });
            }
        }
    }
    cases
}

/// Rows of bf16 in pairs, four elements of each in turn.
fn in_fours(rows: &[u8], stride: usize, k: usize) -> Vec<u8> {
    let mut zipped = vec![0xff; rows.len()];
    for (n, row) in rows.chunks(stride).enumerate() {
        for (i, four) in row[..2 * k].chunks(8).enumerate() {
            let at = n / 2 * 2 * stride + n % 2 * 8 + 16 * i;
            zipped[at..at + 8].copy_from_slice(four);
        }
    }
    zipped
}

pub(super) fn integer_tiles(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    for &(columns, nr) in micro.shapes {
        for weights in [DType::Q8, DType::Q4] {
            for (blocks, accumulate) in [(1, false), (1, true), (3, false), (3, true)] {
                cases.push(integer_tile(micro, (columns, nr), weights, (blocks, accumulate), source));
            }
        }
    }
    cases
}

fn integer_tile(
    micro: &Microkernel,
    (columns, nr): (usize, usize),
    weights: DType,
    (blocks, accumulate): (usize, bool),
    source: &mut Source,
) -> Case {
    let panel = micro.mr;
    let Some(layout) = micro.held() else { unreachable!("tiles of integers alone") };
    let run = layout.run();
    // x, block by block: scales, -8 times the sums of quants, quants four or eight of a row at a time.
    let quants: Vec<i64> = (0..blocks * BLOCK * panel).map(|_| source.quant(-127, 127)).collect();
    let quant = |k: usize, t: usize| quants[k * panel + t];
    let x_scales: Vec<f32> = (0..blocks * panel).map(|_| source.scale()).collect();
    let mut x = vec![];
    for b in 0..blocks {
        x.extend(float_bytes(&x_scales[b * panel..][..panel]));
        for t in 0..panel {
            let sum: i64 = (0..BLOCK).map(|k| quant(b * BLOCK + k, t)).sum();
            x.extend((-8 * sum as i32).to_le_bytes());
        }
        for step in 0..BLOCK / run {
            for t in 0..panel {
                x.extend((0..run).map(|j| quant(b * BLOCK + run * step + j, t) as i8 as u8));
            }
        }
    }
    let (low, high) = if weights == DType::Q4 { (-8, 7) } else { (-127, 127) };
    let stride = micro.held_bytes(weights, blocks * BLOCK) + 64;
    let ws: Vec<i64> = (0..nr * blocks * BLOCK).map(|_| source.quant(low, high)).collect();
    let w_scales: Vec<f32> = (0..nr * blocks).map(|_| source.scale()).collect();
    let mut held = vec![0xff; nr * stride];
    for (n, b) in (0..nr).flat_map(|n| (0..blocks).map(move |b| (n, b))) {
        let block = &ws[(n * blocks + b) * BLOCK..][..BLOCK];
        let row = if layout == Held::Pairs { n / 2 * 2 * stride + n % 2 * 8 } else { n * stride };
        hold(
            layout,
            weights,
            (block, w_scales[n * blocks + b]),
            &mut held[row + b * pitch(layout, weights)..],
        );
    }
    let c_row = panel + 4;
    let (c, old) = before(source, nr * c_row);
    let mut want = vec![None; nr * c_row];
    for n in 0..nr {
        for t in 0..columns {
            let start = if accumulate { f64::from(old[n * c_row + t]) } else { 0.0 };
            let mut sum = (start, start.abs());
            for b in 0..blocks {
                let row = &ws[(n * blocks + b) * BLOCK..][..BLOCK];
                let dot: i64 = row.iter().enumerate().map(|(k, w)| w * quant(b * BLOCK + k, t)).sum();
                let part =
                    dot as f64 * f64::from(w_scales[n * blocks + b]) * f64::from(x_scales[b * panel + t]);
                sum = (sum.0 + part, sum.1 + part.abs());
            }
            want[n * c_row + t] = Some(sum);
        }
    }
    let (weight_stride, c_stride) = (stride as i32, c_row as i32 * 4);
    let fetched = Fetched { rows: 1, stride: 0, lines: blocks as i32 };
    let streams = micro.is_fetching().then_some(Streams { fetched, widened: None });
    let mut operands = vec![
        Operand::In(x),
        Operand::In(held),
        Operand::Out(c),
        Operand::Number(blocks as u64),
        Operand::Number(accumulate.into()),
    ];
    // What is fetched may lie anywhere.
    operands.extend(streams.map(|_| Operand::Number(0)));
    Case {
        raw: Raw::Tile(Tile {
            operands: DType::Q8,
            weights,
            columns,
            nr,
            panel,
            weight_stride,
            c_stride,
            ahead: 0,
            fours: false,
            streams,
        }),
        operands,
        want: Want::Floats(want),
    }
}
