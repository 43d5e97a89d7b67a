//! Lanes of several vectors rearranged and added up.

use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{ConstantData, InstBuilder, Value};

use crate::emit::Emitter;

/// All ones in lane 0, zeros elsewhere.
pub(super) fn lane0_mask(e: &mut Emitter<'_>) -> Value {
    let bytes: Vec<u8> = [[0xff; 4], [0; 4], [0; 4], [0; 4]].concat();
    let constant = e.b.func.dfg.constants.insert(ConstantData::from(&bytes[..]));
    e.b.ins().vconst(F32X4, constant)
}

/// Lane i of the result is the sum of the lanes of `rows[i]`.
pub(crate) fn add_across(e: &mut Emitter<'_>, rows: [Value; 4]) -> Value {
    let fold = |e: &mut Emitter<'_>, a: Value, b: Value, low: [u8; 4], high: [u8; 4]| {
        let (low, high) = (e.shuffle(a, b, low), e.shuffle(a, b, high));
        e.b.ins().fadd(low, high)
    };
    let ab = fold(e, rows[0], rows[1], [0, 1, 4, 5], [2, 3, 6, 7]);
    let cd = fold(e, rows[2], rows[3], [0, 1, 4, 5], [2, 3, 6, 7]);
    fold(e, ab, cd, [0, 2, 4, 6], [1, 3, 5, 7])
}

/// Four rows of four to four columns.
pub(crate) fn transpose(e: &mut Emitter<'_>, r: [Value; 4]) -> [Value; 4] {
    let (a, b) = (e.shuffle(r[0], r[1], [0, 4, 1, 5]), e.shuffle(r[2], r[3], [0, 4, 1, 5]));
    let (c, d) = (e.shuffle(r[0], r[1], [2, 6, 3, 7]), e.shuffle(r[2], r[3], [2, 6, 3, 7]));
    [
        e.shuffle(a, b, [0, 1, 4, 5]),
        e.shuffle(a, b, [2, 3, 6, 7]),
        e.shuffle(c, d, [0, 1, 4, 5]),
        e.shuffle(c, d, [2, 3, 6, 7]),
    ]
}
