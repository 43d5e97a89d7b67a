//! Linear kernels over many rows by the matrix unit, which multiplies faster than caches bring what it multiplies: a
//! call is cut so that each cache holds what comes again soonest.
//!
//! ```text
//! for rows of x (tiles of the same ones follow one another), and for elements of k: x stays in the second cache
//!     for a block of weight rows
//!         for a part of those elements: the block, widened, stays in the first cache
//!             for a panel of those rows: x streams past; meanwhile some rows of the part that comes next are
//!             widened, and what is stored of the next block is fetched
//! ```

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::BLOCK;

use super::hold::hold;
use super::linear::{Job, fixed};
use super::linear_tiles::{block_bytes, longest_block, part, tiling};
use super::tiling::{LINE, Tiling};
use crate::emit::Emitter;
use crate::kernel::Linear;
use crate::micro::{Fetched, Microkernel, Raw, Streams, Tile, TileOperands, Widened};
use crate::view::View;

/// The most bytes of x that weights meet before the next: most of a second cache of 2 MiB, as all CPUs with AMX have.
const X_BYTES: usize = 1152 << 10;
/// Rows of x that are worth cutting k for, of weights that are widened, and of those that are copied: memory takes
/// longer to bring these twice than x from the last cache.
const ROWS: [usize; 2] = [256, 512];
/// The most bytes of the sums of blocks of weight rows that wait for the next elements of k.
const WAITING: usize = 512 << 10;
/// The most rows of x whose weights are read as they are stored or lie, a block at a time: [`Job::one_block`].
const FEW: [usize; 2] = [32, 64];
/// In how many calls a part is widened, each some of its rows: as many as there are panels, or the most below. With
/// each how many elements of k there are in a part at most: the fewer calls, the more of what is widened meanwhile
/// waits in the first cache beside it; the more parts, the more often sums come and go.
const CALLS: [(usize, usize); 3] = [(8, 384), (4, 256), (2, 256)];
/// The most lines that a step fetches: more would take the place of its own.
const LINES: usize = 4;

/// The most rows of x whose weights are taken a block at a time: more of those that are not widened.
pub(super) fn few(weights: &[View], micro: &Microkernel) -> usize {
    FEW[usize::from(weights.iter().any(|w| w.dtype == micro.operands))]
}

/// What stays in the second cache.
#[derive(Clone, Copy)]
pub(super) struct Blocking {
    /// Rows of x, whole panels.
    pub(super) rows: usize,
    /// Elements of each of them, whole blocks of every weight.
    k: usize,
    /// Elements of a part of those, where nothing is widened meanwhile.
    part: usize,
    /// Blocks of weight rows whose sums wait for the next elements of k, if there are more.
    blocks: usize,
    /// The sums' length: elements of a row.
    all: usize,
}

impl Blocking {
    /// Of a kernel over these weights and at most `rows` rows of x, if it is one of many rows by the matrix unit.
    pub(super) fn of(linear: &Linear, rows: usize, weights: &[View]) -> Option<Blocking> {
        let micro = linear.micro;
        let few = few(weights, micro);
        if !micro.is_configured() || rows <= few {
            return None;
        }
        let all = fixed(&weights[0], 1);
        let worth = ROWS[usize::from(weights.iter().any(|w| w.dtype == micro.operands))];
        let cuts = micro.panel_bytes(all * rows.min(worth)).div_ceil(X_BYTES);
        let k = all.div_ceil(cuts).next_multiple_of(longest_block(weights)).min(all);
        let panels = X_BYTES / (micro.panel_bytes(k) * micro.mr);
        let panels = panels.clamp(few / micro.mr, rows.div_ceil(micro.mr));
        let blocks = if k < all { (WAITING / (panels * block_bytes(micro))).max(1) } else { 1 };
        Some(Blocking { rows: panels * micro.mr, k, part: part(micro.part(), k, weights), blocks, all })
    }

    /// Whether there are more elements of k than stay there.
    fn is_cut(self) -> bool {
        self.k < self.all
    }

