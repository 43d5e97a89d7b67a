//! What attention is made of: scores, their shares, weighted sums of rows.

use lapidary_codegen::micro::{self, Microkernel, Mix, Raw, Scores, Soften};
use lapidary_ir::{BLOCK, DType};

use super::{Case, Operand, Want, before, dot};
use crate::operands::{Source, float_bytes};

/// What keys and values are stored in.
const STORED: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::Q8];

pub(super) fn scores(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    for &(most, rows) in micro.shapes {
        for dtype in STORED {
            for (heads, blocks, pad) in [(1, 1, 0), (most, 1, 3), (1, 2, 1), (most, 3, 0), (most, 8, 5)] {
                let k = blocks * BLOCK;
                let (queries, qs) = source.rows(DType::F32, heads, k, 4 * pad);
                let (keys, values) = source.rows(dtype, rows, k, 0);
                let c_row = rows + pad;
                let mut want = vec![None; heads * c_row];
                for h in 0..heads {
                    for r in 0..rows {
                        want[h * c_row + r] = Some(dot(0.0, values[r].iter().zip(qs[h].iter().copied())));
                    }
                }
                let (q_stride, c_stride) = ((k + pad) as i32 * 4, c_row as i32 * 4);
                cases.push(Case {
                    raw: Raw::Scores(Scores { dtype, k, rows, heads, q_stride, c_stride }),
                    operands: vec![
                        Operand::In(queries),
                        Operand::In(keys),
                        Operand::Out(vec![0xa5; 4 * heads * c_row]),
                        Operand::Within(1, 0),
                    ],
                    want: Want::Floats(want),
                });
            }
        }
    }
    cases
}

pub(super) fn mixes(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    for &(widest, most) in micro.shapes {
        for dtype in STORED {
            for columns in (BLOCK..=widest).step_by(BLOCK) {
                for (heads, rows, column, pad) in [(1, 1, 0, 0), (most, 3, BLOCK, 2), (most, 9, 2 * BLOCK, 0)]
                {
                    let k = columns + 2 * BLOCK;
                    let (bytes, values) = source.rows(dtype, rows, k, 0);
                    let (weights, ws) = source.rows(DType::F32, heads, rows, 4 * pad);
                    let c_row = columns + pad;
                    let (c, old) = before(source, heads * c_row);
                    let mut want = vec![None; heads * c_row];
                    for h in 0..heads {
                        for i in 0..columns {
                            let start = f64::from(old[h * c_row + i]);
                            let column = values.iter().map(|row| row[column + i]);
                            want[h * c_row + i] = Some(dot(start, ws[h].iter().zip(column)));
                        }
                    }
                    let (weight_stride, c_stride) = ((rows + pad) as i32 * 4, c_row as i32 * 4);
                    cases.push(Case {
                        raw: Raw::Mix(Mix { dtype, k, column, columns, heads, weight_stride, c_stride }),
                        operands: vec![
                            Operand::In(bytes),
                            Operand::In(weights),
                            Operand::Out(c),
                            Operand::Number(rows as u64),
                            Operand::Within(0, 0),
                        ],
                        want: Want::Floats(want),
                    });
                }
            }
        }
    }
    cases
}

pub(super) fn softenings(source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    for (panel, cap) in [(48, Some(20.0)), (32, None), (48, None)] {
        for online in [false, true] {
            for (count, columns) in [(1, 1), (2, 16), (7, 17), (63, panel), (64, panel)] {
                cases.push(softening(source, (panel, cap, online), (count, columns)));
            }
        }
    }
    cases
}

fn softening(
    source: &mut Source,
    (panel, cap, online): (usize, Option<f32>, bool),
    (count, columns): (usize, usize),
) -> Case {
    const KEYS: usize = 64;
    const FIRST: usize = 1000;
    let scale = 5.5f32;
    let products: Vec<f32> = (0..KEYS * panel).map(|_| source.float()).collect();
    let ranges: Vec<(usize, usize)> = (0..panel)
        .map(|column| match column % 5 {
            // Nothing, and everything.
            3 => (0, 0),
            4 => (0, FIRST + count),
            _ => {
                let low = FIRST + source.integer(0, count as i64) as usize - count / 2;
                (low, low + source.integer(0, (FIRST + count).saturating_sub(low) as i64) as usize)
            }
        })
        .collect();
    let before: Vec<f32> = (0..panel).map(|_| source.float() + 9.0).collect();
    let highest: Vec<f32> =
        (0..panel).map(|column| if column % 2 == 0 { micro::UNSEEN } else { source.float() }).collect();
    // Of columns that are walked along with those that there are.
    let walked = columns.next_multiple_of(16);
    let mut shares = vec![0.0; KEYS * panel];
    let mut state: Vec<Vec<f64>> =
        [&before, &highest, &before].map(|row| row.iter().map(|&x| f64::from(x)).collect()).into();
    for column in 0..walked {
        let score = |key: usize| {
            let score = f64::from(products[key * panel + column]) * f64::from(scale);
            let score = cap.map_or(score, |cap: f32| f64::from(cap) * (score / f64::from(cap)).tanh());
            score * std::f64::consts::LOG2_E
        };
        let seen = |key: &usize| (ranges[column].0..ranges[column].1).contains(&(FIRST + key));
        let old = f64::from(highest[column]);
        let most = (0..count).filter(seen).map(score).fold(old, f64::max);
        let (off, times) = if online { (most, (old - most).max(-126.0).exp2()) } else { (0.0, 1.0) };
        let mut total = f64::from(before[column]) * times;
        for key in (0..count).filter(seen) {
            let share = (score(key) - off).exp2();
            shares[(key / 2 * panel + column) * 2 + key % 2] = share;
            total += share;
        }
        state[0][column] = total;
        if online {
            (state[1][column], state[2][column]) = (most, times);
        }
    }
    let ints = |of: fn(&(usize, usize)) -> usize| -> Vec<u8> {
        ranges.iter().flat_map(|range| (of(range) as i32).to_le_bytes()).collect()
    };
    // Shares of columns that are not walked, and the state, stay as they were; ranges come before the rest of it.
    let mut out = vec![0; 2 * shares.len()];
    let at = out.len();
    out.extend([ints(|range| range.0), ints(|range| range.1)].concat());
    out.extend([float_bytes(&before), float_bytes(&highest), float_bytes(&before)].concat());
    let ranges =
        out[at..at + 8 * panel].as_chunks().0.iter().map(|word| f64::from(f32::from_le_bytes(*word)));
    let state = ranges.chain(state.concat()).collect();
    Case {
        raw: Raw::Soften(Soften {
            panel,
            apart: panel,
            keys: KEYS,
            scale: scale.to_bits(),
            cap: cap.map(f32::to_bits),
            online,
        }),
        operands: vec![
            Operand::Work(float_bytes(&products)),
            Operand::Out(out),
            Operand::Within(1, at),
            Operand::Number(FIRST as u64),
            Operand::Number(count as u64),
            Operand::Number(columns as u64),
        ],
        want: Want::Shares { shares, state },
    }
}
