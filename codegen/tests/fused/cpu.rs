//! A CPU with AVX-512 VNNI in software: carries out machine code instruction by instruction.
//!
//! Instructions are decoded from the bytes. Memory is one array, addresses are places in it; a read or write that is not in it,
//! and an instruction that is not listed, fail the test. What is fetched ahead need not be there.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

const LANES: usize = 16;

/// A vector register, 32 bits a lane.
type Vector = [u32; LANES];

/// A register's number among its kind, and its 32-bit words.
fn register(register: Register) -> (usize, usize) {
    let (first, words) = match register {
        r if r.is_zmm() => (Register::ZMM0, 16),
        r if r.is_ymm() => (Register::YMM0, 8),
        r if r.is_xmm() => (Register::XMM0, 4),
        r if r.is_gpr32() => (Register::EAX, 1),
        _ => (Register::RAX, 2),
    };
    (register as usize - first as usize, words)
}

fn number(of: Register) -> usize {
    register(of).0
}

fn floats(vector: Vector) -> [f32; LANES] {
    vector.map(f32::from_bits)
}

/// Lane by lane.
fn lanes<T>(f: impl Fn(usize) -> T, bits: impl Fn(T) -> u32) -> Vector {
    std::array::from_fn(|lane| bits(f(lane)))
}

/// Halves of 16 bits, each by itself.
fn halves(vector: Vector, f: impl Fn(u16) -> u16) -> Vector {
    vector.map(|word| u32::from(f(word as u16)) | u32::from(f((word >> 16) as u16)) << 16)
}

pub(crate) struct Cpu {
    general: [u64; 16],
    vectors: [Vector; 32],
    zero: bool,
    /// The code first: its own tables are read from there.
    memory: Vec<u8>,
}

impl Cpu {
    /// With System V arguments.
    pub(crate) fn new(memory: Vec<u8>, arguments: &[usize]) -> Self {
        let mut cpu = Self { general: [0; 16], vectors: [[0x7fc0_0000; LANES]; 32], zero: false, memory };
        let registers = [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8];
        for (register, &argument) in registers.into_iter().zip(arguments) {
            cpu.general[number(register)] = argument as u64;
        }
        cpu
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        self.memory[at as usize..][..N].try_into().unwrap()
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn float(&self, at: usize) -> f32 {
        f32::from_bits(self.word(at as u64))
    }

    fn address(&self, i: &Instruction) -> u64 {
        if i.is_ip_rel_memory_operand() {
            return i.ip_rel_memory_address();
        }
        let of = |r: Register| if r == Register::None { 0 } else { self.general[number(r)] };
        of(i.memory_base())
            .wrapping_add(of(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale())))
            .wrapping_add(i.memory_displacement64())
    }

    /// A vector operand, from a register or memory: as wide as the first one, or what memory gives, then zeros.
    fn vector(&self, i: &Instruction, operand: u32) -> Vector {
        match i.op_kind(operand) {
            OpKind::Memory => {
                let (at, words) = (self.address(i), i.memory_size().size() / 4);
                lanes(|lane| if lane < words { self.word(at + 4 * lane as u64) } else { 0 }, |word| word)
            }
            _ => self.vectors[number(i.op_register(operand))],
        }
    }

    /// The first operand, a vector register or memory. What a register has beyond the operand's width is zeroed.
    fn set(&mut self, i: &Instruction, value: Vector) {
        match i.op_kind(0) {
            OpKind::Memory => {
                let at = self.address(i) as usize;
                let bytes = i.memory_size().size();
                for (to, word) in self.memory[at..at + bytes].chunks_exact_mut(4).zip(value) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
            }
            _ => {
                let (number, words) = register(i.op_register(0));
                self.vectors[number] = lanes(|lane| if lane < words { value[lane] } else { 0 }, |word| word);
            }
        }
    }

    /// Runs the function at the start of memory to its return.
    pub(crate) fn run(&mut self) {
        let mut at = 0;
        loop {
            let i = Decoder::with_ip(64, &self.memory[at..], at as u64, DecoderOptions::NONE).decode();
            at += i.len();
            let general = |operand: u32| number(i.op_register(operand));
            let count = || u32::from(i.immediate8());
            match i.mnemonic() {
                Mnemonic::Ret => return,
                Mnemonic::Vzeroupper | Mnemonic::Prefetcht1 => {}
                Mnemonic::Test => self.zero = self.general[general(0)] & self.general[general(1)] == 0,
                Mnemonic::Jne if !self.zero => at = i.near_branch_target() as usize,
                Mnemonic::Jne => {}
                Mnemonic::Add => self.general[general(0)] += i.immediate(1),
                Mnemonic::Dec => {
                    self.general[general(0)] -= 1;
                    self.zero = self.general[general(0)] == 0;
                }
                Mnemonic::Mov => self.general[general(0)] = i.immediate(1),
                Mnemonic::Lea => self.general[general(0)] = self.address(&i),
                _ => {
                    let value = self.result(&i, count);
                    self.set(&i, value);
                }
            }
        }
    }

