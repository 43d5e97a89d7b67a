//! AMX tiles of weights as they are stored, for calls of few rows of x: a block of 32 weight rows is widened, so many
//! elements of k after others, while the unit multiplies those before.
//!
//! ```text
//! a beat:  some of the 32 rows, elements k + E .. k + 2 E of each, into one half of scratch
//!          all of them, 32 of the elements k .. k + E, out of the other half
//! ```
//!
//! `E` are as many as are widened together ([`Unit`]), so both halves stay in the first cache. What a beat widens and
//! what it multiplies wait for nothing of each other's, and are fewer instructions than the CPU looks ahead: it does
//! both at a time. Sums stay in tile registers for all of k, in the order of [`tile_bf16`](super::amx::tile_bf16). The
//! block after this one is fetched into the second cache meanwhile, in the order of its bytes, and the next step's x, which
//! that holds for all blocks, into the first.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::{DType, Format};

use super::amx::{ROW_BYTES, ROWS, STEP};
use super::blocks::{PLANES, TO, Unit};
use super::dot::Done;
use super::{Code, StoredTile};

/// Weight rows of a block, in two registers.
const BLOCK_ROWS: i32 = 2 * ROWS;

const X: AsmRegister64 = gpr64::r8;
const X_STRIDE: AsmRegister64 = gpr64::r9;
/// The first of what is multiplied, and bytes from one row of it to the next.
const READY: AsmRegister64 = gpr64::r10;
const STRIDE: AsmRegister64 = gpr64::r11;
/// What is fetched of the next block, and of x.
const FETCH: AsmRegister64 = gpr64::rax;
const X_FETCH: AsmRegister64 = gpr64::r13;
const C: AsmRegister64 = gpr64::r12;
/// What is left: rows of a beat, beats, and times that `E` elements are widened.
const LEFT: [AsmRegister32; 3] = [gpr32::ecx, gpr32::ebp, gpr32::ebx];
const SAVED: [AsmRegister64; 4] = [gpr64::rbx, gpr64::rbp, C, X_FETCH];

/// Elements that are widened together, of which rows of these weights must have whole ones.
pub(super) fn elements(weights: DType) -> Option<usize> {
    Some(Unit::new(weights.format()?).elements())
}

/// Bytes from one row that has so many widened elements to the next.
fn stride(elements: usize) -> usize {
    elements * 2 + ROW_BYTES as usize
}

/// Bytes of scratch: both halves.
pub(super) fn scratch_bytes(weights: DType) -> usize {
    elements(weights).map_or(0, |elements| 2 * BLOCK_ROWS as usize * stride(elements))
}

/// The code.
pub(super) fn tile_stored(tile: StoredTile) -> Code {
    let Some(format) = tile.weights.format() else { unreachable!("weights in blocks alone are widened") };
    let a = &mut CodeAssembler::new(64)?;
    let unit = Unit::new(format);
    let elements = unit.elements();
    let rounds = (tile.k / elements) as i32;
    let mut code = Stored { tile, format, elements: elements as i32, stride: stride(elements) as i32, unit };
    code.begin(a)?;
    code.widen_rows(a, BLOCK_ROWS, 0)?;
    code.turn(a, false)?;
    if rounds > 1 {
        let mut round = a.create_label();
        a.mov(LEFT[2], rounds - 1)?;
        a.set_label(&mut round)?;
        code.beats(a, true)?;
        code.turn(a, true)?;
        a.dec(LEFT[2])?;
        a.jnz(round)?;
    }
    code.beats(a, false)?;
    code.end(a)?;
    a.assemble(0)
}

struct Stored<'a> {
    tile: StoredTile,
    format: &'a Format,
    unit: Unit<'a>,
    elements: i32,
    /// Bytes from one widened row to the next.
    stride: i32,
}

const SUMS: [[AsmRegisterTmm; 2]; 2] = [[tmm0, tmm1], [tmm2, tmm3]];
const WEIGHTS: [AsmRegisterTmm; 2] = [tmm4, tmm5];
const COLUMNS: [AsmRegisterTmm; 2] = [tmm6, tmm7];

