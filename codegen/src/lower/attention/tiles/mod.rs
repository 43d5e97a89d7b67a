//! Attention for many rows: blocks of queries against blocks of keys, both products by tile microkernels.
//!
//! A tile is some rows of some query heads of one KV head: its queries are the columns of a few panels, packed once
//! (`panel`). Keys and values go in blocks that start at multiples of their length, from the first that any of its rows
//! sees to the last, each widened once for all panels that see it (`block`): scores come out as rows of keys, columns
//! of queries, so that softcap, mask and exp run along lanes of queries, and what they leave is the panel of the second
//! product, with values transposed. Blocks that no row sees are never touched. Without a maximum the sums just add up;
//! with one, each block rescales them.

mod block;
mod panel;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::super::tiling::Tiling;
use super::{Attention, fixed};
use crate::emit::{Emitter, Features};
use crate::kernel::{Kernel, Maximum, QueryTiles};
use crate::micro::{self, Microkernel, Quantised, Raw, Soften};

/// Keys of a block.
pub(super) const BLOCK: usize = 64;

/// Columns of a tile, where calls have rows enough.
const COLUMNS: usize = 64;
/// Tiles that the rows of the largest call make at least: work for many threads comes before columns.
pub(super) const TILES: usize = 8;

/// The tile's columns, if the calls have rows enough for tiles.
pub(super) fn columns_of(
    (repeat, head_dim): (usize, usize),
    rows: usize,
    rounded: bool,
    features: &Features,
) -> Option<QueryTiles> {
    let micro = micro::select(rows, head_dim, operands(rows, head_dim, rounded, features), features);
    micro.is_packed().then(|| {
        let heads = repeat.min(micro.mr);
        let panel_rows = micro.mr / heads;
        let panels = most_panels(micro).min(rows / (TILES * panel_rows)).max(1);
        let soften = micro::softening(micro.operands, features);
        QueryTiles { micro, heads, rows: panel_rows, panels, soften }
    })
}

/// The most panels of a tile: several where a unit multiplies so fast that bringing keys and values into its form, once
/// for all of them, takes longer than the products of one.
fn most_panels(micro: &Microkernel) -> usize {
    match (micro.operands, micro.is_configured()) {
        (DType::F32, _) => (COLUMNS / micro.mr).max(1),
        (_, true) => 2 * COLUMNS / micro.mr,
        (_, false) => 1,
    }
}

/// Columns of a panel and the most panels of a tile, for the largest calls.
pub(super) fn columns(rounded: bool, features: &Features) -> (usize, usize) {
    let head_dim = BLOCK;
    let operands = operands(usize::MAX, head_dim, rounded, features);
    let micro = micro::select(usize::MAX, head_dim, operands, features);
    (micro.mr, most_panels(micro))
}

/// How both products hold their factors: as f32, or rounded to bf16 where they may be and that is faster.
fn operands(rows: usize, head_dim: usize, rounded: bool, features: &Features) -> DType {
    // Both sums' lengths: elements of a head, keys of a block.
    let fits = head_dim.is_multiple_of(BLOCK / 2);
    let micro = micro::choose(rows, head_dim, rounded && fits, Quantised::No, features);
    if micro.is_packed() { micro.operands } else { DType::F32 }
}

/// Bytes of a row of `n` elements and a little more, lest rows share cache sets.
fn padded(n: usize, operands: DType) -> usize {
    n.next_multiple_of(16) * operands.bytes() + 64
}

fn score_tiling(micro: &'static Microkernel, head_dim: usize) -> Tiling {
    Tiling::new(micro, micro.operands, padded(head_dim, micro.operands))
}

fn value_tiling(micro: &'static Microkernel) -> Tiling {
    Tiling::new(micro, micro.operands, padded(BLOCK, micro.operands))
}

/// Bytes of a panel's queries.
fn query_bytes(shape: QueryTiles, head_dim: usize) -> usize {
    head_dim.next_multiple_of(4) * shape.micro.mr * 4
}

/// Bytes of a panel's unnormalised outputs.
fn sum_bytes(shape: QueryTiles, head_dim: usize) -> usize {
    (head_dim.next_multiple_of(4) + value_tiling(shape.micro).overhang()) * shape.micro.mr * 4
}

/// Bytes of a panel's range of keys and number of columns.
const RANGE_BYTES: usize = 32;

/// The raw code that the kernel calls.
pub(super) fn raw_code(kernel: &Kernel, shape: QueryTiles) -> Vec<(&'static Microkernel, Raw)> {
    let scores = score_tiling(shape.micro, fixed(&kernel.inputs[0], 2));
    let products = scores.raw_code().into_iter().chain(value_tiling(shape.micro).raw_code());
    let soften = shape.soften.map(|micro| (micro, softening(&Attention::of(kernel), shape)));
    products.map(|raw| (shape.micro, raw)).chain(soften).collect()
}

