//! AMX tiles, assembled: products of bf16 in blocks of 32 weight rows by 32 rows of x, sums in f32.
//!
//! Weight rows are the left operand, 16 rows of 32 elements a tile register, read as they lie; the panel of x, in pairs
//! along k, is the right one. Two by two registers of sums take four products a step of 32 elements of k:
//!
//! ```text
//!              x: t6 (16 rows)   t7 (16 rows)
//! weights: t4       t0                t1
//!          t5       t2                t3
//! ```
//!
//! A product keeps the unit busy for 16 cycles, so a step takes 64. It loads four registers, 4 KiB: 64 bytes a cycle,
//! more than the second cache gives. The kernel therefore keeps a part of 32 weight rows, 32 KiB, two thirds of it, in
//! the first cache and streams panels past it: half of the loads come from the second cache, 32 bytes a cycle, and
//! the next steps' lines of x are prefetched. Sums are in the order of k within a pair of elements, then of steps.
//!
//! Calls of few rows take weight rows as they lie, whole, in the same order of sums; the next block's are fetched into
//! the second cache meanwhile, in some streams, each in the order of its bytes.
//!
//! Tile registers have to be shaped before use (`configure`) and given back after (`release`): once a call of a kernel.
//! Shapes are whole: K is a multiple of 32, and blocks are filled up with rows that nobody stores. Intel's Software
//! Developer's Manual, volume 2, has the instructions (LDTILECFG, TILELOADD, TDPBF16PS).

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};

use super::amx_widen::Rows;
use super::blocks::{PLANES, TO};
use super::dot::Done;
use super::{Code, Fetched, Streams, Tile};

/// Sums, of 16 weight rows each pair; these rows, and those of x.
pub(super) const SUMS: [[AsmRegisterTmm; 2]; 2] = [[tmm0, tmm1], [tmm2, tmm3]];
pub(super) const WEIGHTS: [AsmRegisterTmm; 2] = [tmm4, tmm5];
pub(super) const COLUMNS: [AsmRegisterTmm; 2] = [tmm6, tmm7];
/// Operands: x, weights, c, k; and where they go if weights are widened meanwhile.
const PASSED: [AsmRegister64; 4] = [gpr64::rdi, gpr64::rsi, gpr64::rdx, gpr64::rcx];
const MOVED: [AsmRegister64; 4] = [gpr64::r12, gpr64::r13, gpr64::r14, gpr64::rbp];
/// What is fetched: what follows the weights, once it is known whether sums start from 0; or what is wanted next.
const FETCH: AsmRegister64 = gpr64::r8;
const WANTED: AsmRegister64 = gpr64::r9;
/// Turns of a round of widening, and rounds.
const TURNS: AsmRegister32 = gpr32::r15d;
const ROUNDS: AsmRegister64 = gpr64::rbx;
const SAVED: [AsmRegister64; 6] = [gpr64::rbx, gpr64::rbp, gpr64::r12, gpr64::r13, gpr64::r14, gpr64::r15];

/// Rows of a tile register, bytes of each: all of it.
pub(super) const ROWS: i32 = 16;
pub(super) const ROW_BYTES: i32 = 64;
/// The shapes of all eight.
pub(super) const WHOLE: [(usize, usize); 8] = [(ROWS as usize, ROW_BYTES as usize); 8];
/// Elements of k in a step: a row of a register.
pub(super) const STEP: i32 = 32;
/// Steps that x is prefetched ahead.
const AHEAD: i32 = 2;
/// Streams in which the next block of weight rows is fetched. Of one, 2, 4, 8, 16 and 32 these read fastest: at 0.60,
/// 0.63, 0.63, 0.70, 0.68 and 0.62 of what memory gives.
const STREAMS: i32 = 8;

