//! Lowering: one kernel to one function of Cranelift IR.
//!
//! One file a family of bodies; each reads its operands through views and walks its own tile space.

mod append;
mod attention;
mod elementwise;
mod gather;
mod hold;
mod lanes;
pub mod linear;
mod linear_ahead;
mod linear_blocked;
mod linear_dots;
mod linear_epilogue;
mod linear_lanes;
mod linear_row;
mod linear_spans;
mod linear_tiles;
mod map;
mod matmul;
pub mod matmul_tiles;
mod norm;
pub mod pack;
mod reduce;
mod rope;
mod round;
mod softmax;
mod tiling;

pub(crate) use attention::attention_shapes;
pub use attention::{attention_parts, attention_way};
pub(crate) use lanes::{add_across, transpose};

use crate::emit::{Emitter, Features};
use crate::kernel::{Body, Kernel};
use crate::micro::{Microkernel, Raw};

/// The raw code that a kernel calls.
pub fn raw_code(kernel: &Kernel, features: &Features) -> Vec<(&'static Microkernel, Raw)> {
    match &kernel.body {
        Body::Linear(linear) => linear::raw_code(kernel, linear, features),
        Body::Attention { way, .. } => attention::raw_code(kernel, *way, features),
        Body::Product(product) => matmul_tiles::raw_code(kernel, product.micro),
        Body::Append => append::raw_code(kernel, features),
        Body::Pack(pack) => pack::raw_code(kernel, pack, features),
        Body::Elementwise(_)
        | Body::Map(_)
        | Body::Reduce(_)
        | Body::Matmul
        | Body::Gather { .. }
        | Body::RmsNorm { .. }
        | Body::AddRmsNorm { .. }
        | Body::Rope
        | Body::Scores { .. }
        | Body::PackColumns(_)
        | Body::WindowMask { .. }
        | Body::Softmax { .. }
        | Body::MergeAttention { .. } => vec![],
    }
}

/// Emits the kernel's code into the emitter.
pub fn lower(e: &mut Emitter<'_>, kernel: &Kernel) {
    match &kernel.body {
        Body::Elementwise(op) => elementwise::lower(e, kernel, *op),
        Body::Map(program) => map::lower(e, kernel, program),
        Body::Reduce(reduction) => reduce::lower(e, kernel, *reduction),
        Body::Matmul => matmul::lower(e, kernel),
        Body::Scores { scale, cap } => matmul::lower_scores(e, kernel, *scale, *cap),
        Body::PackColumns(micro) => matmul_tiles::lower_pack(e, kernel, micro),
        Body::Product(product) => matmul_tiles::lower(e, kernel, *product),
        Body::Gather { scale } => gather::lower(e, kernel, *scale),
        Body::Append => append::lower(e, kernel),
        Body::RmsNorm { eps } => norm::lower(e, kernel, *eps, false),
        Body::AddRmsNorm { eps } => norm::lower(e, kernel, *eps, true),
        Body::Linear(body) => linear::lower(e, kernel, body.clone()),
        Body::Pack(body) => pack::lower(e, kernel, *body),
        Body::Rope => rope::lower(e, kernel),
        Body::WindowMask { window } => softmax::lower_mask(e, kernel, *window),
        Body::Softmax { ranged, window, maximum } => softmax::lower(e, kernel, *ranged, *window, *maximum),
        Body::MergeAttention { window, maximum } => attention::merge::lower(e, kernel, *window, *maximum),
        Body::Attention { way, .. } => attention::lower(e, kernel, *way),
    }
}
