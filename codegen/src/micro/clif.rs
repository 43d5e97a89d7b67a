//! Portable microkernels in 128-bit CLIF, for any CPU.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Format};

use super::{Block, Tile, TileOperands};
use crate::emit::{BlockRow, Emitter};
use crate::lower::add_across;

/// Dot products, four weight rows at a time, each a stream: for one row of x, or few.
pub(super) fn dot(e: &mut Emitter<'_>, block: &Block) {
    if let Some(format) = block.dtype.format() {
        return dot_quantised(e, block, format);
    }
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

/// [`dot`] of quantised rows: a group's sum without its scale, then times it, and its offset times the sum of x.
fn dot_quantised(e: &mut Emitter<'_>, block: &Block, format: &'static Format) {
    let none = e.splat(0.0);
    for (group, weights) in block.weights.chunks(4).enumerate() {
        let zero = e.i64(0);
        e.for_range(zero, block.rows, 1, &[], |e, t, _| {
            let offset = e.scale(t, block.x_stride);
            let x = e.b.ins().iadd(block.x, offset);
            let (zero, all) = (e.i64(0), e.i64(block.k as i64));
            let starts = vec![none; weights.len()];
            let sums = e.for_range(zero, all, format.group as i64, &starts, |e, k, sums| {
                let at = e.scale(k, 4);
                let x = e.b.ins().iadd(x, at);
                let xs: Vec<Value> =
                    (0..format.group as i64 / 4).map(|i| e.load(DType::F32, x, i * 16, 4)).collect();
                let mut all_of_x = None;
                let mut next = Vec::with_capacity(sums.len());
                for (&w, &sum) in weights.iter().zip(sums) {
                    let row = BlockRow { format, address: w, k: block.k };
                    let mut part = none;
                    for (i, &x) in xs.iter().enumerate() {
                        let at = e.offset(k, i as i64 * 4);
                        let q = e.load_quants(row, at);
                        part = e.fma(q, x, part);
                    }
                    let shared = e.load_group(row, k);
                    let sum = e.fma(part, shared.scale, sum);
                    next.push(match shared.offset {
                        Some(offset) => {
                            let x = *all_of_x.get_or_insert_with(|| add_all(e, &xs));
                            e.fma(x, offset, sum)
                        }
                        None => sum,
                    });
                }
                next
            });
            let mut rows = [none; 4];
            rows[..sums.len()].copy_from_slice(&sums);
            let result = add_across(e, rows);
            let at = e.scale(t, block.weights.len() as i64 * 4);
            let c = e.b.ins().iadd(block.c, at);
            e.store(DType::F32, result, c, group as i64 * 16, 4);
            vec![]
        });
    }
}

/// The sum of vectors, lane by lane.
fn add_all(e: &mut Emitter<'_>, xs: &[Value]) -> Value {
    let none = e.splat(0.0);
    xs.iter().fold(none, |sum, &x| e.b.ins().fadd(sum, x))
}

/// A tile of outer products: vectors of x times weights, each in every lane.
pub(super) fn tile(e: &mut Emitter<'_>, tile: Tile, operands: &TileOperands) {
    let vectors = tile.columns / 4;
    let address = |e: &mut Emitter<'_>, i: usize| {
        let (n, v) = (i / vectors, i % vectors);
        e.offset(operands.c, n as i64 * i64::from(tile.c_stride) + v as i64 * 16)
    };
    // What the sums start from: a mask of the results there are.
    let zero = e.i64(0);
    let held = e.b.ins().icmp(IntCC::NotEqual, operands.accumulate, zero);
    let (ones, nothing) = (e.b.ins().iconst(I32, -1), e.b.ins().iconst(I32, 0));
    let mask = e.b.ins().select(held, ones, nothing);
    let mask = e.b.ins().splat(I32X4, mask);
    let none = e.splat(0.0);
    let starts: Vec<Value> = (0..vectors * tile.nr)
        .map(|i| {
            let at = address(e, i);
            let c = e.load(DType::F32, at, 0, 4);
            e.choose(mask, c, none)
        })
        .collect();
    let sums = e.for_range(zero, operands.k, 1, &starts, |e, k, sums| {
        let at = e.scale(k, tile.panel as i64 * 4);
        let x = e.b.ins().iadd(operands.x, at);
        let at = e.scale(k, 4);
        let weights = e.b.ins().iadd(operands.weights, at);
        let xs: Vec<Value> = (0..vectors).map(|v| e.load_readonly(DType::F32, x, v as i64 * 16, 4)).collect();
        let mut next = Vec::with_capacity(sums.len());
        for n in 0..tile.nr {
            let w = e.load_readonly(DType::F32, weights, n as i64 * i64::from(tile.weight_stride), 1);
            for (v, &x) in xs.iter().enumerate() {
                next.push(e.fma(w, x, sums[n * vectors + v]));
            }
        }
        next
    });
    for (i, &sum) in sums.iter().enumerate() {
        let at = address(e, i);
        e.store(DType::F32, sum, at, 0, 4);
    }
}
