//! Tiles of a linear kernel: blocks of weight rows, over all rows of x or over as many as caches hold beside them.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::Dim;
use lapidary_runtime::program::Tiles;

use super::linear::{Job, fixed, most_rows};
use super::linear_blocked::Blocking;
use super::linear_row;
use crate::emit::Emitter;
use crate::kernel::Linear;
use crate::micro::Emit;
use crate::view::{Capacity, View};

/// The tile space of a linear kernel: blocks of each weight in turn; of all at once, where they make one output. If a
/// tile meets some rows of x alone, all blocks for these, then for the next.
pub fn tiles(weights: &[View], linear: &Linear, dim: Dim, capacity: Capacity) -> Tiles {
    let (fixed, most) = (blocks(weights, linear) as u32, capacity.of(dim));
    match rows(linear, most, weights) {
        Some(rows) if dim == Dim::Rows => Tiles { fixed, rows: rows as u32 },
        Some(rows) => Tiles { fixed: fixed * most.div_ceil(rows) as u32, rows: 0 },
        None => Tiles { fixed, rows: 0 },
    }
}

/// Blocks of all outputs.
fn blocks(weights: &[View], linear: &Linear) -> usize {
    let blocks = |w: &View| fixed(w, 0).div_ceil(linear.micro.block_rows());
    if linear.is_joint() { blocks(&weights[0]) } else { weights.iter().map(blocks).sum() }
}

/// Rows of x that a tile meets, if not all of calls of at most `most`.
pub(super) fn rows(linear: &Linear, most: usize, weights: &[View]) -> Option<usize> {
    if let Some(blocking) = Blocking::of(linear, most, weights) {
        return Some(blocking.rows);
    }
    let many = matches!(linear.micro.emit, Emit::BlockLanes(_)) && most > linear.micro.mr;
    many.then_some(linear.micro.mr)
}

impl Job<'_> {
    /// Tiles from one to another: blocks of all outputs, for some rows of x and then for the next, or for all.
    pub(super) fn run_tiles(&mut self, e: &mut Emitter<'_>, weights: &[View], (begin, end): (Value, Value)) {
        let Some(rows) = rows(&self.linear, most_rows(self.kernel), weights) else {
            return self.blocks(e, weights, (begin, end));
        };
        let each = e.i64(blocks(weights, &self.linear) as i64);
        let last = e.offset(end, -1);
        let (low, high) = (e.b.ins().udiv(begin, each), e.b.ins().udiv(last, each));
        let high = e.offset(high, 1);
        e.for_range(low, high, 1, &[], |e, of, _| {
            let (before, zero) = (e.b.ins().imul(of, each), e.i64(0));
            let (begin, end) = (e.b.ins().isub(begin, before), e.b.ins().isub(end, before));
            let (begin, end) = (e.b.ins().smax(begin, zero), e.min(end, each));
            let row = e.scale(of, rows as i64);
            let (left, all) = (e.offset(row, rows as i64), self.rows(e));
            self.span = Some((row, e.min(left, all)));
            self.blocks(e, weights, (begin, end));
            vec![]
        });
    }

    /// Blocks from one to another, of all outputs.
    fn blocks(&mut self, e: &mut Emitter<'_>, weights: &[View], (begin, end): (Value, Value)) {
        let rows = self.linear.micro.block_rows();
        let alone = if self.alone { linear_row::at_once(weights, &self.linear) } else { 1 };
        let most = self.blocking.map_or(alone, Blocking::at_once) as i64;
        let groups: Vec<&[View]> =
            if self.linear.is_joint() { vec![weights] } else { weights.chunks(1).collect() };
        let mut first = 0i64;
        for (output, group) in groups.into_iter().enumerate() {
            let blocks = fixed(&group[0], 0).div_ceil(rows) as i64;
            let (low, high) = (e.i64(first), e.i64(first + blocks));
            let low = e.b.ins().smax(low, begin);
            let high = e.min(high, end);
            self.output = output;
            e.for_range(low, high, most, &[], |e, tile, _| {
                let block = e.offset(tile, -first);
                let first = e.scale(block, rows as i64);
                let n = e.i64(fixed(&group[0], 0) as i64);
                let left = e.b.ins().isub(n, first);
                let (tiles, most) = (e.b.ins().isub(high, tile), e.i64(most));
                let tiles = e.min(tiles, most);
                let width = e.scale(tiles, rows as i64);
                let width = e.min(left, width);
                self.block(e, group, first, width);
                vec![]
            });
            first += blocks;
        }
    }

    /// The rows of x that the tile meets.
    pub(super) fn span(&self, e: &mut Emitter<'_>) -> (Value, Value) {
        self.span.unwrap_or_else(|| (e.i64(0), self.rows(e)))
    }
}
