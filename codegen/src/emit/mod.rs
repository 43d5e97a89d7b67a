//! The emitter: a thin hand over Cranelift's function builder that lowerings are written with.
//!
//! It knows the kernel ABI (frame, tile range, scratch), views (addresses of elements), counted loops, and 4-lane
//! loads and stores that widen and narrow. Everything is 128-bit: `F32X4` and `I32X4`. A tail of fewer than four
//! elements goes through the same 4-lane arithmetic with one element in lane 0, so an element's value never depends on
//! where in a row it stands.

mod blocks;
mod control;
mod features;
mod halves;
mod lanes;

use std::collections::HashMap;

use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{FuncRef, InstBuilder, MemFlagsData, Value};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;
use lapidary_ir::Dim;
use lapidary_runtime::program::{FRAME_ARENA, FRAME_CONSTANTS, FRAME_ROWS, FRAME_SLOTS, Tiles};

use crate::micro::Raw;
use crate::view::{Base, View};
pub use blocks::{BlockRow, Group};
pub use features::Features;

/// The state of one kernel being emitted.
pub struct Emitter<'a> {
    /// Cranelift's builder, for what has no method here.
    pub b: FunctionBuilder<'a>,
    /// The target's instructions.
    pub features: Features,
    /// Arena offsets in bytes, by buffer.
    arena: &'a [usize],
    frame: Value,
    /// First tile (i64).
    pub tile_begin: Value,
    /// One past the last tile (i64).
    pub tile_end: Value,
    /// This thread's scratch.
    pub scratch: Value,
    scratch_bytes: usize,
    /// Raw code that the kernel may call.
    raw: &'a HashMap<Raw, FuncRef>,
    /// The tile space of each segment, if tiles are a segment's.
    by_segment: Option<Tiles>,
    /// The segment that the tile at hand belongs to.
    segment: Option<SegmentWords>,
}

/// A segment, read (i64 each).
#[derive(Clone, Copy)]
struct SegmentWords {
    first: Value,
    rows: Value,
    keys: Value,
    kv: Value,
}

