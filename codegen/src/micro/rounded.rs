//! Rows of x rounded to 8 bits or to bf16, as raw code reads them.

use std::cmp::Ordering;

use lapidary_ir::format::Bits;
use lapidary_ir::{BLOCK, DType};

/// Bytes of the quants of a row of x rounded to 8 bits: k (i8), and what is left of a pair of blocks.
pub fn int8_quant_bytes(k: usize) -> usize {
    k.next_multiple_of(2 * BLOCK)
}

/// 1.5 times 2^23: this and an integer below 2^22 is a float whose bits are this one's and the integer.
pub const MAGIC: f32 = 12_582_912.0;

/// Bytes of a row of x rounded to 8 bits: quants, then for each block its scale (f32), then for each block the sum of
/// its quants (i32), or for [`Emit::RawDot`](super::Emit::RawDot) 8 times that and [`MAGIC`] (f32); a multiple of 64.
/// Quants lie as they follow one another, or in pairs of blocks as [`Emit::PairedDot`](super::Emit::PairedDot) reads
/// them: the first halves of both, then their second halves.
pub fn int8_row_bytes(k: usize) -> usize {
    (int8_quant_bytes(k) + k / BLOCK * 8).next_multiple_of(64)
}

/// Bytes of a block of such a row, for [`Emit::RawLanes`](super::Emit::RawLanes): its scale (f32), -8 times the sum of
/// its quants (i32), the same of the first half of them (i32), the scale times the first of these sums (f32), and the
/// quants.
pub const LANE_BLOCK: usize = 4 * size_of::<f32>() + BLOCK;

/// Bytes of a row of x as [`Emit::RawLanes`](super::Emit::RawLanes) reads it: rounded to 8 bits, block by block, or to
/// bf16, or in f32.
pub fn lane_row_bytes(operands: DType, k: usize) -> usize {
    if operands.is_quantised() { k / BLOCK * LANE_BLOCK } else { operands.row_bytes(k) }
}

/// Blocks of x of a [`RowUnit`].
pub const ROW_BLOCKS: usize = 4;

/// How a row of x lies that is rounded to 8 bits for [`Raw::Row`](super::Raw::Row): four blocks at a time, what
/// [`LANE_BLOCK`] has of each. Of what is not there any bytes do.
pub struct RowUnit;

impl RowUnit {
    /// The blocks' scales (f32).
    pub const SCALES: i32 = (ROW_BLOCKS * BLOCK) as i32;
    /// -8 times the sums of their quants (i32).
    pub const SUMS: i32 = RowUnit::SCALES + 4 * ROW_BLOCKS as i32;
    /// The same of their first halves (i32).
    pub const FIRSTS: i32 = RowUnit::SUMS + 4 * ROW_BLOCKS as i32;
    /// Scales times the first of these sums (f32).
    pub const WORTH: i32 = RowUnit::FIRSTS + 4 * ROW_BLOCKS as i32;
    /// All of them, after the quants.
    pub const BYTES: usize = ROW_BLOCKS * LANE_BLOCK;

    /// Bytes from a block's first half of quants to its second, from a block to the other one of its pair, and from
    /// this pair to the second. Weights whose bytes hold two elements want the elements that lie low in the first half
    /// of the unit, and in the same order those above them in the second.
    pub fn quants(weights: DType) -> [usize; 3] {
        let half = ROW_BLOCKS * BLOCK / 2;
        let bits = weights.format().map_or(&[][..], |format| format.quants.bits);
        let above = match bits {
            [Bits { width: 4, run, .. }, others @ ..] if others.iter().all(|bits| bits.run > 1) => *run,
            _ => half,
        };
        [BLOCK / 2, BLOCK, 2 * BLOCK].map(|elements| match elements.cmp(&above) {
            Ordering::Less => elements,
            Ordering::Equal => half,
            Ordering::Greater => elements / 2,
        })
    }

    /// Bytes of a row.
    pub fn row_bytes(k: usize) -> usize {
        k.div_ceil(ROW_BLOCKS * BLOCK) * RowUnit::BYTES
    }
}