    /// What a vector instruction sets its first operand to.
    fn result(&self, i: &Instruction, count: impl Fn() -> u32) -> Vector {
        let vector = |operand| self.vector(i, operand);
        let float = |operand| floats(self.vector(i, operand));
        let (word, bits) = (|word: u32| word, f32::to_bits);
        match i.mnemonic() {
            Mnemonic::Vmovups
            | Mnemonic::Vmovss
            | Mnemonic::Vmovdqu
            | Mnemonic::Vmovdqu32
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovdqa32 => vector(1),
            Mnemonic::Vmovd => {
                let value = match i.op_kind(1) {
                    OpKind::Memory => self.word(self.address(i)),
                    _ => self.general[number(i.op_register(1))] as u32,
                };
                lanes(|lane| if lane == 0 { value } else { 0 }, word)
            }
            Mnemonic::Vpbroadcastd | Mnemonic::Vbroadcastss => [vector(1)[0]; LANES],
            Mnemonic::Vpxord | Mnemonic::Vpxor => {
                let (a, b) = (vector(1), vector(2));
                lanes(|lane| a[lane] ^ b[lane], word)
            }
            Mnemonic::Vpand => {
                let (a, b) = (vector(1), vector(2));
                lanes(|lane| a[lane] & b[lane], word)
            }
            Mnemonic::Vpcmpeqd => {
                let (a, b) = (vector(1), vector(2));
                lanes(|lane| if a[lane] == b[lane] { u32::MAX } else { 0 }, word)
            }
            Mnemonic::Vpsubd => {
                let (a, b) = (vector(1), vector(2));
                lanes(|lane| a[lane].wrapping_sub(b[lane]), word)
            }
            Mnemonic::Vpslld => vector(1).map(|word| word << count()),
            Mnemonic::Vpsrlw => halves(vector(1), |half| half >> count()),
            Mnemonic::Vpmovzxbd => {
                let bytes: [u8; 8] = self.bytes(self.address(i));
                lanes(|lane| bytes.get(lane).map_or(0, |&b| u32::from(b)), word)
            }
            Mnemonic::Vpmovzxwd => {
                let bytes: [u8; 16] = self.bytes(self.address(i));
                let half = |n: usize| u32::from(bytes[2 * n]) | u32::from(bytes[2 * n + 1]) << 8;
                lanes(|lane| if lane < 8 { half(lane) } else { 0 }, word)
            }
            Mnemonic::Vpermps => {
                let (index, from) = (vector(1), vector(2));
                lanes(|lane| from[index[lane] as usize % 8], word)
            }
            Mnemonic::Vextractf128 => {
                let from = vector(1);
                lanes(|lane| from[(lane + 4) % LANES], word)
            }
            Mnemonic::Vcvtdq2ps => {
                let from = vector(1);
                lanes(|lane| from[lane] as i32 as f32, bits)
            }
            Mnemonic::Vaddps => {
                let (a, b) = (float(1), float(2));
                lanes(|lane| a[lane] + b[lane], bits)
            }
            // Of 128 bits alone.
            Mnemonic::Vhaddps => {
                let (a, b) = (float(1), float(2));
                let pairs = [a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]];
                lanes(|lane| pairs[lane % 4], bits)
            }
            Mnemonic::Vmulps => {
                let (a, b) = (float(1), float(2));
                lanes(|lane| a[lane] * b[lane], bits)
            }
            Mnemonic::Vfmadd231ps => {
                let [c, a, b] = [0, 1, 2].map(float);
                lanes(|lane| a[lane].mul_add(b[lane], c[lane]), bits)
            }
            // Unsigned bytes of the second operand times signed ones of the third.
            Mnemonic::Vpdpbusd => {
                let [sums, a, b] = [0, 1, 2].map(vector);
                let products = |lane: usize| {
                    let (a, b) = (a[lane].to_le_bytes(), b[lane].to_le_bytes());
                    a.iter().zip(b).map(|(&a, b)| i32::from(a) * i32::from(b as i8)).sum::<i32>()
                };
                lanes(|lane| (sums[lane] as i32).wrapping_add(products(lane)) as u32, word)
            }
            other => panic!("{other:?} is not listed"),
        }
    }
}
