//! Linear kernels: x (T, K) times weights (N, K) transposed, with an optional norm before and an epilogue after.
//!
//! A tile is a block of weight rows, over all rows of x. For one row or few, x is read as it lies and a prologue norms
//! it into this thread's scratch, by the same code as the norm kernel, so that fusing it changes no bit. For many rows
//! a kernel of its own packs x into panels and norms as it packs ([`super::pack`]); here the weights of the tile are
//! widened part by part into scratch, where every panel of x meets them. Here is what the two have in common; products
//! are in `linear_dots` and `linear_tiles`, weights are brought into their form by `hold`, rows of x by `round`.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType, Dim};
use lapidary_runtime::program::{RESUMED, Tiles};

use super::hold::{weight_row, widened_row, widening};
use super::linear_dots::{dot_rows, raw_dot, row_dots};
use super::linear_tiles::{block_bytes, tiling};
use super::norm::norm_row;
use super::round::{Rounding, round_rows};
use crate::emit::{Emitter, Features};
use crate::kernel::{Epilogue, Kernel};
use crate::math;
use crate::micro::{self, Emit, Microkernel, Quantised, Raw};
use crate::view::View;

/// The tile space of a linear kernel: blocks of each weight in turn; for the gate, of both at once.
pub fn tiles(weights: &[View], epilogue: Epilogue, micro: &Microkernel) -> Tiles {
    let nr = micro.block_rows();
    let blocks = |w: &View| fixed(w, 0).div_ceil(nr) as u32;
    let fixed = match epilogue {
        Epilogue::Gate => blocks(&weights[0]),
        Epilogue::Store | Epilogue::Softcap(_) => weights.iter().map(blocks).sum(),
    };
    Tiles { fixed, rows: 0 }
}

/// The raw code that a kernel calls.
pub(super) fn raw_code(
    kernel: &Kernel,
    prologue: Option<f32>,
    operands: DType,
    features: &Features,
) -> Vec<(&'static Microkernel, Raw)> {
    let weights = &kernel.inputs[1 + usize::from(prologue.is_some())..];
    let regime = kernel.regime_of(kernel.outputs[0].axes[0].dim);
    let quantised = Quantised::of(weights.iter().map(|w| w.dtype));
    let micro = micro::select_for(regime, fixed(&weights[0], 1), operands, quantised, features);
    let raw: Vec<Raw> = match micro.emit {
        Emit::RawTile(_) | Emit::IntegerTile(..) | Emit::ConfiguredTile(_) => {
            let widen = weights.iter().filter_map(|w| widening(w, micro, features));
            let tiles = weights.iter().flat_map(|w| tiling(micro, w.dtype).raw_code());
            return widen.chain(tiles.map(|raw| (micro, raw))).collect();
        }
        Emit::RawRows(_) => {
            let widen = weights.iter().filter_map(|w| widening(w, micro, features));
            let x = &kernel.inputs[0];
            let dots = weights.iter().flat_map(|w| {
                micro.shapes.iter().map(|&shape| (micro, Raw::Rows(row_dots(x, w, micro, shape))))
            });
            return widen.chain(dots).collect();
        }
        Emit::RawDot(_) | Emit::PairedDot(_) | Emit::BlockDot(_) => {
            let rows = |w: &View| [dot_rows(w), 1];
            let dots = weights.iter().flat_map(|w| rows(w).map(|n| (micro, raw_dot(w, operands, n))));
            let widened = weights.iter().filter(|w| operands == DType::F32 && !micro::raw_reads(w.dtype));
            return widened.filter_map(|w| widening(w, micro, features)).chain(dots).collect();
        }
        _ => vec![],
    };
    raw.into_iter().map(|raw| (micro, raw)).collect()
}

/// The most rows of a call, as the kernel sees them.
fn most_rows(kernel: &Kernel) -> usize {
    kernel.capacity.of(kernel.outputs[0].axes[0].dim)
}

pub(super) fn fixed(view: &View, axis: usize) -> usize {
    match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("weights have fixed shapes"),
    }
}