/// The block of `columns` (32 or 16) rows of x and as many weight rows, 32 or 16.
pub(super) fn tile_bf16(tile: Tile) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let widened = tile.streams.and_then(|streams| streams.widened);
    let mut rows = widened.map(|w| Rows::new(w.weights, w.k, w.rows, w.stride));
    let place = if rows.is_some() { MOVED } else { PASSED };
    let [x, weights, c, k] = place;
    if let Some(rows) = &mut rows {
        for register in SAVED {
            a.push(register)?;
        }
        for (register, passed) in place.into_iter().zip(PASSED) {
            a.mov(register, passed)?;
        }
        for (i, register) in (0..).zip([PLANES[0], PLANES[1], TO, ROUNDS]) {
            a.mov(register, qword_ptr(gpr64::rsp + 8 * (SAVED.len() as i32 + 1 + i)))?;
        }
        rows.ready(a)?;
    }
    let (accumulate, lower, weight_stride) = (gpr64::r8, gpr64::rax, gpr64::r11);
    // One after the other.
    let (x_stride, c_stride) = (gpr64::r10, gpr64::r10);
    let halves = tile.columns as i32 / ROWS;
    let sums = &SUMS[..tile.nr / ROWS as usize];

    a.mov(weight_stride, i64::from(tile.weight_stride))?;
    a.mov(c_stride, i64::from(tile.c_stride))?;
    a.lea(lower, ptr(weights + ROWS * tile.weight_stride))?;
    let c_at = |i: usize, j: i32| c + c_stride + (i as i32 * ROWS * tile.c_stride + j * ROW_BYTES);
    let (mut clear, mut ready) = (a.create_label(), a.create_label());
    a.test(accumulate, accumulate)?;
    a.jz(clear)?;
    for (i, row) in sums.iter().enumerate() {
        for j in 0..halves {
            load(a, &tile, row[j as usize], ptr(c_at(i, j)))?;
        }
    }
    a.jmp(ready)?;
    a.set_label(&mut clear)?;
    for row in sums {
        for sum in &row[..halves as usize] {
            a.tilezero(*sum)?;
        }
    }
    a.set_label(&mut ready)?;
    a.mov(x_stride, tile.panel as i64 * 4)?;
    if tile.ahead > 0 {
        a.lea(FETCH, ptr(weights + tile.ahead))?;
    }

    // k counts pairs.
    let at = [x, x_stride, weights, lower, weight_stride];
    a.shr(k, (STEP / 2).trailing_zeros() as i32)?;
    if let Some(rows) = &mut rows {
        meanwhile(a, rows, k, &tile, at)?;
    }
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.test(k, k)?;
    a.jz(done)?;
    a.set_label(&mut again)?;
    step(a, &tile, at, |_, _| Ok(()))?;
    a.dec(k)?;
    a.jnz(again)?;
    a.set_label(&mut done)?;
    if let Some(rows) = &mut rows {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.test(ROUNDS, ROUNDS)?;
        a.jz(done)?;
        a.set_label(&mut again)?;
        rows.widen(a, rows.rows)?;
        rows.next(a, rows.elements * 2)?;
        a.dec(ROUNDS)?;
        a.jnz(again)?;
        a.set_label(&mut done)?;
    }

    store(a, (c, c_stride), tile.c_stride, (sums, halves as usize))?;
    if rows.is_some() {
        for register in SAVED.into_iter().rev() {
            a.pop(register)?;
        }
        a.vzeroupper()?;
    }
    a.ret()?;
    if let Some(rows) = &mut rows {
        rows.end(a)?;
    }
    a.assemble(0)
}

