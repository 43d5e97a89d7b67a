//! Products of two activations by tiles: a (.., M, K) against panels of b's columns, which a kernel before has packed.
//!
//! A tile is a block of rows of one matrix of a, over all columns. Rows of a are a microkernel's weights: read where
//! they lie if they can be, else held in scratch. A sum's order depends on K alone, and so do its bits.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};
use lapidary_runtime::program::Tiles;

use super::elementwise::{load_along_row, store_along_row};
use super::hold::held_row;
use super::pack::Read;
use super::tiling::Tiling;
use crate::emit::Emitter;
use crate::kernel::{Kernel, Product};
use crate::math;
use crate::micro::{Microkernel, Raw, TileOperands};
use crate::view::{Base, Capacity, View};

/// The most bytes of a's rows that a tile holds.
const HELD_BYTES: usize = 96 << 10;

/// The packed form of b as (.., N, K), nowhere yet: f32 (.., N / mr, K, mr).
pub fn packed(b: &View, capacity: Capacity, micro: &Microkernel) -> View {
    let tail = b.axes.len() - 2;
    let (n, k) = (capacity.of(b.axes[tail].dim), capacity.of(b.axes[tail + 1].dim));
    let mut dims: Vec<Dim> = b.axes[..tail].iter().map(|a| a.dim).collect();
    dims.extend([n.div_ceil(micro.mr), k, micro.mr].map(Dim::Fixed));
    View::contiguous(Base::Number(0.0), DType::F32, &dims, capacity)
}

/// The tile space over blocks of `each` of the second to last axis.
fn tiles(view: &View, each: usize, capacity: Capacity) -> Tiles {
    let tail = view.axes.len() - 2;
    let matrices: usize = view.axes[..tail].iter().map(|a| capacity.of(a.dim)).product();
    match view.axes[tail].dim {
        Dim::Rows => Tiles { fixed: matrices as u32, rows: each as u32 },
        dim @ (Dim::Fixed(_) | Dim::Keys) => {
            Tiles { fixed: (matrices * capacity.of(dim).div_ceil(each)) as u32, rows: 0 }
        }
    }
}

/// The tile space of packing b as (.., N, K): a tile is a panel.
pub fn pack_tiles(b: &View, capacity: Capacity, micro: &Microkernel) -> Tiles {
    tiles(b, micro.mr, capacity)
}

/// The tile space of the products of a (.., M, K).
pub fn product_tiles(a: &View, capacity: Capacity, micro: &Microkernel) -> Tiles {
    tiles(a, block_rows(a, capacity, micro), capacity)
}

/// Rows of a tile: whole weight rows of every shape.
fn block_rows(a: &View, capacity: Capacity, micro: &Microkernel) -> usize {
    let k = capacity.of(a.axes[a.axes.len() - 1].dim);
    let step = step(micro);
    let fitting = HELD_BYTES / held_row(micro, DType::F32, k).max(1);
    (fitting / step * step).clamp(step, micro.block_rows().max(step))
}

/// A number of rows that every shape's weight rows divide.
fn step(micro: &Microkernel) -> usize {
    let most = micro.shapes.iter().map(|s| s.1).max().unwrap_or(1);
    let fits = |n: &usize| micro.shapes.iter().all(|s| n.is_multiple_of(s.1));
    (1..).map(|n| n * most).find(fits).unwrap_or(most)
}

/// Tiles of a's rows as they lie, if tiles can read those so, and as they are held.
fn tilings(a: &View, capacity: Capacity, micro: &'static Microkernel) -> (Option<Tiling>, Tiling) {
    let tail = a.axes.len() - 2;
    let k = capacity.of(a.axes[tail + 1].dim);
    let of = |stride: usize| Tiling::new(micro, DType::F32, stride);
    let stride = a.axes[tail].stride * 4;
    let lies = a.dtype == DType::F32 && a.inner_stride() == 1 && (1..1 << 20).contains(&stride);
    (lies.then(|| of(stride as usize)), of(held_row(micro, DType::F32, k)))
}

/// The raw code that a kernel calls.
pub(super) fn raw_code(kernel: &Kernel, micro: &'static Microkernel) -> Vec<(&'static Microkernel, Raw)> {
    let (direct, held) = tilings(&kernel.inputs[0], kernel.capacity, micro);
    direct.into_iter().chain([held]).flat_map(|tiling| tiling.raw_code()).map(|raw| (micro, raw)).collect()
}

