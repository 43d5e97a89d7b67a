//! The raw code that attention of few rows calls: scores, weighted sums, and what serves where operands do not lie as
//! those need.

use lapidary_ir::{BLOCK as BLOCK_ELEMENTS, DType};

use super::super::fixed;
use super::BLOCK;
use crate::emit::Features;
use crate::kernel::{ATTENTION_ROWS, Kernel};
use crate::micro::{self, DOT_ROWS, Dot, Emit, Microkernel, Mix, Raw, Scores, Tile};
use crate::view::View;

/// The microkernels that the kernel calls: for dot products, and for weighted sums.
pub(in super::super) type Micros = (&'static Microkernel, &'static Microkernel);

/// Those, if the CPU has them, the operands lie as they need and there are few rows.
pub(in super::super) fn micros(inputs: &[View], regime: usize, features: &Features) -> Option<Micros> {
    let [q, k, ..] = inputs else { unreachable!("four operands") };
    let dots = micro::select(1, 1, DType::F32, features);
    let sums = micro::select(usize::MAX, 1, DType::F32, features);
    let raw = matches!((dots.emit, sums.emit), (Emit::RawDot(_), Emit::RawTile(_)));
    let dense = k.inner_stride() == 1 && k.axes[1].stride == fixed(k, 2) as i64;
    let plain = q.dtype == DType::F32 && (q.inner_stride() == 1 || fixed(q, 2) == 1);
    (raw && dense && plain && regime <= ATTENTION_ROWS as usize).then_some((dots, sums))
}

/// Scores of all queries of some heads at once, if the CPU has them and keys are whole blocks: the first head and the
/// code for as many keys as asked.
pub(super) fn scorings(
    q: &View,
    k: &View,
    rows: usize,
    features: &Features,
) -> Option<(&'static Microkernel, Vec<(usize, Scores)>)> {
    let micro = micro::scoring(features)?;
    let (length, repeat) = (fixed(k, 2), fixed(q, 0) / fixed(k, 0));
    if !length.is_multiple_of(BLOCK_ELEMENTS) {
        return None;
    }
    let of_heads = |head: usize| Scores {
        dtype: k.dtype,
        k: length,
        rows,
        heads: micro.mr.min(repeat - head),
        q_stride: q.step_bytes(0) as i32,
        c_stride: BLOCK as i32 * 4,
    };
    Some((micro, (0..repeat).step_by(micro.mr).map(|head| (head, of_heads(head))).collect()))
}

/// The weighted sums straight from the cache, if the CPU has them and values are whole blocks: heads and columns.
pub(super) fn mixes(
    v: &View,
    repeat: usize,
    features: &Features,
) -> Option<(&'static Microkernel, Vec<(usize, Mix)>)> {
    let micro = micro::mixing(features)?;
    let k = fixed(v, 2);
    let dense = v.inner_stride() == 1 && v.axes[1].stride == k as i64;
    if !k.is_multiple_of(BLOCK_ELEMENTS) || !dense {
        return None;
    }
    let (most, heads) = micro.shapes[0];
    let mut mixes = vec![];
    for head in (0..repeat).step_by(heads) {
        for column in (0..k).step_by(most) {
            let mix = Mix {
                dtype: v.dtype,
                k,
                column,
                columns: most.min(k - column),
                heads: heads.min(repeat - head),
                weight_stride: BLOCK as i32 * 4,
                c_stride: row_of(k) as i32 * 4,
            };
            mixes.push((head, mix));
        }
    }
    Some((micro, mixes))
}

/// A part of the weighted sums: query heads and columns, from the first of each.
pub(super) struct Part {
    pub(super) head: usize,
    pub(super) column: usize,
    pub(super) tile: Tile,
}

/// Length of a row of values in scratch.
pub(super) fn row_of(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// The weighted sums of all heads and columns, part by part.
pub(super) fn parts(sums: &Microkernel, repeat: usize, head_dim: usize) -> Vec<Part> {
    let row = row_of(head_dim);
    let widest = sums.shapes.iter().position(|s| s.1 >= repeat).unwrap_or(sums.shapes.len() - 1);
    let shapes = &sums.shapes[widest..];
    let mut parts = vec![];
    for head in (0..repeat).step_by(shapes[0].1) {
        let nr = shapes[0].1.min(repeat - head);
        let mut column = 0;
        while column < row {
            let columns = shapes.iter().map(|s| s.0).find(|&c| c <= row - column);
            let Some(columns) = columns else { unreachable!("rows are whole narrowest shapes") };
            let tile = Tile {
                operands: DType::F32,
                weights: DType::F32,
                columns,
                nr,
                panel: row,
                weight_stride: BLOCK as i32 * 4,
                c_stride: row as i32 * 4,
                ahead: 0,
                fours: false,
                streams: None,
            };
            parts.push(Part { head, column, tile });
            column += columns;
        }
    }
    parts
}

pub(super) fn dot(k: &View, rows: usize) -> Raw {
    Raw::Dot(Dot::of_one_row(DType::F32, k.dtype, fixed(k, 2), rows))
}

/// The raw code that the kernel calls.
pub(in super::super) fn raw_code(
    kernel: &Kernel,
    (dots, sums): Micros,
    features: &Features,
) -> Vec<(&'static Microkernel, Raw)> {
    let [q, k, v, ..] = &kernel.inputs[..] else { unreachable!("four operands") };
    let repeat = fixed(q, 0) / fixed(k, 0);
    let scores = [DOT_ROWS, 1].into_iter().flat_map(|rows| match scorings(q, k, rows, features) {
        Some((micro, all)) => all.into_iter().map(|(_, s)| (micro, Raw::Scores(s))).collect(),
        None => vec![(dots, dot(k, rows))],
    });
    match mixes(v, repeat, features) {
        Some((micro, mixes)) => scores.chain(mixes.into_iter().map(|(_, m)| (micro, Raw::Mix(m)))).collect(),
        None => {
            let tiles = parts(sums, repeat, fixed(q, 2)).into_iter();
            scores.chain(tiles.map(|p| (sums, Raw::Tile(p.tile)))).collect()
        }
    }
}
