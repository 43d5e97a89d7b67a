//! Linear kernels over many rows by the matrix unit, which multiplies faster than caches bring what it multiplies: a
//! call is cut so that each cache holds what comes again soonest.
//!
//! ```text
//! for rows of x (tiles of the same ones follow one another), and for elements of k: x stays in the second cache
//!     for a block of weight rows
//!         for a part of those elements: the block, widened, stays in the first cache
//!             for a panel of those rows: x streams past, and what is stored of the next block is fetched
//! ```

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::BLOCK;

use super::hold::hold;
use super::linear::{Job, fixed};
use super::linear_tiles::{block_bytes, longest_block, part, tiling};
use super::tiling::Tiling;
use crate::emit::Emitter;
use crate::kernel::Linear;
use crate::micro::{Fetched, TileOperands};
use crate::view::View;

/// The most bytes of x that weights meet before the next: most of a second cache of 2 MiB, as all CPUs with AMX have.
const X_BYTES: usize = 1152 << 10;
/// Rows of x that are worth cutting k for, of weights that are widened, and of those that are copied: memory takes
/// longer to bring these twice than x from the last cache.
const ROWS: [usize; 2] = [256, 512];
/// The most bytes of the sums of blocks of weight rows that wait for the next elements of k.
const WAITING: usize = 512 << 10;
/// The most rows of x whose weights are held whole, or read as they lie: `Job::one_block`.
pub(super) const FEW: usize = 64;
const LINE: usize = 64;
/// The most lines that a step fetches: more would take the place of its own.
const LINES: usize = 4;

/// What stays in the second cache.
#[derive(Clone, Copy)]
pub(super) struct Blocking {
    /// Rows of x, whole panels.
    pub(super) rows: usize,
    /// Elements of each of them, whole blocks of every weight.
    k: usize,
    /// Elements of a part of those.
    part: usize,
    /// Blocks of weight rows that meet them before the next elements of k, if there are more.
    pub(super) blocks: usize,
    /// The sums' length: elements of a row.
    all: usize,
}

impl Blocking {
    /// Of a kernel over these weights and at most `rows` rows of x, if it is one of many rows by the matrix unit.
    pub(super) fn of(linear: &Linear, rows: usize, weights: &[View]) -> Option<Blocking> {
        let micro = linear.micro;
        if !micro.is_configured() || rows <= FEW {
            return None;
        }
        let all = fixed(&weights[0], 1);
        let worth = ROWS[usize::from(weights.iter().any(|w| w.dtype == micro.operands))];
        let cuts = micro.panel_bytes(all * rows.min(worth)).div_ceil(X_BYTES);
        let k = all.div_ceil(cuts).next_multiple_of(longest_block(weights)).min(all);
        let panels = X_BYTES / (micro.panel_bytes(k) * micro.mr);
        let panels = panels.clamp(FEW / micro.mr, rows.div_ceil(micro.mr));
        let blocks = if k < all { (WAITING / (panels * block_bytes(micro))).max(1) } else { 1 };
        Some(Blocking { rows: panels * micro.mr, k, part: part(micro, k, weights), blocks, all })
    }

    /// Bytes of the sums of a block of weight rows.
    fn sums(self, linear: &Linear) -> usize {
        self.rows / linear.micro.mr * block_bytes(linear.micro)
    }

    /// Bytes of the sums that wait for the next elements of k, or of a block's.
    pub(super) fn results_bytes(self, linear: &Linear) -> usize {
        self.sums(linear) * self.blocks
    }

    /// Tiles that fetch the stored weights of the next block meanwhile.
    pub(super) fn tiling(self, linear: &Linear, weight: &View) -> Tiling {
        let micro = linear.micro;
        let (steps, stored) = (self.part / micro.kr, weight.dtype.row_bytes(self.k));
        let lines = stored.div_ceil(LINE * steps).min(LINES) as i32;
        let rows = micro.block_rows().div_ceil(self.calls(linear)) as i32;
        let fetched = Fetched { rows, stride: weight.step_bytes(0) as i32, lines };
        Tiling { streams: Some(fetched), ..tiling(micro, weight.dtype) }
    }

    /// Tiles a block of weight rows.
    fn calls(self, linear: &Linear) -> usize {
        self.k.div_ceil(self.part) * (self.rows / linear.micro.mr)
    }
}

/// A block of those that meet the same x.
struct Member {
    /// Its first weight row, counted from theirs.
    n: Value,
    /// Its weight rows.
    width: Value,
    /// Where its results lie, in bytes from theirs.
    at: Value,
}

/// Where elements of a weight row begin that are stored, in bytes.
fn stored_at(e: &mut Emitter<'_>, weight: &View, from: Value) -> Value {
    match weight.dtype.format() {
        Some(format) => {
            let block = e.b.ins().ushr_imm_u(from, i64::from(format.block.trailing_zeros()));
            let at = e.scale(block, format.planes[0] as i64);
            e.offset(at, format.plane_at(0, fixed(weight, 1)) as i64)
        }
        None => e.scale(from, weight.step_bytes(1)),
    }
}

