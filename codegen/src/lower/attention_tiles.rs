//! Attention for many rows: blocks of queries against blocks of keys, both products by tile microkernels.
//!
//! A tile is some rows of some query heads of one KV head: its queries are the columns of a few panels, packed once.
//! Keys and values go in blocks that start at multiples of their length, from the first that any of its rows sees to
//! the last, each widened once for all panels that see it: scores come out as rows of keys, columns of queries, so that
//! softcap, mask and exp run along lanes of queries, and what they leave is the panel of the second product, with
//! values transposed. Blocks that no row sees are never touched. Without a maximum the sums just add up; with one, each
//! block rescales them.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use lapidary_ir::{DType, Dim};
use lapidary_runtime::program::Tiles;

use super::elementwise::{load_along_row, store_along_row};
use super::softmax::key_range;
use super::tiling::Tiling;
use super::transpose;
use crate::emit::{Emitter, Features};
use crate::kernel::{ATTENTION_ROWS, Body, Kernel, Maximum};
use crate::math;
use crate::micro::{self, Microkernel, Raw, TileOperands};
use crate::view::View;

/// Keys of a block.
const BLOCK: usize = 64;

/// Columns of a tile, where calls have rows enough.
const COLUMNS: usize = 64;
/// Tiles that the rows of the largest call make at least: work for many threads comes before columns.
const TILES: usize = 8;

/// What stands for the score of a key that is not seen, and for a maximum over none.
const UNSEEN: f32 = -1e30;

/// How a tile's columns are made up.
#[derive(Clone, Copy)]
struct Shape {
    micro: &'static Microkernel,
    /// Query heads of a tile.
    heads: usize,
    /// Rows of a panel.
    rows: usize,
    /// Panels of a tile.
    panels: usize,
}

/// The tile's columns, if the calls have rows enough for tiles.
fn shape(repeat: usize, head_dim: usize, rows: usize, rounded: bool, features: &Features) -> Option<Shape> {
    let micro = micro::select(rows, head_dim, operands(rows, head_dim, rounded, features), features);
    micro.is_packed().then(|| {
        let heads = repeat.min(micro.mr);
        let panel_rows = micro.mr / heads;
        // Of bf16 products run over whole blocks, cleared where no key is for one panel alone.
        let most = if micro.operands == DType::F32 { COLUMNS / micro.mr } else { 1 };
        let panels = most.min(rows / (TILES * panel_rows)).max(1);
        Shape { micro, heads, rows: panel_rows, panels }
    })
}

/// How both products hold their factors: as f32, or rounded to bf16 where they may be and that is faster.
fn operands(rows: usize, head_dim: usize, rounded: bool, features: &Features) -> DType {
    // Both sums' lengths: elements of a head, keys of a block.
    let fits = head_dim.is_multiple_of(BLOCK / 2);
    let micro = micro::choose(rows, head_dim, rounded && fits, false, features);
    if micro.is_packed() { micro.operands } else { DType::F32 }
}

fn fixed(view: &View, axis: usize) -> usize {
    match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("heads and head_dim are fixed"),
    }
}

fn shape_of(kernel: &Kernel, features: &Features) -> Option<Shape> {
    let Body::Attention { rounded, .. } = kernel.body else {
        unreachable!("attention kernels alone come here")
    };
    let (q, k) = (&kernel.inputs[0], &kernel.inputs[1]);
    shape(fixed(q, 0) / fixed(k, 0), fixed(q, 2), kernel.regime, rounded, features)
}

/// Whether calls have rows enough for tiles.
pub(super) fn fits(kernel: &Kernel, features: &Features) -> bool {
    shape_of(kernel, features).is_some()
}

/// How both products hold their factors; f32 if calls have too few rows.
pub(super) fn held(kernel: &Kernel, features: &Features) -> DType {
    shape_of(kernel, features).map_or(DType::F32, |s| s.micro.operands)
}

/// The tile space.
pub(super) fn tiles(
    (groups, repeat, head_dim): (usize, usize, usize),
    rows: usize,
    rounded: bool,
    features: &Features,
) -> Tiles {
    match shape(repeat, head_dim, rows, rounded, features) {
        Some(s) => {
            Tiles { fixed: (groups * repeat.div_ceil(s.heads)) as u32, rows: (s.rows * s.panels) as u32 }
        }
        None => Tiles { fixed: groups as u32, rows: ATTENTION_ROWS },
    }
}

