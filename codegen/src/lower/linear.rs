//! Linear kernels: x (T, K) times weights (N, K) transposed, with an optional norm before and an epilogue after.
//!
//! A tile is a block of weight rows, over all rows of x. For one row or few, x is read as it lies and a prologue norms
//! it into this thread's scratch, by the same code as the norm kernel, so that fusing it changes no bit. For more rows
//! a kernel of its own ([`preparation`]) norms x and brings it into the form that the microkernel reads; tiles' weights
//! are widened part by part into scratch, where every panel of x meets them. Here is what all have in common; products
//! are in `linear_dots`, `linear_lanes` and `linear_tiles`, weights are brought into their form by `hold`, rows of x by
//! `round` and `pack`.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};
use lapidary_runtime::program::{RESUMED, Tiles};

use super::hold::{weight_row, widening};
use super::linear_blocked::{Blocking, few};
use super::linear_dots::{dot_rows, raw_dot, raw_dots_of, shapes};
use super::linear_epilogue::{gating, turned_bytes, turning};
use super::linear_lanes::{self, most_in_lanes, raw_lanes};
use super::linear_row;
use super::linear_spans;
pub use super::linear_spans::tiles;
use super::linear_tiles::{self, block_bytes, by_panels, stored, tiling, whole};
use super::map::Then;
use super::norm::norm_row;
use super::pack;
use super::round::{LaneRows, Rounding, round_rows};
use crate::emit::{Emitter, Features};
use crate::kernel::{Body, Elementwise, Epilogue, Kernel, Linear, Pack};
use crate::math;
use crate::micro::{self, Emit, FEW_ROWS, Microkernel, Quantised, Raw};
use crate::view::{Base, Capacity, View};

/// The most rows of a call whose kernels norm and round x themselves, each thread for itself.
const OWN_ROWS: usize = 4;

/// What a linear kernel over these weights is made of, in calls of up to `most` rows that go by the kernels of `regime`
/// rows; `rounded` says whether it may round activations.
pub fn choose(
    prologue: Option<f32>,
    epilogue: Epilogue,
    weights: &[View],
    (regime, most): (usize, usize),
    rounded: bool,
    features: &Features,
) -> Linear {
    let quantised = Quantised::of(weights.iter().map(|w| w.dtype));
    let micro = micro::choose(regime, fixed(&weights[0], 1), rounded, quantised, features);
    let is_long = weights.iter().all(|w| micro::is_long(w.dtype, fixed(w, 1)));
    let more = if most > OWN_ROWS && is_long { micro.of_more_rows(features) } else { None };
    let micro = more.unwrap_or(micro);
    Linear {
        prologue,
        epilogue,
        micro,
        few: micro.of_few_rows(fixed(&weights[0], 1), quantised, features),
        ready: false,
    }
}

/// A kernel that runs before a linear one.
pub struct Preparation {
    /// What it does to x, and to the norm's weight if there is a prologue.
    pub body: Body,
    /// What it writes, in the form of this view, at no place yet.
    pub output: View,
    /// Its tile space.
    pub tiles: Tiles,
}

/// What makes x ready for a linear kernel that does not do so itself.
pub fn preparation(linear: &Linear, x: &View, capacity: Capacity) -> Option<Preparation> {
    let Linear { prologue, micro, few, .. } = *linear;
    let (rows, k) = (x.axes[0].dim, fixed(x, 1));
    let many = capacity.of(rows) > OWN_ROWS;
    if micro.is_packed() || micro.has_lanes() && many {
        let body = Body::Pack(Pack { prologue, micro, few });
        let output = pack::packed(rows, k, capacity, micro);
        return Some(Preparation { body, output, tiles: pack::tiles(rows, capacity, micro) });
    }
    if micro.operands == DType::F32 && prologue.is_some() && many {
        let output = View::contiguous(Base::Number(0.0), micro.operands, &x.dims(), capacity);
        let tiles = Kernel::row_tiles(&output);
        let body = prologue.map_or(Body::Elementwise(Elementwise::Copy), |eps| Body::RmsNorm { eps });
        return Some(Preparation { body, output, tiles });
    }
    None
}