/// Steps of k, counted by `k`, and what is widened meanwhile, as long as there is of both.
fn meanwhile(
    a: &mut CodeAssembler,
    rows: &mut Rows,
    k: AsmRegister64,
    tile: &Tile,
    at: [AsmRegister64; 5],
) -> Done {
    let (turns, some, steps) = rows.turns();
    let (mut again, mut turn, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.test(ROUNDS, ROUNDS)?;
    a.jz(done)?;
    a.cmp(k, turns * steps)?;
    a.jl(done)?;
    a.mov(TURNS, turns)?;
    a.set_label(&mut turn)?;
    let halves = tile.columns / ROWS as usize;
    let slots = steps as usize * 2 * halves;
    for i in 0..steps as usize {
        step(a, tile, at, |a, product| {
            rows.share(a, some, (i * 2 * halves + product, slots), |_, _| Ok(()))
        })?;
    }
    a.dec(TURNS)?;
    a.jnz(turn)?;
    rows.next(a, rows.elements * 2)?;
    a.sub(k, turns * steps)?;
    a.dec(ROUNDS)?;
    a.jmp(again)?;
    a.set_label(&mut done)
}

/// A step of k: `x` and its stride, both registers' weights and their stride; and what else is done after each product.
fn step(
    a: &mut CodeAssembler,
    tile: &Tile,
    [x, x_stride, weights, lower, weight_stride]: [AsmRegister64; 5],
    mut meanwhile: impl FnMut(&mut CodeAssembler, usize) -> Done,
) -> Done {
    let (halves, x_row) = (tile.columns as i32 / ROWS, tile.panel as i32 * 4);
    for j in 0..halves {
        load(a, tile, COLUMNS[j as usize], ptr(x + x_stride + j * ROW_BYTES))?;
    }
    let registers = tile.nr / ROWS as usize;
    for (register, from) in WEIGHTS.into_iter().zip([weights, lower]).take(registers) {
        a.tileloadd(register, ptr(from + weight_stride))?;
    }
    for i in 0..registers {
        for j in 0..halves as usize {
            a.tdpbf16ps(SUMS[i][j], WEIGHTS[i], COLUMNS[j])?;
            meanwhile(a, i * halves as usize + j)?;
        }
        let ahead = if tile.streams.is_some() { 0 } else { ROWS / 2 };
        for row in i as i32 * ahead..(i as i32 + 1) * ahead {
            for j in 0..halves {
                a.prefetcht0(byte_ptr(x + AHEAD * ROWS * x_row + row * x_row + j * ROW_BYTES))?;
            }
        }
        if tile.ahead > 0 {
            // As many lines as a step takes; each stream has its turn.
            for line in i as i32 * ROWS..(i as i32 + 1) * ROWS {
                let stream = line % STREAMS * (tile.ahead / STREAMS);
                a.prefetcht1(byte_ptr(FETCH + stream + line / STREAMS * ROW_BYTES))?;
            }
        }
    }
    if tile.ahead > 0 {
        a.add(FETCH, tile.nr as i32 / STREAMS * ROW_BYTES)?;
    }
    if let Some(Streams { fetched: Fetched { rows, stride, lines }, .. }) = tile.streams {
        for row in 0..rows {
            for line in 0..lines {
                a.prefetcht1(byte_ptr(WANTED + row * stride + line * ROW_BYTES))?;
            }
        }
        a.add(WANTED, lines * ROW_BYTES)?;
    }
    a.add(x, ROWS * x_row)?;
    a.add(weights, ROW_BYTES)?;
    a.add(lower, ROW_BYTES)
}

/// Stores the sums of `halves` times 16 columns; the second register is free for the stride.
pub(super) fn store(
    a: &mut CodeAssembler,
    (c, stride): (AsmRegister64, AsmRegister64),
    c_stride: i32,
    (sums, halves): (&[[AsmRegisterTmm; 2]], usize),
) -> Done {
    a.mov(stride, i64::from(c_stride))?;
    for (i, row) in (0..).zip(sums) {
        for (j, sum) in (0..).zip(&row[..halves]) {
            a.tilestored(ptr(c + stride + (i * ROWS * c_stride + j * ROW_BYTES)), *sum)?;
        }
    }
    Ok(())
}

/// Loads sums or x.
fn load(a: &mut CodeAssembler, tile: &Tile, to: AsmRegisterTmm, from: AsmMemoryOperand) -> Done {
    if tile.streams.is_some() { a.tileloaddt1(to, from) } else { a.tileloadd(to, from) }
}

/// Shapes of tile registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shapes {
    /// All of them whole: of [`Raw::Tile`](super::Raw::Tile) and
    /// [`Raw::StoredTile`](super::Raw::StoredTile).
    Whole,
    /// Those of [`Raw::Lanes`](super::Raw::Lanes).
    Lanes,
}