impl<'a> Emitter<'a> {
    /// Starts a kernel; the builder is in its entry block, whose four parameters are the ABI's. `by_segment` is the
    /// tile space of each segment of a kernel whose tiles are a segment's: within [`Emitter::for_tiles`] rows, keys and
    /// addresses are then that segment's.
    pub fn new(
        mut b: FunctionBuilder<'a>,
        features: Features,
        arena: &'a [usize],
        raw: &'a HashMap<Raw, FuncRef>,
        by_segment: Option<Tiles>,
    ) -> Emitter<'a> {
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let params = b.block_params(entry).to_vec();
        Emitter {
            b,
            features,
            arena,
            frame: params[0],
            tile_begin: params[1],
            tile_end: params[2],
            scratch: params[3],
            scratch_bytes: 0,
            raw,
            by_segment,
            segment: None,
        }
    }

    /// Ends the kernel: returns, seals, finalizes. Gives the scratch it takes, in bytes.
    pub fn finish(mut self, config: TargetFrontendConfig) -> usize {
        self.b.ins().return_(&[]);
        self.b.seal_all_blocks();
        self.b.finalize(config);
        self.scratch_bytes
    }

    /// Takes `bytes` of scratch, 64-byte aligned: their address.
    pub fn take_scratch(&mut self, bytes: usize) -> Value {
        let at = self.scratch_bytes;
        self.scratch_bytes += bytes.next_multiple_of(64);
        self.offset(self.scratch, at as i64)
    }

    // ---- integers ----

    /// An i64.
    pub fn i64(&mut self, value: i64) -> Value {
        self.b.ins().iconst(I64, value)
    }

    /// `value + offset`, both i64.
    pub fn offset(&mut self, value: Value, offset: i64) -> Value {
        if offset == 0 {
            return value;
        }
        let offset = self.i64(offset);
        self.b.ins().iadd(value, offset)
    }

    /// `value * factor`, both i64.
    pub fn scale(&mut self, value: Value, factor: i64) -> Value {
        match factor {
            1 => value,
            0 => self.i64(0),
            f if f > 0 && (f as u64).is_power_of_two() => {
                let shift = self.i64(f.trailing_zeros().into());
                self.b.ins().ishl(value, shift)
            }
            f => {
                let f = self.i64(f);
                self.b.ins().imul(value, f)
            }
        }
    }

    /// The smaller of two i64.
    pub fn min(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().smin(a, b)
    }

    /// A word of the frame.
    fn frame_word(&mut self, word: usize) -> Value {
        let flags = MemFlagsData::trusted().with_readonly().with_can_move();
        self.b.ins().load(I64, flags, self.frame, (word * 8) as i32)
    }

    /// The address in a slot (i64).
    pub fn slot(&mut self, slot: usize) -> Value {
        self.frame_word(FRAME_SLOTS + slot)
    }

    /// `T`, the call's rows or the segment's (i64).
    ///
    /// # Panics
    /// Outside of the tiles of a kernel whose tiles are a segment's.
    pub fn rows(&mut self) -> Value {
        if self.by_segment.is_some() { self.segment().rows } else { self.frame_word(FRAME_ROWS) }
    }

    /// `S`, the segment's keys with this call's rows appended (i64).
    ///
    /// # Panics
    /// Outside of the tiles of a kernel whose tiles are a segment's.
    pub fn keys(&mut self) -> Value {
        self.segment().keys
    }

    fn segment(&self) -> SegmentWords {
        match self.segment {
            Some(segment) => segment,
            None => unreachable!("keys and a segment's rows are asked for within a tile of a segment"),
        }
    }

    /// A dim's length in this call (i64).
    pub fn length(&mut self, dim: Dim) -> Value {
        match dim {
            Dim::Fixed(n) => self.i64(n as i64),
            Dim::Rows => self.rows(),
            Dim::Keys => self.keys(),
        }
    }

    // ---- views ----

    /// The address of a view's element at index 0 of every axis.
    ///
    /// # Panics
    /// On a view that is not in memory.
    pub fn base(&mut self, view: &View) -> Value {
        let base = match view.base {
            Base::Arena(id) => {
                let arena = self.frame_word(FRAME_ARENA);
                self.offset(arena, self.arena[id.0] as i64)
            }
            Base::Slot(slot) => self.frame_word(FRAME_SLOTS + slot),
            Base::Cache(slot) => {
                let (kv, offset) = (self.segment().kv, self.frame_word(FRAME_SLOTS + slot));
                self.b.ins().iadd(kv, offset)
            }
            Base::Constant(at) => {
                let constants = self.frame_word(FRAME_CONSTANTS);
                self.offset(constants, at as i64)
            }
            Base::Number(_) | Base::Integer(_) => unreachable!("an immediate has no address"),
        };
        let mut base = self.offset(base, view.bytes_of(view.offset));
        if let Some(segment) = self.segment {
            let rows = view.axes.iter().filter(|a| a.dim == Dim::Rows).map(|a| a.stride).sum::<i64>();
            let row = view.bytes_of(rows + view.per_row_offset);
            if row != 0 {
                let first = self.scale(segment.first, row);
                base = self.b.ins().iadd(base, first);
            }
        }
        if view.per_row_offset == 0 {
            return base;
        }
        let rows = self.rows();
        let before_last = self.offset(rows, -1);
        let bytes = self.scale(before_last, view.bytes_of(view.per_row_offset));
        self.b.ins().iadd(base, bytes)
    }

    /// `address` moved by `index` (i64) along an axis of the view. Broadcast axes do not move it. A ring's key axis
    /// wraps.
    pub fn step(&mut self, view: &View, axis: usize, address: Value, index: Value) -> Value {
        let stride = view.step_bytes(axis);
        if stride == 0 {
            return address;
        }
        let index = match view.ring {
            Some(rows) if view.axes[axis].dim == Dim::Keys => {
                let rows = self.i64(rows as i64);
                self.b.ins().urem(index, rows)
            }
            _ => index,
        };
        let bytes = self.scale(index, stride);
        self.b.ins().iadd(address, bytes)
    }

    /// `address` moved by one index for each listed axis.
    pub fn at(&mut self, view: &View, address: Value, indices: &[(usize, Value)]) -> Value {
        indices.iter().fold(address, |address, &(axis, index)| self.step(view, axis, address, index))
    }
}