/// The raw code that a kernel calls.
pub(super) fn raw_code(
    kernel: &Kernel,
    linear: &Linear,
    features: &Features,
) -> Vec<(&'static Microkernel, Raw)> {
    let weights = linear.weights(&kernel.inputs);
    let micro = linear.micro;
    let lanes = |few: &'static Microkernel| {
        let most = most_in_lanes(linear.few, most_rows(kernel));
        weights.iter().map(move |w| (few, raw_lanes(w, few, micro, most, features)))
    };
    let gate = gating(linear, &kernel.outputs[0], features);
    match micro.emit {
        Emit::RawTile(_) | Emit::IntegerTile(..) | Emit::ConfiguredTile(_) => {
            // What streaming tiles hold, and others.
            let fetching = [true, false].into_iter().filter(|fetches| *fetches || micro.is_configured());
            let widen = fetching.flat_map(|fetches| {
                weights.iter().filter_map(move |w| widening(w, micro, fetches, features))
            });
            let blocking = Blocking::of(linear, most_rows(kernel), weights);
            let tilings = |w: &View| {
                std::iter::once(tiling(micro, w.dtype)).chain(whole(micro, w).into_iter().flatten())
            };
            let by_parts = || weights.iter().flat_map(tilings).collect();
            let tilings = by_panels(linear, weights).unwrap_or_else(by_parts);
            let tiles = tilings.into_iter().flat_map(|tiling| tiling.raw_code());
            let few = linear.few.into_iter().flat_map(lanes);
            let stored = weights.iter().filter_map(|w| stored(micro, w, features)).flatten();
            let tiles = tiles.chain(stored.map(Raw::StoredTile));
            let blocked = |b: Blocking| weights.iter().flat_map(move |w| b.raw_code(linear, weights, w));
            let tiles = tiles.chain(blocking.into_iter().flat_map(blocked));
            let turn = kernel.outputs.iter().filter_map(|output| turning(linear, output, features));
            widen.chain(tiles.map(|raw| (micro, raw))).chain(few).chain(turn).chain(gate).collect()
        }
        _ if linear_row::is_alone(linear, weights, most_rows(kernel), features) => {
            weights.iter().map(|w| (micro, linear_row::raw_row(w))).chain(gate).collect()
        }
        Emit::RawLanes(_) | Emit::TileLanes(_) | Emit::SplitLanes(_) | Emit::BlockLanes(_) => {
            let around = micro.around(most_rows(kernel)).into_iter().flatten();
            lanes(micro).chain(around.map(|raw| (micro, raw))).chain(gate).collect()
        }
        Emit::RawDot(_) | Emit::PairedDot(_) => {
            let k = fixed(&weights[0], 1);
            let x_stride = match linear.prologue {
                _ if micro.operands == DType::Q8 => micro::int8_row_bytes(k) as i64,
                Some(_) => k as i64 * 4,
                None => kernel.inputs[0].step_bytes(0),
            };
            let widens = |w: &&View| micro.operands == DType::F32 && !micro::raw_reads(w.dtype);
            let unread = weights.iter().filter(widens);
            let mut raw: Vec<_> = unread.filter_map(|w| widening(w, micro, true, features)).collect();
            for w in weights {
                for n in [dot_rows(w, micro), 1] {
                    let shapes = shapes(micro, w).iter().filter(|shape| shape.0 <= most_rows(kernel));
                    let of_rows =
                        |&(xs, of): &(usize, usize)| raw_dots_of(w, micro, x_stride, (xs, of.min(n)));
                    raw.extend(shapes.map(|shape| (micro, of_rows(shape))));
                    raw.push((micro, raw_dot(w, micro.operands, n)));
                }
            }
            raw
        }
        Emit::Dot(_)
        | Emit::Inline(_)
        | Emit::RawScores(_)
        | Emit::RawMix(_)
        | Emit::RawSoften(_)
        | Emit::RawTurn(_)
        | Emit::RawPack(_)
        | Emit::RawWiden(_)
        | Emit::RawHold(_) => vec![],
    }
}

