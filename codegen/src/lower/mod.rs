//! Lowering: one kernel to one function of Cranelift IR.
//!
//! One file a family of bodies; each reads its operands through views and walks its own tile space.

mod append;
mod attention;
mod attention_merge;
mod attention_rows;
mod attention_tiles;
mod elementwise;
mod gather;
mod hold;
pub mod linear;
mod linear_dots;
mod linear_tiles;
mod matmul;
mod norm;
pub mod pack;
mod reduce;
mod rope;
mod round;
mod softmax;
mod tiling;

pub(crate) use attention::add_across;

use cranelift_codegen::ir::Value;
use lapidary_ir::DType;
use lapidary_runtime::program::Tiles;

use crate::emit::{Emitter, Features};
use crate::kernel::{Body, Kernel};
use crate::micro::{Microkernel, Raw};
use crate::view::{Capacity, View};

/// The raw code that a kernel calls.
pub fn raw_code(kernel: &Kernel, features: &Features) -> Vec<(&'static Microkernel, Raw)> {
    match kernel.body {
        Body::Linear { prologue, operands, .. } => linear::raw_code(kernel, prologue, operands, features),
        Body::Attention { .. } if attention_tiles::fits(kernel, features) => {
            attention_tiles::raw_code(kernel, features)
        }
        Body::Attention { .. } => attention_rows::raw_code(kernel, features),
        _ => vec![],
    }
}

/// The tile space of attention by `rows` rows of `repeat` query heads for each of `groups` KV heads.
pub fn attention_tiles(
    heads: (usize, usize, usize),
    rows: usize,
    rounded: bool,
    features: &Features,
) -> Tiles {
    attention_tiles::tiles(heads, rows, rounded, features)
}

/// How attention's products hold their operands.
pub(crate) fn attention_operands(kernel: &Kernel, features: &Features) -> DType {
    attention_tiles::held(kernel, features)
}

/// How many parts the keys of attention's rows go in, and the width of a part's results, if in more than one.
pub fn attention_parts(
    inputs: &[View],
    window: Option<usize>,
    (regime, capacity): (usize, Capacity),
    features: &Features,
) -> Option<(usize, usize)> {
    attention_rows::parts_of(inputs, window, (regime, capacity), features)
}

/// Emits the kernel's code into the emitter.
pub fn lower(e: &mut Emitter<'_>, kernel: &Kernel) {
    match &kernel.body {
        Body::Elementwise(op) => elementwise::lower(e, kernel, *op),
        Body::Reduce(reduction) => reduce::lower(e, kernel, *reduction),
        Body::Matmul => matmul::lower(e, kernel),
        Body::Scores { scale, cap } => matmul::lower_scores(e, kernel, *scale, *cap),
        Body::Gather { scale } => gather::lower(e, kernel, *scale),
        Body::Append => append::lower(e, kernel),
        Body::RmsNorm { eps } => norm::lower(e, kernel, *eps, false),
        Body::AddRmsNorm { eps } => norm::lower(e, kernel, *eps, true),
        Body::Linear { prologue, epilogue, operands, panel } => {
            linear::lower(e, kernel, *prologue, *epilogue, *operands, *panel);
        }
        Body::Pack { prologue, operands, panel } => pack::lower(e, kernel, *prologue, *operands, *panel),
        Body::Rope => rope::lower(e, kernel),
        Body::WindowMask { window } => softmax::lower_mask(e, kernel, *window),
        Body::Softmax { ranged, window, maximum } => softmax::lower(e, kernel, *ranged, *window, *maximum),
        Body::MergeAttention { window, maximum } => attention_merge::lower(e, kernel, *window, *maximum),
        Body::Attention { scale, cap, window, maximum, parts, .. } => {
            if attention_tiles::fits(kernel, &e.features) {
                attention_tiles::lower(e, kernel, *scale, *cap, *window, *maximum);
            } else if attention_rows::fits(kernel, &e.features) {
                attention_rows::lower(e, kernel, *scale, *cap, *window, *maximum, *parts);
            } else {
                attention::lower(e, kernel, *scale, *cap, *window, *maximum);
            }
        }
    }
}

/// Four rows of four to four columns.
pub(crate) fn transpose(e: &mut Emitter<'_>, r: [Value; 4]) -> [Value; 4] {
    let (a, b) = (e.shuffle(r[0], r[1], [0, 4, 1, 5]), e.shuffle(r[2], r[3], [0, 4, 1, 5]));
    let (c, d) = (e.shuffle(r[0], r[1], [2, 6, 3, 7]), e.shuffle(r[2], r[3], [2, 6, 3, 7]));
    [
        e.shuffle(a, b, [0, 1, 4, 5]),
        e.shuffle(a, b, [2, 3, 6, 7]),
        e.shuffle(c, d, [0, 1, 4, 5]),
        e.shuffle(c, d, [2, 3, 6, 7]),
    ]
}