/// Bytes of a row of `n` elements and a little more, lest rows share cache sets.
fn padded(n: usize, operands: DType) -> usize {
    n.next_multiple_of(16) * operands.bytes() + 64
}

fn score_tiling(micro: &'static Microkernel, head_dim: usize) -> Tiling {
    Tiling {
        micro,
        weights: micro.operands,
        weight_stride: padded(head_dim, micro.operands),
        c_stride: micro.mr * 4,
    }
}

fn value_tiling(micro: &'static Microkernel) -> Tiling {
    Tiling {
        micro,
        weights: micro.operands,
        weight_stride: padded(BLOCK, micro.operands),
        c_stride: micro.mr * 4,
    }
}

/// Bytes of a panel's queries.
fn query_bytes(shape: Shape, head_dim: usize) -> usize {
    head_dim.next_multiple_of(4) * shape.micro.mr * 4
}

/// Bytes of a panel's unnormalised outputs.
fn sum_bytes(shape: Shape, head_dim: usize) -> usize {
    (head_dim.next_multiple_of(4) + value_tiling(shape.micro).overhang()) * shape.micro.mr * 4
}

/// Bytes of a panel's range of keys and number of columns.
const RANGE_BYTES: usize = 32;

/// The raw code that the kernel calls.
pub(super) fn raw_code(kernel: &Kernel, features: &Features) -> Vec<(&'static Microkernel, Raw)> {
    let Some(shape) = shape_of(kernel, features) else { return vec![] };
    debug_assert!(matches!(kernel.body, Body::Attention { .. }));
    let scores = score_tiling(shape.micro, fixed(&kernel.inputs[0], 2));
    let raw = scores.raw_code().into_iter().chain(value_tiling(shape.micro).raw_code());
    raw.map(|raw| (shape.micro, raw)).collect()
}

/// A tile; or one panel of it, when scratch that each panel has its own of is that panel's.
#[derive(Clone, Copy)]
struct Attention<'a> {
    q: &'a View,
    k: &'a View,
    v: &'a View,
    pos: &'a View,
    output: &'a View,
    shape: Shape,
    head_dim: usize,
    /// Query heads a KV head.
    repeat: usize,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    maximum: Maximum,
    /// Scratch: queries f32 (head_dim, panel), or bf16 in pairs (head_dim / 2, panel, 2).
    queries: Value,
    /// Scratch: keys f32 or bf16 (BLOCK, head_dim), rows padded.
    keys: Value,
    /// Scratch: values f32 or bf16 (head_dim, BLOCK), rows padded.
    values: Value,
    /// Scratch: scores f32 (BLOCK, panel).
    scores: Value,
    /// Scratch: what softmax makes of them, if it is rounded: bf16 in pairs (BLOCK / 2, panel, 2). Else the scores'
    /// place.
    shares: Value,
    /// Scratch: unnormalised outputs f32 (head_dim, panel).
    sums: Value,
    /// Scratch, one element a column: first visible key and one past the last (i32), denominator, maximum and rescale
    /// (f32), address of the query and of the output (i64).
    low: Value,
    high: Value,
    denominator: Value,
    highest: Value,
    rescale: Value,
    query_rows: Value,
    output_rows: Value,
    /// Scratch: the first key that any column sees, one past the last, and the columns (i64).
    range: Value,
}

