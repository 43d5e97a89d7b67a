//! What is widened while tiles multiply a part of a block of weight rows: the block's next part; after its last, the
//! first part of the next weight's block, if weights meet x together, or of the next block.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::linear::Job;
use super::linear_blocked::{Part, Ready, Widening, stored_at};
use crate::emit::Emitter;
use crate::micro::{Raw, TileOperands, WidenOperands};
use crate::view::View;

/// What follows a block's parts.
pub(super) struct Following<'a> {
    weight: &'a View,
    /// Tiles that widen, those of the most calls first.
    tiles: Vec<Widening>,
    /// In how many calls the next part is widened; 0 if there are too few.
    calls: Value,
    /// Where the block's rows are stored, and those that follow.
    rows: Value,
    then: Value,
    /// Whether those are there, of the same type (i64).
    is_then: Value,
    /// The first element of a block, and one past the last.
    start: Value,
    to: Value,
    /// Weight rows of a block, and elements of each that are widened together.
    block_rows: usize,
    elements: usize,
}

impl Job<'_> {
    /// What follows a block whose elements `start` to `to` rows `row` to `end` of x meet, if its tiles can widen.
    pub(super) fn what_follows<'a>(
        &self,
        e: &mut Emitter<'_>,
        block: Part<'a>,
        (row, end): (Value, Value),
        (start, to): (Value, Value),
    ) -> Option<Following<'a>> {
        let Part { weights, i, blocking, first, member, .. } = block;
        let (micro, weight) = (self.linear.micro, &weights[i]);
        let tiles = blocking.widening(&self.linear, weights, weight);
        let elements = micro.elements_stored(weight.dtype).filter(|_| !tiles.is_empty())?;
        let block_rows = micro.block_rows();
        let (zero, whole) = (e.i64(0), e.i64(block_rows as i64));
        // As many calls as there are panels, if all rows of the block are there.
        let rows = e.b.ins().isub(end, row);
        let mut calls = zero;
        for Widening { calls: some, .. } in tiles.iter().rev() {
            let (fewer, number) = (e.i64(((some - 1) * micro.mr) as i64), e.i64(*some as i64));
            let enough = e.b.ins().icmp(IntCC::SignedGreaterThan, rows, fewer);
            calls = e.b.ins().select(enough, number, calls);
        }
        let is_whole = e.b.ins().icmp(IntCC::Equal, member.width, whole);
        let calls = e.b.ins().select(is_whole, calls, zero);
        let rows_of = |e: &mut Emitter<'_>, weight: &View, first: Value| {
            let base = e.base(weight);
            e.step(weight, 0, base, first)
        };
        let next = e.offset(first, block_rows as i64);
        let (then, is_then) = match weights.get(i + 1) {
            Some(other) => (rows_of(e, other, first), e.i64(1)),
            None => {
                let both = e.i64(2 * block_rows as i64);
                let is_there = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, member.left, both);
                let is_there = e.b.ins().uextend(types::I64, is_there);
                (rows_of(e, &weights[0], next), is_there)
            }
        };
        let is_then = if weights.iter().all(|w| w.dtype == weight.dtype) { is_then } else { zero };
        Some(Following {
            weight,
            tiles,
            calls,
            rows: rows_of(e, weight, first),
            then,
            is_then,
            start,
            to,
            block_rows,
            elements,
        })
    }
}

impl Following<'_> {
    /// A number by how many calls a part is widened in, or the `other` one.
    fn by_calls(&self, e: &mut Emitter<'_>, other: usize, number: impl Fn(&Widening) -> usize) -> Value {
        self.tiles.iter().fold(e.i64(other as i64), |other, tile| {
            let (calls, number) = (e.i64(tile.calls as i64), e.i64(number(tile) as i64));
            let is_this = e.b.ins().icmp(IntCC::Equal, self.calls, calls);
            e.b.ins().select(is_this, number, other)
        })
    }

    /// Elements of a part, `other` if none is widened.
    pub(super) fn part(&self, e: &mut Emitter<'_>, other: usize) -> Value {
        self.by_calls(e, other, |tile| tile.part)
    }

    /// The part after that which ends before element `from`, of so many elements at most.
    pub(super) fn next(
        &self,
        e: &mut Emitter<'_>,
        (from, part): (Value, Value),
        ready: Ready,
    ) -> WidenOperands {
        let is_last = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, from, self.to);
        let rows = e.b.ins().select(is_last, self.then, self.rows);
        let from = e.b.ins().select(is_last, self.start, from);
        let (left, zero) = (e.b.ins().isub(self.to, from), e.i64(0));
        let length = e.min(left, part);
        let none = e.b.ins().icmp_imm_u(IntCC::Equal, self.is_then, 0);
        let is_none = e.b.ins().band(none, is_last);
        let length = e.b.ins().select(is_none, zero, length);
        let rounds = e.b.ins().ushr_imm_u(length, i64::from(self.elements.trailing_zeros()));
        let planes = stored_at(e, self.weight, from).map(|at| e.b.ins().iadd(rows, at));
        WidenOperands { planes, to: ready.other, rounds }
    }

    /// Whether that part is widened when a part is done.
    pub(super) fn is_next(&self, e: &mut Emitter<'_>, WidenOperands { rounds, .. }: WidenOperands) -> Value {
        let some = e.b.ins().icmp_imm_u(IntCC::NotEqual, rounds, 0);
        let calls = e.b.ins().icmp_imm_u(IntCC::NotEqual, self.calls, 0);
        let is_next = e.b.ins().band(some, calls);
        e.b.ins().uextend(types::I64, is_next)
    }

    /// The tile of panel number `panel`, which widens its share of that part, or the `plain` one if it has none.
    pub(super) fn call(
        &self,
        e: &mut Emitter<'_>,
        panel: Value,
        widened: WidenOperands,
        operands: &TileOperands,
        plain: impl FnOnce(&mut Emitter<'_>),
    ) {
        let shares = e.b.ins().icmp(IntCC::SignedLessThan, panel, self.calls);
        e.choose_path(shares, |e| self.share(e, panel, widened, operands, &self.tiles), plain);
    }

    fn share(
        &self,
        e: &mut Emitter<'_>,
        panel: Value,
        widened: WidenOperands,
        operands: &TileOperands,
        tiles: &[Widening],
    ) {
        let [Widening { calls, tile, .. }, fewer @ ..] = tiles else { return };
        let by_this = |e: &mut Emitter<'_>| {
            let row = e.scale(panel, (self.block_rows / calls) as i64);
            let stored = e.scale(row, self.weight.step_bytes(0));
            let planes = widened.planes.map(|plane| e.b.ins().iadd(plane, stored));
            let to = e.scale(row, i64::from(tile.weight_stride));
            let to = e.b.ins().iadd(widened.to, to);
            let widened = WidenOperands { planes, to, ..widened };
            let streams = operands.streams.map(|(fetch, _)| (fetch, Some(widened)));
            e.call_raw(Raw::Tile(*tile), &TileOperands { streams, ..*operands }.values());
        };
        if fewer.is_empty() {
            return by_this(e);
        }
        let number = e.i64(*calls as i64);
        let is_this = e.b.ins().icmp(IntCC::Equal, self.calls, number);
        e.choose_path(is_this, by_this, |e| self.share(e, panel, widened, operands, fewer));
    }
}
