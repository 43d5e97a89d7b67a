//! The integer tile of AVX-512 VNNI on any machine: its code carried out instruction by instruction, against sums in f64.
//!
//! Instructions are decoded from the bytes. Memory is one array, addresses are places in it; one that is not in it, and an
//! instruction that is not listed, fail the test.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use lapidary_codegen::micro::{MICROKERNELS, Raw, Tile};
use lapidary_ir::{BLOCK, DType};

use super::harness::Random;

const LANES: usize = 16;

/// A register's number among its kind.
fn number(register: Register) -> usize {
    let first = if register.is_zmm() { Register::ZMM0 } else { Register::RAX };
    register as usize - first as usize
}

struct Cpu {
    general: [u64; 16],
    vectors: [[u32; LANES]; 32],
    zero: bool,
    memory: Vec<u8>,
}

impl Cpu {
    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.memory[at as usize..][..4].try_into().unwrap())
    }

    fn address(&self, i: &Instruction) -> u64 {
        let of = |r: Register| if r == Register::None { 0 } else { self.general[number(r)] };
        of(i.memory_base())
            .wrapping_add(of(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale())))
            .wrapping_add(i.memory_displacement64())
    }

    /// A vector operand, from a register or memory.
    fn vector(&self, i: &Instruction, operand: u32) -> [u32; LANES] {
        match i.op_kind(operand) {
            OpKind::Memory => {
                let at = self.address(i);
                std::array::from_fn(|lane| self.word(at + 4 * lane as u64))
            }
            _ => self.vectors[number(i.op_register(operand))],
        }
    }

    fn set(&mut self, i: &Instruction, value: [u32; LANES]) {
        match i.op_kind(0) {
            OpKind::Memory => {
                let at = self.address(i) as usize;
                for (to, word) in self.memory[at..at + 4 * LANES].chunks_exact_mut(4).zip(value) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
            }
            _ => self.vectors[number(i.op_register(0))] = value,
        }
    }

    /// Runs a function to its return.
    fn run(&mut self, code: &[u8]) {
        let mut at = 0;
        loop {
            let i = Decoder::with_ip(64, &code[at..], at as u64, DecoderOptions::NONE).decode();
            at += i.len();
            let general = |operand: u32| number(i.op_register(operand));
            let lanes = |f: &dyn Fn(usize) -> f32| std::array::from_fn(|lane| f(lane).to_bits());
            match i.mnemonic() {
                Mnemonic::Ret => return,
                Mnemonic::Vzeroupper => {}
                Mnemonic::Test => self.zero = self.general[general(0)] & self.general[general(1)] == 0,
                Mnemonic::Jne if !self.zero => at = i.near_branch_target() as usize,
                Mnemonic::Jne => {}
                Mnemonic::Add => self.general[general(0)] += i.immediate(1),
                Mnemonic::Dec => {
                    self.general[general(0)] -= 1;
                    self.zero = self.general[general(0)] == 0;
                }
                Mnemonic::Vpxord => {
                    let (a, b) = (self.vector(&i, 1), self.vector(&i, 2));
                    self.set(&i, std::array::from_fn(|lane| a[lane] ^ b[lane]));
                }
                Mnemonic::Vmovups | Mnemonic::Vmovdqu32 | Mnemonic::Vmovdqa32 => {
                    let value = self.vector(&i, 1);
                    self.set(&i, value);
                }
                Mnemonic::Vpslld => {
                    let value = self.vector(&i, 1);
                    self.set(&i, value.map(|word| word << i.immediate(2)));
                }
                Mnemonic::Vpbroadcastd | Mnemonic::Vbroadcastss => {
                    let word = self.word(self.address(&i));
                    self.set(&i, [word; LANES]);
                }
                Mnemonic::Vcvtdq2ps => {
                    let value = self.vector(&i, 1);
                    self.set(&i, lanes(&|lane| value[lane] as i32 as f32));
                }
                Mnemonic::Vmulps => {
                    let (a, b) =
                        (self.vector(&i, 1).map(f32::from_bits), self.vector(&i, 2).map(f32::from_bits));
                    self.set(&i, lanes(&|lane| a[lane] * b[lane]));
                }
                Mnemonic::Vfmadd231ps => {
                    let [c, a, b] = [0, 1, 2].map(|n| self.vector(&i, n).map(f32::from_bits));
                    self.set(&i, lanes(&|lane| a[lane].mul_add(b[lane], c[lane])));
                }
                // Unsigned bytes of the second operand times signed ones of the third.
                Mnemonic::Vpdpbusd => {
                    let [sums, a, b] = [0, 1, 2].map(|n| self.vector(&i, n));
                    let products = |lane: usize| {
                        let (a, b) = (a[lane].to_le_bytes(), b[lane].to_le_bytes());
                        a.iter().zip(b).map(|(&a, b)| i32::from(a) * i32::from(b as i8)).sum::<i32>()
                    };
                    self.set(
                        &i,
                        std::array::from_fn(|lane| (sums[lane] as i32).wrapping_add(products(lane)) as u32),
                    );
                }
                other => panic!("{other:?} is not listed"),
            }
        }
    }
}

/// One call of a tile: `blocks` blocks of k, added to what is there or not.
fn check(tile: Tile, code: &[u8], blocks: usize, accumulate: bool, random: &mut Random) {
    let (columns, nr, panel) = (tile.columns, tile.nr, tile.panel);
    let mut memory = vec![];
    let mut place = |bytes: Vec<u8>| -> Range<usize> {
        let start = memory.len();
        memory.extend(bytes);
        start..memory.len()
    };
    let integer =
        |random: &mut Random, low: i64, high: i64| low + random.below((high - low + 1) as usize) as i64;
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
    let x = place(bytes);
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
    let weights = place(bytes);
    let before: Vec<f32> = (0..nr * tile.c_stride as usize / 4).map(|_| random.float()).collect();
    let c = place(before.iter().flat_map(|f| f.to_le_bytes()).collect());

    let mut cpu = Cpu { general: [0; 16], vectors: [[0x7fc0_0000; LANES]; 32], zero: false, memory };
    let operands = [x.start, weights.start, c.start, blocks, usize::from(accumulate)];
    let registers = [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8];
    for (register, operand) in registers.into_iter().zip(operands) {
        cpu.general[number(register)] = operand as u64;
    }
    cpu.run(code);
    for n in 0..nr {
        for t in 0..tile.c_stride as usize / 4 {
            let at = n * tile.c_stride as usize / 4 + t;
            let found = f64::from(f32::from_bits(cpu.word((c.start + 4 * at) as u64)));
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