/// The raw code that makes shares of scores.
fn softening(op: &Attention<'_>, shape: QueryTiles) -> Raw {
    Raw::Soften(Soften {
        panel: shape.micro.mr,
        apart: shape.panels * shape.micro.mr,
        keys: BLOCK,
        scale: op.scale.to_bits(),
        cap: op.cap.map(f32::to_bits),
        online: op.maximum == Maximum::Online,
    })
}

/// A tile; or one panel of it, when scratch that each panel has its own of is that panel's.
#[derive(Clone, Copy)]
struct Tile<'a> {
    op: Attention<'a>,
    shape: QueryTiles,
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
pub(super) fn lower(e: &mut Emitter<'_>, op: Attention<'_>, shape: QueryTiles) {
    let (head_dim, panel) = (op.head_dim, shape.micro.mr);
    let over = value_tiling(shape.micro).overhang();
    let columns = panel * 4;
    let operands = shape.micro.operands;
    let scores = e.take_scratch((BLOCK + over) * columns);
    let shares = if operands == DType::BF16 { e.take_scratch(BLOCK / 2 * columns) } else { scores };
    let panels = shape.panels;
    let each = |e: &mut Emitter<'_>, bytes: usize| e.take_scratch(panels * bytes);
    // One array after another, of all panels, as raw code finds them.
    let state = each(e, 5 * columns);
    let [low, high, denominator, highest, rescale] =
        std::array::from_fn(|i| e.offset(state, (i * panels * columns) as i64));
    let a = Tile {
        op,
        shape,
        queries: each(e, query_bytes(shape, head_dim)),
        keys: e.take_scratch((BLOCK + over) * padded(head_dim, operands)),
        values: e.take_scratch((head_dim.next_multiple_of(4) + over) * padded(BLOCK, operands)),
        scores,
        shares,
        sums: each(e, sum_bytes(shape, head_dim)),
        low,
        high,
        denominator,
        highest,
        rescale,
        query_rows: each(e, 2 * columns),
        output_rows: each(e, 2 * columns),
        range: each(e, RANGE_BYTES),
    };
    let around = shape.micro.around(shape.rows);
    if let Some([configure, _]) = around {
        e.call_raw(configure, &[]);
    }
    e.for_tiles(|e, tile| a.tile(e, tile));
    if let Some([_, release]) = around {
        e.call_raw(release, &[]);
    }
}

impl Tile<'_> {
    fn tile(&self, e: &mut Emitter<'_>, tile: Value) {
        let QueryTiles { heads, rows: panel_rows, panels, .. } = self.shape;
        let (panel_rows, tile_rows) = (panel_rows as i64, (panel_rows * panels) as i64);
        let rows = self.op.rows(e);
        let most = e.i64(tile_rows);
        let up = e.offset(rows, tile_rows - 1);
        let blocks = e.b.ins().udiv(up, most);
        // As many rows a tile, in whole panels, so that threads have as much to do.
        let up = e.b.ins().iadd(rows, blocks);
        let up = e.offset(up, -1);
        let even = e.b.ins().udiv(up, blocks);
        let up = e.offset(even, panel_rows - 1);
        let panel = e.i64(panel_rows);
        let whole = e.b.ins().udiv(up, panel);
        let block = e.b.ins().imul(whole, panel);
        let part = e.b.ins().udiv(tile, blocks);
        let first = e.b.ins().urem(tile, blocks);
        let first = e.b.ins().imul(first, block);
        let parts = e.i64(self.op.repeat.div_ceil(heads) as i64);
        let group = e.b.ins().udiv(part, parts);
        let part = e.b.ins().urem(part, parts);
        let head = e.scale(part, heads as i64);
        let left = e.i64(self.op.repeat as i64);
        let left = e.b.ins().isub(left, head);
        let most = e.i64(heads as i64);
        let heads = e.min(left, most);
        let left = e.b.ins().isub(rows, first);
        let rows = e.min(left, block);
        let first_head = e.scale(group, self.op.repeat as i64);
        let first_head = e.b.ins().iadd(first_head, head);

        self.clear_ranges(e);
        let (zero, keys) = (e.i64(0), self.op.keys(e));
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
        let (k, v) = self.op.cached(e, group);
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
        let QueryTiles { micro, rows, panels, .. } = self.shape;
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
            queries: own(e, self.queries, query_bytes(self.shape, self.op.head_dim)),
            sums: own(e, self.sums, sum_bytes(self.shape, self.op.head_dim)),
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

    /// Whether both products' factors are bf16.
    fn rounds(&self) -> bool {
        self.shape.micro.operands == DType::BF16
    }

    /// Bytes of a row of values.
    fn value_row(&self) -> i64 {
        padded(BLOCK, self.shape.micro.operands) as i64
    }
}
