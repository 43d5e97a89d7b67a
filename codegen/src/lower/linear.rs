//! Linear kernels: x (T, K) times weights (N, K) transposed, with an optional norm before and an epilogue after.
//!
//! A tile is a block of weight rows, over all rows of x. For one row or few, x is read as it lies and a prologue norms
//! it into this thread's scratch, by the same code as the norm kernel, so that fusing it changes no bit. For many rows
//! a kernel of its own packs x into panels and norms as it packs ([`super::pack`]); here the weights of the tile are
//! widened part by part into scratch, where every panel of x meets them.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::F32X4;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{BLOCK, DType, Dim};
use lapidary_runtime::program::Tiles;

use super::elementwise::store_along_row;
use super::norm::norm_row;
use super::tiling::Tiling;
use super::transpose;
use crate::emit::{Emitter, Features};
use crate::kernel::{Epilogue, Kernel};
use crate::math;
use crate::micro::{self, Block, DOT_ROWS, Dot, Emit, Microkernel, Raw, Rows, TileOperands, Widen};
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
    let rows = most_rows(kernel);
    let weights = &kernel.inputs[1 + usize::from(prologue.is_some())..];
    let micro = micro::select(rows, fixed(&weights[0], 1), operands, features);
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
        Emit::RawDot(_) => {
            weights.iter().flat_map(|w| [DOT_ROWS, 1].map(|n| raw_dot(w, operands, n))).collect()
        }
        _ => vec![],
    };
    raw.into_iter().map(|raw| (micro, raw)).collect()
}

fn raw_dot(weight: &View, operands: DType, rows: usize) -> Raw {
    Raw::Dot(Dot { operands, dtype: weight.dtype, k: fixed(weight, 1), rows })
}

/// Dot products of rows of x with weight rows as they lie, or widened in scratch.
fn row_dots(x: &View, weight: &View, micro: &Microkernel, (rows, nr): (usize, usize)) -> Rows {
    let k = fixed(weight, 1);
    let weight_stride =
        if weight.dtype == micro.operands { weight.step_bytes(0) } else { widened_row(k) as i64 };
    Rows {
        k,
        rows,
        nr,
        x_stride: x.step_bytes(0) as i32,
        weight_stride: weight_stride as i32,
        c_stride: micro.block_rows() as i32 * 4,
    }
}

/// Bytes of a widened weight row of bf16 in scratch, and a little more, lest rows share cache sets.
fn widened_row(k: usize) -> usize {
    (k.next_multiple_of(32) + 32) * 2
}

/// The raw code that widens a weight to the operands' type, if there is one and there is something to do.
fn widening(weight: &View, micro: &Microkernel, features: &Features) -> Option<(&'static Microkernel, Raw)> {
    if weight.dtype == micro.operands && !weight.dtype.is_quantised() {
        return None;
    }
    let widen = micro::widening(features)?;
    Some((widen, Raw::Widen(Widen { from: weight.dtype, to: micro.operands })))
}

/// Tiles of weights stored so, as they are held in scratch.
fn tiling(micro: &'static Microkernel, stored: DType) -> Tiling {
    let weights = if micro.operands.is_quantised() { stored } else { micro.operands };
    Tiling { micro, weights, weight_stride: weight_row(micro, stored), c_stride: micro.mr * 4 }
}

/// Bytes from one weight row in scratch to the next: not a power of two, lest rows share cache sets.
fn weight_row(micro: &Microkernel, stored: DType) -> usize {
    micro.held_bytes(stored, micro.part()) + 64
}

/// Bytes of the results of a block with one panel: f32 (nr, mr), contiguous.
fn block_bytes(micro: &Microkernel) -> usize {
    micro.block_rows() * micro.mr * 4
}

/// The most rows of a call, as the kernel sees them.
fn most_rows(kernel: &Kernel) -> usize {
    kernel.capacity.of(kernel.outputs[0].axes[0].dim)
}

