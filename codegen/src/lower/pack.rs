//! Packing: rows of x (T, K) to panels `[T / mr][K][mr]` f32 for tile microkernels, normed on the way if asked.
//!
//! A tile is a panel. Rows go in fours, transposed; past the last row the last row comes again, and the lanes it makes
//! are never stored by anyone.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};
use lapidary_runtime::program::Tiles;

use super::elementwise::load_along_row;
use super::linear::norm_row_into;
use super::transpose;
use crate::emit::Emitter;
use crate::kernel::Kernel;
use crate::micro::Microkernel;
use crate::view::{Base, Capacity, View};

/// Elements of k that are packed for all rows before the next: they stay in the first cache.
const PART: i64 = 64;

/// The tile space over rows of this length.
pub fn tiles(rows: Dim, capacity: Capacity, panel: usize) -> Tiles {
    match rows {
        Dim::Rows => Tiles { fixed: 1, rows: panel as u32 },
        Dim::Fixed(_) | Dim::Keys => Tiles { fixed: capacity.of(rows).div_ceil(panel) as u32, rows: 0 },
    }
}

/// The packed form of (rows, k) in a buffer.
pub fn packed(base: Base, rows: Dim, k: usize, capacity: Capacity, micro: &Microkernel) -> View {
    let panels = capacity.of(rows).div_ceil(micro.mr);
    let (steps, width) = match micro.operands {
        DType::BF16 => (k.div_ceil(2), 2 * micro.mr),
        _ => (k, micro.mr),
    };
    let dims = [panels, steps, width].map(Dim::Fixed);
    View::contiguous(base, micro.operands, &dims, capacity)
}

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, prologue: Option<f32>) {
    let (x, output) = (&kernel.inputs[0], &kernel.outputs[0]);
    let (Some(Dim::Fixed(k)), Some(Dim::Fixed(width))) =
        (x.axes.last().map(|a| a.dim), output.axes.last().map(|a| a.dim))
    else {
        unreachable!("rows and panels have fixed lengths")
    };
    let pairs = output.dtype == DType::BF16;
    let panel = if pairs { width / 2 } else { width };
    let normed = prologue.map(|eps| (eps, e.take_scratch(panel * k * 4)));
    e.for_tiles(|e, tile| {
        let rows = e.length(x.axes[0].dim);
        let first = e.scale(tile, panel as i64);
        let end = e.offset(first, panel as i64);
        let end = e.min(end, rows);
        let zero = e.i64(0);
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
        let read = match normed {
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
        let out = e.step(output, 0, out, tile);
        let all = e.i64(k as i64);
        e.for_range(zero, all, PART, &[], |e, from, _| {
            let to = e.offset(from, PART);
            let to = e.min(to, all);
            e.for_range(first, end, 4, &[], |e, t, _| {
                let last = e.offset(rows, -1);
                let addresses: [Value; 4] = std::array::from_fn(|i| {
                    let row = e.offset(t, i as i64);
                    let row = e.min(row, last);
                    e.step(&read, 0, base, row)
                });
                let lane = e.b.ins().isub(t, first);
                let lane = e.scale(lane, 4);
                let out = e.b.ins().iadd(out, lane);
                let length = e.b.ins().isub(to, from);
                e.for_lanes(length, &[], |e, i, lanes, _| {
                    let i = e.b.ins().iadd(from, i);
                    let values = addresses.map(|row| load_along_row(e, &read, Some(row), i, lanes));
                    let columns = transpose(e, values);
                    if pairs {
                        // A single element k (one at a time, at the end) is a pair's first, its second 0, or its second.
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
    });
}