    /// Blocks of weight rows that meet x one after the other, at most: any, if none's sums wait.
    pub(super) fn at_once(self) -> usize {
        if self.is_cut() { self.blocks } else { 1 << 20 }
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
    fn tiling(self, linear: &Linear, weight: &View) -> Tiling {
        self.fetching(linear, weight, (self.rows / linear.micro.mr, self.part))
    }

    /// The same, for so many panels, and parts of so many elements.
    fn fetching(self, linear: &Linear, weight: &View, (panels, part): (usize, usize)) -> Tiling {
        let micro = linear.micro;
        let (steps, stored) = (part / micro.kr, weight.dtype.row_bytes(self.k));
        let lines = stored.div_ceil(LINE * steps).min(LINES) as i32;
        let rows = micro.block_rows().div_ceil(self.k.div_ceil(part) * panels) as i32;
        // Far from each other, where memory serves each as a stream of its own.
        let apart = micro.block_rows().div_ceil(rows as usize) as i64;
        let fetched = Fetched { rows, stride: (apart * weight.step_bytes(0)) as i32, lines };
        Tiling { streams: Some(Streams { fetched, widened: None }), ..tiling(micro, weight.dtype) }
    }

    /// The widest of such tiles that also widen what comes next, the most calls first.
    pub(super) fn widening(self, linear: &Linear, weights: &[View], weight: &View) -> Vec<Widening> {
        let micro = linear.micro;
        let Some(elements) = micro.elements_stored(weight.dtype) else { return vec![] };
        let of = |(calls, most)| {
            let part = part(most, self.k, weights);
            let tile = self.fetching(linear, weight, (calls, part)).tile(0);
            let whole = [self.all, self.k, part].iter().all(|n| n.is_multiple_of(elements));
            let widened = Widened {
                weights: weight.dtype,
                k: self.all,
                rows: (micro.block_rows() / calls) as i32,
                stride: tile.weight_stride,
            };
            let streams = tile.streams.map(|streams| Streams { widened: Some(widened), ..streams });
            let tile = Tile { streams, ..tile };
            (whole && calls * micro.mr <= self.rows).then_some(Widening { calls, part, tile })
        };
        CALLS.into_iter().filter_map(of).collect()
    }

    /// All tiles of a weight.
    pub(super) fn raw_code(self, linear: &Linear, weights: &[View], weight: &View) -> Vec<Raw> {
        let mut tiles = self.tiling(linear, weight).raw_code();
        tiles.extend(self.widening(linear, weights, weight).into_iter().map(|w| Raw::Tile(w.tile)));
        tiles
    }
}

/// Tiles that widen a part in so many calls.
pub(super) struct Widening {
    pub(super) calls: usize,
    /// Elements of a part.
    pub(super) part: usize,
    pub(super) tile: Tile,
}

/// A block of those that meet the same x.
#[derive(Clone, Copy)]
pub(super) struct Member {
    /// Its first weight row, counted from theirs.
    n: Value,
    /// Its weight rows, and these with those of all blocks after it.
    pub(super) width: Value,
    pub(super) left: Value,
    /// Where its results lie, in bytes from theirs.
    at: Value,
}

/// Where elements of a weight row begin that are stored, in bytes: in its first plane, and in its last.
pub(super) fn stored_at(e: &mut Emitter<'_>, weight: &View, from: Value) -> [Value; 2] {
    let Some(format) = weight.dtype.format() else { return [e.scale(from, weight.step_bytes(1)); 2] };
    let block = e.b.ins().ushr_imm_u(from, i64::from(format.block.trailing_zeros()));
    [0, format.planes.len() - 1].map(|plane| {
        let at = e.scale(block, format.planes[plane] as i64);
        e.offset(at, format.plane_at(plane, fixed(weight, 1)) as i64)
    })
}

/// Where a block's part lies widened, where the next goes, and whether it does so already (i64).
#[derive(Clone, Copy)]
pub(super) struct Ready {
    held: Value,
    pub(super) other: Value,
    is_next: Value,
}

impl Ready {
    fn of(state: &[Value]) -> Ready {
        Ready { held: state[0], other: state[1], is_next: state[2] }
    }

    fn state(self) -> Vec<Value> {
        vec![self.held, self.other, self.is_next]
    }
}

impl Job<'_> {
    /// Blocks of `width` weight rows, one after the other.
    fn each_block(
        &self,
        e: &mut Emitter<'_>,
        width: Value,
        blocking: Blocking,
        ready: Ready,
        block: &mut dyn FnMut(&mut Emitter<'_>, Member, Ready) -> Ready,
    ) {
        let (zero, rows) = (e.i64(0), self.linear.micro.block_rows());
        let each = blocking.sums(&self.linear) / rows;
        e.for_range(zero, width, rows as i64, &ready.state(), |e, n, state| {
            let left = e.b.ins().isub(width, n);
            let most = e.i64(rows as i64);
            let width = e.min(left, most);
            let at = if blocking.is_cut() { e.scale(n, each as i64) } else { zero };
            block(e, Member { n, width, left, at }, Ready::of(state)).state()
        });
    }

    /// Outer products of `width` weight rows from `first`, of [`Blocking::at_once`] blocks at most, with the panels
    /// of the tile's rows of x, for each of its weights; then the epilogue. Calls of few rows take blocks one
    /// by one.
    pub(super) fn blocked(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        (first, width): (Value, Value),
        (held, blocking): (Value, Blocking),
    ) {
        let span = self.span(e);
        let micro = self.linear.micro;
        let (rows, most) = (self.rows(e), e.i64(few(weights, micro) as i64));
        let few = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, most);
        let (zero, all) = (e.i64(0), e.i64(blocking.all as i64));
        let part = weights.iter().map(|w| blocking.tiling(&self.linear, w).weight_stride).max().unwrap_or(0);
        let other = e.offset(held, (micro.block_rows() * part) as i64);
        let ready = Ready { held, other, is_next: zero };
        e.choose_path(
            few,
            |e| {
                self.each_block(e, width, blocking, ready, &mut |e, Member { n, width, .. }, ready| {
                    let first = e.b.ins().iadd(first, n);
                    self.one_block(e, weights, (first, width), (held, blocking.part));
                    ready
                });
            },
            |e| {
                e.for_range(zero, all, blocking.k as i64, &[], |e, from, _| {
                    let to = e.offset(from, blocking.k as i64);
                    let to = e.min(to, all);
                    self.each_block(e, width, blocking, ready, &mut |e, member, mut ready| {
                        let first = e.b.ins().iadd(first, member.n);
                        for (i, &c) in self.results.iter().enumerate().take(weights.len()) {
                            let c = e.b.ins().iadd(c, member.at);
                            let part = Part { weights, i, blocking, first, member, c };
                            ready = self.parts(e, part, span, (from, to), ready);
                        }
                        if !blocking.is_cut() {
                            self.tile_epilogue(e, zero, span, first, member.width);
                        }
                        ready
                    });
                    vec![]
                });
                if blocking.is_cut() {
                    self.each_block(
                        e,
                        width,
                        blocking,
                        ready,
                        &mut |e, Member { n, width, at, .. }, ready| {
                            let first = e.b.ins().iadd(first, n);
                            self.tile_epilogue(e, at, span, first, width);
                            ready
                        },
                    );
                }
            },
        );
    }

