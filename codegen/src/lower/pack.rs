//! Packing: rows of x (T, K) to panels for tile microkernels, `[T / mr][K][mr]` f32, the same in pairs of bf16, or
//! rounded to 8 bits in blocks; or, for weight rows in lanes, to rows of such blocks or of bf16; normed on the way if
//! asked.
//!
//! A tile is a panel. Floats go in fours of rows, transposed; past the last row the last row comes again, or nothing,
//! and what such lanes make is never stored by anyone.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType, Dim};
use lapidary_runtime::program::Tiles;

use super::elementwise::load_along_row;
use super::linear::{fixed, norm_row_into};
use super::linear_lanes::most_in_lanes;
use super::round::{LaneRows, Rounded, round_block};
use super::transpose;
use crate::emit::{Emitter, Features};
use crate::kernel::{Kernel, Pack};
use crate::micro::{self, FEW_ROWS, Held, Microkernel, Raw};
use crate::view::{Base, Capacity, View};

/// Elements of k that are packed for all rows before the next: they stay in the first cache.
const PART: i64 = 64;

/// Rows that weight rows in lanes meet, of a tile.
const LANE_TILE: usize = 4;

/// Rows of a tile.
fn tile_rows(micro: &Microkernel) -> usize {
    if micro.has_lanes() { LANE_TILE } else { micro.mr }
}

/// The tile space over rows of this length.
pub fn tiles(rows: Dim, capacity: Capacity, micro: &Microkernel) -> Tiles {
    let each = tile_rows(micro);
    match rows {
        Dim::Rows => Tiles { fixed: 1, rows: each as u32 },
        Dim::Fixed(_) | Dim::Keys => Tiles { fixed: capacity.of(rows).div_ceil(each) as u32, rows: 0 },
    }
}

/// The packed form of (rows, k), nowhere yet.
pub fn packed(rows: Dim, k: usize, capacity: Capacity, micro: &Microkernel) -> View {
    let rows = capacity.of(rows);
    let panels = rows.div_ceil(micro.mr);
    let dims = match micro.operands {
        operands if micro.has_lanes() => [
            rows.next_multiple_of(micro.lane_rows(rows)),
            k / BLOCK,
            micro::lane_row_bytes(operands, BLOCK) / 4,
        ],
        DType::BF16 => [panels, k.div_ceil(2), 2 * micro.mr],
        // Blocks of integers, counted in words; room for few rows in their other form.
        DType::Q8 => {
            let few = rows.min(FEW_ROWS) * micro::LANE_BLOCK;
            let panels = panels.max(few.div_ceil(micro.panel_bytes(BLOCK) * micro.mr));
            [panels, k / BLOCK, micro.panel_bytes(BLOCK) / 4 * micro.mr]
        }
        DType::F32 | DType::F16 | DType::I32 | DType::Bool | DType::Block(_) => [panels, k, micro.mr],
    };
    let dtype = if micro.operands == DType::BF16 && !micro.has_lanes() { DType::BF16 } else { DType::F32 };
    View::contiguous(Base::Number(0.0), dtype, &dims.map(Dim::Fixed), capacity)
}

/// The raw code that packs some rows at a time, if there is some: of rows of so many bytes, one after the other.
fn packing(
    Pack { prologue, micro, few: _ }: Pack,
    x: &View,
    features: &Features,
) -> Option<(&'static Microkernel, Raw)> {
    let k = fixed(x, 1);
    let stride = if prologue.is_some() { 4 * k as i64 } else { x.step_bytes(0) };
    let packs = micro::packing(features)?;
    let floats = prologue.is_some() || x.dtype == DType::F32 && x.inner_stride() == 1;
    let blocks = micro.held().is_some_and(|held| held.run() == 4) && micro.mr.is_multiple_of(packs.mr);
    let x_stride = i32::try_from(stride).ok().filter(|stride| *stride < 1 << 26 && floats && blocks)?;
    Some((packs, Raw::Pack(micro::Pack { panel: micro.mr, x_stride })))
}