/// Emits the kernel.
pub(super) fn lower(
    e: &mut Emitter<'_>,
    kernel: &Kernel,
    prologue: Option<f32>,
    epilogue: Epilogue,
    operands: DType,
    panel: Option<usize>,
) {
    let weights = &kernel.inputs[1 + usize::from(prologue.is_some())..];
    let k = fixed(&weights[0], 1);
    let rows = most_rows(kernel);
    let regime = kernel.regime_of(kernel.outputs[0].axes[0].dim);
    let quantised = Quantised::of(weights.iter().map(|w| w.dtype));
    let micro = micro::select_for(regime, k, operands, quantised, &e.features);
    let results = if epilogue == Epilogue::Gate { 2 } else { 1 };
    let mut job = match panel {
        Some(_) => {
            let most = micro.part();
            // Whole blocks.
            let blocks = weights.iter().filter_map(|w| Some(w.dtype.format()?.block));
            let block = blocks.max().unwrap_or(BLOCK);
            let part = k.div_ceil(k.div_ceil(most)).next_multiple_of(block).min(most);
            let row = weights.iter().map(|w| weight_row(micro, w.dtype)).max().unwrap_or(0);
            let held = e.take_scratch(micro.block_rows() * row);
            let x = Operand::Packed { held, part };
            let bytes = rows.div_ceil(micro.mr) * block_bytes(micro);
            let results = (0..results).map(|_| e.take_scratch(bytes)).collect();
            Job { micro, k, x, results, kernel, epilogue, output: 0 }
        }
        None => {
            let normed = prologue.map(|eps| (eps, e.take_scratch(rows * k * 4)));
            let int8 = (operands == DType::Q8).then(|| e.take_scratch(rows * micro::int8_row_bytes(k)));
            let widened = match micro.emit {
                Emit::RawRows(_) => weights.iter().any(|w| w.dtype != operands),
                Emit::RawDot(_) => weights.iter().any(|w| !micro::raw_reads(w.dtype)),
                _ => false,
            };
            let widened = widened.then(|| {
                let bytes = if micro.reads_rounded_rows() { widened_row(k) } else { k * 4 };
                e.take_scratch(micro.shapes[0].1 * bytes)
            });
            let x = Operand::Rows { normed, int8, widened };
            let results = (0..results).map(|_| e.take_scratch(rows * micro.block_rows() * 4)).collect();
            Job { micro, k, x, results, kernel, epilogue, output: 0 }
        }
    };

    // What is made of x stays in scratch between a launch's calls on one thread.
    let (mut begin, end) = (e.tile_begin, e.tile_end);
    let fresh = kernel.resumes().then(|| {
        let zero = e.i64(0);
        let fresh = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, begin, zero);
        let number = e.i64(!RESUMED as i64);
        begin = e.b.ins().band(begin, number);
        fresh
    });
    let any = e.b.ins().icmp(IntCC::SignedLessThan, begin, end);
    e.when(any, |e| {
        if micro.is_configured() {
            e.call_raw(Raw::Configure, &[]);
        }
        if let Some(fresh) = fresh {
            e.when(fresh, |e| job.ready_rows(e, weights[0].dtype));
        }
        let mut first = 0i64;
        let groups: Vec<&[View]> = match epilogue {
            Epilogue::Gate => vec![weights],
            Epilogue::Store | Epilogue::Softcap(_) => weights.chunks(1).collect(),
        };
        for (output, group) in groups.into_iter().enumerate() {
            let blocks = fixed(&group[0], 0).div_ceil(micro.block_rows()) as i64;
            let (low, high) = (e.i64(first), e.i64(first + blocks));
            let low = e.b.ins().smax(low, begin);
            let high = e.min(high, end);
            job.output = output;
            e.for_range(low, high, 1, &[], |e, tile, _| {
                let block = e.offset(tile, -first);
                let first = e.scale(block, micro.block_rows() as i64);
                let n = e.i64(fixed(&group[0], 0) as i64);
                let left = e.b.ins().isub(n, first);
                let width = e.i64(micro.block_rows() as i64);
                let width = e.min(left, width);
                match job.x {
                    Operand::Rows { .. } => job.dot_block(e, group, first, width),
                    Operand::Packed { held, part } => job.tile_block(e, group, first, width, held, part),
                }
                vec![]
            });
            first += blocks;
        }
        if micro.is_configured() {
            e.call_raw(Raw::Release, &[]);
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
    /// In panels. Weights are held in scratch in the operands' type, `part` elements of k at a time.
    Packed { held: Value, part: usize },
}

/// What the blocks of one kernel share.
pub(super) struct Job<'a> {
    pub(super) micro: &'static Microkernel,
    pub(super) k: usize,
    pub(super) x: Operand,
    /// Blocks of results, one a weight of a tile: dot (rows, nr), packed (nr, rows) with a stride.
    pub(super) results: Vec<Value>,
    pub(super) kernel: &'a Kernel,
    pub(super) epilogue: Epilogue,
    /// Which output the block belongs to.
    pub(super) output: usize,
}

impl Job<'_> {
    /// Norms and rounds x into scratch.
    fn ready_rows(&self, e: &mut Emitter<'_>, weights: DType) {
        let Operand::Rows { normed, int8, .. } = self.x else { return };
        let k = self.k;
        if let Some((eps, scratch)) = normed {
            norm_rows(e, self.kernel, eps, scratch, k);
        }
        if let Some(scratch) = int8 {
            let (x, stride) = self.plain_rows(e);
            let rows = self.rows(e);
            let paired = matches!(self.micro.emit, Emit::PairedDot(_)) && weights == DType::Q4;
            round_rows(e, x, stride, rows, Rounding { k, paired }, scratch);
        }
    }

    pub(super) fn rows(&self, e: &mut Emitter<'_>) -> Value {
        e.length(self.kernel.outputs[0].axes[0].dim)
    }

    /// The rows of x in f32, and bytes from one to the next.
    pub(super) fn plain_rows(&self, e: &mut Emitter<'_>) -> (Value, i64) {
        match self.x {
            Operand::Rows { normed: Some((_, scratch)), .. } => (scratch, self.k as i64 * 4),
            Operand::Rows { normed: None, .. } | Operand::Packed { .. } => {
                let x = &self.kernel.inputs[0];
                (e.base(x), x.step_bytes(0))
            }
        }
    }

    /// The epilogue on four (or one) of each weight's sums.
    pub(super) fn finish(&self, e: &mut Emitter<'_>, sums: &[Value]) -> Value {
        match self.epilogue {
            Epilogue::Store => sums[0],
            Epilogue::Softcap(cap) => math::softcap(e, cap, sums[0]),
            Epilogue::Gate => {
                let gate = math::gelu_tanh(e, sums[0]);
                e.b.ins().fmul(gate, sums[1])
            }
        }
    }
}