    /// A block of a weight, elements `start` to `to` of it part by part, with rows `row` to `end` of x.
    fn parts(
        &self,
        e: &mut Emitter<'_>,
        block: Part<'_>,
        (row, end): (Value, Value),
        (start, to): (Value, Value),
        ready: Ready,
    ) -> Ready {
        let Part { weights, i, blocking, first, member, c } = block;
        let (micro, weight) = (self.linear.micro, &weights[i]);
        let tiling = blocking.tiling(&self.linear, weight);
        // Each call fetches rows of the next block, in time for its first part.
        let block_rows = micro.block_rows();
        let wanted = {
            let sooner = block_rows.div_ceil(blocking.k.div_ceil(blocking.part));
            let (base, next) = (e.base(weight), e.offset(first, (block_rows + sooner) as i64));
            let next = e.step(weight, 0, base, next);
            let [at, _] = stored_at(e, weight, start);
            e.b.ins().iadd(next, at)
        };
        let x = e.base(&self.kernel.inputs[0]);
        let following = self.what_follows(e, block, (row, end), (start, to));
        let part = match &following {
            Some(following) => following.part(e, blocking.part),
            None => e.i64(blocking.part as i64),
        };
        let state = [&[wanted][..], &ready.state()].concat();
        let state = e.for_steps((start, to, part), &state, |e, from, state| {
            let (wanted, ready) = (state[0], Ready::of(&state[1..]));
            let left = e.b.ins().isub(to, from);
            let length = e.min(left, part);
            let not = e.b.ins().icmp_imm_u(IntCC::Equal, ready.is_next, 0);
            e.when(not, |e| hold(e, weight, first, (from, length), ready.held, &tiling));
            let next = following.as_ref().map(|following| {
                let from = e.b.ins().iadd(from, length);
                (following, following.next(e, (from, part), ready))
            });
            let k = self.steps(e, length);
            let at = e.scale(from, micro.mr as i64 * micro.panel_bytes(BLOCK) as i64 / BLOCK as i64);
            let x = e.b.ins().iadd(x, at);
            let wanted = e.for_range(row, end, micro.mr as i64, &[wanted], |e, t, state| {
                let panel = e.scale(t, micro.panel_bytes(self.k) as i64);
                let x = e.b.ins().iadd(x, panel);
                // Block (t - row) / mr, of block_rows rows of mr words.
                let at = e.b.ins().isub(t, row);
                let along = e.scale(at, block_rows as i64 * 4);
                let c = e.b.ins().iadd(c, along);
                let fetch = (state[0], None);
                let operands =
                    TileOperands { x, weights: ready.held, c, k, accumulate: from, streams: Some(fetch) };
                let left = e.b.ins().isub(end, t);
                let plain = |e: &mut Emitter<'_>| tiling.run(e, &operands, left, member.width);
                let panel = e.b.ins().ushr_imm_u(at, i64::from(micro.mr.trailing_zeros()));
                match next {
                    Some((following, widened)) => {
                        following.call(e, panel, widened, &operands, plain);
                    }
                    None => plain(e),
                }
                vec![e.offset(state[0], weight.step_bytes(0))]
            });
            let ready = match next {
                Some((following, widened)) => {
                    let is_next = following.is_next(e, widened);
                    Ready { held: ready.other, other: ready.held, is_next }
                }
                None => ready,
            };
            [wanted, ready.state()].concat()
        });
        Ready::of(&state[1..])
    }
}

/// A block of one of some weights, and where its sums lie.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) weights: &'a [View],
    pub(super) i: usize,
    pub(super) blocking: Blocking,
    pub(super) first: Value,
    pub(super) member: Member,
    c: Value,
}
