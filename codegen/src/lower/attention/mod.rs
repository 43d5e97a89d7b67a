//! Attention: scores, softcap, mask, softmax and the weighted sum of values in one pass over the visible keys.
//!
//! In: a kernel whose body is [`Body::Attention`]. Out: its code, one of three ways by rows and CPU; keys outside of
//! (pos - window, pos] are never read, and a row's result depends on its position and on nothing else of its call.
//!
//! | module | serves |
//! |---|---|
//! | `tiles` | many rows: blocks of queries against blocks of keys |
//! | `rows` | few rows, where the CPU has raw dot products |
//! | `plain` | few rows on any CPU |
//! | `merge` | sums up what `rows` made of parts of the keys |

pub(super) mod merge;
mod plain;
mod rows;
mod tiles;

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};
use lapidary_passes::price::Shapes;

use super::elementwise::store_along_row;
use super::softmax::key_range;
use crate::emit::{Emitter, Features};
use crate::kernel::{ATTENTION_ROWS, AttentionWay, Body, Kernel, Maximum};
use crate::math;
use crate::micro::{Microkernel, Raw};
use crate::view::{Capacity, View};

/// The way of attention over these operands, for as many rows as the regime has; `rounded` says whether the factors of
/// many rows' products may be.
pub fn attention_way(inputs: &[View], rounded: bool, regime: usize, features: &Features) -> AttentionWay {
    let (q, k) = (&inputs[0], &inputs[1]);
    let heads = (fixed(q, 0) / fixed(k, 0), fixed(q, 2));
    if let Some(tiles) = tiles::columns_of(heads, regime, rounded, features) {
        return AttentionWay::Tiles(tiles);
    }
    match rows::micros(inputs, regime, features) {
        Some((dots, sums)) => AttentionWay::Rows(dots, sums),
        None => AttentionWay::Plain,
    }
}

/// The raw code that a kernel calls.
pub(super) fn raw_code(
    kernel: &Kernel,
    way: AttentionWay,
    features: &Features,
) -> Vec<(&'static Microkernel, Raw)> {
    match way {
        AttentionWay::Tiles(shape) => tiles::raw_code(kernel, shape),
        AttentionWay::Rows(dots, sums) => rows::raw_code(kernel, (dots, sums), features),
        AttentionWay::Plain => vec![],
    }
}

/// What prices take of the ways that attention goes.
pub(crate) fn attention_shapes(rounded: bool, features: &Features) -> Shapes {
    let (panel, panels) = tiles::columns(rounded, features);
    let (key_block, query_tiles) = (tiles::BLOCK, tiles::TILES);
    Shapes {
        part: merge::PART,
        parts: merge::MOST_PARTS,
        key_block,
        panel,
        panels,
        query_tiles,
        ..Shapes::GENERIC
    }
}

/// How many parts the keys of attention's rows go in, and the width of a part's results, if in more than one.
pub fn attention_parts(
    way: AttentionWay,
    inputs: &[View],
    window: Option<usize>,
    capacity: Capacity,
) -> Option<(usize, usize)> {
    let dims = (inputs[0].axes[1].dim, inputs[1].axes[1].dim);
    if !matches!(way, AttentionWay::Rows(..)) || dims != (Dim::Rows, Dim::Keys) {
        return None;
    }
    let keys = window.map_or(capacity.keys, |w| w.min(capacity.keys));
    let parts = (keys / merge::PART).min(merge::MOST_PARTS);
    (parts > 1).then(|| (parts, merge::layout(fixed(&inputs[0], 2)).2))
}

/// Emits a kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, way: AttentionWay) {
    let attention = Attention::of(kernel);
    match way {
        AttentionWay::Tiles(shape) => tiles::lower(e, attention, shape),
        AttentionWay::Rows(_, sums) => rows::lower(e, attention, sums),
        AttentionWay::Plain => plain::lower(e, attention),
    }
}

fn fixed(view: &View, axis: usize) -> usize {
    match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("heads and head_dim are fixed"),
    }
}

/// What is computed, whichever way.
#[derive(Clone, Copy)]
struct Attention<'a> {
    /// f32 (H, T, D).
    q: &'a View,
    /// (G, S, D), as cached.
    k: &'a View,
    /// (G, S, D), as cached.
    v: &'a View,
    /// i32 (T).
    pos: &'a View,
    /// (H, T, D), or parts (T, H, parts, width).
    output: &'a View,
    head_dim: usize,
    /// Query heads a KV head.
    repeat: usize,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    maximum: Maximum,
    /// Parts of the keys.
    parts: usize,
}

/// A row of a tile.
struct Row {
    /// KV head.
    group: Value,
    /// Part of the keys, if they go in several.
    part: Option<Value>,
    /// Row of the call.
    row: Value,
    /// The keys that it sees, of all parts: the first, and one past the last.
    keys: (Value, Value),
}

