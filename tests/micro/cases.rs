//! Calls of raw microkernels at their edges, and what they must come to.

use lapidary_codegen::micro::{
    self, DOT_ROWS, Dot, Emit, Held, Lanes, MICROKERNELS, Microkernel, Mix, Quantised, Raw, Scores, Soften,
    Tile, Widen, int8_quant_bytes, int8_row_bytes,
};
use lapidary_codegen::target::Target;
use lapidary_ir::{BLOCK, DType};

use crate::operands::{Source, Values, float_bytes};

/// An operand in memory, or a number.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    In(Vec<u8>),
    /// Results; one a call.
    Out(Vec<u8>),
    /// Written, of no interest afterwards.
    Work(Vec<u8>),
    /// So many bytes into an operand before.
    Within(usize, usize),
    Number(u64),
}

/// What results must be.
pub(crate) enum Want {
    /// f32: each a value and the size of what was summed up; none stays as it was.
    Floats(Vec<Option<(f64, f64)>>),
    Bytes(Vec<u8>),
    /// bf16, then f32.
    Shares {
        shares: Vec<f64>,
        state: Vec<f64>,
    },
}

/// One call.
pub(crate) struct Case {
    pub(crate) raw: Raw,
    pub(crate) operands: Vec<Operand>,
    pub(crate) want: Want,
}

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const STORED: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::Q8];

/// Every case of a row.
pub(crate) fn all(micro: &Microkernel, targets: &[Target], values: Values) -> Vec<Case> {
    let source = &mut Source::new(micro.name.len() as u64, values);
    match micro.emit {
        Emit::RawDot(_) | Emit::PairedDot(_) => dots(micro, source),
        Emit::RawLanes(_) | Emit::SplitLanes(_) | Emit::BlockLanes(_) => lanes(micro, source),
        Emit::RawTile(_) | Emit::ConfiguredTile(_) => tiles(micro, source),
        Emit::IntegerTile(..) => integer_tiles(micro, source),
        Emit::RawScores(_) => scores(micro, source),
        Emit::RawMix(_) => mixes(micro, source),
        Emit::RawSoften(_) => softenings(source),
        Emit::RawWiden(_) | Emit::RawHold(_) => widenings(micro, targets, source),
        Emit::Dot(_) | Emit::Inline(_) => unreachable!("no raw code"),
    }
}

/// A sum of products: its value and size.
fn dot<'a>(start: f64, pairs: impl Iterator<Item = (&'a f64, f64)>) -> (f64, f64) {
    pairs.fold((start, start.abs()), |(sum, size), (a, b)| (sum + a * b, size + (a * b).abs()))
}

fn dots(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    let mut add = |dtype: DType, k: usize| {
        let together = micro.dot_shapes(dtype).iter().copied();
        for (xs, rows) in [(1, 1), (1, DOT_ROWS)].into_iter().chain(together) {
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

fn lanes(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let (own, all) = (|d: &DType| micro::raw_reads(*d), matches!(micro.emit, Emit::BlockLanes(_)));
    let mut cases = vec![];
    let reads = |d: &DType| match micro.operands {
        DType::BF16 => *d == micro.operands,
        _ => d.is_quantised() && (all || own(d)),
    };
    for dtype in DType::ALL.into_iter().filter(reads) {
        let block = dtype.format().map_or(BLOCK, |f| f.block);
        // Sums of scales that are integers of many bits are not exact.
        if source.values == Values::Small && block > BLOCK {
            continue;
        }
        for blocks in if block > BLOCK { vec![1, 3] } else { vec![1, 2, 3, 7, 8, 9, 16, 21] } {
            let most = micro.mr;
            for (most, rows) in [(1, 1), (3, 1), (3, 2), (3, 3), (most, 1 + blocks % 8), (most, most)] {
                let pads = if micro.operands == DType::BF16 { vec![0, BLOCK] } else { vec![0] };
                for pad in pads {
                    cases.push(lane_case(micro, (dtype, blocks * block, pad), (most, rows), source));
                }
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
        DType::BF16 => source.rows(DType::BF16, rows, k, 0),
        _ => {
            let (bytes, values): (Vec<_>, _) = (0..rows).map(|_| lane_row(k, source)).unzip();
            (bytes.concat(), values)
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

/// What tiles start from: results, padding beside them; as bytes and as numbers.
fn before(source: &mut Source, n: usize) -> (Vec<u8>, Vec<f32>) {
    let floats: Vec<f32> = (0..n).map(|_| source.float()).collect();
    (float_bytes(&floats), floats)
}

fn tiles(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
    let mut cases = vec![];
    // Elements of k in one step of k.
    let step = if micro.operands == DType::BF16 { 2 } else { 1 };
    let whole = step.max(micro.kr);
    let lengths: Vec<usize> = match micro.is_configured() {
        true => [1, 2, 3, 16].iter().map(|n| n * micro.kr).collect(),
        false => [1, 2, 3, 4, 5, 7, 8, 33].iter().map(|n| n * whole).collect(),
    };
    for &(columns, nr) in micro.shapes {
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
                };
                cases.push(Case {
                    raw: Raw::Tile(tile),
                    operands: vec![
                        Operand::In(x),
                        Operand::In(weights),
                        Operand::Out(c),
                        Operand::Number((k / step) as u64),
                        Operand::Number(accumulate.into()),
                    ],
                    want: Want::Floats(want),
                });
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

fn integer_tiles(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
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
        }),
        operands: vec![
            Operand::In(x),
            Operand::In(held),
            Operand::Out(c),
            Operand::Number(blocks as u64),
            Operand::Number(accumulate.into()),
        ],
        want: Want::Floats(want),
    }
}

fn scores(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
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

fn mixes(micro: &Microkernel, source: &mut Source) -> Vec<Case> {
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

fn softenings(source: &mut Source) -> Vec<Case> {
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

fn widenings(micro: &Microkernel, targets: &[Target], source: &mut Source) -> Vec<Case> {
    // To what the tiles read that are chosen with this row.
    let holds = matches!(micro.emit, Emit::RawHold(_));
    let mut forms: Vec<(DType, Option<Held>)> = if holds { vec![] } else { vec![(DType::F32, None)] };
    let widen = Widen { from: DType::Q8, to: if holds { DType::Q8 } else { DType::F32 } };
    for target in
        targets.iter().filter(|t| micro::widening(&t.features, widen).is_some_and(|w| w.name == micro.name))
    {
        let tiles = || MICROKERNELS.iter().filter(|m| m.is_packed() && (m.runs_on)(&target.features));
        if !holds {
            let floats = tiles().filter(|m| m.operands != DType::Q8);
            forms.extend(floats.map(|m| (m.operands, None)));
        }
        forms.extend(tiles().find(|m| m.operands == DType::Q8).map(|m| (m.operands, m.held())));
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
                    raw: Raw::Widen(Widen { from, to }),
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
fn nearest_bf16(x: f32) -> u16 {
    let (below, rest) = ((x.to_bits() >> 16) as u16, x.to_bits() & 0xffff);
    below + u16::from(rest > 0x8000 || rest == 0x8000 && below & 1 == 1)
}

/// Bytes from a row's block to its next.
fn pitch(layout: Held, weights: DType) -> usize {
    layout.block_bytes(weights) * if layout == Held::Pairs { 2 } else { 1 }
}

/// Writes a block as integer tiles read it; what is another row's stays.
fn hold(layout: Held, weights: DType, (quants, scale): (&[i64], f32), to: &mut [u8]) {
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
