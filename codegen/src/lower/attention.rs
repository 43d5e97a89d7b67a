//! Attention: scores, softcap, mask, softmax and the weighted sum of values in one pass over the visible keys.
//!
//! A tile is a KV head and [`ATTENTION_ROWS`] rows; the query heads of its group share each load of keys and values,
//! two at a time. Keys outside of (pos - window, pos] are never read. Keys go in fours from the first visible one, so a
//! row's result depends on its position and not on the call it is part of. A ring is walked in two contiguous runs.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{ConstantData, InstBuilder, Value};
use lapidary_ir::Dim;

use super::elementwise::{load_along_row, store_along_row};
use super::softmax::key_range;
use crate::emit::Emitter;
use crate::kernel::{ATTENTION_ROWS, Kernel, Maximum};
use crate::math;
use crate::view::View;

struct Attention<'a> {
    q: &'a View,
    k: &'a View,
    v: &'a View,
    pos: &'a View,
    output: &'a View,
    head_dim: i64,
    /// Query heads a KV head.
    repeat: i64,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    maximum: Maximum,
    /// Scratch: unnormalised outputs (heads at a time, head_dim) f32.
    sums: Value,
}

/// Query heads handled at a time: two share each key that is loaded, and their eight sums fit the registers.
const HEADS: i64 = 2;

/// Emits the kernel.
pub(super) fn lower(
    e: &mut Emitter<'_>,
    kernel: &Kernel,
    scale: f32,
    cap: Option<f32>,
    window: Option<usize>,
    maximum: Maximum,
) {
    let [q, k, v, pos] = &kernel.inputs[..] else { unreachable!("four operands") };
    let fixed = |view: &View, axis: usize| match view.axes[axis].dim {
        Dim::Fixed(n) => n as i64,
        Dim::Rows | Dim::Keys => unreachable!("heads and head_dim are fixed"),
    };
    let head_dim = fixed(q, 2);
    let sums = e.take_scratch((HEADS * head_dim * 4) as usize);
    let a = Attention {
        q,
        k,
        v,
        pos,
        output: &kernel.outputs[0],
        head_dim,
        repeat: fixed(q, 0) / fixed(k, 0),
        scale,
        cap,
        window,
        maximum,
        sums,
    };
    e.for_tiles(|e, tile| {
        let rows = e.rows();
        let block = e.i64(i64::from(ATTENTION_ROWS));
        let padded = e.offset(rows, i64::from(ATTENTION_ROWS) - 1);
        let blocks = e.b.ins().udiv(padded, block);
        let group = e.b.ins().udiv(tile, blocks);
        let first = e.b.ins().urem(tile, blocks);
        let first = e.b.ins().imul(first, block);
        let end = e.b.ins().iadd(first, block);
        let end = e.min(end, rows);
        e.for_range(first, end, 1, &[], |e, row, _| {
            let keys = e.keys();
            let range = key_range(e, a.pos, a.window, row, keys);
            let first_head = e.scale(group, a.repeat);
            let (zero, pairs) = (e.i64(0), e.i64(a.repeat / HEADS));
            e.for_range(zero, pairs, 1, &[], |e, pair, _| {
                let head = e.scale(pair, HEADS);
                let head = e.b.ins().iadd(first_head, head);
                a.heads(e, group, head, HEADS, row, range);
                vec![]
            });
            if a.repeat % HEADS != 0 {
                let head = e.offset(first_head, a.repeat - 1);
                a.heads(e, group, head, 1, row, range);
            }
            vec![]
        });
    });
}

