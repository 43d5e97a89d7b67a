//! AVX2 and AVX-512 tiles, assembled: each of `columns / lanes` vectors of x times each of `nr` weights, a broadcast.

use iced_x86::IcedError;
use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::DType;

use super::dot::YMM;
use super::{Code, Tile};

/// How many steps of k the loop is unrolled by.
const UNROLL: i32 = 4;

pub(super) const ZMM: [AsmRegisterZmm; 32] = [
    zmm0, zmm1, zmm2, zmm3, zmm4, zmm5, zmm6, zmm7, zmm8, zmm9, zmm10, zmm11, zmm12, zmm13, zmm14, zmm15,
    zmm16, zmm17, zmm18, zmm19, zmm20, zmm21, zmm22, zmm23, zmm24, zmm25, zmm26, zmm27, zmm28, zmm29, zmm30,
    zmm31,
];

/// What differs between the two widths.
pub(super) trait Vector: Copy + 'static {
    const BYTES: i32;
    const ALL: &'static [Self];
    fn zero(self, a: &mut CodeAssembler) -> Result<(), IcedError>;
    fn load(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError>;
    fn store(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError>;
    fn broadcast(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError>;
    /// Adds w x, lane by lane; of bf16 both pairs' products.
    fn add_product(self, a: &mut CodeAssembler, w: Self, x: Self, operands: DType) -> Result<(), IcedError>;
}

impl Vector for AsmRegisterZmm {
    const BYTES: i32 = 64;
    const ALL: &'static [Self] = &ZMM;
    fn zero(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.vpxord(self, self, self)
    }
    fn load(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError> {
        a.vmovups(self, at)
    }
    fn store(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError> {
        a.vmovups(at, self)
    }
    fn broadcast(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError> {
        a.vbroadcastss(self, at)
    }
    fn add_product(self, a: &mut CodeAssembler, w: Self, x: Self, operands: DType) -> Result<(), IcedError> {
        if operands == DType::BF16 { a.vdpbf16ps(self, w, x) } else { a.vfmadd231ps(self, w, x) }
    }
}

impl Vector for AsmRegisterYmm {
    const BYTES: i32 = 32;
    const ALL: &'static [Self] = &YMM;
    fn zero(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.vxorps(self, self, self)
    }
    fn load(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError> {
        a.vmovups(self, at)
    }
    fn store(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError> {
        a.vmovups(at, self)
    }
    fn broadcast(self, a: &mut CodeAssembler, at: AsmMemoryOperand) -> Result<(), IcedError> {
        a.vbroadcastss(self, at)
    }
    fn add_product(self, a: &mut CodeAssembler, w: Self, x: Self, _: DType) -> Result<(), IcedError> {
        a.vfmadd231ps(self, w, x)
    }
}

/// 16 lanes; at most 24 sums.
pub(super) fn tile_512(tile: Tile) -> Code {
    tile_of::<AsmRegisterZmm>(tile)
}

/// 16 lanes of pairs of bf16; at most 24 sums.
pub(super) fn tile_bf16(tile: Tile) -> Code {
    tile_of::<AsmRegisterZmm>(tile)
}

/// 8 lanes; at most 12 sums.
pub(super) fn tile_256(tile: Tile) -> Code {
    tile_of::<AsmRegisterYmm>(tile)
}

fn tile_of<V: Vector>(tile: Tile) -> Code {
    let vectors = tile.columns * 4 / V::BYTES as usize;
    let sums = &V::ALL[..vectors * tile.nr];
    let xs = &V::ALL[sums.len()..sums.len() + vectors];
    let w = V::ALL[sums.len() + vectors];
    let (x, weights, c, k, accumulate) = (gpr64::rdi, gpr64::rsi, gpr64::rdx, gpr64::rcx, gpr64::r8);
    let x_step = tile.panel as i32 * 4;
    let a = &mut CodeAssembler::new(64)?;

    let (mut clear, mut ready) = (a.create_label(), a.create_label());
    a.test(accumulate, accumulate)?;
    a.jz(clear)?;
    for (i, &sum) in sums.iter().enumerate() {
        let (n, v) = ((i / vectors) as i32, (i % vectors) as i32);
        sum.load(a, ptr(c + n * tile.c_stride + v * V::BYTES))?;
    }
    a.jmp(ready)?;
    a.set_label(&mut clear)?;
    for &sum in sums {
        sum.zero(a)?;
    }
    a.set_label(&mut ready)?;

    let steps = |a: &mut CodeAssembler, count: i32| {
        for step in 0..count {
            for (v, &register) in xs.iter().enumerate() {
                register.load(a, ptr(x + step * x_step + v as i32 * V::BYTES))?;
            }
            for n in 0..tile.nr {
                w.broadcast(a, ptr(weights + n as i32 * tile.weight_stride + step * 4))?;
                for (v, &register) in xs.iter().enumerate() {
                    sums[n * vectors + v].add_product(a, w, register, tile.operands)?;
                }
            }
        }
        a.add(x, count * x_step)?;
        a.add(weights, count * 4)
    };
    let (mut unrolled, mut single, mut one, mut done) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.sub(k, UNROLL)?;
    a.jl(single)?;
    a.set_label(&mut unrolled)?;
    steps(a, UNROLL)?;
    a.sub(k, UNROLL)?;
    a.jge(unrolled)?;
    a.set_label(&mut single)?;
    a.add(k, UNROLL)?;
    a.jz(done)?;
    a.set_label(&mut one)?;
    steps(a, 1)?;
    a.dec(k)?;
    a.jnz(one)?;
    a.set_label(&mut done)?;

    for (i, &sum) in sums.iter().enumerate() {
        let (n, v) = ((i / vectors) as i32, (i % vectors) as i32);
        sum.store(a, ptr(c + n * tile.c_stride + v * V::BYTES))?;
    }
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}