/// The most rows of a call, as the kernel sees them.
pub(super) fn most_rows(kernel: &Kernel) -> usize {
    kernel.capacity.of(kernel.outputs[0].axes[0].dim)
}

pub(super) fn fixed(view: &View, axis: usize) -> usize {
    match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("weights have fixed shapes"),
    }
}

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, linear: Linear) {
    let weights = linear.weights(&kernel.inputs);
    let micro = linear.micro;
    let k = fixed(&weights[0], 1);
    let rows = most_rows(kernel);
    let blocking = Blocking::of(&linear, rows, weights);
    let met = linear_spans::rows(&linear, rows, weights).unwrap_or(rows);
    let lane_rows = most_in_lanes(linear.few, met);
    let alone = linear_row::is_alone(&linear, weights, rows, &e.features);
    let lane_bytes = match alone {
        true => linear_row::results_bytes(weights, &linear),
        false => lane_rows * linear_lanes::row_bytes(micro),
    };
    let (x, bytes) = if micro.is_packed() {
        let part = linear_tiles::part(micro.part(), k, weights);
        let whole =
            |w: &View| whole(micro, w).filter(|[tiling, _]| tiling.ahead == 0).map(|[t, _]| t.weight_stride);
        let row = weights.iter().map(|w| weight_row(micro, w.dtype).max(whole(w).unwrap_or(0)));
        let row = row.max().unwrap_or(0);
        let part_bytes =
            weights.iter().map(|w| micro.block_rows() * weight_row(micro, w.dtype)).max().unwrap_or(0);
        let stored = weights.iter().map(|w| micro.stored_bytes(w.dtype)).max().unwrap_or(0);
        let (row, panels) = match by_panels(&linear, weights) {
            Some(tilings) if linear.is_joint() => (tilings.iter().map(|t| t.weight_stride).sum(), 1),
            Some(tilings) => (tilings.iter().map(|t| t.weight_stride).max().unwrap_or(0), 1),
            None => (row, rows.div_ceil(micro.mr)),
        };
        // Two parts of a block, if one is widened while the other is multiplied.
        let parts = 1 + usize::from(blocking.is_some());
        let held = e.take_scratch((micro.block_rows() * row).max(stored).max(parts * part_bytes));
        let bytes = match &blocking {
            Some(blocking) => {
                blocking.results_bytes(&linear).max(few(weights, micro) / micro.mr * block_bytes(micro))
            }
            None => panels * block_bytes(micro),
        };
        let bytes = if linear.few.is_some() { bytes.max(lane_bytes) } else { bytes };
        (Operand::Packed { held, part }, bytes)
    } else {
        let normed = linear.prologue.map(|eps| (eps, e.take_scratch(rows * k * 4)));
        if micro.has_lanes() {
            let bytes = match alone {
                true => linear_row::rounded_bytes(k, weights),
                false => rows * micro::lane_row_bytes(micro.operands, k),
            };
            let rounded = (!linear.ready).then(|| e.take_scratch(bytes));
            (Operand::Lanes { normed, rounded }, lane_bytes)
        } else {
            let int8 = micro.operands == DType::Q8;
            let int8 = int8.then(|| e.take_scratch(rows * micro::int8_row_bytes(k)));
            let widened =
                matches!(micro.emit, Emit::RawDot(_)) && weights.iter().any(|w| !micro::raw_reads(w.dtype));
            let widened = widened.then(|| e.take_scratch(micro.shapes[0].1 * k * 4));
            (Operand::Rows { normed, int8, widened }, rows * micro.block_rows() * 4)
        }
    };
    let joint = linear.is_joint();
    let results: Vec<Value> =
        (0..if joint { weights.len() } else { 1 }).map(|_| e.take_scratch(bytes)).collect();
    let then = Then::new(&linear, kernel, weights);
    let turned = (then.is_some() && micro.is_packed())
        .then(|| results.iter().map(|_| e.take_scratch(turned_bytes(micro))).collect());
    let gathered = linear_lanes::gathered_bytes(&linear, weights).map(|bytes| e.take_scratch(bytes));
    let mut job =
        Job { linear, k, x, alone, results, gathered, then, turned, kernel, output: 0, blocking, span: None };

    // What is made of x stays in scratch between a launch's calls on one thread.
    let (mut begin, end) = (e.tile_begin, e.tile_end);
    let fresh = kernel.resumes().then(|| {
        let zero = e.i64(0);
        let fresh = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, begin, zero);
        let number = e.i64(!RESUMED as i64);
        begin = e.b.ins().band(begin, number);
        fresh
    });
    let around = micro.around(rows);
    let any = e.b.ins().icmp(IntCC::SignedLessThan, begin, end);
    e.when(any, |e| {
        if let Some([configure, _]) = around {
            e.call_raw(configure, &[]);
        }
        if let Some(fresh) = fresh {
            e.when(fresh, |e| job.ready_rows(e, weights[0].dtype));
        }
        job.run_tiles(e, weights, (begin, end));
        if let Some([_, release]) = around {
            e.call_raw(release, &[]);
        }
    });
}

