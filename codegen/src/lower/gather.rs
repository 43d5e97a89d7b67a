//! Rows of a table by ids, scaled and widened: the embedding.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};

use super::elementwise::{load_along_row, over_axes, store_along_row};
use crate::emit::Emitter;
use crate::kernel::Kernel;

/// Emits the kernel. Ids are the caller's to check: a session refuses ids outside of the vocabulary.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, scale: f32) {
    let (table, ids, output) = (&kernel.inputs[0], &kernel.inputs[1], &kernel.outputs[0]);
    let dims = output.dims();
    let last = dims.len() - 1;
    let tile_axes = Kernel::tile_axes(output);
    let inner: Vec<usize> = (0..last).filter(|a| !tile_axes.contains(a)).collect();
    e.for_tiles(|e, tile| {
        let tile_dims: Vec<Dim> = tile_axes.iter().map(|&a| dims[a]).collect();
        let indices = e.unravel(tile, &tile_dims);
        let at: Vec<(usize, Value)> = tile_axes.iter().copied().zip(indices).collect();
        over_axes(e, &dims, &inner, at, &mut |e, at| {
            let out = e.base(output);
            let out = e.at(output, out, at);
            // Of a table of one axis, the gathered axis is also the last one.
            let row_of = |e: &mut Emitter<'_>, t: Value| {
                let id = e.base(ids);
                let id = e.step(ids, 0, id, t);
                let id = e.load_index(id);
                let row = e.base(table);
                e.step(table, 0, row, id)
            };
            if last == 0 {
                let (zero, n) = (e.i64(0), e.length(dims[0]));
                e.for_range(zero, n, 1, &[], |e, t, _| {
                    let address = row_of(e, t);
                    let value = if table.dtype.is_float() {
                        e.load(table.dtype, address, 0, 1)
                    } else {
                        e.load_int(address, 0, 1)
                    };
                    store_along_row(e, output, value, out, t, 1);
                    vec![]
                });
                return;
            }
            let Some(&(_, t)) = at.iter().find(|(axis, _)| *axis == 0) else {
                unreachable!("axis 0 is walked")
            };
            let mut row = row_of(e, t);
            for &(axis, index) in at.iter().filter(|(axis, _)| *axis != 0) {
                row = e.step(table, axis, row, index);
            }
            let n = e.length(dims[last]);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let mut value = load_along_row(e, table, Some(row), i, lanes);
                if scale != 1.0 && output.dtype == DType::F32 {
                    let scale = e.splat(scale);
                    value = e.b.ins().fmul(value, scale);
                }
                store_along_row(e, output, value, out, i, lanes);
                vec![]
            });
        });
    });
}