/// The matrix and the block of a tile; blocks have `each` of the second to last axis.
fn place(e: &mut Emitter<'_>, view: &View, tile: Value, each: usize) -> (Vec<(usize, Value)>, Value) {
    let tail = view.axes.len() - 2;
    let length = e.length(view.axes[tail].dim);
    let up = e.offset(length, each as i64 - 1);
    let size = e.i64(each as i64);
    let blocks = e.b.ins().udiv(up, size);
    let matrix = e.b.ins().udiv(tile, blocks);
    let block = e.b.ins().urem(tile, blocks);
    let dims: Vec<Dim> = view.axes[..tail].iter().map(|a| a.dim).collect();
    let at = e.unravel(matrix, &dims).into_iter().enumerate().collect();
    (at, block)
}

/// Emits the packing of b as (.., N, K) to panels of N.
pub(super) fn lower_pack(e: &mut Emitter<'_>, kernel: &Kernel, micro: &'static Microkernel) {
    let (b, output) = (&kernel.inputs[0], &kernel.outputs[0]);
    let tail = b.axes.len() - 2;
    let mr = micro.mr;
    e.for_tiles(|e, tile| {
        // Of keys tiles are as many as there may be; those past the last have nothing to do.
        let (at, panel) = match b.axes[tail].dim {
            Dim::Keys => place(e, &fixed_keys(b, kernel.capacity), tile, mr),
            Dim::Fixed(_) | Dim::Rows => place(e, b, tile, mr),
        };
        let first = e.scale(panel, mr as i64);
        let n = e.length(b.axes[tail].dim);
        let end = e.offset(first, mr as i64);
        let end = e.min(end, n);
        let base = e.base(b);
        let base = e.at(b, base, &at);
        let out = e.base(output);
        let out = e.at(output, out, &at);
        let out = e.step(output, tail, out, panel);
        let matrix = View { axes: b.axes[tail..].to_vec(), ..b.clone() };
        let k = e.length(b.axes[tail + 1].dim);
        if b.axes[tail].stride != 1 || b.inner_stride() == 1 {
            let read = Read { view: &matrix, base, rows: (first, end), k, out, panel: mr, run: 1 };
            return read.floats(e, false);
        }
        let lines = matrix.transposed(&[1, 0]);
        let zero = e.i64(0);
        let count = e.b.ins().isub(end, first);
        let count = e.b.ins().smax(count, zero);
        e.for_range(zero, k, 1, &[], |e, i, _| {
            let line = e.step(&lines, 0, base, i);
            let at = e.scale(i, mr as i64 * 4);
            let out = e.b.ins().iadd(out, at);
            e.for_lanes(count, &[], |e, c, lanes, _| {
                let column = e.b.ins().iadd(first, c);
                let value = load_along_row(e, &lines, Some(line), column, lanes);
                let at = e.scale(c, 4);
                let to = e.b.ins().iadd(out, at);
                e.store(DType::F32, value, to, 0, lanes);
                vec![]
            });
            vec![]
        });
    });
}

/// The same view with as many keys as there may be.
fn fixed_keys(view: &View, capacity: Capacity) -> View {
    let mut view = view.clone();
    for axis in &mut view.axes {
        if axis.dim == Dim::Keys {
            axis.dim = Dim::Fixed(capacity.keys);
        }
    }
    view
}

