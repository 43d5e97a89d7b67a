//! Portable microkernels in 128-bit CLIF, for any CPU.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::Block;
use crate::emit::Emitter;
use crate::lower::add_across;

/// Dot products, four weight rows at a time, each a stream: for one row of x, or few.
pub(super) fn dot(e: &mut Emitter<'_>, block: &Block) {
    let bytes = block.dtype.bytes() as i64;
    let none = e.splat(0.0);
    for (group, weights) in block.weights.chunks(4).enumerate() {
        let zero = e.i64(0);
        e.for_range(zero, block.rows, 1, &[], |e, t, _| {
            let offset = e.scale(t, block.x_stride);
            let x = e.b.ins().iadd(block.x, offset);
            let (zero, whole) = (e.i64(0), e.i64((block.k / 8 * 8) as i64));
            let mut sums = e.for_range(zero, whole, 8, &vec![none; 2 * weights.len()], |e, k, sums| {
                let at = e.scale(k, 4);
                let x = e.b.ins().iadd(x, at);
                let halves = [e.load(DType::F32, x, 0, 4), e.load(DType::F32, x, 16, 4)];
                let at = e.scale(k, bytes);
                let mut next = Vec::with_capacity(sums.len());
                for (row, &w) in weights.iter().enumerate() {
                    let w = e.b.ins().iadd(w, at);
                    for (half, &x) in halves.iter().enumerate() {
                        let w = e.load_readonly(block.dtype, w, half as i64 * 4 * bytes, 4);
                        next.push(e.fma(x, w, sums[2 * row + half]));
                    }
                }
                next
            });
            // At most seven more: four, then one by one into lane 0.
            let mut k = block.k / 8 * 8;
            while k < block.k {
                let lanes = if block.k - k >= 4 { 4 } else { 1 };
                let xs = e.load(DType::F32, x, k as i64 * 4, lanes);
                let xs = if lanes == 4 {
                    xs
                } else {
                    let first = e.lane0(xs);
                    e.b.ins().insertlane(none, first, 0u8)
                };
                for (row, &w) in weights.iter().enumerate() {
                    let w = e.load_readonly(block.dtype, w, k as i64 * bytes, lanes);
                    sums[2 * row] = e.fma(xs, w, sums[2 * row]);
                }
                k += lanes;
            }
            let mut rows = [none; 4];
            for (row, sum) in rows.iter_mut().enumerate().take(weights.len()) {
                *sum = e.b.ins().fadd(sums[2 * row], sums[2 * row + 1]);
            }
            let result = add_across(e, rows);
            let at = e.scale(t, block.weights.len() as i64 * 4);
            let c = e.b.ins().iadd(block.c, at);
            e.store(DType::F32, result, c, group as i64 * 16, 4);
            vec![]
        });
    }
}

/// Outer products: the block's weights are widened once into a panel `[k][16]` f32, over which rows of x run three at a
/// time.
pub(super) fn panel(e: &mut Emitter<'_>, block: &Block) {
    pack(e, block);
    let zero = e.i64(0);
    let three = e.i64(3);
    let triples = e.b.ins().udiv(block.rows, three);
    let whole = e.b.ins().imul(triples, three);
    e.for_range(zero, whole, 3, &[], |e, t, _| {
        rows(e, block, t, 3);
        vec![]
    });
    e.for_range(whole, block.rows, 1, &[], |e, t, _| {
        rows(e, block, t, 1);
        vec![]
    });
}

/// Weights (16, k) to f32 `[k][16]`.
fn pack(e: &mut Emitter<'_>, block: &Block) {
    let bytes = block.dtype.bytes() as i64;
    let (zero, whole) = (e.i64(0), e.i64((block.k / 4 * 4) as i64));
    e.for_range(zero, whole, 4, &[], |e, k, _| {
        let at = e.scale(k, bytes);
        let to = e.scale(k, 64);
        let to = e.b.ins().iadd(block.scratch, to);
        for (group, weights) in block.weights.chunks(4).enumerate() {
            let rows: Vec<Value> = weights
                .iter()
                .map(|&w| {
                    let w = e.b.ins().iadd(w, at);
                    e.load_readonly(block.dtype, w, 0, 4)
                })
                .collect();
            for (i, column) in transpose(e, [rows[0], rows[1], rows[2], rows[3]]).into_iter().enumerate() {
                e.store(DType::F32, column, to, i as i64 * 64 + group as i64 * 16, 4);
            }
        }
        vec![]
    });
    for k in block.k / 4 * 4..block.k {
        for (n, &w) in block.weights.iter().enumerate() {
            let w = e.load_readonly(block.dtype, w, k as i64 * bytes, 1);
            let to = e.offset(block.scratch, k as i64 * 64);
            e.store(DType::F32, w, to, n as i64 * 4, 1);
        }
    }
}

/// Four rows of four to four columns.
fn transpose(e: &mut Emitter<'_>, r: [Value; 4]) -> [Value; 4] {
    let (a, b) = (e.shuffle(r[0], r[1], [0, 4, 1, 5]), e.shuffle(r[2], r[3], [0, 4, 1, 5]));
    let (c, d) = (e.shuffle(r[0], r[1], [2, 6, 3, 7]), e.shuffle(r[2], r[3], [2, 6, 3, 7]));
    [
        e.shuffle(a, b, [0, 1, 4, 5]),
        e.shuffle(a, b, [2, 3, 6, 7]),
        e.shuffle(c, d, [0, 1, 4, 5]),
        e.shuffle(c, d, [2, 3, 6, 7]),
    ]
}

/// `count` rows of x from row t against the panel.
fn rows(e: &mut Emitter<'_>, block: &Block, t: Value, count: usize) {
    let none = e.splat(0.0);
    let offset = e.scale(t, block.x_stride);
    let x = e.b.ins().iadd(block.x, offset);
    let (zero, k) = (e.i64(0), e.i64(block.k as i64));
    let sums = e.for_range(zero, k, 1, &vec![none; 4 * count], |e, k, sums| {
        let at = e.scale(k, 4);
        let x = e.b.ins().iadd(x, at);
        let at = e.scale(k, 64);
        let panel = e.b.ins().iadd(block.scratch, at);
        let xs: Vec<Value> =
            (0..count).map(|r| e.load(DType::F32, x, r as i64 * block.x_stride, 1)).collect();
        let mut next = sums.to_vec();
        for column in 0..4 {
            let w = e.load(DType::F32, panel, column as i64 * 16, 4);
            for (r, &x) in xs.iter().enumerate() {
                next[r * 4 + column] = e.fma(x, w, sums[r * 4 + column]);
            }
        }
        next
    });
    let at = e.scale(t, 64);
    let c = e.b.ins().iadd(block.c, at);
    for (i, &sum) in sums.iter().enumerate() {
        e.store(DType::F32, sum, c, (i / 4 * 64 + i % 4 * 16) as i64, 4);
    }
}
