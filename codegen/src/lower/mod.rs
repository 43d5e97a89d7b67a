//! Lowering: one kernel to one function of Cranelift IR.
//!
//! One file a family of bodies; each reads its operands through views and walks its own tile space.

mod append;
mod attention;
mod elementwise;
mod gather;
pub mod linear;
mod matmul;
mod norm;
mod reduce;
mod rope;
mod softmax;

pub(crate) use attention::add_across;

use crate::emit::Emitter;
use crate::kernel::{Body, Kernel};

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
        Body::Linear { prologue, epilogue } => linear::lower(e, kernel, *prologue, *epilogue),
        Body::Rope => rope::lower(e, kernel),
        Body::WindowMask { window } => softmax::lower_mask(e, kernel, *window),
        Body::Softmax { ranged, window, maximum } => softmax::lower(e, kernel, *ranged, *window, *maximum),
        Body::Attention { scale, cap, window, maximum } => {
            attention::lower(e, kernel, *scale, *cap, *window, *maximum)
        }
    }
}