/// Norms every row of x into scratch, f32 (rows, k).
fn norm_rows(e: &mut Emitter<'_>, kernel: &Kernel, eps: f32, scratch: Value, k: usize) {
    let (x, w) = (&kernel.inputs[0], &kernel.inputs[1]);
    let (zero, rows) = (e.i64(0), e.length(x.axes[0].dim));
    e.for_range(zero, rows, 1, &[], |e, t, _| {
        let row = e.base(x);
        let row = e.step(x, 0, row, t);
        let to = e.scale(t, k as i64 * 4);
        let to = e.b.ins().iadd(scratch, to);
        norm_row_into(e, x, row, w, eps, to);
        vec![]
    });
}

/// Norms one row of x to `to`, f32.
pub(super) fn norm_row_into(e: &mut Emitter<'_>, x: &View, row: Value, w: &View, eps: f32, to: Value) {
    norm_row(e, x, row, w, eps, &mut |e, i, lanes, value| {
        let at = e.scale(i, 4);
        let at = e.b.ins().iadd(to, at);
        e.store(DType::F32, value, at, 0, lanes);
    });
}

/// How a kernel reads x.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    /// As it lies, or normed (eps, and where the normed rows are), or that rounded to 8 bits; where some weight rows
    /// are widened, if they are.
    Rows { normed: Option<(f32, Value)>, int8: Option<Value>, widened: Option<Value> },
    /// Rounded for weight rows in lanes, by the kernel itself unless x is ready.
    Lanes { normed: Option<(f32, Value)>, rounded: Option<Value> },
    /// In panels. Weights are held in scratch in the operands' type, `part` elements of k at a time.
    Packed { held: Value, part: usize },
}

/// What the blocks of one kernel share.
pub(super) struct Job<'a> {
    pub(super) linear: Linear,
    pub(super) k: usize,
    pub(super) x: Operand,
    /// Whether it is one row that meets weight rows far from each other.
    pub(super) alone: bool,
    /// Blocks of results, one a weight of a tile: dot (rows, nr), packed (nr, rows) with a stride, lanes as
    /// [`linear_lanes::row_bytes`] says.
    pub(super) results: Vec<Value>,
    /// Where weight rows are gathered that are fewer than lanes, or of another type than is read.
    pub(super) gathered: Option<Value>,
    /// The epilogue's program, if it is one.
    pub(super) then: Option<Then>,
    /// Where a panel's results lie by rows for it, one place a weight of a tile.
    pub(super) turned: Option<Vec<Value>>,
    pub(super) kernel: &'a Kernel,
    /// Which output the block belongs to.
    pub(super) output: usize,
    /// How many rows are cut for the matrix unit.
    pub(super) blocking: Option<Blocking>,
    /// The rows of x that the tile meets, if not all: from one to another.
    pub(super) span: Option<(Value, Value)>,
}