impl Attention<'_> {
    /// `count` query heads from `head`, one row of queries.
    fn heads(
        &self,
        e: &mut Emitter<'_>,
        group: Value,
        head: Value,
        count: i64,
        row: Value,
        range: (Value, Value),
    ) {
        let queries: Vec<Value> = (0..count)
            .map(|h| {
                let head = e.offset(head, h);
                let q = e.base(self.q);
                e.at(self.q, q, &[(0, head), (1, row)])
            })
            .collect();
        let floats = e.i64(count * self.head_dim);
        let none = e.splat(0.0);
        e.for_lanes(floats, &[], |e, i, lanes, _| {
            let bytes = e.scale(i, 4);
            let at = e.b.ins().iadd(self.sums, bytes);
            e.store(lapidary_ir::DType::F32, none, at, 0, lanes);
            vec![]
        });
        let k = e.base(self.k);
        let k = e.step(self.k, 0, k, group);
        let v = e.base(self.v);
        let v = e.step(self.v, 0, v, group);

        // State: a denominator (lanes to be added up) and, online, a maximum (the same in all lanes) a head.
        let lowest = e.splat(f32::NEG_INFINITY);
        let mut state = vec![none; count as usize];
        if self.maximum == Maximum::Online {
            state.extend(vec![lowest; count as usize]);
        }
        let (low, high) = range;
        let total = e.b.ins().isub(high, low);
        let runs = e.i64(if self.k.ring.is_some() { 2 } else { 1 });
        let zero = e.i64(0);
        let state = e.for_range(zero, runs, 1, &state, |e, run, state| {
            let (start, length) = self.run(e, run, low, total);
            let k = self.stored_row(e, self.k, k, start);
            let v = self.stored_row(e, self.v, v, start);
            e.for_lanes(length, state, |e, key, lanes, state| {
                let k = self.stored_row(e, self.k, k, key);
                let v = self.stored_row(e, self.v, v, key);
                self.keys(e, &queries, k, v, lanes, state)
            })
        });
        for h in 0..count {
            let denominator = e.sum_lanes(state[h as usize]);
            let denominator = e.b.ins().splat(F32X4, denominator);
            let some = e.b.ins().fcmp(FloatCC::GreaterThan, denominator, none);
            let head = e.offset(head, h);
            let out = e.base(self.output);
            let out = e.at(self.output, out, &[(0, head), (1, row)]);
            let n = e.i64(self.head_dim);
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let at = self.sum_address(e, h, i);
                let sum = e.load(lapidary_ir::DType::F32, at, 0, lanes);
                let value = e.b.ins().fdiv(sum, denominator);
                let value = e.choose(some, value, none);
                store_along_row(e, self.output, value, out, i, lanes);
                vec![]
            });
        }
    }

    /// Where run 0 or 1 of a range starts in storage, and its length; a cache that does not wrap has one run.
    fn run(&self, e: &mut Emitter<'_>, run: Value, low: Value, total: Value) -> (Value, Value) {
        let Some(ring) = self.k.ring else { return (low, total) };
        let ring = e.i64(ring as i64);
        let start = e.b.ins().urem(low, ring);
        let to_end = e.b.ins().isub(ring, start);
        let first = e.min(to_end, total);
        let rest = e.b.ins().isub(total, first);
        let zero = e.i64(0);
        (e.b.ins().select(run, zero, start), e.b.ins().select(run, rest, first))
    }

    /// A row of a cache by where it is stored, not by its key's number.
    fn stored_row(&self, e: &mut Emitter<'_>, view: &View, address: Value, index: Value) -> Value {
        let bytes = e.scale(index, view.step_bytes(1));
        e.b.ins().iadd(address, bytes)
    }

    fn sum_address(&self, e: &mut Emitter<'_>, head: i64, i: Value) -> Value {
        let bytes = e.scale(i, 4);
        let at = e.b.ins().iadd(self.sums, bytes);
        e.offset(at, head * self.head_dim * 4)
    }

    /// Four keys or one: adds their share to the sums; returns the next state.
    fn keys(
        &self,
        e: &mut Emitter<'_>,
        queries: &[Value],
        k: Value,
        v: Value,
        lanes: usize,
        state: &[Value],
    ) -> Vec<Value> {
        let heads = queries.len();
        let none = e.splat(0.0);
        let first_only = lane0_mask(e);
        let n = e.i64(self.head_dim);
        let key_bytes = self.k.step_bytes(1);
        let value_bytes = self.v.step_bytes(1);
        let dots = e.for_lanes(n, &vec![none; heads * lanes], |e, i, width, sums| {
            let mut next = Vec::with_capacity(sums.len());
            let q: Vec<Value> = queries
                .iter()
                .map(|&q| {
                    let q = load_along_row(e, self.q, Some(q), i, width);
                    if width == 4 { q } else { e.b.ins().band(q, first_only) }
                })
                .collect();
            for key in 0..lanes {
                let row = e.offset(k, key as i64 * key_bytes);
                let k = load_along_row(e, self.k, Some(row), i, width);
                for (h, &q) in q.iter().enumerate() {
                    next.push(e.fma(q, k, sums[key * heads + h]));
                }
            }
            next
        });
        let mut next = vec![];
        let mut maxima = vec![];
        let mut shares = vec![];
        let mut rescales = vec![];
        for h in 0..heads {
            let scores = if lanes == 4 {
                add_across(e, [dots[h], dots[heads + h], dots[2 * heads + h], dots[3 * heads + h]])
            } else {
                let sum = e.sum_lanes(dots[h]);
                e.b.ins().splat(F32X4, sum)
            };
            let scale = e.splat(self.scale);
            let scores = e.b.ins().fmul(scores, scale);
            let scores = match self.cap {
                Some(cap) => math::softcap(e, cap, scores),
                None => scores,
            };
            let (share, denominator) = match self.maximum {
                Maximum::Bounded => (math::exp_bounded(e, scores), state[h]),
                Maximum::Online => {
                    let before = state[heads + h];
                    let best = e.max_lanes(scores);
                    let best = e.b.ins().splat(F32X4, best);
                    let best = e.fmax(best, before);
                    let shift = e.b.ins().fsub(before, best);
                    let rescale = math::exp(e, shift);
                    let shifted = e.b.ins().fsub(scores, best);
                    maxima.push(best);
                    rescales.push(rescale);
                    (math::exp(e, shifted), e.b.ins().fmul(state[h], rescale))
                }
            };
            let counted = if lanes == 4 { share } else { e.b.ins().band(share, first_only) };
            next.push(e.b.ins().fadd(denominator, counted));
            for lane in 0..lanes as u8 {
                shares.push(e.shuffle(share, share, [lane; 4]));
            }
        }
        e.for_lanes(n, &[], |e, i, width, _| {
            let values: Vec<Value> = (0..lanes)
                .map(|key| {
                    let row = e.offset(v, key as i64 * value_bytes);
                    load_along_row(e, self.v, Some(row), i, width)
                })
                .collect();
            for h in 0..heads {
                let at = self.sum_address(e, h as i64, i);
                let mut sum = e.load(lapidary_ir::DType::F32, at, 0, width);
                if let Some(&rescale) = rescales.get(h) {
                    sum = e.b.ins().fmul(sum, rescale);
                }
                for (key, &value) in values.iter().enumerate() {
                    sum = e.fma(shares[h * lanes + key], value, sum);
                }
                e.store(lapidary_ir::DType::F32, sum, at, 0, width);
            }
            vec![]
        });
        next.extend(maxima);
        next
    }
}

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
