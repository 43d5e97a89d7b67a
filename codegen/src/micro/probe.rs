//! What the machine can do at most, as kernels of the program's ABI: a stream of loads, and products in registers
//! alone.
//!
//! These are the ceilings that benchmarks are held against, measured by the very threads that run models.

use cranelift_codegen::ir::InstBuilder;
use iced_x86::code_asm::{registers::gpr64, *};
use lapidary_ir::{BLOCK, DType};
use lapidary_runtime::program::FRAME_SLOTS;

use super::tile_int8::Integers;
use super::{Code, Quantised, amx};
use crate::emit::{Emitter, Features};

/// Bytes that a tile of [`Probe::Read`] loads, from slot 0.
pub const READ_TILE: usize = 1 << 20;

/// Streams that a tile is read as.
const STREAMS: usize = 4;

/// Rounds of a tile of [`Probe::Multiply`].
const ROUNDS: i32 = 10_000;

/// A probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Loads slot 0, [`READ_TILE`] bytes a tile.
    Read,
    /// Multiply-adds in registers, of operands held so: f32, bf16 or q8. Of the latter two, what [`Features::unit`]
    /// says.
    Multiply(DType),
}

impl Features {
    /// What operands held so are multiplied in: the tile unit or dot products of bf16, dot products of 8-bit integers,
    /// or products of these alone, where the CPU has them for such operands, else f32.
    pub fn unit(&self, operands: DType) -> DType {
        let has = match operands {
            DType::BF16 => self.avx512 && (self.amx || self.bf16),
            DType::Q8 => self.avx2 && self.fma,
            DType::F32 | DType::F16 | DType::I32 | DType::Bool | DType::Block(_) => false,
        };
        if has { operands } else { DType::F32 }
    }

    /// What products of many rows multiply in; `rounded` says whether they may round their activations, `quantised`
    /// whether weights are.
    pub fn matrix_unit(&self, rounded: bool, quantised: bool) -> DType {
        let quantised = if quantised { Quantised::Own } else { Quantised::No };
        self.unit(super::choose(usize::MAX, BLOCK, rounded, quantised, self).operands)
    }
}

/// How a probe multiplies on a CPU: multiply-adds an instruction, instructions a round.
fn shape(features: &Features, unit: DType) -> (usize, usize) {
    match (features.unit(unit), features.avx512, features.avx2 && features.fma) {
        (DType::BF16, ..) if features.amx => (amx::ROUND, 1),
        (DType::BF16, ..) => (32, 24),
        (DType::Q8, true, _) => (64, 24),
        (DType::Q8, ..) => (32, 12),
        (_, true, _) => (16, 24),
        (_, false, true) => (8, 12),
        (_, false, false) => (4, 8),
    }
}

/// Operations of a tile of [`Probe::Multiply`].
pub fn flops(features: &Features, unit: DType) -> f64 {
    let (lanes, sums) = shape(features, unit);
    2.0 * lanes as f64 * sums as f64 * f64::from(ROUNDS)
}

/// The probe as raw code, where the CPU has more than CLIF's 128 bits.
pub fn assemble(probe: Probe, features: &Features) -> Option<Code> {
    (features.avx2 && features.fma).then(|| match probe {
        Probe::Read => read(features.avx512),
        Probe::Multiply(unit) => {
            let unit = features.unit(unit);
            match (unit, features.avx512) {
                (DType::BF16, _) if features.amx => amx::multiply(ROUNDS),
                (_, true) => multiply::<AsmRegisterZmm>(features, unit),
                (_, false) => multiply::<AsmRegisterYmm>(features, unit),
            }
        }
    })
}

/// `(frame, begin, end, scratch)` in the System V convention.
const FRAME: AsmRegister64 = gpr64::rdi;
const BEGIN: AsmRegister64 = gpr64::rsi;
const END: AsmRegister64 = gpr64::rdx;

