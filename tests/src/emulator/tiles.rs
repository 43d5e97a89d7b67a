//! Tile registers (AMX), after Intel's Software Developer's Manual, volume 2.
//!
//! Registers are shaped by LDTILECFG before use and every access keeps to its register's shape; TDPBF16PS takes
//! denormals as 0, fuses each product with its sum and sums even and odd elements of k apart.

use iced_x86::{Instruction, Mnemonic, Register};

use super::elements::{bf16, flush};
use super::{Cpu, Fault};

const TILES: usize = 8;
const MOST_ROWS: usize = 16;
const MOST_ROW_BYTES: usize = 64;

/// The tile registers.
pub(super) struct Tiles {
    configured: bool,
    rows: [usize; TILES],
    row_bytes: [usize; TILES],
    data: [[[u8; MOST_ROW_BYTES]; MOST_ROWS]; TILES],
}

impl Tiles {
    pub(super) const EMPTY: Tiles = Tiles {
        configured: false,
        rows: [0; TILES],
        row_bytes: [0; TILES],
        data: [[[0; MOST_ROW_BYTES]; MOST_ROWS]; TILES],
    };

    /// The shapes that LDTILECFG reads; none if they are no palette's.
    fn shaped(shape: &[u8; 64]) -> Option<Tiles> {
        let mut tiles = Tiles::EMPTY;
        if shape[0] == 0 {
            return Some(tiles);
        }
        for t in 0..TILES {
            tiles.row_bytes[t] = usize::from(u16::from_le_bytes([shape[16 + 2 * t], shape[17 + 2 * t]]));
            tiles.rows[t] = usize::from(shape[48 + t]);
        }
        tiles.configured = true;
        let fits = tiles.rows.iter().all(|&r| r <= MOST_ROWS)
            && tiles.row_bytes.iter().all(|&b| b <= MOST_ROW_BYTES && b % 4 == 0);
        (shape[0] == 1 && fits).then_some(tiles)
    }

    fn is_shaped(&self, tile: usize) -> bool {
        self.configured && self.rows[tile] > 0 && self.row_bytes[tile] > 0
    }

    /// TDPBSSD: `c[m][n] += sum of a[m][4k + i] b[k][4n + i]`, over i and k, signed bytes. False if shapes do not fit.
    fn multiply_bytes(&mut self, c: usize, a: usize, b: usize) -> bool {
        let Some((rows, depth, columns)) = self.fitting(c, a, b) else { return false };
        for m in 0..rows {
            for n in 0..columns {
                let byte = |row: &[u8; MOST_ROW_BYTES], i: usize| i32::from(row[i] as i8);
                let product =
                    |i: usize| byte(&self.data[a][m], i) * byte(&self.data[b][i / 4], 4 * n + i % 4);
                let sum: i32 = (0..4 * depth).map(product).sum();
                let at = &mut self.data[c][m][4 * n..4 * n + 4];
                let before = i32::from_le_bytes([at[0], at[1], at[2], at[3]]);
                at.copy_from_slice(&before.wrapping_add(sum).to_le_bytes());
            }
        }
        true
    }

    /// Rows of sums, words of a row of the left operand, and columns, if shapes fit together.
    fn fitting(&self, c: usize, a: usize, b: usize) -> Option<(usize, usize, usize)> {
        let distinct = c != a && c != b && a != b;
        let (rows, depth, columns) = (self.rows[c], self.row_bytes[a] / 4, self.row_bytes[c] / 4);
        let fits = self.rows[a] == rows && self.rows[b] == depth && self.row_bytes[b] == self.row_bytes[c];
        let fits = distinct && fits && [c, a, b].into_iter().all(|t| self.is_shaped(t));
        fits.then_some((rows, depth, columns))
    }

    /// TDPBF16PS: `c[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]`, over k. False if shapes do not fit.
    fn multiply(&mut self, c: usize, a: usize, b: usize) -> bool {
        let Some((rows, depth, columns)) = self.fitting(c, a, b) else { return false };
        for m in 0..rows {
            for n in 0..columns {
                let (mut even, mut odd) = (0f32, 0f32);
                for k in 0..depth {
                    let (x, y) = (&self.data[a][m][4 * k..4 * k + 4], &self.data[b][k][4 * n..4 * n + 4]);
                    even = flush(pair(x, 0).mul_add(pair(y, 0), even));
                    odd = flush(pair(x, 1).mul_add(pair(y, 1), odd));
                }
                let at = &mut self.data[c][m][4 * n..4 * n + 4];
                let before = f32::from_le_bytes([at[0], at[1], at[2], at[3]]);
                at.copy_from_slice(&flush(flush(before) + flush(even + odd)).to_le_bytes());
            }
        }
        true
    }
}

/// One bf16 of two, denormals as 0.
fn pair(bytes: &[u8], which: usize) -> f32 {
    bf16(u16::from_le_bytes([bytes[2 * which], bytes[2 * which + 1]]))
}

impl Cpu {
    /// One instruction on tile registers; false if it is no such.
    pub(super) fn tile_step(&mut self, i: &Instruction) -> Result<bool, Fault> {
        let tile = |operand: u32| -> Result<usize, Fault> {
            let register = i.op_register(operand);
            if !register.is_tmm() {
                return Err(Fault::Unknown(*i));
            }
            Ok(register as usize - Register::TMM0 as usize)
        };
        let fits = match i.mnemonic() {
            Mnemonic::Ldtilecfg => {
                let mut shape = [0; 64];
                self.read(i, self.address(i), &mut shape)?;
                self.tiles = Tiles::shaped(&shape).ok_or(Fault::Tiles(*i))?;
                true
            }
            Mnemonic::Tilerelease => {
                self.tiles = Tiles::EMPTY;
                true
            }
            Mnemonic::Tilezero => {
                let t = tile(0)?;
                self.tiles.data[t] = Tiles::EMPTY.data[t];
                self.tiles.is_shaped(t)
            }
            Mnemonic::Tileloadd | Mnemonic::Tileloaddt1 => {
                let t = tile(0)?;
                let (start, stride) = self.start_and_stride(i);
                let mut data = Tiles::EMPTY.data[t];
                for (r, row) in data[..self.tiles.rows[t]].iter_mut().enumerate() {
                    let from = start.wrapping_add(stride.wrapping_mul(r as u64));
                    self.read(i, from, &mut row[..self.tiles.row_bytes[t]])?;
                }
                self.tiles.data[t] = data;
                self.tiles.is_shaped(t)
            }
            Mnemonic::Tilestored => {
                let t = tile(1)?;
                let (start, stride) = self.start_and_stride(i);
                for r in 0..self.tiles.rows[t] {
                    let to = start.wrapping_add(stride.wrapping_mul(r as u64));
                    self.write(i, to, &self.tiles.data[t][r][..self.tiles.row_bytes[t]])?;
                }
                self.tiles.is_shaped(t)
            }
            Mnemonic::Tdpbf16ps => self.tiles.multiply(tile(0)?, tile(1)?, tile(2)?),
            Mnemonic::Tdpbssd => self.tiles.multiply_bytes(tile(0)?, tile(1)?, tile(2)?),
            _ => return Ok(false),
        };
        if fits { Ok(true) } else { Err(Fault::Tiles(*i)) }
    }
}
