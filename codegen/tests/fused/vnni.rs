//! The integer code of AVX-512 VNNI on any machine, carried out by [`Cpu`], against sums in f64.

use std::ops::Range;

use lapidary_codegen::micro::{DOT_ROWS, Dot, MICROKERNELS, Raw, Tile, int8_quant_bytes, int8_row_bytes};
use lapidary_ir::{BLOCK, DType};

use super::cpu::Cpu;
use super::harness::Random;

/// Memory that begins with code; each part's place in it.
struct Memory(Vec<u8>);

impl Memory {
    fn place(&mut self, bytes: Vec<u8>) -> Range<usize> {
        let start = self.0.len();
        self.0.extend(bytes);
        start..self.0.len()
    }
}

fn integer(random: &mut Random, low: i64, high: i64) -> i64 {
    low + random.below((high - low + 1) as usize) as i64
}

/// One call of a tile: `blocks` blocks of k, added to what is there or not.
fn check(tile: Tile, code: &[u8], blocks: usize, accumulate: bool, random: &mut Random) {
    let (columns, nr, panel) = (tile.columns, tile.nr, tile.panel);
    let mut memory = Memory(code.to_vec());
    // x: quants, scales; as packing lays them out.
    let quants: Vec<i64> = (0..blocks * BLOCK * panel).map(|_| integer(random, -127, 127)).collect();
    let quant = |k: usize, t: usize| quants[k * panel + t];
    let x_scales: Vec<f32> = (0..blocks * panel).map(|_| random.float()).collect();
    let mut bytes = vec![];
    for b in 0..blocks {
        x_scales[b * panel..][..panel].iter().for_each(|s| bytes.extend(s.to_le_bytes()));
        for t in 0..panel {
            let sum: i64 = (0..BLOCK).map(|k| quant(b * BLOCK + k, t)).sum();
            bytes.extend((-8 * sum as i32).to_le_bytes());
        }
        for step in 0..BLOCK / 4 {
            for t in 0..panel {
                bytes.extend((0..4).map(|j| quant(b * BLOCK + 4 * step + j, t) as i8 as u8));
            }
        }
    }
    let x = memory.place(bytes);
    // Weights: unsigned by 8 or 128, then the scale.
    let (low, high, shift) = if tile.weights == DType::Q4 { (-8, 7, 8) } else { (-127, 127, 128) };
    let ws: Vec<i64> = (0..nr * blocks * BLOCK).map(|_| integer(random, low, high)).collect();
    let w_scales: Vec<f32> = (0..nr * blocks).map(|_| random.float()).collect();
    let mut bytes = vec![];
    for n in 0..nr {
        for b in 0..blocks {
            let row = &ws[(n * blocks + b) * BLOCK..][..BLOCK];
            bytes.extend(row.iter().map(|w| (w + shift) as u8));
            bytes.extend(w_scales[n * blocks + b].to_le_bytes());
        }
        bytes.resize((n + 1) * tile.weight_stride as usize, 0);
    }
    let weights = memory.place(bytes);
    let before: Vec<f32> = (0..nr * tile.c_stride as usize / 4).map(|_| random.float()).collect();
    let c = memory.place(before.iter().flat_map(|f| f.to_le_bytes()).collect());

    let mut cpu = Cpu::new(memory.0, &[x.start, weights.start, c.start, blocks, usize::from(accumulate)]);
    cpu.run();
    for n in 0..nr {
        for t in 0..tile.c_stride as usize / 4 {
            let at = n * tile.c_stride as usize / 4 + t;
            let found = f64::from(cpu.float(c.start + 4 * at));
            let old = f64::from(before[at]);
            if t >= columns {
                assert_eq!(found, old, "{tile:?}: a column beyond the tile's");
                continue;
            }
            let mut want = if accumulate { old } else { 0.0 };
            let mut size = want.abs();
            for b in 0..blocks {
                let row = &ws[(n * blocks + b) * BLOCK..][..BLOCK];
                let dot: i64 = row.iter().enumerate().map(|(k, w)| w * quant(b * BLOCK + k, t)).sum();
                let scale = f64::from(w_scales[n * blocks + b]) * f64::from(x_scales[b * panel + t]);
                want += dot as f64 * scale;
                size += (dot as f64 * scale).abs();
            }
            assert!((found - want).abs() <= 1e-6 * size, "{tile:?}, {n}, {t}: {found} instead of {want}");
        }
    }
}

