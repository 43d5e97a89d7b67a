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
//! the second cache meanwhile, in the order of their bytes, so that memory serves one stream.
//!
//! Tile registers have to be shaped before use (`configure`) and given back after (`release`): once a call of a kernel.
//! Shapes are whole: K is a multiple of 32, and blocks are filled up with rows that nobody stores. Intel's Software
//! Developer's Manual, volume 2, has the instructions (LDTILECFG, TILELOADD, TDPBF16PS).

use iced_x86::code_asm::{registers::gpr64, *};

use super::{Code, Fetched, Tile};

/// Rows of a tile register, bytes of each: all of it.
pub(super) const ROWS: i32 = 16;
pub(super) const ROW_BYTES: i32 = 64;
/// Elements of k in a step: a row of a register.
pub(super) const STEP: i32 = 32;
/// Steps that x is prefetched ahead.
const AHEAD: i32 = 2;

/// The block of `columns` (32 or 16) rows of x and 32 weight rows.
pub(super) fn tile_bf16(tile: Tile) -> Code {
    let (x, weights, c, k, accumulate) = (gpr64::rdi, gpr64::rsi, gpr64::rdx, gpr64::rcx, gpr64::r8);
    let (lower, wanted, weight_stride) = (gpr64::rax, gpr64::r9, gpr64::r11);
    // One after the other.
    let (x_stride, c_stride) = (gpr64::r10, gpr64::r10);
    let sums = [[tmm0, tmm1], [tmm2, tmm3]];
    let (left, right) = ([tmm4, tmm5], [tmm6, tmm7]);
    let halves = tile.columns as i32 / ROWS;
    let x_step = STEP / 2 * tile.panel as i32 * 4;
    let a = &mut CodeAssembler::new(64)?;

    a.mov(weight_stride, i64::from(tile.weight_stride))?;
    a.mov(c_stride, i64::from(tile.c_stride))?;
    a.lea(lower, ptr(weights + ROWS * tile.weight_stride))?;
    let load = |a: &mut CodeAssembler, to: AsmRegisterTmm, from: AsmMemoryOperand| match tile.streams {
        Some(_) => a.tileloaddt1(to, from),
        None => a.tileloadd(to, from),
    };
    let c_at = |i: usize, j: i32| c + c_stride + (i as i32 * ROWS * tile.c_stride + j * ROW_BYTES);
    let (mut clear, mut ready) = (a.create_label(), a.create_label());
    a.test(accumulate, accumulate)?;
    a.jz(clear)?;
    for (i, row) in sums.iter().enumerate() {
        for j in 0..halves {
            load(a, row[j as usize], ptr(c_at(i, j)))?;
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
    let fetch = accumulate;
    if tile.ahead > 0 {
        a.lea(fetch, ptr(weights + tile.ahead))?;
    }

    // k counts pairs.
    let (mut step, mut done) = (a.create_label(), a.create_label());
    a.shr(k, (STEP / 2).trailing_zeros() as i32)?;
    a.jz(done)?;
    a.set_label(&mut step)?;
    for j in 0..halves {
        load(a, right[j as usize], ptr(x + x_stride + j * ROW_BYTES))?;
    }
    for (i, start) in [weights, lower].into_iter().enumerate() {
        a.tileloadd(left[i], ptr(start + weight_stride))?;
        for j in 0..halves as usize {
            a.tdpbf16ps(sums[i][j], left[i], right[j])?;
        }
        let ahead = if tile.streams.is_some() { 0 } else { ROWS / 2 };
        for row in i as i32 * ahead..(i as i32 + 1) * ahead {
            for j in 0..halves {
                let at = AHEAD * x_step + row * tile.panel as i32 * 4 + j * ROW_BYTES;
                a.prefetcht0(byte_ptr(x + at))?;
            }
        }
        if tile.ahead > 0 {
            // As many lines as a step takes.
            for line in i as i32 * ROWS..(i as i32 + 1) * ROWS {
                a.prefetcht1(byte_ptr(fetch + line * ROW_BYTES))?;
            }
        }
    }
    if tile.ahead > 0 {
        a.add(fetch, 2 * ROWS * ROW_BYTES)?;
    }
    if let Some(Fetched { rows, stride, lines }) = tile.streams {
        for row in 0..rows {
            for line in 0..lines {
                a.prefetcht1(byte_ptr(wanted + row * stride + line * ROW_BYTES))?;
            }
        }
        a.add(wanted, lines * ROW_BYTES)?;
    }
    a.add(x, x_step)?;
    a.add(weights, ROW_BYTES)?;
    a.add(lower, ROW_BYTES)?;
    a.dec(k)?;
    a.jnz(step)?;
    a.set_label(&mut done)?;

    a.mov(c_stride, i64::from(tile.c_stride))?;
    for (i, row) in sums.iter().enumerate() {
        for j in 0..halves {
            a.tilestored(ptr(c_at(i, j)), row[j as usize])?;
        }
    }
    a.ret()?;
    a.assemble(0)
}

/// The shape of all eight tile registers: 16 rows of 64 bytes.
fn shape() -> [u8; 64] {
    let mut shape = [0u8; 64];
    // Palette 1; bytes a row (u16) from 16 on, rows (u8) from 48 on.
    shape[0] = 1;
    for register in 0..8 {
        shape[16 + 2 * register] = ROW_BYTES as u8;
        shape[48 + register] = ROWS as u8;
    }
    shape
}

/// Shapes all eight tile registers.
pub(super) fn configure() -> Code {
    let a = &mut CodeAssembler::new(64)?;
    let mut table = a.create_label();
    a.ldtilecfg(ptr(table))?;
    a.ret()?;
    a.set_label(&mut table)?;
    a.db(&shape())?;
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
pub(super) const ROUND: usize = SUMS * 16 * 16 * 32;
/// Sums that keep the unit busy while each waits for itself.
const SUMS: usize = 4;

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
    a.db(&shape())?;
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