fn fixed(view: &View, axis: usize) -> usize {
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
    let micro = micro::select(rows, k, operands, &e.features);
    let results = if epilogue == Epilogue::Gate { 2 } else { 1 };
    let mut job = match panel {
        Some(_) => {
            let most = micro.part();
            let part = k.div_ceil(k.div_ceil(most)).next_multiple_of(32).min(most);
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
            let widened = micro.reads_rounded_rows() && weights.iter().any(|w| w.dtype != operands);
            let widened = widened.then(|| e.take_scratch(micro.shapes[0].1 * widened_row(k)));
            let x = Operand::Rows { normed, int8, widened };
            let results = (0..results).map(|_| e.take_scratch(rows * micro.block_rows() * 4)).collect();
            Job { micro, k, x, results, kernel, epilogue, output: 0 }
        }
    };

    let any = e.b.ins().icmp(IntCC::SignedLessThan, e.tile_begin, e.tile_end);
    let (begin, end) = (e.tile_begin, e.tile_end);
    e.when(any, |e| {
        if micro.is_configured() {
            e.call_raw(Raw::Configure, &[]);
        }
        if let Operand::Rows { normed, int8, .. } = job.x {
            if let Some((eps, scratch)) = normed {
                norm_rows(e, kernel, eps, scratch, k);
            }
            if let Some(scratch) = int8 {
                let (x, stride) = job.plain_rows(e);
                let rows = job.rows(e);
                round_rows(e, x, stride, rows, k, scratch);
            }
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
enum Operand {
    /// As it lies, or normed (eps, and where the normed rows are), or that rounded to 8 bits; where some weight rows are
    /// widened, if they are.
    Rows { normed: Option<(f32, Value)>, int8: Option<Value>, widened: Option<Value> },
    /// In panels. Weights are held in scratch in the operands' type, `part` elements of k at a time.
    Packed { held: Value, part: usize },
}

/// What the blocks of one kernel share.
struct Job<'a> {
    micro: &'static Microkernel,
    k: usize,
    x: Operand,
    /// Blocks of results, one a weight of a tile: dot (rows, nr), packed (nr, rows) with a stride.
    results: Vec<Value>,
    kernel: &'a Kernel,
    epilogue: Epilogue,
    /// Which output the block belongs to.
    output: usize,
}

impl Job<'_> {
    fn rows(&self, e: &mut Emitter<'_>) -> Value {
        e.length(self.kernel.outputs[0].axes[0].dim)
    }

    /// The rows of x in f32, and bytes from one to the next.
    fn plain_rows(&self, e: &mut Emitter<'_>) -> (Value, i64) {
        match self.x {
            Operand::Rows { normed: Some((_, scratch)), .. } => (scratch, self.k as i64 * 4),
            Operand::Rows { normed: None, .. } | Operand::Packed { .. } => {
                let x = &self.kernel.inputs[0];
                (e.base(x), x.step_bytes(0))
            }
        }
    }

    /// Dot products of `width` weight rows from `first`, for each of the tile's weights; then the epilogue.
    fn dot_block(&self, e: &mut Emitter<'_>, weights: &[View], first: Value, width: Value) {
        let nr = self.micro.block_rows() as i64;
        let n = fixed(&weights[0], 0) as i64;
        let rows = self.rows(e);
        let (x, x_stride) = match self.x {
            Operand::Rows { int8: Some(scratch), .. } => (scratch, micro::int8_row_bytes(self.k) as i64),
            _ => self.plain_rows(e),
        };
        for (weight, &c) in weights.iter().zip(&self.results) {
            let base = e.base(weight);
            if let Emit::RawRows(_) = self.micro.emit {
                self.row_dots(e, weight, first, width, x, c);
                continue;
            }
            if let Emit::RawDot(_) = self.micro.emit {
                let base = e.step(weight, 0, base, first);
                self.raw_dots(e, weight, base, width, (x, x_stride), c);
                continue;
            }
            let last = e.i64(n - 1);
            let weights = (0..nr)
                .map(|i| {
                    let row = e.offset(first, i);
                    let row = e.min(row, last);
                    e.step(weight, 0, base, row)
                })
                .collect();
            let block = Block { dtype: weight.dtype, weights, k: self.k, x, x_stride, rows, c };
            match self.micro.emit {
                Emit::Dot(emit) => emit(e, &block),
                _ => unreachable!("dot products alone read rows"),
            }
        }
        let output = &self.kernel.outputs[self.output];
        let zero = e.i64(0);
        e.for_range(zero, rows, 1, &[], |e, t, _| {
            let out = e.base(output);
            let out = e.at(output, out, &[(0, t), (1, first)]);
            let at = e.scale(t, nr * 4);
            let c: Vec<Value> = self.results.iter().map(|&c| e.b.ins().iadd(c, at)).collect();
            e.for_lanes(width, &[], |e, i, lanes, _| {
                let at = e.scale(i, 4);
                let values: Vec<Value> = c
                    .iter()
                    .map(|&c| {
                        let at = e.b.ins().iadd(c, at);
                        e.load(DType::F32, at, 0, lanes)
                    })
                    .collect();
                let value = self.finish(e, &values);
                store_along_row(e, output, value, out, i, lanes);
                vec![]
            });
            vec![]
        });
    }

    /// Dot products of `width` weight rows from `first` with all rows of x, some weight rows at a time: those of another
    /// type are widened first.
    fn row_dots(&self, e: &mut Emitter<'_>, weight: &View, first: Value, width: Value, x: Value, c: Value) {
        let rows = self.rows(e);
        let base = e.base(weight);
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        let most = self.micro.shapes[0].1;
        let n_groups = e.i64(most as i64);
        let whole = e.b.ins().udiv(width, n_groups);
        let whole = e.b.ins().imul(whole, n_groups);
        for (from, to, nr) in [(zero, whole, most), (whole, width, 1)] {
            e.for_range(from, to, nr as i64, &[], |e, n, _| {
                let row = e.b.ins().iadd(first, n);
                let weights = match self.x {
                    Operand::Rows { widened: Some(scratch), .. } if weight.dtype != self.micro.operands => {
                        for i in 0..nr {
                            let row = e.offset(row, i as i64);
                            let row = e.step(weight, 0, base, row);
                            let to = e.offset(scratch, (i * widened_row(self.k)) as i64);
                            hold_row(e, weight, row, (zero, k), to, self.micro);
                        }
                        scratch
                    }
                    _ => e.step(weight, 0, base, row),
                };
                let at = e.scale(n, 4);
                let c = e.b.ins().iadd(c, at);
                // The widest shape as often as it fits, then each narrower one at most once.
                let mut done = zero;
                let shapes = self.micro.shapes.iter().filter(|s| s.1 == nr);
                for &(count, _) in shapes {
                    let raw = Raw::Rows(row_dots(&self.kernel.inputs[0], weight, self.micro, (count, nr)));
                    let mask = e.i64(!(count as i64 - 1));
                    let end = e.b.ins().band(rows, mask);
                    e.for_range(done, end, count as i64, &[], |e, t, _| {
                        let at = e.scale(t, self.kernel.inputs[0].step_bytes(0));
                        let x = e.b.ins().iadd(x, at);
                        let at = e.scale(t, self.micro.block_rows() as i64 * 4);
                        let c = e.b.ins().iadd(c, at);
                        e.call_raw(raw, &[x, weights, c]);
                        vec![]
                    });
                    done = end;
                }
                vec![]
            });
        }
    }

    /// Dot products of `width` weight rows from `base` by raw code, four at a time; each four meets every row of x.
    fn raw_dots(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        base: Value,
        width: Value,
        x: (Value, i64),
        c: Value,
    ) {
        let nr = self.micro.block_rows() as i64;
        let rows = self.rows(e);
        let (zero, mask) = (e.i64(0), e.i64(!(DOT_ROWS as i64 - 1)));
        let whole = e.b.ins().band(width, mask);
        for (from, to, count) in [(zero, whole, DOT_ROWS), (whole, width, 1)] {
            e.for_range(from, to, count as i64, &[], |e, n, _| {
                let weights = e.step(weight, 0, base, n);
                let at = e.scale(n, 4);
                let c = e.b.ins().iadd(c, at);
                e.for_range(zero, rows, 1, &[], |e, t, _| {
                    let at = e.scale(t, x.1);
                    let x = e.b.ins().iadd(x.0, at);
                    let at = e.scale(t, nr * 4);
                    let c = e.b.ins().iadd(c, at);
                    e.call_raw(raw_dot(weight, self.micro.operands, count), &[x, weights, c]);
                    vec![]
                });
                vec![]
            });
        }
    }

    /// The epilogue on four (or one) of each weight's sums.
    fn finish(&self, e: &mut Emitter<'_>, sums: &[Value]) -> Value {
        match self.epilogue {
            Epilogue::Store => sums[0],
            Epilogue::Softcap(cap) => math::softcap(e, cap, sums[0]),
            Epilogue::Gate => {
                let gate = math::gelu_tanh(e, sums[0]);
                e.b.ins().fmul(gate, sums[1])
            }
        }
    }

    /// Outer products of `width` weight rows from `first` with every panel of x, for each of the tile's weights; then
    /// the epilogue.
    fn tile_block(
        &self,
        e: &mut Emitter<'_>,
        weights: &[View],
        first: Value,
        width: Value,
        held: Value,
        part: usize,
    ) {
        let rows = self.rows(e);
        for (weight, &c) in weights.iter().zip(&self.results) {
            self.tiles(e, weight, first, width, (held, part), c);
        }
        self.tile_epilogue(e, rows, first, width);
    }

    /// `width` weight rows from `first`, held in scratch part by part, with every panel of x.
    fn tiles(
        &self,
        e: &mut Emitter<'_>,
        weight: &View,
        first: Value,
        width: Value,
        (held, part): (Value, usize),
        c: Value,
    ) {
        let rows = self.rows(e);
        let x = e.base(&self.kernel.inputs[0]);
        let mr = self.micro.mr as i64;
        let tiling = tiling(self.micro, weight.dtype);
        // Bytes that a block of k takes, of one row of x.
        let block_bytes = self.micro.panel_bytes(BLOCK) as i64;
        let (zero, k) = (e.i64(0), e.i64(self.k as i64));
        e.for_range(zero, k, part as i64, &[], |e, from, _| {
            let left = e.b.ins().isub(k, from);
            let length = e.i64(part as i64);
            let length = e.min(left, length);
            hold(e, weight, first, from, length, held, self.micro);
            let steps = self.steps(e, length);
            e.for_range(zero, rows, mr, &[], |e, t, _| {
                let panel = e.scale(t, self.micro.panel_bytes(self.k) as i64);
                let panel = e.b.ins().iadd(x, panel);
                // Parts start at whole blocks.
                let at = e.scale(from, mr * block_bytes / BLOCK as i64);
                let panel = e.b.ins().iadd(panel, at);
                // Block t / mr, of block_rows rows of mr words.
                let at = e.scale(t, self.micro.block_rows() as i64 * 4);
                let c = e.b.ins().iadd(c, at);
                let left = e.b.ins().isub(rows, t);
                let operands = TileOperands { x: panel, weights: held, c, k: steps, accumulate: from };
                tiling.run(e, &operands, left, width);
                vec![]
            });
            vec![]
        });
    }

    /// Steps of k in so many elements.
    fn steps(&self, e: &mut Emitter<'_>, length: Value) -> Value {
        match self.micro.operands {
            DType::BF16 => {
                let up = e.offset(length, 1);
                e.b.ins().ushr_imm_u(up, 1)
            }
            DType::Q8 => e.b.ins().ushr_imm_u(length, i64::from(BLOCK.trailing_zeros())),
            _ => length,
        }
    }

    /// Results, a block (nr, mr) a panel, to the output (rows, nr), four by four.
    fn tile_epilogue(&self, e: &mut Emitter<'_>, rows: Value, first: Value, width: Value) {
        let output = &self.kernel.outputs[self.output];
        let mr = self.micro.mr as i64;
        let stride = mr * 4;
        let zero = e.i64(0);
        e.for_range(zero, rows, mr, &[], |e, panel, _| {
            let at = e.scale(panel, self.micro.block_rows() as i64 * 4);
            let left = e.b.ins().isub(rows, panel);
            let columns = e.i64(mr);
            let columns = e.min(left, columns);
            e.for_range(zero, columns, 4, &[], |e, column, _| {
                let t = e.b.ins().iadd(panel, column);
                let lane = e.scale(column, 4);
                let at = e.b.ins().iadd(at, lane);
                e.for_range(zero, width, 4, &[], |e, n, _| {
                    let blocks: Vec<[Value; 4]> = self
                        .results
                        .iter()
                        .map(|&c| {
                            let c = e.b.ins().iadd(c, at);
                            let at = e.scale(n, stride);
                            let c = e.b.ins().iadd(c, at);
                            std::array::from_fn(|i| e.load(DType::F32, c, i as i64 * stride, 4))
                        })
                        .collect();
                    let finished: [Value; 4] = std::array::from_fn(|i| {
                        let sums: Vec<Value> = blocks.iter().map(|b| b[i]).collect();
                        self.finish(e, &sums)
                    });
                    let by_row = transpose(e, finished);
                    let column = e.b.ins().iadd(first, n);
                    let left = e.b.ins().isub(width, n);
                    for (i, value) in by_row.into_iter().enumerate() {
                        let row = e.offset(t, i as i64);
                        let inside = e.b.ins().icmp(IntCC::SignedLessThan, row, rows);
                        e.when(inside, |e| {
                            let out = e.base(output);
                            let out = e.step(output, 0, out, row);
                            store_some(e, output, value, out, column, left);
                        });
                    }
                    vec![]
                });
                vec![]
            });
            vec![]
        });
    }
}

/// Stores four elements of a row from column `i`, or the first `left` of them.
fn store_some(e: &mut Emitter<'_>, output: &View, value: Value, row: Value, i: Value, left: Value) {
    let four = e.i64(4);
    let whole = e.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, left, four);
    e.choose_path(
        whole,
        |e| store_along_row(e, output, value, row, i, 4),
        |e| {
            for lane in 0..3u8 {
                let at = e.i64(i64::from(lane));
                let inside = e.b.ins().icmp(IntCC::SignedLessThan, at, left);
                e.when(inside, |e| {
                    let element = e.shuffle(value, value, [lane; 4]);
                    let i = e.offset(i, i64::from(lane));
                    store_along_row(e, output, element, row, i, 1);
                });
            }
        },
    );
}

/// Holds `length` elements from `from` of the block's weight rows as tiles read them; rows past the end are the last row again.
/// An odd length of bf16 is filled up with a 0.
fn hold(
    e: &mut Emitter<'_>,
    weight: &View,
    first: Value,
    from: Value,
    length: Value,
    to: Value,
    micro: &Microkernel,
) {
    let last = e.i64(fixed(weight, 0) as i64 - 1);
    let (zero, rows) = (e.i64(0), e.i64(micro.block_rows() as i64));
    e.for_range(zero, rows, 1, &[], |e, n, _| {
        let row = e.b.ins().iadd(first, n);
        let row = e.min(row, last);
        let base = e.base(weight);
        let row = e.step(weight, 0, base, row);
        let at = e.scale(n, weight_row(micro, weight.dtype) as i64);
        let to = e.b.ins().iadd(to, at);
        hold_row(e, weight, row, (from, length), to, micro);
        vec![]
    });
}

/// `length` elements from `from` of one weight row, as f32, bf16 or, by raw code alone, blocks of integers.
fn hold_row(
    e: &mut Emitter<'_>,
    weight: &View,
    row: Value,
    (from, length): (Value, Value),
    to: Value,
    micro: &Microkernel,
) {
    let operands = micro.operands;
    if let Some((_, raw)) = widening(weight, micro, &e.features) {
        widen_row(e, weight, raw, row, (from, length), to, operands);
    } else if weight.dtype.is_quantised() {
        dequantise(e, weight, row, from, length, to, operands);
    } else {
        let row = e.step(weight, 1, row, from);
        hold_floats(e, weight, row, length, to, operands);
    }
}

/// Elements of a quantised or plain row by raw code, whole blocks; of a plain one the rest too.
fn widen_row(
    e: &mut Emitter<'_>,
    weight: &View,
    raw: Raw,
    row: Value,
    (from, length): (Value, Value),
    to: Value,
    operands: DType,
) {
    let k = fixed(weight, 1);
    let blocks = e.b.ins().ushr_imm_u(length, i64::from(BLOCK.trailing_zeros()));
    let none = e.i64(0);
    let some = e.b.ins().icmp(IntCC::SignedGreaterThan, blocks, none);
    if weight.dtype.is_quantised() {
        let block = e.b.ins().ushr_imm_u(from, i64::from(BLOCK.trailing_zeros()));
        let quants = weight.dtype.row_bytes(BLOCK) as i64 - 2;
        let at = e.scale(block, quants);
        let elements = e.b.ins().iadd(row, at);
        let scales = e.offset(row, (weight.dtype.row_bytes(k) - k / BLOCK * 2) as i64);
        let at = e.scale(block, 2);
        let scales = e.b.ins().iadd(scales, at);
        e.when(some, |e| e.call_raw(raw, &[elements, scales, to, blocks]));
        return;
    }
    let row = e.step(weight, 1, row, from);
    e.when(some, |e| e.call_raw(raw, &[row, row, to, blocks]));
    let done = e.scale(blocks, BLOCK as i64);
    let left = e.b.ins().isub(length, done);
    let row = e.step(weight, 1, row, done);
    let at = e.scale(done, operands.bytes() as i64);
    let to = e.b.ins().iadd(to, at);
    hold_floats(e, weight, row, left, to, operands);
}

/// `length` floats as f32 or bf16. An odd length of bf16 is filled up with a 0.
fn hold_floats(e: &mut Emitter<'_>, weight: &View, row: Value, length: Value, to: Value, operands: DType) {
    let size = operands.bytes() as i64;
    let zero = e.i64(0);
    let bytes = weight.dtype.bytes() as i64;
    let mask = e.i64(!15);
    let whole = e.b.ins().band(length, mask);
    e.for_range(zero, whole, 16, &[], |e, i, _| {
        let at = e.scale(i, bytes);
        let row = e.b.ins().iadd(row, at);
        let at = e.scale(i, size);
        let to = e.b.ins().iadd(to, at);
        if weight.dtype == operands {
            e.copy(row, to, 16 * size);
            return vec![];
        }
        let values: [Value; 4] =
            std::array::from_fn(|v| e.load_readonly(weight.dtype, row, v as i64 * 4 * bytes, 4));
        for (v, value) in values.into_iter().enumerate() {
            e.store(operands, value, to, v as i64 * 4 * size, 4);
        }
        vec![]
    });
    e.for_range(whole, length, 1, &[], |e, i, _| {
        let at = e.scale(i, bytes);
        let row = e.b.ins().iadd(row, at);
        let at = e.scale(i, size);
        let to = e.b.ins().iadd(to, at);
        let value = e.load_readonly(weight.dtype, row, 0, 1);
        e.store(operands, value, to, 0, 1);
        vec![]
    });
    if operands == DType::BF16 {
        let at = e.scale(length, size);
        let to = e.b.ins().iadd(to, at);
        let none = e.splat(0.0);
        e.store(operands, none, to, 0, 1);
    }
}

/// Elements `from..from + length` of one quantised row; both are multiples of four.
fn dequantise(
    e: &mut Emitter<'_>,
    weight: &View,
    row: Value,
    from: Value,
    length: Value,
    to: Value,
    operands: DType,
) {
    let k = fixed(weight, 1);
    let zero = e.i64(0);
    e.for_range(zero, length, 4, &[], |e, i, _| {
        let element = e.b.ins().iadd(from, i);
        let (values, scale) = e.load_quantised(weight.dtype, row, k, element);
        let value = e.b.ins().fmul(values, scale);
        let at = e.scale(i, operands.bytes() as i64);
        let to = e.b.ins().iadd(to, at);
        e.store(operands, value, to, 0, 4);
        vec![]
    });
}

/// Rounds rows of x to 8 bits in blocks, as [`micro::int8_row_bytes`] lays them out: a block's largest magnitude is 127.
fn round_rows(e: &mut Emitter<'_>, x: Value, stride: i64, rows: Value, k: usize, to: Value) {
    let (zero, blocks) = (e.i64(0), e.i64((k / BLOCK) as i64));
    e.for_range(zero, rows, 1, &[], |e, t, _| {
        let at = e.scale(t, stride);
        let x = e.b.ins().iadd(x, at);
        let at = e.scale(t, micro::int8_row_bytes(k) as i64);
        let to = e.b.ins().iadd(to, at);
        e.for_range(zero, blocks, 1, &[], |e, b, _| {
            let at = e.scale(b, BLOCK as i64 * 4);
            let x = e.b.ins().iadd(x, at);
            let values = std::array::from_fn(|v| e.load(DType::F32, x, v as i64 * 16, 4));
            let Rounded { quants, scale, sum } = round_block(e, values);
            let at = e.scale(b, BLOCK as i64);
            let at = e.b.ins().iadd(to, at);
            for (half, quants) in quants.into_iter().enumerate() {
                e.store_int(quants, at, half as i64 * 16, 4);
            }
            let at = e.scale(b, 4);
            let at = e.b.ins().iadd(to, at);
            e.store(DType::F32, scale, at, k as i64, 1);
            e.store_int(sum, at, (k + k / BLOCK * 4) as i64, 1);
            vec![]
        });
        vec![]
    });
}

/// A block of x rounded to 8 bits.
pub(super) struct Rounded {
    /// The quants, two vectors of 16 (I8X16).
    pub(super) quants: [Value; 2],
    /// Their scale, in every lane.
    pub(super) scale: Value,
    /// Their sum (I32X4), in every lane.
    pub(super) sum: Value,
}

/// The largest magnitude of a block, in every lane.
pub(super) fn largest_of_block(e: &mut Emitter<'_>, values: &[Value; BLOCK / 4]) -> Value {
    let none = e.splat(0.0);
    let largest = values.iter().fold(none, |most, &v| {
        let size = e.b.ins().fabs(v);
        e.fmax(size, most)
    });
    let largest = e.max_lanes(largest);
    e.b.ins().splat(F32X4, largest)
}

/// Rounds a block to 8 bits: its largest magnitude is 127.
pub(super) fn round_block(e: &mut Emitter<'_>, values: [Value; BLOCK / 4]) -> Rounded {
    let none = e.splat(0.0);
    let largest = largest_of_block(e, &values);
    let top = e.splat(127.0);
    let scale = e.b.ins().fdiv(largest, top);
    let inverse = e.b.ins().fdiv(top, largest);
    let some = e.b.ins().fcmp(FloatCC::GreaterThan, largest, none);
    let inverse = e.choose(some, inverse, none);
    let quants = values.map(|v| {
        let v = e.b.ins().fmul(v, inverse);
        e.round_to_int(v)
    });
    let sum = quants[1..].iter().fold(quants[0], |sum, &q| e.b.ins().iadd(sum, q));
    let sum = e.sum_int_lanes(sum);
    Rounded { quants: e.narrow_int8(&quants), scale, sum }
}
