//! Tiles in integers with AVX-512 VNNI, assembled: x rounded to 8 bits in blocks, against quantised weight rows, as
//! `tile_int8.rs` says.
//!
//! Half of the weight rows' products are summed while the other half's sums are scaled and added to the results. That
//! waits for a block's last product, and a CPU sees less than a block ahead: so the instructions of both come in turn.

use std::ops::Range;

use iced_x86::code_asm::{registers::gpr64, *};
use iced_x86::{IcedError, Instruction};
use lapidary_ir::{BLOCK, DType};

use super::dot::Done;
use super::tile::ZMM;
use super::tile_int8::{PANEL_BLOCK, STEP};
use super::{Code, Fetched, Held, Streams, Tile};

const LANES: usize = 16;
const VECTOR: usize = 4 * LANES;
const LINE: i32 = 64;

const X: AsmRegister64 = gpr64::rdi;
const WEIGHTS: AsmRegister64 = gpr64::rsi;
const C: AsmRegister64 = gpr64::rdx;
/// Blocks that are left; whether they are added to what the results are.
const K: AsmRegister64 = gpr64::rcx;
const ACCUMULATE: AsmRegister64 = gpr64::r8;
/// What is fetched next.
const WANTED: AsmRegister64 = gpr64::r9;

/// The vectors of a step of x, and a row's quants.
const XS: &[AsmRegisterZmm] = ZMM.split_at(24).1;
const QUANTS: AsmRegisterZmm = zmm28;
/// A row's scale, and some of its results.
const SCALE: AsmRegisterZmm = zmm29;
const RESULT: AsmRegisterZmm = zmm30;

/// 16 lanes, at most 24 sums; k is counted in blocks, not 0.
pub(super) fn tile_vnni(tile: Tile) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let [mut again, mut ready, mut done] = std::array::from_fn(|_| a.create_label());
    let [first, second] = [0..tile.nr / 2, tile.nr / 2..tile.nr].map(|rows| Rows { tile, rows });
    a.test(ACCUMULATE, ACCUMULATE)?;
    a.jnz(ready)?;
    a.vpxord(RESULT, RESULT, RESULT)?;
    for (n, v) in first.sums().chain(second.sums()) {
        a.vmovups(zmmword_ptr(first.results(n, v)), RESULT)?;
    }
    a.set_label(&mut ready)?;
    let [x, weights] = [tile.panel * PANEL_BLOCK, Held::Whole.block_bytes(tile.weights)].map(|b| b as i32);
    in_turn(a, &first.products()?, &[])?;
    a.set_label(&mut again)?;
    in_turn(a, &second.products()?, &first.scaling([0, 0])?)?;
    a.dec(K)?;
    a.jz(done)?;
    a.add(X, x)?;
    a.add(WEIGHTS, weights)?;
    in_turn(a, &first.products()?, &second.scaling([-x, -weights])?)?;
    a.jmp(again)?;
    a.set_label(&mut done)?;
    in_turn(a, &second.scaling([0, 0])?, &[])?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// Puts down many instructions and fewer, evenly among them.
fn in_turn(a: &mut CodeAssembler, many: &[Instruction], fewer: &[Instruction]) -> Done {
    let upto = |i: usize| fewer.len() * i / many.len();
    for (i, &instruction) in many.iter().enumerate() {
        a.add_instruction(instruction)?;
        fewer[upto(i)..upto(i + 1)].iter().try_for_each(|&instruction| a.add_instruction(instruction))?;
    }
    Ok(())
}

/// Some weight rows of a tile.
struct Rows {
    tile: Tile,
    rows: Range<usize>,
}

impl Rows {
    fn vectors(&self) -> Range<usize> {
        0..self.tile.columns / LANES
    }

    /// Weight rows and vectors of x, whose products have a sum each.
    fn sums(&self) -> impl Iterator<Item = (usize, usize)> {
        self.rows.clone().flat_map(|n| self.vectors().map(move |v| (n, v)))
    }