/// Emits the kernel.
pub(super) fn lower(
    e: &mut Emitter<'_>,
    kernel: &Kernel,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    maximum: Maximum,
) {
    let [q, k, v, pos] = &kernel.inputs[..] else { unreachable!("four operands") };
    let Some(shape) = shape_of(kernel, &e.features) else { unreachable!("callers ask whether tiles fit") };
    let (head_dim, panel) = (fixed(q, 2), shape.micro.mr);
    let over = value_tiling(shape.micro).overhang();
    let columns = panel * 4;
    let operands = shape.micro.operands;
    let scores = e.take_scratch((BLOCK + over) * columns);
    let shares = if operands == DType::BF16 { e.take_scratch(BLOCK / 2 * columns) } else { scores };
    let panels = shape.panels;
    let each = |e: &mut Emitter<'_>, bytes: usize| e.take_scratch(panels * bytes);
    let a = Attention {
        q,
        k,
        v,
        pos,
        output: &kernel.outputs[0],
        shape,
        head_dim,
        repeat: fixed(q, 0) / fixed(k, 0),
        scale,
        cap,
        window,
        maximum,
        queries: each(e, query_bytes(shape, head_dim)),
        keys: e.take_scratch((BLOCK + over) * padded(head_dim, operands)),
        values: e.take_scratch((head_dim.next_multiple_of(4) + over) * padded(BLOCK, operands)),
        scores,
        shares,
        sums: each(e, sum_bytes(shape, head_dim)),
        low: each(e, columns),
        high: each(e, columns),
        denominator: each(e, columns),
        highest: each(e, columns),
        rescale: each(e, columns),
        query_rows: each(e, 2 * columns),
        output_rows: each(e, 2 * columns),
        range: each(e, RANGE_BYTES),
    };
    if shape.micro.is_configured() {
        e.call_raw(Raw::Configure, &[]);
    }
    e.for_tiles(|e, tile| a.tile(e, tile));
    if shape.micro.is_configured() {
        e.call_raw(Raw::Release, &[]);
    }
}

