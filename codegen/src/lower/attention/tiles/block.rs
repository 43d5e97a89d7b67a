//! Blocks of keys and values: widened once, met by each panel's queries, softened, added to each panel's sums.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::DType;

use super::super::super::elementwise::load_along_row;
use super::super::super::lanes::transpose;
use super::{BLOCK, Tile, padded, score_tiling, softening, value_tiling};
use crate::emit::Emitter;
use crate::kernel::Maximum;
use crate::math;
use crate::micro::{TileOperands, UNSEEN};
use crate::view::View;

impl Tile<'_> {
    /// `count` keys from `key`, widened.
    pub(super) fn block(&self, e: &mut Emitter<'_>, key: Value, count: Value, low: Value, columns: Value) {
        let zero = e.i64(0);
        let head_dim = e.i64(self.op.head_dim as i64);
        let micro = self.shape.micro;
        let steps = if self.rounds() { e.i64(self.op.head_dim as i64 / 2) } else { head_dim };
        let scores = TileOperands {
            x: self.queries,
            weights: self.keys,
            c: self.scores,
            k: steps,
            accumulate: zero,
            streams: None,
        };
        score_tiling(micro, self.op.head_dim).run(e, &scores, columns, count);
        match self.shape.soften {
            Some(_) => {
                let raw = softening(&self.op, self.shape);
                e.call_raw(raw, &[self.scores, self.shares, self.low, key, count, columns]);
            }
            None => self.soften(e, key, count, columns),
        }
        if self.op.maximum == Maximum::Online {
            let some = e.b.ins().icmp(IntCC::SignedGreaterThan, key, low);
            e.when(some, |e| self.rescale_sums(e));
        }
        let one = e.i64(1);
        let steps = if self.rounds() {
            if self.shape.soften.is_none() {
                self.round_shares(e, count, columns);
            }
            e.i64(BLOCK as i64 / 2)
        } else {
            count
        };
        let values = TileOperands {
            x: self.shares,
            weights: self.values,
            c: self.sums,
            k: steps,
            accumulate: one,
            streams: None,
        };
        value_tiling(micro).run(e, &values, columns, head_dim);
    }

    /// Keys `before..count` of the block to rows, values to columns, as the products hold them.
    pub(super) fn widen(
        &self,
        e: &mut Emitter<'_>,
        (k, v): (Value, Value),
        key: Value,
        (before, count): (Value, Value),
    ) {
        let operands = self.shape.micro.operands;
        let bytes = operands.bytes() as i64;
        let n = e.i64(self.op.head_dim as i64);
        // Whole vectors as they lie.
        let lies = |view: &View| view.dtype == operands && view.inner_stride() == 1 && self.rounds();
        e.for_range(before, count, 1, &[], |e, j, _| {
            let key = e.b.ins().iadd(key, j);
            let row = e.step(self.op.k, 1, k, key);
            let at = e.scale(j, padded(self.op.head_dim, operands) as i64);
            let to = e.b.ins().iadd(self.keys, at);
            if lies(self.op.k) {
                e.copy(row, to, self.op.head_dim as i64 * bytes);
                return vec![];
            }
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let value = load_along_row(e, self.op.k, Some(row), i, lanes);
                let at = e.scale(i, bytes);
                let to = e.b.ins().iadd(to, at);
                e.store(operands, value, to, 0, lanes);
                vec![]
            });
            vec![]
        });
        // Some keys at a time.
        if lies(self.op.v) {
            return self.turn_values(e, v, key, (before, count));
        }
        let first = e.b.ins().band_imm_s(before, !3);
        e.for_range(first, count, 4, &[], |e, j, _| {
            let rows: [Value; 4] = self.value_rows(e, (v, key), j, (before, count));
            let at = e.scale(j, bytes);
            let to = e.b.ins().iadd(self.values, at);
            let stride = self.value_row();
            e.for_lanes(n, &[], |e, i, lanes, _| {
                let values = rows.map(|row| load_along_row(e, self.op.v, Some(row), i, lanes));
                let by_element = transpose(e, values);
                let at = e.scale(i, stride);
                let to = e.b.ins().iadd(to, at);
                for (d, value) in by_element.into_iter().enumerate().take(lanes) {
                    e.store(operands, value, to, d as i64 * stride, 4);
                }
                vec![]
            });
            vec![]
        });
    }

    /// Addresses of the values of some keys from the block's key `j` on; past the last the last again, which no sum
    /// reaches, and before the first the first, whose share is 0 there.
    fn value_rows<const N: usize>(
        &self,
        e: &mut Emitter<'_>,
        (v, key): (Value, Value),
        j: Value,
        (before, count): (Value, Value),
    ) -> [Value; N] {
        let last = e.offset(count, -1);
        std::array::from_fn(|i| {
            let j = e.offset(j, i as i64);
            let j = e.min(j, last);
            let j = e.b.ins().smax(j, before);
            let key = e.b.ins().iadd(key, j);
            e.step(self.op.v, 1, v, key)
        })
    }

    /// Values that lie in bf16, to columns: eight keys by eight elements at a time.
    fn turn_values(&self, e: &mut Emitter<'_>, v: Value, key: Value, (before, count): (Value, Value)) {
        let (bytes, stride) = (DType::BF16.bytes() as i64, self.value_row());
        let first = e.b.ins().band_imm_s(before, !7);
        e.for_range(first, count, 8, &[], |e, j, _| {
            let rows: [Value; 8] = self.value_rows(e, (v, key), j, (before, count));
            let at = e.scale(j, bytes);
            let to = e.b.ins().iadd(self.values, at);
            let (zero, n) = (e.i64(0), e.i64(self.op.head_dim as i64));
            e.for_range(zero, n, 8, &[], |e, i, _| {
                let from = e.scale(i, bytes);
                let rows = rows.map(|row| {
                    let row = e.b.ins().iadd(row, from);
                    e.load(DType::F32, row, 0, 4)
                });
                // Pairs of keys, of four elements each.
                let pairs: [[Value; 2]; 4] =
                    std::array::from_fn(|pair| e.zip_halves(rows[2 * pair], rows[2 * pair + 1]));
                let at = e.scale(i, stride);
                let to = e.b.ins().iadd(to, at);
                for half in [0, 1] {
                    let elements = transpose(e, pairs.map(|pair| pair[half]));
                    for (d, keys) in (4 * half as i64..).zip(elements) {
                        e.store(DType::F32, keys, to, d * stride, 4);
                    }
                }
                vec![]
            });
            vec![]
        });
    }

    /// Zeroes the values of keys that no column sees: their share is 0, but what they hold may be no number.
    pub(super) fn hide(&self, e: &mut Emitter<'_>, key: Value, count: Value) {
        let zero = e.i64(0);
        let columns = e.i64((self.shape.panels * self.shape.micro.mr) as i64);
        e.for_range(zero, count, 1, &[], |e, j, _| {
            let key = e.b.ins().iadd(key, j);
            let seen = e.for_range(zero, columns, 1, &[zero], |e, c, seen| {
                let at = e.scale(c, 4);
                let low = e.b.ins().iadd(self.low, at);
                let low = e.load_index(low);
                let high = e.b.ins().iadd(self.high, at);
                let high = e.load_index(high);
                let after = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, key, low);
                let before = e.b.ins().icmp(IntCC::SignedLessThan, key, high);
                let both = e.b.ins().band(after, before);
                let both = e.b.ins().uextend(I64, both);
                vec![e.b.ins().bor(seen[0], both)]
            })[0];
            let hidden = e.b.ins().icmp(IntCC::Equal, seen, zero);
            e.when(hidden, |e| {
                let (n, none) = (e.i64(self.op.head_dim as i64), e.splat(0.0));
                let operands = self.shape.micro.operands;
                let at = e.scale(j, operands.bytes() as i64);
                let to = e.b.ins().iadd(self.values, at);
                e.for_range(zero, n, 1, &[], |e, d, _| {
                    let at = e.scale(d, self.value_row());
                    let at = e.b.ins().iadd(to, at);
                    e.store(operands, none, at, 0, 1);
                    vec![]
                });
            });
            vec![]
        });
    }

    /// Scores to shares, in place: scale, softcap, mask, exp; the denominators grow by them.
    fn soften(&self, e: &mut Emitter<'_>, key: Value, count: Value, columns: Value) {
        let stride = self.shape.micro.mr as i64 * 4;
        let none = e.splat(0.0);
        let zero = e.i64(0);
        let key = e.b.ins().ireduce(I32, key);
        let key = e.b.ins().splat(I32X4, key);
        let one = e.splat_int(1);
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let at = e.scale(c, 4);
            let address = |e: &mut Emitter<'_>, array: Value| e.b.ins().iadd(array, at);
            let (low, high) = (address(e, self.low), address(e, self.high));
            let (low, high) = (e.load_int(low, 0, 4), e.load_int(high, 0, 4));
            let (total_at, highest_at, rescale_at) =
                (address(e, self.denominator), address(e, self.highest), address(e, self.rescale));
            let scores = address(e, self.scores);
            let seen = |e: &mut Emitter<'_>, key: Value| {
                let after = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, key, low);
                let before = e.b.ins().icmp(IntCC::SignedLessThan, key, high);
                e.b.ins().band(after, before)
            };
            let score = |e: &mut Emitter<'_>, at: Value| {
                let products = e.load(DType::F32, at, 0, 4);
                self.op.score(e, products)
            };
            let total = e.load(DType::F32, total_at, 0, 4);
            let total = match self.op.maximum {
                Maximum::Bounded => e.for_range(zero, count, 1, &[key, total], |e, j, state| {
                    let at = e.scale(j, stride);
                    let at = e.b.ins().iadd(scores, at);
                    let score = score(e, at);
                    let share = math::exp_bounded(e, score);
                    let seen = seen(e, state[0]);
                    let share = e.choose(seen, share, none);
                    e.store(DType::F32, share, at, 0, 4);
                    vec![e.b.ins().iadd(state[0], one), e.b.ins().fadd(state[1], share)]
                })[1],
                Maximum::Online => {
                    let before = e.load(DType::F32, highest_at, 0, 4);
                    let unseen = e.splat(UNSEEN);
                    let highest = e.for_range(zero, count, 1, &[key, before], |e, j, state| {
                        let at = e.scale(j, stride);
                        let at = e.b.ins().iadd(scores, at);
                        let score = score(e, at);
                        let seen = seen(e, state[0]);
                        let score = e.choose(seen, score, unseen);
                        e.store(DType::F32, score, at, 0, 4);
                        vec![e.b.ins().iadd(state[0], one), e.fmax(score, state[1])]
                    })[1];
                    e.store(DType::F32, highest, highest_at, 0, 4);
                    let shift = e.b.ins().fsub(before, highest);
                    let rescale = math::exp_below(e, shift);
                    e.store(DType::F32, rescale, rescale_at, 0, 4);
                    let total = e.b.ins().fmul(total, rescale);
                    // Far above what stands for keys that are not seen: their shares are 0, also if none is seen.
                    let least = e.splat(UNSEEN / 2.0);
                    let highest = e.fmax(highest, least);
                    e.for_range(zero, count, 1, &[total], |e, j, state| {
                        let at = e.scale(j, stride);
                        let at = e.b.ins().iadd(scores, at);
                        let score = e.load(DType::F32, at, 0, 4);
                        let shifted = e.b.ins().fsub(score, highest);
                        let share = math::exp_below(e, shifted);
                        e.store(DType::F32, share, at, 0, 4);
                        vec![e.b.ins().fadd(state[0], share)]
                    })[0]
                }
            };
            e.store(DType::F32, total, total_at, 0, 4);
            vec![]
        });
    }

    /// The sums so far, to the new maxima.
    fn rescale_sums(&self, e: &mut Emitter<'_>) {
        let panel = self.shape.micro.mr;
        let (zero, columns, n) = (e.i64(0), e.i64(panel as i64), e.i64(self.op.head_dim as i64));
        e.for_range(zero, columns, 4, &[], |e, c, _| {
            let at = e.scale(c, 4);
            let rescale = e.b.ins().iadd(self.rescale, at);
            let rescale = e.load(DType::F32, rescale, 0, 4);
            let sums = e.b.ins().iadd(self.sums, at);
            // Maxima seldom change after the first keys.
            let one = e.splat(1.0);
            let same = e.b.ins().fcmp(FloatCC::Equal, rescale, one);
            let same = e.b.ins().vall_true(same);
            let changed = e.b.ins().icmp_imm_u(IntCC::Equal, same, 0);
            e.when(changed, |e| {
                e.for_range(zero, n, 1, &[], |e, i, _| {
                    let at = e.scale(i, panel as i64 * 4);
                    let at = e.b.ins().iadd(sums, at);
                    let sum = e.load(DType::F32, at, 0, 4);
                    let sum = e.b.ins().fmul(sum, rescale);
                    e.store(DType::F32, sum, at, 0, 4);
                    vec![]
                });
            });
            vec![]
        });
    }

    /// Zeroes the values: products run over keys that are not there, and what past keys left may be no number.
    pub(super) fn clear_values(&self, e: &mut Emitter<'_>) {
        let (zero, bytes) = (e.i64(0), e.i64(self.op.head_dim as i64 * self.value_row()));
        let none = e.splat(0.0);
        e.for_range(zero, bytes, 16, &[], |e, at, _| {
            let at = e.b.ins().iadd(self.values, at);
            e.store(DType::F32, none, at, 0, 4);
            vec![]
        });
    }

    /// Shares to bf16 pairs of keys; those past the last of `count` keys are 0.
    fn round_shares(&self, e: &mut Emitter<'_>, count: Value, columns: Value) {
        let row = self.shape.micro.mr as i64 * 4;
        let (zero, keys, none) = (e.i64(0), e.i64(BLOCK as i64), e.splat(0.0));
        e.for_range(zero, keys, 2, &[], |e, j, _| {
            let from = e.scale(j, row);
            let from = e.b.ins().iadd(self.scores, from);
            let to = e.scale(j, row / 2);
            let to = e.b.ins().iadd(self.shares, to);
            let inside: [Value; 2] = std::array::from_fn(|i| {
                let j = e.offset(j, i as i64);
                let j = e.b.ins().isub(j, count);
                // All ones below 0.
                let below = e.b.ins().sshr_imm_s(j, 63);
                let below = e.b.ins().ireduce(I32, below);
                e.b.ins().splat(I32X4, below)
            });
            e.for_range(zero, columns, 4, &[], |e, c, _| {
                let at = e.scale(c, 4);
                let from = e.b.ins().iadd(from, at);
                let [first, second] = std::array::from_fn(|i| {
                    let share = e.load(DType::F32, from, i as i64 * row, 4);
                    e.choose(inside[i], share, none)
                });
                let to = e.b.ins().iadd(to, at);
                e.store_pairs(first, second, to, 0);
                vec![]
            });
            vec![]
        });
    }
}