    fn sum(&self, n: usize, v: usize) -> AsmRegisterZmm {
        ZMM[n * self.vectors().len() + v]
    }

    fn results(&self, n: usize, v: usize) -> AsmMemoryOperand {
        C + (n as i32 * self.tile.c_stride + (v * VECTOR) as i32)
    }

    /// The `part`-th of what a block of a panel of x has for all its rows, 4 bytes each: scales, sums, quants by fours.
    fn x(&self, part: usize, v: usize) -> AsmMemoryOperand {
        X + (part * self.tile.panel * 4 + v * VECTOR) as i32
    }

    /// Bytes into a block of weight row `n`: the quants, then the scale.
    fn weights(&self, n: usize, byte: usize) -> AsmMemoryOperand {
        WEIGHTS + (n as i32 * self.tile.weight_stride + byte as i32)
    }

    /// Sums of a block's products, less what quants are held more than they are.
    fn products(&self) -> Result<Vec<Instruction>, IcedError> {
        let a = &mut CodeAssembler::new(64)?;
        for v in self.vectors() {
            let first = self.sum(self.rows.start, v);
            a.vmovdqu32(first, zmmword_ptr(self.x(1, v)))?;
            if self.tile.weights == DType::Q8 {
                // Shifted by 128, which is 16 times 8.
                a.vpslld(first, first, 4)?;
            }
            self.rows.clone().skip(1).try_for_each(|n| a.vmovdqa32(self.sum(n, v), first))?;
        }
        for step in 0..BLOCK / STEP {
            for v in self.vectors() {
                a.vmovdqu32(XS[v], zmmword_ptr(self.x(2 + step, v)))?;
            }
            for n in self.rows.clone() {
                a.vpbroadcastd(QUANTS, dword_ptr(self.weights(n, step * STEP)))?;
                self.vectors().try_for_each(|v| a.evex().vpdpbusd(self.sum(n, v), QUANTS, XS[v]))?;
            }
            self.fetch(a, step)?;
        }
        Ok(a.take_instructions())
    }

    /// Fetches what comes with some of a block's elements, once for both halves.
    fn fetch(&self, a: &mut CodeAssembler, step: usize) -> Done {
        let Some(Streams { fetched: Fetched { rows, stride, lines }, .. }) = self.tile.streams else {
            return Ok(());
        };
        if self.rows.start > 0 {
            return Ok(());
        }
        let of = |row: i32| (0..lines).map(move |line| row * stride + line * LINE);
        let all: Vec<i32> = (0..rows).flat_map(of).collect();
        let before = |step: usize| all.len() * step * STEP / BLOCK;
        for line in &all[before(step)..before(step + 1)] {
            a.prefetcht1(byte_ptr(WANTED + *line))?;
        }
        if (step + 1) * STEP == BLOCK { a.add(WANTED, lines * LINE) } else { Ok(()) }
    }

    /// The sums times both scales, added to the results: of a block so many bytes of x and of weights from here.
    fn scaling(&self, [x, weights]: [i32; 2]) -> Result<Vec<Instruction>, IcedError> {
        let a = &mut CodeAssembler::new(64)?;
        for n in self.rows.clone() {
            a.vbroadcastss(SCALE, dword_ptr(self.weights(n, BLOCK) + weights))?;
            for v in self.vectors() {
                let sum = self.sum(n, v);
                a.vcvtdq2ps(sum, sum)?;
                a.vmulps(sum, sum, zmmword_ptr(self.x(0, v) + x))?;
                a.vmovups(RESULT, zmmword_ptr(self.results(n, v)))?;
                a.vfmadd231ps(RESULT, sum, SCALE)?;
                a.vmovups(zmmword_ptr(self.results(n, v)), RESULT)?;
            }
        }
        Ok(a.take_instructions())
    }
}
