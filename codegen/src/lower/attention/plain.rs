//! Attention for few rows on any CPU: keys in fours from the first visible one.
//!
//! A tile is a KV head and [`ATTENTION_ROWS`](crate::kernel::ATTENTION_ROWS) rows; the query heads of its group share
//! each load of keys and values, two at a time. A ring is walked in two contiguous runs.

use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::super::elementwise::load_along_row;
use super::super::lanes::{add_across, lane0_mask};
use super::{Attention, divide, fill, stored_row};
use crate::emit::Emitter;
use crate::kernel::Maximum;
use crate::math;

struct Plain<'a> {
    op: Attention<'a>,
    /// Scratch: unnormalised outputs (heads at a time, head_dim) f32.
    sums: Value,
}

/// Query heads handled at a time: two share each key that is loaded, and their eight sums fit the registers.
const HEADS: usize = 2;

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, op: Attention<'_>) {
    let a = Plain { op, sums: e.take_scratch(HEADS * op.head_dim * 4) };
    op.for_rows(e, |e, at| {
        let first_head = e.scale(at.group, op.repeat as i64);
        let (zero, pairs) = (e.i64(0), e.i64((op.repeat / HEADS) as i64));
        e.for_range(zero, pairs, 1, &[], |e, pair, _| {
            let head = e.scale(pair, HEADS as i64);
            let head = e.b.ins().iadd(first_head, head);
            a.heads(e, (at.group, head, at.row), HEADS, at.keys);
            vec![]
        });
        if !op.repeat.is_multiple_of(HEADS) {
            let head = e.offset(first_head, op.repeat as i64 - 1);
            a.heads(e, (at.group, head, at.row), 1, at.keys);
        }
    });
}

impl Plain<'_> {
    /// `count` query heads of a KV head from `head`, one row of queries, over keys `low..high`.
    fn heads(
        &self,
        e: &mut Emitter<'_>,
        (group, head, row): (Value, Value, Value),
        count: usize,
        (low, high): (Value, Value),
    ) {
        let op = &self.op;
        let queries: Vec<Value> = (0..count)
            .map(|h| {
                let head = e.offset(head, h as i64);
                let q = e.base(op.q);
                e.at(op.q, q, &[(0, head), (1, row)])
            })
            .collect();
        fill(e, self.sums, count * op.head_dim, 0.0);
        let (k, v) = op.cached(e, group);

        // State: a denominator (lanes to be added up) and, online, a maximum (the same in all lanes) a head.
        let (none, lowest) = (e.splat(0.0), e.splat(f32::NEG_INFINITY));
        let mut state = vec![none; count];
        if op.maximum == Maximum::Online {
            state.extend(vec![lowest; count]);
        }
        let total = e.b.ins().isub(high, low);
        let (zero, runs) = (e.i64(0), e.i64(op.runs()));
        let state = e.for_range(zero, runs, 1, &state, |e, run, state| {
            let (start, length) = op.run(e, run, low, total);
            let k = stored_row(e, op.k, k, start);
            let v = stored_row(e, op.v, v, start);
            e.for_lanes(length, state, |e, key, lanes, state| {
                let k = stored_row(e, op.k, k, key);
                let v = stored_row(e, op.v, v, key);
                self.keys(e, &queries, k, v, lanes, state)
            })
        });
        for (h, &denominator) in state[..count].iter().enumerate() {
            let sums = self.sums(e, h);
            let head = e.offset(head, h as i64);
            let out = e.base(op.output);
            let out = e.at(op.output, out, &[(0, head), (1, row)]);
            divide(e, sums, op.head_dim, denominator, (op.output, out));
        }
    }

    /// A head's sums.
    fn sums(&self, e: &mut Emitter<'_>, head: usize) -> Value {
        e.offset(self.sums, (head * self.op.head_dim * 4) as i64)
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
        let op = &self.op;
        let heads = queries.len();
        let none = e.splat(0.0);
        let first_only = lane0_mask(e);
        let n = e.i64(op.head_dim as i64);
        let key_bytes = op.k.step_bytes(1);
        let value_bytes = op.v.step_bytes(1);
        let dots = e.for_lanes(n, &vec![none; heads * lanes], |e, i, width, sums| {
            let mut next = Vec::with_capacity(sums.len());
            let q: Vec<Value> = queries
                .iter()
                .map(|&q| {
                    let q = load_along_row(e, op.q, Some(q), i, width);
                    if width == 4 { q } else { e.b.ins().band(q, first_only) }
                })
                .collect();
            for key in 0..lanes {
                let row = e.offset(k, key as i64 * key_bytes);
                let k = load_along_row(e, op.k, Some(row), i, width);
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
            let scores = op.score(e, scores);
            let (share, denominator) = match op.maximum {
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
                    load_along_row(e, op.v, Some(row), i, width)
                })
                .collect();
            for h in 0..heads {
                let sums = self.sums(e, h);
                let at = e.scale(i, 4);
                let at = e.b.ins().iadd(sums, at);
                let mut sum = e.load(DType::F32, at, 0, width);
                if let Some(&rescale) = rescales.get(h) {
                    sum = e.b.ins().fmul(sum, rescale);
                }
                for (key, &value) in values.iter().enumerate() {
                    sum = e.fma(shares[h * lanes + key], value, sum);
                }
                e.store(DType::F32, sum, at, 0, width);
            }
            vec![]
        });
        next.extend(maxima);
        next
    }
}
