//! Weight rows that are widened between the products of AMX tiles. What is widened and what is multiplied wait for
//! nothing of each other's, and a CPU does both at a time if they come in turn: a product keeps the unit busy for 16
//! cycles, in which some 30 instructions of widening are done. A step's products behind all that is widened in that
//! time took as long as one after the other.

use iced_x86::code_asm::*;
use lapidary_ir::{DType, Format};

use super::amx::STEP;
use super::blocks::{PLANES, TO, Unit};
use super::dot::Done;

/// Rows of a weight in blocks, some elements of each at a time: where the next row's lie is in [`PLANES`], where they
/// go in [`TO`].
pub(super) struct Rows {
    unit: Unit<'static>,
    format: &'static Format,
    /// Elements at a time.
    pub(super) elements: i32,
    /// Bytes of a stored row.
    pub(super) bytes: i32,
    /// Where its last plane begins.
    pub(super) last_plane: i32,
    /// Bytes from one widened row to the next.
    stride: i32,
    /// How many there are.
    pub(super) rows: i32,
}

/// Elements at a time, of which rows of these weights must have whole ones.
pub(super) fn elements(weights: DType) -> Option<usize> {
    Some(Unit::new(weights.format()?).elements())
}

impl Rows {
    /// `rows` of `k` elements; `stride` bytes from one widened row to the next.
    pub(super) fn new(weights: DType, k: usize, rows: i32, stride: i32) -> Rows {
        let Some(format) = weights.format() else { unreachable!("weights in blocks alone are widened") };
        let unit = Unit::new(format);
        Rows {
            elements: unit.elements() as i32,
            unit,
            format,
            bytes: format.row_bytes(k) as i32,
            last_plane: format.plane_at(format.planes.len() - 1, k) as i32,
            stride,
            rows,
        }
    }

    /// Puts into registers what stays there.
    pub(super) fn ready(&mut self, a: &mut CodeAssembler) -> Done {
        self.unit.ready(a)
    }

    /// Widens the elements of so many of the rows.
    pub(super) fn widen(&mut self, a: &mut CodeAssembler, rows: i32) -> Done {
        (0..rows).try_for_each(|_| self.share(a, 1, (0, 1), |_, _| Ok(())))
    }

    /// Of the elements of so many of the rows the share of one slot among some; and something else before each row, by
    /// its number among them.
    pub(super) fn share(
        &mut self,
        a: &mut CodeAssembler,
        rows: i32,
        (slot, slots): (usize, usize),
        mut before: impl FnMut(&mut CodeAssembler, i32) -> Done,
    ) -> Done {
        let pieces = self.unit.pieces();
        let all = rows as usize * pieces;
        for i in all * slot / slots..all * (slot + 1) / slots {
            let (row, piece) = (i / pieces, i % pieces);
            if piece == 0 {
                before(a, row as i32)?;
            }
            self.unit.piece(a, piece)?;
            if piece + 1 == pieces {
                for plane in PLANES {
                    a.add(plane, self.bytes)?;
                }
                a.add(TO, self.stride)?;
            }
        }
        Ok(())
    }

    /// How the elements of all rows and the steps of as many elements of k take turns: how often, how many rows, and
    /// then how many steps.
    pub(super) fn turns(&self) -> (i32, i32, i32) {
        let steps = self.elements / STEP;
        let turns = steps.min(self.rows);
        (turns, self.rows / turns, steps / turns)
    }

    /// From behind the last row back to the first, its next elements; where they go stays the first row's place, plus
    /// `along` bytes.
    pub(super) fn next(&self, a: &mut CodeAssembler, along: i32) -> Done {
        let blocks = self.elements / self.format.block as i32;
        for (plane, bytes) in PLANES.into_iter().zip([0, self.format.planes.len() - 1]) {
            a.sub(plane, self.rows * self.bytes - blocks * self.format.planes[bytes] as i32)?;
        }
        a.sub(TO, self.rows * self.stride - along)
    }

    /// Puts down what the code reads, behind it.
    pub(super) fn end(&mut self, a: &mut CodeAssembler) -> Done {
        self.unit.end(a)
    }
}