#[test]
fn the_tile_is_exact_in_integers() {
    let micro = MICROKERNELS.iter().find(|m| m.name == "avx512_vnni_tile").expect("in the table");
    let mut random = Random(5);
    for &(columns, nr) in micro.shapes {
        for weights in [DType::Q8, DType::Q4] {
            for blocks in [1, 3] {
                let tile = Tile {
                    operands: DType::Q8,
                    weights,
                    columns,
                    nr,
                    panel: micro.mr,
                    weight_stride: (micro.held_bytes(weights, blocks * BLOCK) + 64) as i32,
                    c_stride: micro.mr as i32 * 4,
                };
                let code = micro.assemble(Raw::Tile(tile)).expect("assembles");
                for accumulate in [false, true] {
                    check(tile, &code, blocks, accumulate, &mut random);
                }
            }
        }
    }
}

/// Dot products of a row of x with `dot.rows` weight rows.
fn check_dot(dot: Dot, code: &[u8], random: &mut Random) {
    let (k, blocks) = (dot.k, dot.k / BLOCK);
    let mut memory = Memory(code.to_vec());
    // x: quants, for 4 bits both first halves of a pair of blocks, then both second halves; scales; sums.
    let quants: Vec<i64> = (0..k).map(|_| integer(random, -127, 127)).collect();
    let x_scales: Vec<f32> = (0..blocks).map(|_| random.float()).collect();
    let mut bytes = vec![0; int8_quant_bytes(k)];
    for (i, &quant) in quants.iter().enumerate() {
        let (pair, block, half, rest) = (i / 64, i / 32 % 2, i / 16 % 2, i % 16);
        let at = if dot.dtype == DType::Q4 { 64 * pair + 32 * half + 16 * block + rest } else { i };
        bytes[at] = quant as i8 as u8;
    }
    x_scales.iter().for_each(|s| bytes.extend(s.to_le_bytes()));
    for block in quants.chunks(BLOCK) {
        bytes.extend((block.iter().sum::<i64>() as i32).to_le_bytes());
    }
    bytes.resize(int8_row_bytes(k), 0);
    let x = memory.place(bytes);
    // Weights: quants, of 4 bits plus 8, a block's second half in the upper nibbles; then scales, bf16.
    let (low, high) = if dot.dtype == DType::Q4 { (-8, 7) } else { (-127, 127) };
    let ws: Vec<i64> = (0..dot.rows * k).map(|_| integer(random, low, high)).collect();
    let scale = |random: &mut Random| f32::from_bits(random.float().to_bits() & 0xffff_0000);
    let w_scales: Vec<f32> = (0..dot.rows * blocks).map(|_| scale(random)).collect();
    let mut bytes = vec![];
    for (row, scales) in ws.chunks(k).zip(w_scales.chunks(blocks)) {
        match dot.dtype {
            DType::Q4 => row.chunks(BLOCK).for_each(|block| {
                let (first, second) = block.split_at(BLOCK / 2);
                bytes.extend(first.iter().zip(second).map(|(a, b)| (a + 8) as u8 | ((b + 8) as u8) << 4));
            }),
            _ => bytes.extend(row.iter().map(|&w| w as i8 as u8)),
        }
        scales.iter().for_each(|s| bytes.extend(((s.to_bits() >> 16) as u16).to_le_bytes()));
    }
    let weights = memory.place(bytes);
    let c = memory.place(vec![0xa5; 4 * dot.rows]);

    let mut cpu = Cpu::new(memory.0, &[x.start, weights.start, c.start]);
    cpu.run();
    for n in 0..dot.rows {
        let found = f64::from(cpu.float(c.start + 4 * n));
        let (mut want, mut size) = (0.0, 0.0);
        for b in 0..blocks {
            let row = &ws[n * k + b * BLOCK..][..BLOCK];
            let sum: i64 = row.iter().zip(&quants[b * BLOCK..]).map(|(w, x)| w * x).sum();
            let scale = f64::from(w_scales[n * blocks + b]) * f64::from(x_scales[b]);
            want += sum as f64 * scale;
            size += row.iter().zip(&quants[b * BLOCK..]).map(|(w, x)| (w * x).abs()).sum::<i64>() as f64
                * scale.abs();
        }
        assert!((found - want).abs() <= 1e-6 * size, "{dot:?}, {n}: {found} instead of {want}");
    }
}

#[test]
fn dot_products_are_exact_in_integers() {
    let mut random = Random(6);
    let named = |name: &str| MICROKERNELS.iter().find(|m| m.name == name).expect("in the table");
    let (evex, vex) = (named("vnni_dot"), named("avxvnni_dot"));
    for (micro, dtype) in [(evex, DType::Q8), (evex, DType::Q4), (vex, DType::Q8), (vex, DType::Q4)] {
        for rows in [1, DOT_ROWS] {
            for blocks in [1, 2, 3, 7, 8, 9, 16, 21, 36] {
                let dot = Dot { operands: DType::Q8, dtype, k: blocks * BLOCK, rows };
                let code = micro.assemble(Raw::Dot(dot)).expect("assembles");
                check_dot(dot, &code, &mut random);
            }
        }
    }
}
