//! Appends the call's rows to a cache, rounded to its dtype: row t becomes key S - T + t.

use cranelift_codegen::ir::InstBuilder;

use super::elementwise::{load_along_row, store_along_row};
use crate::emit::Emitter;
use crate::kernel::Kernel;

/// Emits the kernel; a tile is a head's row.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel) {
    let (rows, cache) = (&kernel.inputs[0], &kernel.outputs[0]);
    let dims = rows.dims();
    e.for_tiles(|e, tile| {
        let indices = e.unravel(tile, &dims[..2]);
        let (head, t) = (indices[0], indices[1]);
        let row = e.base(rows);
        let row = e.at(rows, row, &[(0, head), (1, t)]);
        let (keys, count) = (e.keys(), e.rows());
        let first = e.b.ins().isub(keys, count);
        let key = e.b.ins().iadd(first, t);
        let out = e.base(cache);
        let out = e.at(cache, out, &[(0, head), (1, key)]);
        let n = e.length(dims[2]);
        e.for_lanes(n, &[], |e, i, lanes, _| {
            let value = load_along_row(e, rows, Some(row), i, lanes);
            store_along_row(e, cache, value, out, i, lanes);
            vec![]
        });
    });
}
