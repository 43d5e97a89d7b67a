//! Linear kernels: x (T, K) times weights (N, K) transposed, with an optional norm before and an epilogue after.
//!
//! A tile is a block of weight rows, over all rows of x; its products are a microkernel's. A prologue norms every row
//! into this thread's scratch once a call, by the same code as the norm kernel, so that fusing it changes no bit.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_ir::{DType, Dim};
use lapidary_runtime::program::Tiles;

use super::elementwise::store_along_row;
use super::norm::norm_row;
use crate::emit::{Emitter, Features};
use crate::kernel::{Epilogue, Kernel};
use crate::math;
use crate::micro::{self, Block, Emit, Microkernel, WeightFormat};
use crate::view::View;

/// The tile space of a linear kernel: blocks of each weight in turn; for the gate, of both at once.
pub fn tiles(weights: &[View], epilogue: Epilogue, rows: usize, features: &Features) -> Tiles {
    let micro = micro::select(WeightFormat::Plain, rows, features);
    let blocks = |w: &View| fixed(w, 0).div_ceil(micro.nr) as u32;
    let fixed = match epilogue {
        Epilogue::Gate => blocks(&weights[0]),
        Epilogue::Store | Epilogue::Softcap(_) => weights.iter().map(blocks).sum(),
    };
    Tiles { fixed, rows: 0 }
}

fn fixed(view: &View, axis: usize) -> usize {
    match view.axes[axis].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => unreachable!("weights have fixed shapes"),
    }
}

/// Emits the kernel.
pub(super) fn lower(e: &mut Emitter<'_>, kernel: &Kernel, prologue: Option<f32>, epilogue: Epilogue) {
    let x = &kernel.inputs[0];
    let weights = &kernel.inputs[1 + usize::from(prologue.is_some())..];
    let k = fixed(&weights[0], 1);
    let max_rows = match x.axes[0].dim {
        Dim::Fixed(n) => n,
        Dim::Rows | Dim::Keys => kernel.capacity.rows,
    };
    let micro = micro::select(WeightFormat::Plain, max_rows, &e.features);
    let normed = prologue.is_some().then(|| e.take_scratch(max_rows * k * 4));
    let panel = e.take_scratch((micro.scratch)(k));
    let results: Vec<Value> = (0..if epilogue == Epilogue::Gate { 2 } else { 1 })
        .map(|_| e.take_scratch(max_rows * micro.nr * 4))
        .collect();

    let any = e.b.ins().icmp(IntCC::SignedLessThan, e.tile_begin, e.tile_end);
    let (begin, end) = (e.tile_begin, e.tile_end);
    e.when(any, |e| {
        let rows = e.length(x.axes[0].dim);
        let (x_address, x_stride) = match (normed, prologue) {
            (Some(scratch), Some(eps)) => {
                norm_rows(e, kernel, eps, scratch, k, rows);
                (scratch, k as i64 * 4)
            }
            _ => (e.base(x), x.axes[0].stride * 4),
        };
        let mut job =
            Job { micro, k, x: x_address, x_stride, rows, panel, results, kernel, epilogue, output: 0 };
        let mut first = 0i64;
        let groups: Vec<&[View]> = match epilogue {
            Epilogue::Gate => vec![weights],
            Epilogue::Store | Epilogue::Softcap(_) => weights.chunks(1).collect(),
        };
        for (output, group) in groups.into_iter().enumerate() {
            let blocks = fixed(&group[0], 0).div_ceil(micro.nr) as i64;
            let (low, high) = (e.i64(first), e.i64(first + blocks));
            let low = e.b.ins().smax(low, begin);
            let high = e.min(high, end);
            job.output = output;
            e.for_range(low, high, 1, &[], |e, tile, _| {
                let block = e.offset(tile, -first);
                job.block(e, group, block);
                vec![]
            });
            first += blocks;
        }
    });
}

/// Norms every row of x into scratch, f32 (rows, k).
fn norm_rows(e: &mut Emitter<'_>, kernel: &Kernel, eps: f32, scratch: Value, k: usize, rows: Value) {
    let (x, w) = (&kernel.inputs[0], &kernel.inputs[1]);
    let zero = e.i64(0);
    e.for_range(zero, rows, 1, &[], |e, t, _| {
        let row = e.base(x);
        let row = e.step(x, 0, row, t);
        let to = e.scale(t, k as i64 * 4);
        let to = e.b.ins().iadd(scratch, to);
        norm_row(e, x, row, w, eps, &mut |e, i, lanes, value| {
            let at = e.scale(i, 4);
            let at = e.b.ins().iadd(to, at);
            e.store(DType::F32, value, at, 0, lanes);
        });
        vec![]
    });
}

/// What the blocks of one kernel share.
struct Job<'a> {
    micro: &'static Microkernel,
    k: usize,
    x: Value,
    x_stride: i64,
    rows: Value,
    panel: Value,
    /// Blocks of results (rows, nr), one a weight of a tile.
    results: Vec<Value>,
    kernel: &'a Kernel,
    epilogue: Epilogue,
    /// Which output the block belongs to.
    output: usize,
}

impl Job<'_> {
    /// One block of each of the tile's weights, then the epilogue.
    fn block(&self, e: &mut Emitter<'_>, weights: &[View], block: Value) {
        let nr = self.micro.nr as i64;
        let n = fixed(&weights[0], 0) as i64;
        let first = e.scale(block, nr);
        for (weight, &c) in weights.iter().zip(&self.results) {
            let base = e.base(weight);
            let last = e.i64(n - 1);
            let rows = (0..nr)
                .map(|i| {
                    let row = e.offset(first, i);
                    let row = e.min(row, last);
                    e.step(weight, 0, base, row)
                })
                .collect();
            let block = Block {
                dtype: weight.dtype,
                weights: rows,
                k: self.k,
                x: self.x,
                x_stride: self.x_stride,
                rows: self.rows,
                c,
                scratch: self.panel,
            };
            match self.micro.emit {
                Emit::Inline(emit) => emit(e, &block),
            }
        }
        let output = &self.kernel.outputs[self.output];
        let n = e.i64(n);
        let left = e.b.ins().isub(n, first);
        let width = e.i64(nr);
        let width = e.min(left, width);
        let zero = e.i64(0);
        e.for_range(zero, self.rows, 1, &[], |e, t, _| {
            let out = e.base(output);
            let out = e.step(output, 0, out, t);
            let out = e.step(output, 1, out, first);
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
                let value = match self.epilogue {
                    Epilogue::Store => values[0],
                    Epilogue::Softcap(cap) => math::softcap(e, cap, values[0]),
                    Epilogue::Gate => {
                        let gate = math::gelu_tanh(e, values[0]);
                        e.b.ins().fmul(gate, values[1])
                    }
                };
                store_along_row(e, output, value, out, i, lanes);
                vec![]
            });
            vec![]
        });
    }
}