fn read(wide: bool) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let (mut tile, mut line, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(gpr64::r8, ptr(FRAME + 8 * FRAME_SLOTS as i32))?;
    a.sub(END, BEGIN)?;
    a.jle(done)?;
    a.shl(BEGIN, READ_TILE.trailing_zeros() as i32)?;
    a.add(gpr64::r8, BEGIN)?;
    let stream = (READ_TILE / STREAMS) as i32;
    a.set_label(&mut tile)?;
    a.mov(gpr64::rcx, i64::from(stream / 64))?;
    a.set_label(&mut line)?;
    for s in 0..STREAMS as i32 {
        let at = gpr64::r8 + s * stream;
        a.prefetcht0(byte_ptr(at + 2048))?;
        if wide {
            a.vmovups(zmm0, ptr(at))?;
        } else {
            a.vmovups(ymm0, ptr(at))?;
            a.vmovups(ymm1, ptr(at + 32))?;
        }
    }
    a.add(gpr64::r8, 64)?;
    a.dec(gpr64::rcx)?;
    a.jnz(line)?;
    a.add(gpr64::r8, READ_TILE as i32 - stream)?;
    a.dec(END)?;
    a.jnz(tile)?;
    a.set_label(&mut done)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

fn multiply<V: Integers>(features: &Features, unit: DType) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let (mut tile, mut round, mut done) = (a.create_label(), a.create_label(), a.create_label());
    let (_, count) = shape(features, unit);
    let (sums, others) = V::ALL.split_at(count);
    let [w, product, ..] = *others else { unreachable!("sums leave registers for their operands") };
    a.sub(END, BEGIN)?;
    a.jle(done)?;
    sums.iter().chain([&w]).try_for_each(|register| register.zero(a))?;
    a.set_label(&mut tile)?;
    a.mov(gpr64::rcx, i64::from(ROUNDS))?;
    a.set_label(&mut round)?;
    for sum in sums {
        if unit != DType::Q8 {
            sum.add_product(a, w, w, unit)?;
        } else if features.vnni || features.avxvnni && !features.avx512 {
            sum.add_fours(a, w, w)?;
        } else {
            product.twos(a, w, w)?;
            sum.add_words(a, product)?;
        }
    }
    a.dec(gpr64::rcx)?;
    a.jnz(round)?;
    a.dec(END)?;
    a.jnz(tile)?;
    a.set_label(&mut done)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// The probe in 128-bit CLIF.
pub(crate) fn emit(e: &mut Emitter<'_>, probe: Probe) {
    let (begin, end, scratch) = (e.tile_begin, e.tile_end, e.scratch);
    let none = e.splat(0.0);
    match probe {
        Probe::Read => {
            let base = e.slot(0);
            e.for_range(begin, end, 1, &[], |e, tile, _| {
                let at = e.scale(tile, READ_TILE as i64);
                let at = e.b.ins().iadd(base, at);
                let (zero, bytes) = (e.i64(0), e.i64(READ_TILE as i64));
                let sums = e.for_range(zero, bytes, 64, &[none; 4], |e, i, sums| {
                    let at = e.b.ins().iadd(at, i);
                    (0..4)
                        .map(|v| {
                            let x = e.load(DType::F32, at, v * 16, 4);
                            e.b.ins().bxor(sums[v as usize], x)
                        })
                        .collect()
                });
                for sum in sums {
                    e.store(DType::F32, sum, scratch, 0, 4);
                }
                vec![]
            });
        }
        Probe::Multiply(_) => {
            e.for_range(begin, end, 1, &[], |e, _, _| {
                let (zero, rounds) = (e.i64(0), e.i64(i64::from(ROUNDS)));
                let sums = e.for_range(zero, rounds, 1, &[none; 8], |e, _, sums| {
                    sums.iter().map(|&s| e.fma(none, none, s)).collect()
                });
                for sum in sums {
                    e.store(DType::F32, sum, scratch, 0, 4);
                }
                vec![]
            });
        }
    }
}