impl Job<'_> {
    /// Blocks of `width` weight rows, one after the other.
    fn each_block(
        &self,
        e: &mut Emitter<'_>,
        width: Value,
        blocking: Blocking,
        block: &mut dyn FnMut(&mut Emitter<'_>, Member),
    ) {
        let (zero, rows) = (e.i64(0), self.linear.micro.block_rows());
        let each = blocking.sums(&self.linear) / rows;
        e.for_range(zero, width, rows as i64, &[], |e, n, _| {
            let left = e.b.ins().isub(width, n);
            let most = e.i64(rows as i64);
            let width = e.min(left, most);
            let at = e.scale(n, each as i64);
            block(e, Member { n, width, at });
            vec![]
        });
    }

    /// Outer products of `width` weight rows from `first`, of [`Blocking::blocks`] blocks at most, with the panels
    /// of the tile's rows of x, for each of its weights; then the epilogue. Calls of few rows take blocks one
    /// by one.
    pub(super) fn blocked(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        (first, width): (Value, Value),
        (held, blocking): (Value, Blocking),
    ) {
        let (row, end) = self.span(e);
        let (rows, few) = (self.rows(e), e.i64(FEW as i64));
        let few = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, few);
        e.choose_path(
            few,
            |e| {
                self.each_block(e, width, blocking, &mut |e, Member { n, width, .. }| {
                    let first = e.b.ins().iadd(first, n);
                    self.one_block(e, weights, (first, width), (held, blocking.part));
                });
            },
            |e| {
                let (zero, all) = (e.i64(0), e.i64(blocking.all as i64));
                e.for_range(zero, all, blocking.k as i64, &[], |e, from, _| {
                    let to = e.offset(from, blocking.k as i64);
                    let to = e.min(to, all);
                    self.each_block(e, width, blocking, &mut |e, Member { n, width, at }| {
                        let first = e.b.ins().iadd(first, n);
                        for (weight, &c) in weights.iter().zip(&self.results) {
                            let c = e.b.ins().iadd(c, at);
                            let part = Part { weight, blocking, first, width, held, c };
                            self.parts(e, part, (row, end), (from, to));
                        }
                    });
                    vec![]
                });
                self.each_block(e, width, blocking, &mut |e, Member { n, width, at }| {
                    let first = e.b.ins().iadd(first, n);
                    self.tile_epilogue(e, at, (row, end), first, width);
                });
            },
        );
    }

    /// A block of a weight, elements `from` to `to` of it part by part, with rows `row` to `end` of x.
    fn parts(
        &self,
        e: &mut Emitter<'_>,
        block: Part<'_>,
        (row, end): (Value, Value),
        (from, to): (Value, Value),
    ) {
        let Part { weight, blocking, first, width, held, c } = block;
        let micro = self.linear.micro;
        let tiling = blocking.tiling(&self.linear, weight);
        let Some(Fetched { rows, stride, .. }) = tiling.streams else {
            unreachable!("tiles of many rows stream")
        };
        // Each call fetches rows of the next block.
        let wanted = {
            let (base, next) = (e.base(weight), e.offset(first, micro.block_rows() as i64));
            let next = e.step(weight, 0, base, next);
            let at = stored_at(e, weight, from);
            e.b.ins().iadd(next, at)
        };
        let each = i64::from(rows * stride);
        let x = e.base(&self.kernel.inputs[0]);
        e.for_range(from, to, blocking.part as i64, &[wanted], |e, from, state| {
            let left = e.b.ins().isub(to, from);
            let length = e.i64(blocking.part as i64);
            let length = e.min(left, length);
            hold(e, weight, first, (from, length), held, &tiling);
            let k = self.steps(e, length);
            let at = e.scale(from, micro.mr as i64 * micro.panel_bytes(BLOCK) as i64 / BLOCK as i64);
            let x = e.b.ins().iadd(x, at);
            e.for_range(row, end, micro.mr as i64, &[state[0]], |e, t, state| {
                let panel = e.scale(t, micro.panel_bytes(self.k) as i64);
                let x = e.b.ins().iadd(x, panel);
                // Block (t - row) / mr, of block_rows rows of mr words.
                let panel = e.b.ins().isub(t, row);
                let at = e.scale(panel, micro.block_rows() as i64 * 4);
                let c = e.b.ins().iadd(c, at);
                let left = e.b.ins().isub(end, t);
                let fetch = Some(state[0]);
                tiling.run(e, &TileOperands { x, weights: held, c, k, accumulate: from, fetch }, left, width);
                vec![e.offset(state[0], each)]
            })
        });
    }
}

/// A block of a weight, and where what it is held as and its sums lie.
struct Part<'a> {
    weight: &'a View,
    blocking: Blocking,
    first: Value,
    width: Value,
    held: Value,
    c: Value,
}
