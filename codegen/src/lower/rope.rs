//! RoPE: the halves of each head's row rotated by the angle of its position (Su et al. 2021; halves, as transformers'
//! `rotate_half`).

use cranelift_codegen::ir::InstBuilder;
use cranelift_codegen::ir::types::F32X4;
use lapidary_ir::Dim;

use super::elementwise::{load_along_row, store_along_row};
use crate::emit::Emitter;
use crate::kernel::Kernel;
use crate::math;

/// Emits the kernel; a tile is one head's row.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel) {
    let [x, pos, frequencies] = &kernel.inputs[..] else { unreachable!("three operands") };
    let output = &kernel.outputs[0];
    let dims = output.dims();
    let Dim::Fixed(d) = dims[2] else { unreachable!("head_dim is fixed") };
    let half = (d / 2) as i64;
    e.for_tiles(|e, tile| {
        let indices = e.unravel(tile, &dims[..2]);
        let at = [(0, indices[0]), (1, indices[1])];
        let row = e.base(x);
        let row = e.at(x, row, &at);
        let out = e.base(output);
        let out = e.at(output, out, &at);
        let position = e.base(pos);
        let position = e.step(pos, 0, position, indices[1]);
        let position = e.load_int(position, 0, 1);
        let position = e.b.ins().fcvt_from_sint(F32X4, position);
        let table = e.base(frequencies);
        let n = e.i64(half);
        e.for_lanes(n, &[], |e, i, lanes, _| {
            let frequency = load_along_row(e, frequencies, Some(table), i, lanes);
            let angle = e.b.ins().fmul(position, frequency);
            let (sin, cos) = math::sin_cos(e, angle);
            let second = e.offset(i, half);
            let a = load_along_row(e, x, Some(row), i, lanes);
            let b = load_along_row(e, x, Some(row), second, lanes);
            let (a_cos, a_sin) = (e.b.ins().fmul(a, cos), e.b.ins().fmul(a, sin));
            let (b_cos, b_sin) = (e.b.ins().fmul(b, cos), e.b.ins().fmul(b, sin));
            let first = e.b.ins().fsub(a_cos, b_sin);
            let other = e.b.ins().fadd(b_cos, a_sin);
            store_along_row(e, output, first, out, i, lanes);
            store_along_row(e, output, other, out, second, lanes);
            vec![]
        });
    });
}