/// The raw code that the kernel calls.
pub(super) fn raw_code(
    kernel: &Kernel,
    pack: &Pack,
    features: &Features,
) -> Vec<(&'static Microkernel, Raw)> {
    packing(*pack, &kernel.inputs[0], features).into_iter().collect()
}

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, pack: Pack) {
    let Pack { prologue, micro, few } = pack;
    let packing = packing(pack, &kernel.inputs[0], &e.features);
    let panel = tile_rows(micro);
    let (x, output) = (&kernel.inputs[0], &kernel.outputs[0]);
    let Some(Dim::Fixed(k)) = x.axes.last().map(|a| a.dim) else { unreachable!("rows have fixed lengths") };
    let normed = prologue.map(|eps| (eps, e.take_scratch(panel * k * 4)));
    e.for_tiles(|e, tile| {
        let rows = e.length(x.axes[0].dim);
        let first = e.scale(tile, panel as i64);
        let end = e.offset(first, panel as i64);
        let end = e.min(end, rows);
        if let Some((eps, scratch)) = normed {
            e.for_range(first, end, 1, &[], |e, t, _| {
                let base = e.base(x);
                let row = e.step(x, 0, base, t);
                let at = e.b.ins().isub(t, first);
                let at = e.scale(at, k as i64 * 4);
                let to = e.b.ins().iadd(scratch, at);
                norm_row_into(e, x, row, &kernel.inputs[1], eps, to);
                vec![]
            });
        }
        // Rows to read: the normed ones, or x itself.
        let view = match normed {
            Some(_) => View::contiguous(x.base, DType::F32, &[x.axes[0].dim, Dim::Fixed(k)], kernel.capacity),
            None => x.clone(),
        };
        let base = match normed {
            Some((_, scratch)) => {
                let before = e.scale(first, k as i64 * 4);
                e.b.ins().isub(scratch, before)
            }
            None => e.base(x),
        };
        let out = e.base(output);
        let most = most_in_lanes(few, kernel.capacity.of(x.axes[0].dim));
        let lane_rows = |e: &mut Emitter<'_>, micro| {
            let rows = LaneRows { k, micro, most, alone: None };
            let at = rows.at(e, first);
            let (out, x) = (e.b.ins().iadd(out, at), e.step(&view, 0, base, first));
            let count = e.b.ins().isub(end, first);
            rows.round(e, (x, view.step_bytes(0)), count, out);
        };
        if micro.has_lanes() {
            return lane_rows(e, micro);
        }
        let panels = |e: &mut Emitter<'_>| {
            let out = e.step(output, 0, out, tile);
            let run = micro.held().map_or(if micro.has_fours() { 4 } else { 2 }, Held::run);
            let k = e.i64(k as i64);
            let mut read = Read { view: &view, base, rows: (first, end), k, out, panel, run };
            if micro.operands == DType::Q8 {
                if let Some(packing) = packing {
                    read.raw_blocks(e, packing);
                }
                read.blocks(e);
            } else {
                read.floats(e, micro.operands == DType::BF16);
            }
        };
        let Some(few) = few else { return panels(e) };
        let most = e.i64(FEW_ROWS as i64);
        let fits = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, most);
        e.choose_path(fits, |e| lane_rows(e, few), panels);
    });
}

/// A panel's rows, and where they go.
pub(super) struct Read<'a> {
    /// (rows, k), of any strides.
    pub(super) view: &'a View,
    /// Address of row 0.
    pub(super) base: Value,
    /// The first row that is read, and their end.
    pub(super) rows: (Value, Value),
    /// Elements of a row (i64).
    pub(super) k: Value,
    /// Where that row goes in its panel, of so many rows.
    pub(super) out: Value,
    pub(super) panel: usize,
    /// Elements of a row that follow one another, of quants four or eight, of bf16 two or four.
    pub(super) run: usize,
}