/// Emits the products of a with packed b.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, product: Product) {
    let Product { micro, repeat, .. } = product;
    let (a, b, output) = (&kernel.inputs[0], &kernel.inputs[1], &kernel.outputs[0]);
    let tail = a.axes.len() - 2;
    let (direct, held) = tilings(a, kernel.capacity, micro);
    let each = block_rows(a, kernel.capacity, micro);
    let rows = each + held.overhang();
    let scratch = e.take_scratch(rows * held.weight_stride);
    let c = e.take_scratch(rows * held.c_stride);
    let panel_row = held.c_stride as i64;
    let zero = e.i64(0);
    e.for_tiles(|e, tile| {
        let (at, block) = place(e, a, tile, each);
        let first = e.scale(block, each as i64);
        let m = e.length(a.axes[tail].dim);
        let left = e.b.ins().isub(m, first);
        let width = e.i64(each as i64);
        let width = e.min(left, width);
        let k = e.length(a.axes[tail + 1].dim);
        let n = e.length(output.axes[tail + 1].dim);
        let from = e.base(a);
        let from = e.at(a, from, &at);
        let from = e.step(a, tail, from, first);
        // Rows that are read where they lie; the others' last ones may lie at the end of memory.
        let whole = match direct {
            Some(_) => {
                let step = e.i64(step(micro) as i64);
                let steps = e.b.ins().udiv(width, step);
                e.b.ins().imul(steps, step)
            }
            None => zero,
        };
        e.for_range(whole, width, 1, &[], |e, row, _| {
            let line = e.step(a, tail, from, row);
            let to = e.scale(row, held.weight_stride as i64);
            let to = e.b.ins().iadd(scratch, to);
            e.for_lanes(k, &[], |e, i, lanes, _| {
                let value = load_along_row(e, a, Some(line), i, lanes);
                let at = e.scale(i, 4);
                let to = e.b.ins().iadd(to, at);
                e.store(DType::F32, value, to, 0, lanes);
                vec![]
            });
            vec![]
        });
        let shared: Vec<(usize, Value)> = at
            .iter()
            .map(|&(axis, index)| {
                let repeat = e.i64(if axis == 0 { repeat as i64 } else { 1 });
                (axis, e.b.ins().udiv(index, repeat))
            })
            .collect();
        let panels = e.base(b);
        let panels = e.at(b, panels, &shared);
        let out = e.base(output);
        let out = e.at(output, out, &at);
        let out = e.step(output, tail, out, first);
        let rest = e.scale(whole, panel_row);
        let rest_c = e.b.ins().iadd(c, rest);
        let rest = e.scale(whole, held.weight_stride as i64);
        let rest_rows = e.b.ins().iadd(scratch, rest);
        let rest_width = e.b.ins().isub(width, whole);
        e.for_range(zero, n, micro.mr as i64, &[], |e, column, _| {
            // Panel column / mr, of K rows of mr words.
            let panel = e.scale(column, b.step_bytes(tail) / micro.mr as i64);
            let panel = e.b.ins().iadd(panels, panel);
            let columns = e.b.ins().isub(n, column);
            e.for_range(zero, k, micro.part() as i64, &[], |e, from_k, _| {
                let steps = e.b.ins().isub(k, from_k);
                let part = e.i64(micro.part() as i64);
                let steps = e.min(steps, part);
                let x = e.scale(from_k, panel_row);
                let x = e.b.ins().iadd(panel, x);
                let along = e.scale(from_k, 4);
                let operands = |e: &mut Emitter<'_>, rows: Value, c: Value| {
                    let weights = e.b.ins().iadd(rows, along);
                    TileOperands { x, weights, c, k: steps, accumulate: from_k, streams: None }
                };
                if let Some(direct) = direct {
                    let operands = operands(e, from, c);
                    direct.run(e, &operands, columns, whole);
                }
                let some = e.b.ins().icmp(IntCC::SignedGreaterThan, rest_width, zero);
                e.when(some, |e| {
                    let operands = operands(e, rest_rows, rest_c);
                    held.run(e, &operands, columns, rest_width);
                });
                vec![]
            });
            let most = e.i64(micro.mr as i64);
            let columns = e.min(columns, most);
            e.for_range(zero, width, 1, &[], |e, row, _| {
                let sums = e.scale(row, panel_row);
                let sums = e.b.ins().iadd(c, sums);
                let out = e.step(output, tail, out, row);
                e.for_lanes(columns, &[], |e, i, lanes, _| {
                    let at = e.scale(i, 4);
                    let at = e.b.ins().iadd(sums, at);
                    let value = e.load(DType::F32, at, 0, lanes);
                    let value = finish(e, product, value);
                    let i = e.b.ins().iadd(column, i);
                    store_along_row(e, output, value, out, i, lanes);
                    vec![]
                });
                vec![]
            });
            vec![]
        });
    });
}

/// Scale and softcap.
fn finish(e: &mut Emitter<'_>, Product { scale, cap, .. }: Product, value: Value) -> Value {
    let value = if scale == 1.0 {
        value
    } else {
        let scale = e.splat(scale);
        e.b.ins().fmul(value, scale)
    };
    match cap {
        Some(cap) => math::softcap(e, cap, value),
        None => value,
    }
}