/// The shapes of tile registers, the first ones': rows, and bytes of each.
fn shapes(registers: &[(usize, usize)]) -> [u8; 64] {
    let mut shapes = [0u8; 64];
    // Palette 1; bytes a row (u16) from 16 on, rows (u8) from 48 on.
    shapes[0] = 1;
    for (register, (rows, bytes)) in registers.iter().enumerate() {
        shapes[16 + 2 * register] = *bytes as u8;
        shapes[48 + register] = *rows as u8;
    }
    shapes
}

/// Shapes tile registers so: rows, and bytes of each.
pub(super) fn configure(registers: &[(usize, usize)]) -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let mut table = a.create_label();
    a.ldtilecfg(ptr(table))?;
    a.ret()?;
    a.set_label(&mut table)?;
    a.db(&shapes(registers))?;
    a.assemble(0)
}

/// Gives the tile registers back: from here on switching threads need not save them.
pub(super) fn release() -> Code {
    let a = &mut CodeAssembler::new(64)?;
    a.tilerelease()?;
    a.ret()?;
    a.assemble(0)
}

/// Multiply-adds of [`multiply`] in a round: products, each of 16 by 16 sums of 32.
pub(super) const ROUND: usize = 4 * 16 * 16 * 32;

/// Products of registers alone, `rounds` rounds a tile: `(frame, begin, end, scratch)`. What is multiplied are numbers
/// of all kinds: with zeros the unit draws less power than any product's, and may run faster.
pub(super) fn multiply(rounds: i32) -> Code {
    let (begin, end) = (gpr64::rsi, gpr64::rdx);
    let (left, right) = ([tmm4, tmm5], [tmm6, tmm7]);
    let sums = [tmm0, tmm1, tmm2, tmm3];
    let a = &mut CodeAssembler::new(64)?;
    let (mut table, mut numbers) = (a.create_label(), a.create_label());
    let (mut tile, mut round, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.sub(end, begin)?;
    a.jle(done)?;
    a.ldtilecfg(ptr(table))?;
    for sum in sums {
        a.tilezero(sum)?;
    }
    a.lea(gpr64::rcx, ptr(numbers))?;
    a.mov(gpr64::rax, i64::from(ROW_BYTES))?;
    for (i, operand) in (0..).zip(left.into_iter().chain(right)) {
        a.tileloadd(operand, ptr(gpr64::rcx + gpr64::rax + i * ROWS * ROW_BYTES))?;
    }
    a.set_label(&mut tile)?;
    a.mov(gpr64::rcx, i64::from(rounds))?;
    a.set_label(&mut round)?;
    for (i, sum) in sums.into_iter().enumerate() {
        a.tdpbf16ps(sum, left[i / 2], right[i % 2])?;
    }
    a.dec(gpr64::rcx)?;
    a.jnz(round)?;
    a.dec(end)?;
    a.jnz(tile)?;
    a.tilerelease()?;
    a.set_label(&mut done)?;
    a.ret()?;
    a.set_label(&mut table)?;
    a.db(&shapes(&WHOLE))?;
    a.set_label(&mut numbers)?;
    a.db(&random_bf16(5 * (ROWS * ROW_BYTES) as usize))?;
    a.assemble(0)
}

/// So many bytes of bf16 between a half and two of either sign, by a linear congruential generator (Numerical Recipes).
fn random_bf16(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (0x3f00 | ((state >> 16) as u16 & 0x80ff)).to_le_bytes()
    };
    (0..bytes / 2).flat_map(number).collect()
}