impl Attention<'_> {
    fn tile(&self, e: &mut Emitter<'_>, tile: Value) {
        let Shape { heads, rows: panel_rows, panels, .. } = self.shape;
        let (panel_rows, tile_rows) = (panel_rows as i64, (panel_rows * panels) as i64);
        let rows = e.rows();
        let block = e.i64(tile_rows);
        let up = e.offset(rows, tile_rows - 1);
        let blocks = e.b.ins().udiv(up, block);
        let part = e.b.ins().udiv(tile, blocks);
        let first = e.b.ins().urem(tile, blocks);
        let first = e.b.ins().imul(first, block);
        let parts = e.i64(self.repeat.div_ceil(heads) as i64);
        let group = e.b.ins().udiv(part, parts);
        let part = e.b.ins().urem(part, parts);
        let head = e.scale(part, heads as i64);
        let left = e.i64(self.repeat as i64);
        let left = e.b.ins().isub(left, head);
        let most = e.i64(heads as i64);
        let heads = e.min(left, most);
        let left = e.b.ins().isub(rows, first);
        let rows = e.min(left, block);
        let first_head = e.scale(group, self.repeat as i64);
        let first_head = e.b.ins().iadd(first_head, head);

        self.clear_ranges(e);
        let (zero, keys) = (e.i64(0), e.keys());
        let seen = e.for_range(zero, rows, panel_rows, &[keys, zero, zero], |e, row, seen| {
            let panel = self.panel(e, row);
            let left = e.b.ins().isub(rows, row);
            let most = e.i64(panel_rows);
            let rows = e.min(left, most);
            let first = e.b.ins().iadd(first, row);
            let columns = e.b.ins().imul(rows, heads);
            let seen = panel.columns(e, (first, rows), (first_head, heads), seen);
            panel.pack(e, columns);
            panel.clear(e);
            panel.keep_range(e, [seen[3], seen[4], columns]);
            seen[..3].to_vec()
        });
        let (low, high, gap) = (seen[0], seen[1], seen[2]);
        let k = e.base(self.k);
        let k = e.step(self.k, 0, k, group);
        let v = e.base(self.v);
        let v = e.step(self.v, 0, v, group);
        // So that what a row's keys are added up in depends on no other row.
        let start = e.b.ins().band_imm_s(low, !(BLOCK as i64 - 1));
        e.for_range(start, high, BLOCK as i64, &[], |e, key, _| {
            let left = e.b.ins().isub(high, key);
            let count = e.i64(BLOCK as i64);
            let count = e.min(left, count);
            let before = e.b.ins().isub(low, key);
            let before = e.b.ins().smax(before, zero);
            let mut partial = e.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, before, 0);
            if self.rounds() {
                let short = e.b.ins().icmp_imm_s(IntCC::SignedLessThan, count, BLOCK as i64);
                partial = e.b.ins().bor(partial, short);
            }
            e.when(partial, |e| self.clear_values(e));
            self.widen(e, (k, v), key, (before, count));
            e.when(gap, |e| self.hide(e, key, count));
            e.for_range(zero, rows, panel_rows, &[], |e, row, _| {
                let panel = self.panel(e, row);
                let [low, high, columns] = panel.kept_range(e);
                let left = e.b.ins().isub(high, key);
                let count = e.min(left, count);
                let end = e.b.ins().iadd(key, count);
                let any = e.b.ins().icmp(IntCC::SignedGreaterThan, count, zero);
                let begun = e.b.ins().icmp(IntCC::SignedGreaterThan, end, low);
                let sees = e.b.ins().band(any, begun);
                e.when(sees, |e| panel.block(e, key, count, low, columns));
                vec![]
            });
            vec![]
        });
        e.for_range(zero, rows, panel_rows, &[], |e, row, _| {
            let panel = self.panel(e, row);
            let [.., columns] = panel.kept_range(e);
            panel.store(e, columns);
            vec![]
        });
    }

    /// The panel that starts at a row of the tile.
    fn panel(&self, e: &mut Emitter<'_>, row: Value) -> Self {
        let Shape { micro, rows, panels, .. } = self.shape;
        if panels == 1 {
            return *self;
        }
        let rows = e.i64(rows as i64);
        let index = e.b.ins().udiv(row, rows);
        let own = |e: &mut Emitter<'_>, all: Value, bytes: usize| {
            let at = e.scale(index, bytes as i64);
            e.b.ins().iadd(all, at)
        };
        let columns = micro.mr * 4;
        Self {
            queries: own(e, self.queries, query_bytes(self.shape, self.head_dim)),
            sums: own(e, self.sums, sum_bytes(self.shape, self.head_dim)),
            low: own(e, self.low, columns),
            high: own(e, self.high, columns),
            denominator: own(e, self.denominator, columns),
            highest: own(e, self.highest, columns),
            rescale: own(e, self.rescale, columns),
            query_rows: own(e, self.query_rows, 2 * columns),
            output_rows: own(e, self.output_rows, 2 * columns),
            range: own(e, self.range, RANGE_BYTES),
            ..*self
        }
    }

    /// Columns that stand for nobody see no key.
    fn clear_ranges(&self, e: &mut Emitter<'_>) {
        let (zero, columns) = (e.i64(0), e.i64((self.shape.panels * self.shape.micro.mr) as i64));
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let at = e.scale(c, 4);
            let none = e.splat_int(0);
            for array in [self.low, self.high] {
                let at = e.b.ins().iadd(array, at);
                e.store_int(none, at, 0, 4);
            }
            vec![]
        });
    }

    fn keep_range(&self, e: &mut Emitter<'_>, range: [Value; 3]) {
        for (at, value) in (0..).step_by(8).zip(range) {
            e.b.ins().store(MemFlagsData::new().with_notrap(), value, self.range, at);
        }
    }

    fn kept_range(&self, e: &mut Emitter<'_>) -> [Value; 3] {
        [0, 8, 16].map(|at| e.b.ins().load(I64, MemFlagsData::new().with_notrap(), self.range, at))
    }

    /// Whether both products' factors are bf16.
    fn rounds(&self) -> bool {
        self.shape.micro.operands == DType::BF16
    }

    /// Bytes of a row of values.
    fn value_row(&self) -> i64 {
        padded(BLOCK, self.shape.micro.operands) as i64
    }

    /// Zeroes the values: products run over keys that are not there, and what past keys left may be no number.
    fn clear_values(&self, e: &mut Emitter<'_>) {
        let (zero, bytes) = (e.i64(0), e.i64(self.head_dim as i64 * self.value_row()));
        let none = e.splat(0.0);
        e.for_range(zero, bytes, 16, &[], |e, at, _| {
            let at = e.b.ins().iadd(self.values, at);
            e.store(DType::F32, none, at, 0, 4);
            vec![]
        });
    }

    /// Shares to bf16 pairs of keys; those past the last of `count` keys are 0.
    fn round_shares(&self, e: &mut Emitter<'_>, count: Value, columns: Value) {
        let row = self.shape.micro.mr as i64 * 4;
        let (zero, keys, none) = (e.i64(0), e.i64(BLOCK as i64), e.splat(0.0));
        e.for_range(zero, keys, 2, &[], |e, j, _| {
            let from = e.scale(j, row);
            let from = e.b.ins().iadd(self.scores, from);
            let to = e.scale(j, row / 2);
            let to = e.b.ins().iadd(self.shares, to);
            let inside: [Value; 2] = std::array::from_fn(|i| {
                let j = e.offset(j, i as i64);
                let j = e.b.ins().isub(j, count);
                // All ones below 0.
                let below = e.b.ins().sshr_imm_s(j, 63);
                let below = e.b.ins().ireduce(I32, below);
                e.b.ins().splat(I32X4, below)
            });
            e.for_range(zero, columns, 4, &[], |e, c, _| {
                let at = e.scale(c, 4);
                let from = e.b.ins().iadd(from, at);
                let [first, second] = std::array::from_fn(|i| {
                    let share = e.load(DType::F32, from, i as i64 * row, 4);
                    e.choose(inside[i], share, none)
                });
                let to = e.b.ins().iadd(to, at);
                e.store_pairs(first, second, to, 0);
                vec![]
            });
            vec![]
        });
    }

    /// Fills the columns' ranges and addresses. `seen` is the range of keys that any column before sees, and whether
    /// (not 0) there may be keys in it that none does, as positions that do not follow each other make them: returned
    /// with these columns', and then the range of these alone.
    fn columns(
        &self,
        e: &mut Emitter<'_>,
        (first, rows): (Value, Value),
        (first_head, heads): (Value, Value),
        seen: &[Value],
    ) -> Vec<Value> {
        let flags = MemFlagsData::new().with_notrap();
        let (zero, keys) = (e.i64(0), e.keys());
        let start = [seen[0], seen[1], seen[2], keys, zero];
        e.for_range(zero, rows, 1, &start, |e, r, range| {
            let row = e.b.ins().iadd(first, r);
            let (low, high) = key_range(e, self.pos, self.window, row, keys);
            e.for_range(zero, heads, 1, &[], |e, h, _| {
                let column = e.b.ins().imul(r, heads);
                let column = e.b.ins().iadd(column, h);
                let head = e.b.ins().iadd(first_head, h);
                let at = e.scale(column, 4);
                for (array, value) in [(self.low, low), (self.high, high)] {
                    let at = e.b.ins().iadd(array, at);
                    let value = e.b.ins().ireduce(I32, value);
                    e.b.ins().store(flags, value, at, 0);
                }
                let at = e.scale(column, 8);
                for (array, view) in [(self.query_rows, self.q), (self.output_rows, self.output)] {
                    let base = e.base(view);
                    let address = e.at(view, base, &[(0, head), (1, row)]);
                    let at = e.b.ins().iadd(array, at);
                    e.b.ins().store(flags, address, at, 0);
                }
                vec![]
            });
            // A row that sees nothing has an empty range, which must not widen the others'.
            let some = e.b.ins().icmp(IntCC::SignedLessThan, low, high);
            let lower = e.min(range[0], low);
            let higher = e.b.ins().smax(range[1], high);
            let any = e.b.ins().icmp(IntCC::SignedLessThan, range[0], range[1]);
            let after = e.b.ins().icmp(IntCC::SignedGreaterThan, low, range[1]);
            let before = e.b.ins().icmp(IntCC::SignedLessThan, high, range[0]);
            let apart = e.b.ins().bor(after, before);
            let apart = e.b.ins().band(apart, any);
            let apart = e.b.ins().band(apart, some);
            let apart = e.b.ins().uextend(I64, apart);
            let own_low = e.min(range[3], low);
            let own_high = e.b.ins().smax(range[4], high);
            vec![
                e.b.ins().select(some, lower, range[0]),
                e.b.ins().select(some, higher, range[1]),
                e.b.ins().bor(range[2], apart),
                e.b.ins().select(some, own_low, range[3]),
                e.b.ins().select(some, own_high, range[4]),
            ]
        })
    }

    /// Queries to the panel; columns past the last are the last again.
    fn pack(&self, e: &mut Emitter<'_>, columns: Value) {
        let (zero, n) = (e.i64(0), e.i64(self.head_dim as i64));
        let panel = self.shape.micro.mr as i64 * 4;
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let rows = self.addresses(e, self.query_rows, c, columns);
            let at = e.scale(c, 4);
            let to = e.b.ins().iadd(self.queries, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let values = rows.map(|row| load_along_row(e, self.q, Some(row), i, lanes));
                let by_element = transpose(e, values);
                if self.rounds() {
                    // A pair takes the place of one element of f32; head_dim is a multiple of 4.
                    let at = e.scale(i, panel / 2);
                    let to = e.b.ins().iadd(to, at);
                    for (j, pair) in by_element.chunks(2).enumerate().take(lanes.div_ceil(2)) {
                        e.store_pairs(pair[0], pair[1], to, j as i64 * panel);
                    }
                    return vec![];
                }
                let at = e.scale(i, panel);
                let to = e.b.ins().iadd(to, at);
                for (j, value) in by_element.into_iter().enumerate().take(lanes) {
                    e.store(DType::F32, value, to, j as i64 * panel, 4);
                }
                vec![]
            });
            vec![]
        });
    }

    /// Four columns' addresses from an array, the last one's again past the last.
    fn addresses(&self, e: &mut Emitter<'_>, array: Value, column: Value, columns: Value) -> [Value; 4] {
        let last = e.offset(columns, -1);
        std::array::from_fn(|i| {
            let c = e.offset(column, i as i64);
            let c = e.min(c, last);
            let at = e.scale(c, 8);
            let at = e.b.ins().iadd(array, at);
            e.b.ins().load(I64, MemFlagsData::new().with_notrap(), at, 0)
        })
    }

    fn clear(&self, e: &mut Emitter<'_>) {
        let panel = self.shape.micro.mr;
        let fill = |e: &mut Emitter<'_>, array: Value, elements: usize, value: f32| {
            let (zero, n, value) = (e.i64(0), e.i64(elements as i64), e.splat(value));
            e.for_range(zero, n, 4, &[], |e, i, _| {
                let at = e.scale(i, 4);
                let at = e.b.ins().iadd(array, at);
                e.store(DType::F32, value, at, 0, 4);
                vec![]
            });
        };
        fill(e, self.sums, self.head_dim * panel, 0.0);
        fill(e, self.denominator, panel, 0.0);
        fill(e, self.highest, panel, UNSEEN);
    }

    /// `count` keys from `key`, widened.
    fn block(&self, e: &mut Emitter<'_>, key: Value, count: Value, low: Value, columns: Value) {
        let zero = e.i64(0);
        let head_dim = e.i64(self.head_dim as i64);
        let micro = self.shape.micro;
        let steps = if self.rounds() { e.i64(self.head_dim as i64 / 2) } else { head_dim };
        let scores =
            TileOperands { x: self.queries, weights: self.keys, c: self.scores, k: steps, accumulate: zero };
        score_tiling(micro, self.head_dim).run(e, &scores, columns, count);
        self.soften(e, key, count, columns);
        if self.maximum == Maximum::Online {
            let some = e.b.ins().icmp(IntCC::SignedGreaterThan, key, low);
            e.when(some, |e| self.rescale_sums(e));
        }
        let one = e.i64(1);
        let steps = if self.rounds() {
            self.round_shares(e, count, columns);
            e.i64(BLOCK as i64 / 2)
        } else {
            count
        };
        let values =
            TileOperands { x: self.shares, weights: self.values, c: self.sums, k: steps, accumulate: one };
        value_tiling(micro).run(e, &values, columns, head_dim);
    }

    /// Keys `before..count` of the block to rows, values to columns, as the products hold them.
    fn widen(
        &self,
        e: &mut Emitter<'_>,
        (k, v): (Value, Value),
        key: Value,
        (before, count): (Value, Value),
    ) {
        let operands = self.shape.micro.operands;
        let bytes = operands.bytes() as i64;
        let n = e.i64(self.head_dim as i64);
        e.for_range(before, count, 1, &[], |e, j, _| {
            let key = e.b.ins().iadd(key, j);
            let row = e.step(self.k, 1, k, key);
            let at = e.scale(j, padded(self.head_dim, operands) as i64);
            let to = e.b.ins().iadd(self.keys, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let value = load_along_row(e, self.k, Some(row), i, lanes);
                let at = e.scale(i, bytes);
                let to = e.b.ins().iadd(to, at);
                e.store(operands, value, to, 0, lanes);
                vec![]
            });
            vec![]
        });
        // Four keys at a time; past the last the last again, which no sum reaches, and before the first the first,
        // whose share is 0 there.
        let first = e.b.ins().band_imm_s(before, !3);
        e.for_range(first, count, 4, &[], |e, j, _| {
            let last = e.offset(count, -1);
            let rows: [Value; 4] = std::array::from_fn(|i| {
                let j = e.offset(j, i as i64);
                let j = e.min(j, last);
                let j = e.b.ins().smax(j, before);
                let key = e.b.ins().iadd(key, j);
                e.step(self.v, 1, v, key)
            });
            let at = e.scale(j, bytes);
            let to = e.b.ins().iadd(self.values, at);
            let stride = self.value_row();
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let values = rows.map(|row| load_along_row(e, self.v, Some(row), i, lanes));
                let by_element = transpose(e, values);
                let at = e.scale(i, stride);
                let to = e.b.ins().iadd(to, at);
                for (d, value) in by_element.into_iter().enumerate().take(lanes) {
                    e.store(operands, value, to, d as i64 * stride, 4);
                }
                vec![]
            });
            vec![]
        });
    }

    /// Zeroes the values of keys that no column sees: their share is 0, but what they hold may be no number.
    fn hide(&self, e: &mut Emitter<'_>, key: Value, count: Value) {
        let zero = e.i64(0);
        let columns = e.i64((self.shape.panels * self.shape.micro.mr) as i64);
        e.for_range(zero, count, 1, &[], |e, j, _| {
            let key = e.b.ins().iadd(key, j);
            let seen = e.for_range(zero, columns, 1, &[zero], |e, c, seen| {
                let at = e.scale(c, 4);
                let low = e.b.ins().iadd(self.low, at);
                let low = e.load_index(low);
                let high = e.b.ins().iadd(self.high, at);
                let high = e.load_index(high);
                let after = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, key, low);
                let before = e.b.ins().icmp(IntCC::SignedLessThan, key, high);
                let both = e.b.ins().band(after, before);
                let both = e.b.ins().uextend(I64, both);
                vec![e.b.ins().bor(seen[0], both)]
            })[0];
            let hidden = e.b.ins().icmp(IntCC::Equal, seen, zero);
            e.when(hidden, |e| {
                let (n, none) = (e.i64(self.head_dim as i64), e.splat(0.0));
                let operands = self.shape.micro.operands;
                let at = e.scale(j, operands.bytes() as i64);
                let to = e.b.ins().iadd(self.values, at);
                e.for_range(zero, n, 1, &[], |e, d, _| {
                    let at = e.scale(d, self.value_row());
                    let at = e.b.ins().iadd(to, at);
                    e.store(operands, none, at, 0, 1);
                    vec![]
                });
            });
            vec![]
        });
    }

    /// Scores to shares, in place: scale, softcap, mask, exp; the denominators grow by them.
    fn soften(&self, e: &mut Emitter<'_>, key: Value, count: Value, columns: Value) {
        let stride = self.shape.micro.mr as i64 * 4;
        let none = e.splat(0.0);
        let zero = e.i64(0);
        let key = e.b.ins().ireduce(I32, key);
        let key = e.b.ins().splat(I32X4, key);
        let one = e.splat_int(1);
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let at = e.scale(c, 4);
            let address = |e: &mut Emitter<'_>, array: Value| e.b.ins().iadd(array, at);
            let (low, high) = (address(e, self.low), address(e, self.high));
            let (low, high) = (e.load_int(low, 0, 4), e.load_int(high, 0, 4));
            let (total_at, highest_at, rescale_at) =
                (address(e, self.denominator), address(e, self.highest), address(e, self.rescale));
            let scores = address(e, self.scores);
            let seen = |e: &mut Emitter<'_>, key: Value| {
                let after = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, key, low);
                let before = e.b.ins().icmp(IntCC::SignedLessThan, key, high);
                e.b.ins().band(after, before)
            };
            let score = |e: &mut Emitter<'_>, at: Value| {
                let score = e.load(DType::F32, at, 0, 4);
                let scale = e.splat(self.scale);
                let score = e.b.ins().fmul(score, scale);
                match self.cap {
                    Some(cap) => math::softcap(e, cap, score),
                    None => score,
                }
            };
            let total = e.load(DType::F32, total_at, 0, 4);
            let total = match self.maximum {
                Maximum::Bounded => e.for_range(zero, count, 1, &[key, total], |e, j, state| {
                    let at = e.scale(j, stride);
                    let at = e.b.ins().iadd(scores, at);
                    let score = score(e, at);
                    let share = math::exp_bounded(e, score);
                    let seen = seen(e, state[0]);
                    let share = e.choose(seen, share, none);
                    e.store(DType::F32, share, at, 0, 4);
                    vec![e.b.ins().iadd(state[0], one), e.b.ins().fadd(state[1], share)]
                })[1],
                Maximum::Online => {
                    let before = e.load(DType::F32, highest_at, 0, 4);
                    let unseen = e.splat(UNSEEN);
                    let highest = e.for_range(zero, count, 1, &[key, before], |e, j, state| {
                        let at = e.scale(j, stride);
                        let at = e.b.ins().iadd(scores, at);
                        let score = score(e, at);
                        let seen = seen(e, state[0]);
                        let score = e.choose(seen, score, unseen);
                        e.store(DType::F32, score, at, 0, 4);
                        vec![e.b.ins().iadd(state[0], one), e.fmax(score, state[1])]
                    })[1];
                    e.store(DType::F32, highest, highest_at, 0, 4);
                    let shift = e.b.ins().fsub(before, highest);
                    let rescale = math::exp(e, shift);
                    e.store(DType::F32, rescale, rescale_at, 0, 4);
                    let total = e.b.ins().fmul(total, rescale);
                    e.for_range(zero, count, 1, &[key, total], |e, j, state| {
                        let at = e.scale(j, stride);
                        let at = e.b.ins().iadd(scores, at);
                        let score = e.load(DType::F32, at, 0, 4);
                        let shifted = e.b.ins().fsub(score, highest);
                        let share = math::exp(e, shifted);
                        let seen = seen(e, state[0]);
                        let share = e.choose(seen, share, none);
                        e.store(DType::F32, share, at, 0, 4);
                        vec![e.b.ins().iadd(state[0], one), e.b.ins().fadd(state[1], share)]
                    })[1]
                }
            };
            e.store(DType::F32, total, total_at, 0, 4);
            vec![]
        });
    }

    /// The sums so far, to the new maxima.
    fn rescale_sums(&self, e: &mut Emitter<'_>) {
        let panel = self.shape.micro.mr;
        let (zero, columns, n) = (e.i64(0), e.i64(panel as i64), e.i64(self.head_dim as i64));
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let at = e.scale(c, 4);
            let rescale = e.b.ins().iadd(self.rescale, at);
            let rescale = e.load(DType::F32, rescale, 0, 4);
            let sums = e.b.ins().iadd(self.sums, at);
            e.for_range(zero, n, 1, &[], |e, i, _| {
                let at = e.scale(i, panel as i64 * 4);
                let at = e.b.ins().iadd(sums, at);
                let sum = e.load(DType::F32, at, 0, 4);
                let sum = e.b.ins().fmul(sum, rescale);
                e.store(DType::F32, sum, at, 0, 4);
                vec![]
            });
            vec![]
        });
    }

    /// Sums over denominators to the output; a row that saw nothing yields 0.
    fn store(&self, e: &mut Emitter<'_>, columns: Value) {
        use cranelift_codegen::ir::condcodes::FloatCC;
        let panel = self.shape.micro.mr as i64 * 4;
        let (zero, n, none) = (e.i64(0), e.i64(self.head_dim as i64), e.splat(0.0));
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let rows = self.addresses(e, self.output_rows, c, columns);
            let at = e.scale(c, 4);
            let total = e.b.ins().iadd(self.denominator, at);
            let total = e.load(DType::F32, total, 0, 4);
            let some = e.b.ins().fcmp(FloatCC::GreaterThan, total, none);
            let sums = e.b.ins().iadd(self.sums, at);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let at = e.scale(i, panel);
                let at = e.b.ins().iadd(sums, at);
                let values: [Value; 4] = std::array::from_fn(|d| {
                    // In a tail the one element comes four times.
                    let d = if lanes == 4 { d as i64 } else { 0 };
                    let sum = e.load(DType::F32, at, d * panel, 4);
                    let value = e.b.ins().fdiv(sum, total);
                    e.choose(some, value, none)
                });
                let by_column = transpose(e, values);
                // From the last column down: what stands in for nobody goes where the last column's own goes after it.
                for (row, value) in rows.into_iter().zip(by_column).rev() {
                    store_along_row(e, self.output, value, row, i, lanes);
                }
                vec![]
            });
            vec![]
        });
    }
}
