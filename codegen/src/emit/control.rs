//! Loops, paths and calls of a kernel.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, Value};
use lapidary_ir::Dim;
use lapidary_runtime::program::{FRAME_SEGMENTS, Segment, Tiles};

use super::{Emitter, SegmentWords};
use crate::micro::Raw;

impl Emitter<'_> {
    /// `for index in begin..end`, carrying `state`; the body returns the next state, the loop the last.
    pub fn for_range(
        &mut self,
        begin: Value,
        end: Value,
        by: i64,
        state: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        self.for_each((begin, end), state, |e, index| e.offset(index, by), body)
    }

    /// The same by steps of `by`.
    pub fn for_steps(
        &mut self,
        (begin, end, by): (Value, Value, Value),
        state: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        self.for_each((begin, end), state, |e, index| e.b.ins().iadd(index, by), body)
    }

    fn for_each(
        &mut self,
        (begin, end): (Value, Value),
        state: &[Value],
        step: impl FnOnce(&mut Self, Value) -> Value,
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let head = self.b.create_block();
        let inside = self.b.create_block();
        let after = self.b.create_block();
        let index = self.b.append_block_param(head, I64);
        let carried: Vec<Value> = state
            .iter()
            .map(|&v| {
                let ty = self.b.func.dfg.value_type(v);
                self.b.append_block_param(head, ty)
            })
            .collect();
        let mut args: Vec<BlockArg> = vec![begin.into()];
        args.extend(state.iter().map(|&v| BlockArg::from(v)));
        self.b.ins().jump(head, &args);
        self.b.switch_to_block(head);
        let done = self.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, index, end);
        // Cranelift walks the second first, and forgets the loop at what follows it: what the loop need not compute is
        // moved out of it only this way round.
        self.b.ins().brif(done, after, &[], inside, &[]);
        self.b.switch_to_block(inside);
        let next = body(self, index, &carried);
        let index = step(self, index);
        let mut args: Vec<BlockArg> = vec![index.into()];
        args.extend(next.iter().map(|&v| BlockArg::from(v)));
        self.b.ins().jump(head, &args);
        self.b.switch_to_block(after);
        carried
    }

    /// A loop over the kernel's tiles; those of segments are numbered within theirs.
    pub fn for_tiles(&mut self, body: impl FnOnce(&mut Self, Value)) {
        let (begin, end) = (self.tile_begin, self.tile_end);
        self.for_range(begin, end, 1, &[], |e, tile, _| {
            match e.by_segment {
                None => body(e, tile),
                Some(tiles) => {
                    let (segment, tile) = e.find_segment(tiles, tile);
                    e.segment = Some(segment);
                    body(e, tile);
                    e.segment = None;
                }
            }
            vec![]
        });
    }

    /// The segment of a tile, and the tile's number within it.
    fn find_segment(&mut self, tiles: Tiles, tile: Value) -> (SegmentWords, Value) {
        let table = self.frame_word(FRAME_SEGMENTS);
        let (head, after) = (self.b.create_block(), self.b.create_block());
        let at = self.b.append_block_param(head, I64);
        let left = self.b.append_block_param(head, I64);
        self.b.ins().jump(head, &[table.into(), tile.into()]);
        self.b.switch_to_block(head);
        // Words in the order of `Segment`'s fields.
        let word = |e: &mut Self, index: i32| {
            e.b.ins().load(I64, MemFlagsData::trusted().with_readonly(), at, index * 8)
        };
        let rows = word(self, 1);
        let groups = match i64::from(tiles.rows) {
            0 => self.i64(1),
            1 => rows,
            by => {
                let up = self.offset(rows, by - 1);
                let by = self.i64(by);
                self.b.ins().udiv(up, by)
            }
        };
        let count = self.scale(groups, tiles.fixed.into());
        let within = self.b.ins().icmp(IntCC::SignedLessThan, left, count);
        let next = self.offset(at, Segment::BYTES as i64);
        let rest = self.b.ins().isub(left, count);
        self.b.ins().brif(within, after, &[], head, &[next.into(), rest.into()]);
        self.b.switch_to_block(after);
        let (first, keys, kv) = (word(self, 0), word(self, 2), word(self, 3));
        (SegmentWords { first, rows, keys, kv }, left)
    }

    /// Splits a row-major index over axes of these lengths: one index an axis.
    pub fn unravel(&mut self, index: Value, dims: &[Dim]) -> Vec<Value> {
        let mut indices = vec![index; dims.len()];
        let mut rest = index;
        for (i, &dim) in dims.iter().enumerate().skip(1).rev() {
            let n = self.length(dim);
            indices[i] = self.b.ins().urem(rest, n);
            rest = self.b.ins().udiv(rest, n);
        }
        if let Some(first) = indices.first_mut() {
            *first = rest;
        }
        indices
    }

    /// `for i in 0..n` in fours, then one by one: the body is emitted twice and told the lanes in use (4 or 1).
    pub fn for_lanes(
        &mut self,
        n: Value,
        state: &[Value],
        mut body: impl FnMut(&mut Self, Value, usize, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let zero = self.i64(0);
        let three = self.i64(!3);
        let whole = self.b.ins().band(n, three);
        let state = self.for_range(zero, whole, 4, state, |e, i, s| body(e, i, 4, s));
        self.for_range(whole, n, 1, &state, |e, i, s| body(e, i, 1, s))
    }

    /// Calls raw code.
    ///
    /// # Panics
    /// If the code was not made for this kernel.
    pub fn call_raw(&mut self, raw: Raw, operands: &[Value]) {
        self.b.ins().call(self.raw[&raw], operands);
    }

    /// Runs `then` when `condition` (an integer) is not 0, else `otherwise`.
    pub fn choose_path(
        &mut self,
        condition: Value,
        then: impl FnOnce(&mut Self),
        otherwise: impl FnOnce(&mut Self),
    ) {
        let (yes, no, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, yes, &[], no, &[]);
        self.b.switch_to_block(yes);
        then(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(no);
        otherwise(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }

    /// Runs `then` when `condition` (an integer) is not 0.
    pub fn when(&mut self, condition: Value, then: impl FnOnce(&mut Self)) {
        let inside = self.b.create_block();
        let after = self.b.create_block();
        self.b.ins().brif(condition, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        then(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }
}