impl<'a> Attention<'a> {
    fn of(kernel: &'a Kernel) -> Attention<'a> {
        let Body::Attention { scale, cap, window, maximum, parts, way: _ } = kernel.body else {
            unreachable!("attention kernels alone come here")
        };
        let [q, k, v, pos] = &kernel.inputs[..] else { unreachable!("four operands") };
        let (head_dim, repeat) = (fixed(q, 2), fixed(q, 0) / fixed(k, 0));
        let output = &kernel.outputs[0];
        Attention { q, k, v, pos, output, head_dim, repeat, scale, cap, window, maximum, parts }
    }

    /// Rows of queries.
    fn rows(&self, e: &mut Emitter<'_>) -> Value {
        e.length(self.q.axes[1].dim)
    }

    /// Keys that there are.
    fn keys(&self, e: &mut Emitter<'_>) -> Value {
        e.length(self.k.axes[1].dim)
    }

    /// Runs the body for each row of each tile of [`ATTENTION_ROWS`].
    fn for_rows(&self, e: &mut Emitter<'_>, body: impl FnOnce(&mut Emitter<'_>, Row)) {
        e.for_tiles(|e, tile| {
            let rows = self.rows(e);
            let block = e.i64(i64::from(ATTENTION_ROWS));
            let padded = e.offset(rows, i64::from(ATTENTION_ROWS) - 1);
            let blocks = e.b.ins().udiv(padded, block);
            let group = e.b.ins().udiv(tile, blocks);
            let (group, part) = if self.parts == 1 {
                (group, None)
            } else {
                let parts = e.i64(self.parts as i64);
                let part = e.b.ins().urem(group, parts);
                (e.b.ins().udiv(group, parts), Some(part))
            };
            let first = e.b.ins().urem(tile, blocks);
            let first = e.b.ins().imul(first, block);
            let end = e.b.ins().iadd(first, block);
            let end = e.min(end, rows);
            e.for_range(first, end, 1, &[], |e, row, _| {
                let keys = self.keys(e);
                let keys = key_range(e, self.pos, self.window, row, keys);
                body(e, Row { group, part, row, keys });
                vec![]
            });
        });
    }

    /// Addresses of a KV head's keys and values.
    fn cached(&self, e: &mut Emitter<'_>, group: Value) -> (Value, Value) {
        let k = e.base(self.k);
        let k = e.step(self.k, 0, k, group);
        let v = e.base(self.v);
        (k, e.step(self.v, 0, v, group))
    }

    /// Runs of storage that keys go in: a ring has two.
    fn runs(&self) -> i64 {
        if self.k.ring.is_some() { 2 } else { 1 }
    }

    /// Where run 0 or 1 of a range starts in storage, and its length; a cache that does not wrap has one run.
    fn run(&self, e: &mut Emitter<'_>, run: Value, low: Value, total: Value) -> (Value, Value) {
        let Some(ring) = self.k.ring else { return (low, total) };
        let ring = e.i64(ring as i64);
        let start = e.b.ins().urem(low, ring);
        let to_end = e.b.ins().isub(ring, start);
        let first = e.min(to_end, total);
        let rest = e.b.ins().isub(total, first);
        let zero = e.i64(0);
        (e.b.ins().select(run, zero, start), e.b.ins().select(run, rest, first))
    }

    /// Products to scores: scale and softcap.
    fn score(&self, e: &mut Emitter<'_>, products: Value) -> Value {
        let scale = e.splat(self.scale);
        let scores = e.b.ins().fmul(products, scale);
        match self.cap {
            Some(cap) => math::softcap(e, cap, scores),
            None => scores,
        }
    }
}

/// A row of a cache by where it is stored, not by its key's number.
fn stored_row(e: &mut Emitter<'_>, view: &View, address: Value, index: Value) -> Value {
    let bytes = e.scale(index, view.step_bytes(1));
    e.b.ins().iadd(address, bytes)
}

/// Sets the first `elements` of an f32 array, and up to three beyond.
fn fill(e: &mut Emitter<'_>, array: Value, elements: usize, value: f32) {
    let (zero, n, value) = (e.i64(0), e.i64(elements as i64), e.splat(value));
    e.for_range(zero, n, 4, &[], |e, i, _| {
        let at = e.scale(i, 4);
        let at = e.b.ins().iadd(array, at);
        e.store(DType::F32, value, at, 0, 4);
        vec![]
    });
}

/// A row of `n` sums, f32, over the lanes of their denominator added up, to a row of the output; where nothing was seen
/// it is 0.
fn divide(e: &mut Emitter<'_>, sums: Value, n: usize, denominator: Value, (output, out): (&View, Value)) {
    let denominator = e.sum_lanes(denominator);
    let denominator = e.b.ins().splat(F32X4, denominator);
    let none = e.splat(0.0);
    let some = e.b.ins().fcmp(FloatCC::GreaterThan, denominator, none);
    let n = e.i64(n as i64);
    e.for_lanes(n, &[], |e, i, lanes, _| {
        let at = e.scale(i, 4);
        let at = e.b.ins().iadd(sums, at);
        let sum = e.load(DType::F32, at, 0, lanes);
        let value = e.b.ins().fdiv(sum, denominator);
        let value = e.choose(some, value, none);
        store_along_row(e, output, value, out, i, lanes);
        vec![]
    });
}
