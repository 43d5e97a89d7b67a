//! AMX tiles of weights as they are stored, for calls of few rows of x: a block of 32 weight rows is widened, so many
//! elements of k after others, while the unit multiplies those before.
//!
//! ```text
//! a turn:  some of the 32 rows, elements k + E .. k + 2 E of each, into one half of scratch
//!          all of them, 32 of the elements k .. k + E, out of the other half
//! ```
//!
//! `E` are as many as are widened together ([`Rows`]), so both halves stay in the first cache. Sums stay in tile
//! registers for all of k, in the order of [`tile_bf16`](super::amx::tile_bf16). The block after this one is fetched
//! into the second cache meanwhile, in some streams, each in the order of its bytes, and the next step's x, which that
//! holds for all blocks, into the first.

use iced_x86::code_asm::{registers::gpr32, registers::gpr64, *};
use lapidary_ir::DType;

use super::amx::{COLUMNS, ROW_BYTES, ROWS, SUMS, WEIGHTS, store};
use super::amx_widen::{Rows, elements};
use super::blocks::{PLANES, TO};
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
/// What is left: turns, and times that `E` elements are widened.
const TURNS: AsmRegister32 = gpr32::ebp;
const ROUNDS: AsmRegister32 = gpr32::ebx;
const SAVED: [AsmRegister64; 4] = [gpr64::rbx, gpr64::rbp, C, X_FETCH];

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
    let a = &mut CodeAssembler::new(64)?;
    let stride = stride(elements(tile.weights).unwrap_or(0)) as i32;
    let mut code = Stored { tile, rows: Rows::new(tile.weights, tile.k, BLOCK_ROWS, stride), stride };
    let rounds = tile.k as i32 / code.rows.elements;
    code.begin(a)?;
    code.first(a)?;
    code.change_halves(a)?;
    if rounds > 1 {
        let mut round = a.create_label();
        a.mov(ROUNDS, rounds - 1)?;
        a.set_label(&mut round)?;
        code.turns(a, true)?;
        code.change_halves(a)?;
        a.dec(ROUNDS)?;
        a.jnz(round)?;
    }
    code.turns(a, false)?;
    code.end(a)?;
    a.assemble(0)
}

struct Stored {
    tile: StoredTile,
    rows: Rows,
    /// Bytes from one widened row to the next.
    stride: i32,
}

impl Stored {
    /// Registers of columns.
    fn halves(&self) -> usize {
        self.tile.columns / ROWS as usize
    }

    /// Bytes of a row of a panel of x, of which a step takes [`ROWS`].
    fn x_row(&self) -> i32 {
        self.tile.panel as i32 * 4
    }

    fn begin(&mut self, a: &mut CodeAssembler) -> Done {
        for register in SAVED {
            a.push(register)?;
        }
        a.mov(X, gpr64::rdi)?;
        a.mov(C, gpr64::rdx)?;
        a.mov(PLANES[0], gpr64::rsi)?;
        a.lea(PLANES[1], ptr(PLANES[0] + self.rows.last_plane))?;
        a.lea(FETCH, ptr(PLANES[0] + BLOCK_ROWS * self.rows.bytes))?;
        a.lea(X_FETCH, ptr(X + ROWS * self.x_row()))?;
        a.mov(TO, gpr64::rcx)?;
        a.lea(READY, ptr(TO + BLOCK_ROWS * self.stride))?;
        a.mov(X_STRIDE, i64::from(self.x_row()))?;
        a.mov(STRIDE, i64::from(self.stride))?;
        for row in SUMS {
            for sum in &row[..self.halves()] {
                a.tilezero(*sum)?;
            }
        }
        self.rows.ready(a)
    }

    /// Of the next elements of so many rows the share of one slot. With each row are fetched as many bytes of the next
    /// block, and so many rows of x.
    fn share(&mut self, a: &mut CodeAssembler, rows: i32, x_rows: i32, slot: (usize, usize)) -> Done {
        let bytes = self.rows.bytes / (self.tile.k as i32 / self.rows.elements);
        let streams = self.tile.streams as i32;
        let apart = BLOCK_ROWS * self.rows.bytes / streams;
        let (x_row, halves) = (self.x_row(), self.halves() as i32);
        self.rows.share(a, rows, slot, |a, row| {
            // Each row has its turn of the streams.
            for line in (0..bytes).step_by(ROW_BYTES as usize) {
                a.prefetcht1(byte_ptr(FETCH + row % streams * apart + line))?;
            }
            if row % streams == streams - 1 {
                a.add(FETCH, bytes)?;
            }
            for (x, j) in (0..x_rows).flat_map(|x| (0..halves).map(move |j| (x, j))) {
                a.prefetcht0(byte_ptr(X_FETCH + x * x_row + j * ROW_BYTES))?;
            }
            if x_rows > 0 { a.add(X_FETCH, x_rows * x_row) } else { Ok(()) }
        })
    }

    /// What was widened is what is multiplied next.
    fn change_halves(&mut self, a: &mut CodeAssembler) -> Done {
        self.rows.next(a, 0)?;
        a.xchg(TO, READY)
    }

    /// Multiplies the elements that are ready, and widens the next meanwhile.
    fn turns(&mut self, a: &mut CodeAssembler, widens: bool) -> Done {
        let (turns, rows, steps) = self.rows.turns();
        let mut turn = a.create_label();
        a.mov(TURNS, turns)?;
        a.set_label(&mut turn)?;
        for step in 0..steps as usize {
            self.multiply(a, |code, a, product, products| {
                let slot = (step * products + product, steps as usize * products);
                if widens { code.share(a, rows, steps * ROWS / rows, slot) } else { Ok(()) }
            })?;
        }
        a.dec(TURNS)?;
        a.jnz(turn)?;
        a.sub(READY, turns * steps * ROW_BYTES)
    }

    /// A step, and what is done after each of its products.
    fn multiply(
        &mut self,
        a: &mut CodeAssembler,
        mut meanwhile: impl FnMut(&mut Stored, &mut CodeAssembler, usize, usize) -> Done,
    ) -> Done {
        let columns = &COLUMNS[..self.halves()];
        let products = WEIGHTS.len() * columns.len();
        for (j, column) in (0..).zip(columns) {
            a.tileloadd(*column, ptr(X + X_STRIDE + j * ROW_BYTES))?;
        }
        for (i, weights) in (0..).zip(WEIGHTS) {
            a.tileloadd(weights, ptr(READY + STRIDE + i * ROWS * self.stride))?;
            for (j, column) in columns.iter().enumerate() {
                a.tdpbf16ps(SUMS[i as usize][j], weights, *column)?;
                meanwhile(self, a, i as usize * columns.len() + j, products)?;
            }
        }
        a.add(X, ROWS * self.x_row())?;
        a.add(READY, ROW_BYTES)
    }

    /// Widens the first elements of all rows.
    fn first(&mut self, a: &mut CodeAssembler) -> Done {
        // As many rows at a time as there are streams.
        let (mut some, rows) = (a.create_label(), self.tile.streams as i32);
        a.mov(TURNS, BLOCK_ROWS / rows)?;
        a.set_label(&mut some)?;
        self.share(a, rows, 0, (0, 1))?;
        a.dec(TURNS)?;
        a.jnz(some)
    }

    fn end(&mut self, a: &mut CodeAssembler) -> Done {
        store(a, (C, STRIDE), self.tile.c_stride, (&SUMS, self.halves()))?;
        for register in SAVED.into_iter().rev() {
            a.pop(register)?;
        }
        a.vzeroupper()?;
        a.ret()?;
        self.rows.end(a)
    }
}