impl Job<'_> {
    /// Norms and rounds x into scratch.
    fn ready_rows(&self, e: &mut Emitter<'_>, weights: DType) {
        let k = self.k;
        if let Operand::Rows { normed: Some((eps, to)), .. }
        | Operand::Lanes { normed: Some((eps, to)), .. } = self.x
        {
            norm_rows(e, self.kernel, eps, to, k);
        }
        let (x, stride) = self.plain_rows(e);
        let rows = self.rows(e);
        match self.x {
            Operand::Rows { int8: Some(scratch), .. } => {
                let paired = matches!(self.linear.micro.emit, Emit::PairedDot(_)) && weights == DType::Q4;
                let magic = matches!(self.linear.micro.emit, Emit::RawDot(_));
                round_rows(e, x, stride, rows, Rounding { k, paired, magic }, scratch);
            }
            Operand::Lanes { rounded: Some(scratch), .. } if self.alone => self.round_alone(e, x, scratch),
            Operand::Lanes { rounded: Some(scratch), .. } => {
                let of = LaneRows { k, micro: self.linear.micro, most: most_rows(self.kernel), alone: None };
                of.round(e, (x, stride), rows, scratch);
            }
            Operand::Rows { .. } | Operand::Lanes { .. } | Operand::Packed { .. } => {}
        }
    }

    /// A block: `width` weight rows from `first` of each of the tile's weights.
    pub(super) fn block(&self, e: &mut Emitter<'_>, weights: &[View], first: Value, width: Value) {
        match self.x {
            Operand::Rows { .. } => self.dot_block(e, weights, first, width),
            Operand::Lanes { .. } if self.alone => self.row_block(e, weights, first, width),
            Operand::Lanes { .. } => self.lane_block(e, weights, first, width, self.linear.micro),
            Operand::Packed { held, part } => {
                let tiles = |e: &mut Emitter<'_>| self.tile_block(e, weights, first, width, held, part);
                let Some(few) = self.linear.few else { return tiles(e) };
                let (rows, most) = (self.rows(e), e.i64(FEW_ROWS as i64));
                let fits = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, rows, most);
                e.choose_path(fits, |e| self.lane_block(e, weights, first, width, few), tiles);
            }
        }
    }

    pub(super) fn rows(&self, e: &mut Emitter<'_>) -> Value {
        e.length(self.kernel.outputs[0].axes[0].dim)
    }

    /// The rows of x in f32, and bytes from one to the next.
    pub(super) fn plain_rows(&self, e: &mut Emitter<'_>) -> (Value, i64) {
        match self.x {
            Operand::Rows { normed: Some((_, scratch)), .. }
            | Operand::Lanes { normed: Some((_, scratch)), .. } => (scratch, self.k as i64 * 4),
            Operand::Rows { normed: None, .. }
            | Operand::Lanes { normed: None, .. }
            | Operand::Packed { .. } => {
                let x = &self.kernel.inputs[0];
                (e.base(x), x.step_bytes(0))
            }
        }
    }

    /// The epilogue on four (or one) of each weight's sums, if it is no program.
    pub(super) fn finish(&self, e: &mut Emitter<'_>, sums: &[Value]) -> Value {
        match self.linear.epilogue {
            Epilogue::Store | Epilogue::Then(..) => sums[0],
            Epilogue::Softcap(cap) => math::softcap(e, cap, sums[0]),
            Epilogue::Gate => {
                let gate = math::gelu_tanh(e, sums[0]);
                e.b.ins().fmul(gate, sums[1])
            }
        }
    }
}
