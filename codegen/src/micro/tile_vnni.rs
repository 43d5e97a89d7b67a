//! Tiles in integers with VNNI, in 256 bits or 512, assembled: x rounded to 8 bits in blocks, against quantised weight
//! rows, as `tile_int8.rs` says.
//!
//! In 512 bits half of the weight rows' products are summed while the other half's sums are scaled and added to the
//! results. That waits for a block's last product, and a CPU sees less than a block ahead: so the instructions of both
//! come in turn.

use std::marker::PhantomData;
use std::ops::Range;

use iced_x86::code_asm::{registers::gpr64, *};
use iced_x86::{IcedError, Instruction};
use lapidary_ir::{BLOCK, DType};

use super::dot::Done;
use super::tile_int8::{Integers, PANEL_BLOCK, STEP, begin, result, vectors};
use super::{Code, Fetched, Held, Streams, Tile};

const LINE: i32 = 64;

const X: AsmRegister64 = gpr64::rdi;
const WEIGHTS: AsmRegister64 = gpr64::rsi;
/// Blocks that are left.
const K: AsmRegister64 = gpr64::rcx;
/// What is fetched next.
const WANTED: AsmRegister64 = gpr64::r9;

/// AVX-VNNI: 8 lanes, at most 12 sums; k is counted in blocks, not 0.
pub(super) fn tile_256(tile: Tile) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let mut again = a.create_label();
    let rows = Rows::<AsmRegisterYmm>::of(tile, 0..tile.nr);
    begin::<AsmRegisterYmm>(a, tile)?;
    a.set_label(&mut again)?;
    // Of half as many sums products would wait for each other; those of the next block are within sight.
    in_turn(a, &rows.products()?, &[])?;
    in_turn(a, &rows.scaling([0, 0])?, &[])?;
    let [x, weights] = block_bytes(tile);
    a.add(X, x)?;
    a.add(WEIGHTS, weights)?;
    a.dec(K)?;
    a.jnz(again)?;
    a.vzeroupper()?;
    a.ret()?;
    a.assemble(0)
}

/// AVX-512 VNNI: 16 lanes, at most 24 sums; k is counted in blocks, not 0.
pub(super) fn tile_512(tile: Tile) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let [mut again, mut done] = std::array::from_fn(|_| a.create_label());
    let [first, second] =
        [0..tile.nr / 2, tile.nr / 2..tile.nr].map(|rows| Rows::<AsmRegisterZmm>::of(tile, rows));
    begin::<AsmRegisterZmm>(a, tile)?;
    let [x, weights] = block_bytes(tile);
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

/// Bytes from a block of a panel of x to the next, and of a weight row.
fn block_bytes(tile: Tile) -> [i32; 2] {
    [tile.panel * PANEL_BLOCK, Held::Whole.block_bytes(tile.weights)].map(|bytes| bytes as i32)
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
struct Rows<V> {
    tile: Tile,
    rows: Range<usize>,
    vectors: PhantomData<V>,
}

impl<V: Integers> Rows<V> {
    fn of(tile: Tile, rows: Range<usize>) -> Rows<V> {
        Rows { tile, rows, vectors: PhantomData }
    }

    fn vectors(&self) -> Range<usize> {
        0..vectors::<V>(self.tile)
    }

    fn sum(&self, n: usize, v: usize) -> V {
        V::ALL[n * self.vectors().len() + v]
    }

    /// The vectors of a step of x; a row's quants; a row's scale.
    fn operands(&self) -> (&'static [V], V, V) {
        let vectors = self.vectors().len();
        match V::ALL[self.tile.nr * vectors..].split_at(vectors) {
            (xs, &[quants, scale, ..]) => (xs, quants, scale),
            _ => unreachable!("a tile leaves registers for quants and a scale"),
        }
    }

    fn results(&self, n: usize, v: usize) -> AsmMemoryOperand {
        result::<V>(self.tile, n, v)
    }

    /// The `part`-th of what a block of a panel of x has for all its rows, 4 bytes each: scales, sums, quants by fours.
    fn x(&self, part: usize, v: usize) -> AsmMemoryOperand {
        X + ((part * self.tile.panel * 4) as i32 + v as i32 * V::BYTES)
    }

    /// Bytes into a block of weight row `n`: the quants, then the scale.
    fn weights(&self, n: usize, byte: usize) -> AsmMemoryOperand {
        WEIGHTS + (n as i32 * self.tile.weight_stride + byte as i32)
    }

    /// Sums of a block's products, less what quants are held more than they are.
    fn products(&self) -> Result<Vec<Instruction>, IcedError> {
        let a = &mut CodeAssembler::new(64)?;
        let (xs, quants, _) = self.operands();
        for v in self.vectors() {
            let first = self.sum(self.rows.start, v);
            first.load(a, self.x(1, v))?;
            if self.tile.weights == DType::Q8 {
                // Shifted by 128, which is 16 times 8.
                first.sixteenfold(a)?;
            }
            self.rows.clone().skip(1).try_for_each(|n| self.sum(n, v).copy(a, first))?;
        }
        for step in 0..BLOCK / STEP {
            self.vectors().try_for_each(|v| xs[v].load(a, self.x(2 + step, v)))?;
            for n in self.rows.clone() {
                quants.broadcast(a, self.weights(n, step * STEP))?;
                self.vectors().try_for_each(|v| self.sum(n, v).add_fours(a, quants, xs[v]))?;
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
        let (_, _, scale) = self.operands();
        for n in self.rows.clone() {
            scale.broadcast(a, self.weights(n, BLOCK) + weights)?;
            for v in self.vectors() {
                let sum = self.sum(n, v);
                sum.scale(a, self.x(0, v) + x)?;
                sum.times_plus(a, scale, self.results(n, v))?;
                sum.store(a, self.results(n, v))?;
            }
        }
        Ok(a.take_instructions())
    }
}
