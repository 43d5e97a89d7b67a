//! The emitter: a thin hand over Cranelift's function builder that lowerings are written with.
//!
//! It knows the kernel ABI (frame, tile range, scratch), views (addresses of elements), counted loops, and 4-lane
//! loads and stores that widen and narrow. Everything is 128-bit: `F32X4` and `I32X4`. A tail of fewer than four
//! elements goes through the same 4-lane arithmetic with one element in lane 0, so an element's value never depends on
//! where in a row it stands.

mod blocks;
mod lanes;

use std::collections::HashMap;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{BlockArg, FuncRef, InstBuilder, MemFlagsData, Value};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;
use lapidary_ir::Dim;
use lapidary_runtime::cpu::{Architecture, Set, Tuning};
use lapidary_runtime::program::{
    FRAME_ARENA, FRAME_CONSTANTS, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, Segment, Tiles,
};

pub use self::blocks::{BlockRow, Group};
use crate::micro::Raw;
use crate::view::{Base, View};

/// What lowerings and microkernels choose by: sets of the target's features that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Fused multiply-add in one instruction; else a multiply and an add.
    pub fma: bool,
    /// x86-64: AVX2, and conversions of f16.
    pub avx2: bool,
    /// x86-64: AVX-VNNI, beside AVX2.
    pub avxvnni: bool,
    /// x86-64: AVX-512 F, BW, DQ and VL.
    pub avx512: bool,
    /// x86-64: AVX-512 VNNI.
    pub vnni: bool,
    /// x86-64: AVX-512 BF16, on CPUs tuned for it: it is there on others too, and slower than FMA.
    pub bf16: bool,
    /// x86-64: AMX tiles, with products of bf16.
    pub amx: bool,
    /// AArch64: dot products of bytes (FEAT_DotProd).
    pub dotprod: bool,
}

impl Features {
    /// Those of a set, on CPUs tuned so.
    pub fn of(set: Set, tuning: Option<&Tuning>) -> Features {
        const fn x86(names: &[&str]) -> Set {
            Set::of(Architecture::X86_64, names)
        }
        const AVX2: Set = x86(&["avx", "avx2", "f16c"]);
        const AVX512: Set = x86(&["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "f16c", "fma"]);
        const AVX_VNNI: Set = x86(&["avxvnni"]);
        const VNNI: Set = x86(&["avx512vnni"]);
        const BF16: Set = x86(&["avx512bf16"]);
        // What tiles multiply is rounded by AVX-512 BF16.
        const AMX: Set = x86(&["amx-tile", "amx-bf16", "avx512bf16"]);
        const DOTPROD: Set = Set::of(Architecture::Aarch64, &["dotprod"]);
        let avx512 = set.has(AVX512);
        Features {
            // Arm and RISC-V have it wherever they have floats.
            fma: set.architecture() != Architecture::X86_64 || set.has(x86(&["fma"])),
            avx2: set.has(AVX2),
            avxvnni: set.has(AVX2.and(AVX_VNNI)),
            avx512,
            vnni: avx512 && set.has(VNNI),
            bf16: avx512 && set.has(BF16) && tuning.is_some_and(|t| t.features.has(BF16)),
            amx: avx512 && set.has(AMX),
            dotprod: set.has(DOTPROD),
        }
    }
}

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

    // ---- control ----

    /// `for index in begin..end`, carrying `state`; the body returns the next state, the loop the last.
    pub fn for_range(
        &mut self,
        begin: Value,
        end: Value,
        by: i64,
        state: &[Value],
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
        let more = self.b.ins().icmp(IntCC::SignedLessThan, index, end);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        let next = body(self, index, &carried);
        let index = self.offset(index, by);
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