impl Read<'_> {
    /// As f32, or as pairs or fours of bf16.
    pub(super) fn floats(&self, e: &mut Emitter<'_>, pairs: bool) {
        let Read { base, rows: (first, end), k: all, out, panel, .. } = *self;
        let zero = e.i64(0);
        e.for_range(zero, all, PART, &[], |e, from, _| {
            let to = e.offset(from, PART);
            let to = e.min(to, all);
            e.for_range(first, end, 4, &[], |e, t, _| {
                let last = e.offset(end, -1);
                let addresses: [Value; 4] = std::array::from_fn(|i| {
                    let row = e.offset(t, i as i64);
                    let row = e.min(row, last);
                    e.step(self.view, 0, base, row)
                });
                let lane = e.b.ins().isub(t, first);
                let lane = e.scale(lane, 4);
                let out = e.b.ins().iadd(out, lane);
                let length = e.b.ins().isub(to, from);
                e.for_lanes(length, &[], |e, i, lanes, _| {
                    let i = e.b.ins().iadd(from, i);
                    let values = addresses.map(|row| load_along_row(e, self.view, Some(row), i, lanes));
                    let columns = transpose(e, values);
                    if pairs && self.run == 4 {
                        // Rows have whole fours.
                        if lanes == 4 {
                            let at = e.scale(i, panel as i64 * 2);
                            let at = e.b.ins().iadd(at, lane);
                            let out = e.b.ins().iadd(out, at);
                            e.store_fours(columns, out);
                        }
                        return vec![];
                    }
                    if pairs {
                        // A single element k (one at a time, at the end) is a pair's first, its second 0, or its
                        // second.
                        let step = e.b.ins().ushr_imm_u(i, 1);
                        let at = e.scale(step, panel as i64 * 4);
                        let out = e.b.ins().iadd(out, at);
                        if lanes == 4 {
                            for (j, pair) in columns.chunks(2).enumerate() {
                                e.store_pairs(pair[0], pair[1], out, (j * panel * 4) as i64);
                            }
                        } else {
                            e.store_half_pair(columns[0], i, out);
                        }
                        return vec![];
                    }
                    let at = e.scale(i, panel as i64 * 4);
                    let out = e.b.ins().iadd(out, at);
                    for (j, column) in columns.into_iter().enumerate().take(lanes) {
                        e.store(DType::F32, column, out, (j * panel * 4) as i64, 4);
                    }
                    vec![]
                });
                vec![]
            });
            vec![]
        });
    }

    /// As many rows at a time as raw code takes, rounded to 8 bits in blocks. What is left over remains to be read.
    fn raw_blocks(&mut self, e: &mut Emitter<'_>, (micro, raw): (&Microkernel, Raw)) {
        let Read { base, rows: (first, end), out, .. } = *self;
        let rows = e.b.ins().isub(end, first);
        let mask = e.i64(!(micro.mr as i64 - 1));
        let whole = e.b.ins().band(rows, mask);
        let blocks = e.b.ins().ushr_imm_u(self.k, i64::from(BLOCK.trailing_zeros()));
        let zero = e.i64(0);
        e.for_range(zero, whole, micro.mr as i64, &[], |e, t, _| {
            let row = e.b.ins().iadd(first, t);
            let x = e.step(self.view, 0, base, row);
            let lane = e.scale(t, 4);
            let to = e.b.ins().iadd(out, lane);
            e.call_raw(raw, &[x, to, blocks]);
            vec![]
        });
        self.rows.0 = e.b.ins().iadd(first, whole);
        let lanes = e.scale(whole, 4);
        self.out = e.b.ins().iadd(out, lanes);
    }

    /// Rounded to 8 bits in blocks, row by row: for each block scales, -8 times sums, and quants, four or eight of a
    /// row at a time.
    fn blocks(&self, e: &mut Emitter<'_>) {
        let Read { base, rows: (first, end), out, panel, .. } = *self;
        let words = panel as i64 * 4;
        let zero = e.i64(0);
        let blocks = e.b.ins().ushr_imm_u(self.k, i64::from(BLOCK.trailing_zeros()));
        e.for_range(first, end, 1, &[], |e, t, _| {
            let row = e.step(self.view, 0, base, t);
            let lane = e.b.ins().isub(t, first);
            let lane = e.scale(lane, 4);
            let out = e.b.ins().iadd(out, lane);
            e.for_range(zero, blocks, 1, &[], |e, b, _| {
                let from = e.scale(b, BLOCK as i64);
                let values = std::array::from_fn(|v| {
                    let i = e.offset(from, 4 * v as i64);
                    load_along_row(e, self.view, Some(row), i, 4)
                });
                let Rounded { quants, scale, sum, .. } = round_block(e, values);
                let at = e.scale(b, words * (2 + BLOCK as i64 / 4));
                let out = e.b.ins().iadd(out, at);
                e.store(DType::F32, scale, out, 0, 1);
                let sum = e.scale_int(sum, -8);
                e.store_int(sum, out, words, 1);
                let eights = e.b.ins().iadd(out, lane);
                for (i, half) in (0..).zip(quants) {
                    match self.run {
                        8 => e.store_doubles(half, eights, (2 + 4 * i) * words, 2 * words),
                        _ => e.store_words(half, out, (2 + 4 * i) * words, words),
                    }
                }
                vec![]
            });
            vec![]
        });
    }
}