impl Stored<'_> {
    /// Registers of columns.
    fn halves(&self) -> usize {
        self.tile.columns / ROWS as usize
    }

    /// Bytes of a stored row.
    fn row_bytes(&self) -> i32 {
        self.format.row_bytes(self.tile.k) as i32
    }

    /// Steps of k, and beats, of `E` elements.
    fn steps(&self) -> i32 {
        self.elements / STEP
    }

    /// Bytes of a step of x.
    fn x_step(&self) -> i32 {
        STEP / 2 * self.tile.panel as i32 * 4
    }

    fn begin(&mut self, a: &mut CodeAssembler) -> Done {
        for register in SAVED {
            a.push(register)?;
        }
        let last = self.format.plane_at(self.format.planes.len() - 1, self.tile.k) as i32;
        a.mov(X, gpr64::rdi)?;
        a.mov(C, gpr64::rdx)?;
        a.mov(PLANES[0], gpr64::rsi)?;
        a.lea(PLANES[1], ptr(PLANES[0] + last))?;
        a.lea(FETCH, ptr(PLANES[0] + BLOCK_ROWS * self.row_bytes()))?;
        a.mov(TO, gpr64::rcx)?;
        a.lea(READY, ptr(TO + BLOCK_ROWS * self.stride))?;
        a.lea(X_FETCH, ptr(X + self.x_step()))?;
        a.mov(X_STRIDE, self.tile.panel as i64 * 4)?;
        a.mov(STRIDE, i64::from(self.stride))?;
        let sums = SUMS.into_iter().flat_map(|row| row.into_iter().take(self.halves()));
        for sum in sums {
            a.tilezero(sum)?;
        }
        self.unit.ready(a)
    }

    /// Widens the next elements of so many rows, and fetches so many rows of x for each.
    fn widen_rows(&mut self, a: &mut CodeAssembler, rows: i32, x_rows: i32) -> Done {
        let mut row = a.create_label();
        a.mov(LEFT[0], rows)?;
        a.set_label(&mut row)?;
        self.fetch(a)?;
        let x_row = self.tile.panel as i32 * 4;
        for (row, j) in (0..x_rows).flat_map(|row| (0..self.halves() as i32).map(move |j| (row, j))) {
            a.prefetcht0(byte_ptr(X_FETCH + row * x_row + j * ROW_BYTES))?;
        }
        if x_rows > 0 {
            a.add(X_FETCH, x_rows * x_row)?;
        }
        self.unit.widen(a)?;
        for plane in PLANES {
            a.add(plane, self.row_bytes())?;
        }
        a.add(TO, self.stride)?;
        a.dec(LEFT[0])?;
        a.jnz(row)
    }

    /// Fetches as many bytes of the next block as these elements of a row take.
    fn fetch(&self, a: &mut CodeAssembler) -> Done {
        let bytes = self.row_bytes() / (self.tile.k as i32 / self.elements);
        for line in (0..bytes).step_by(ROW_BYTES as usize) {
            a.prefetcht1(byte_ptr(FETCH + line))?;
        }
        a.add(FETCH, bytes)
    }

    /// From the last row to the first, some elements on, with the halves of scratch changed.
    fn turn(&mut self, a: &mut CodeAssembler, multiplied: bool) -> Done {
        let blocks = self.elements / self.format.block as i32;
        for (plane, bytes) in PLANES.into_iter().zip([0, self.format.planes.len() - 1]) {
            a.sub(plane, BLOCK_ROWS * self.row_bytes() - blocks * self.format.planes[bytes] as i32)?;
        }
        a.sub(TO, BLOCK_ROWS * self.stride)?;
        if multiplied {
            a.sub(READY, self.steps() * ROW_BYTES)?;
        }
        a.xchg(TO, READY)
    }

    /// Multiplies the elements that are ready, step by step, and widens some of the next before each.
    fn beats(&mut self, a: &mut CodeAssembler, widens: bool) -> Done {
        let mut beat = a.create_label();
        a.mov(LEFT[1], self.steps())?;
        a.set_label(&mut beat)?;
        if widens {
            let rows = BLOCK_ROWS / self.steps();
            self.widen_rows(a, rows, STEP / 2 / rows)?;
        }
        self.multiply(a)?;
        a.add(X, self.x_step())?;
        a.add(READY, ROW_BYTES)?;
        a.dec(LEFT[1])?;
        a.jnz(beat)
    }

    /// A step.
    fn multiply(&self, a: &mut CodeAssembler) -> Done {
        let columns = &COLUMNS[..self.halves()];
        for (j, column) in (0..).zip(columns) {
            a.tileloadd(*column, ptr(X + X_STRIDE + j * ROW_BYTES))?;
        }
        for (i, weights) in (0..).zip(WEIGHTS) {
            a.tileloadd(weights, ptr(READY + STRIDE + i * ROWS * self.stride))?;
            for (sum, column) in SUMS[i as usize].into_iter().zip(columns) {
                a.tdpbf16ps(sum, weights, *column)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, a: &mut CodeAssembler) -> Done {
        let c_stride = STRIDE;
        a.mov(c_stride, i64::from(self.tile.c_stride))?;
        for (i, row) in (0..).zip(SUMS) {
            for (j, sum) in (0..).zip(&row[..self.halves()]) {
                let at = i * ROWS * self.tile.c_stride + j * ROW_BYTES;
                a.tilestored(ptr(C + c_stride + at), *sum)?;
            }
        }
        for register in SAVED.into_iter().rev() {
            a.pop(register)?;
        }
        a.vzeroupper()?;
        a.ret()?;
        self.unit.end(a)
    }
}
