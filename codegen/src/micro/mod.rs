//! Microkernels: the inner loops of linear kernels, as rows of one table.
//!
//! A row states what it is for (weight format, row regime, what the CPU must have) and how its code is emitted. A
//! microkernel computes one block: `c[t][n] = sum over k of x[t][k] w[n][k]` for every row t and `nr` weight rows n.
//! Contract: no allocation, no calls out, no state; pointers, strides and counts in, C block out.
//!
//! Raw machine code (AVX2, AVX-512, AMX) comes as further rows: an [`Emit`] of its own that adds a function to the
//! module and a call to it; nothing else changes, for lowerings see only [`Block`].

mod clif;

use cranelift_codegen::ir::Value;
use lapidary_ir::DType;

use crate::emit::{Emitter, Features};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// f32, f16 or bf16 as they lie in a checkpoint: `(N, K)`, K contiguous.
    Plain,
}

/// One block's operands.
pub struct Block {
    /// Weights' element type.
    pub dtype: DType,
    /// Address of each weight row of the block (`nr` of them; past the matrix' end the last row again).
    pub weights: Vec<Value>,
    /// Length of the sums.
    pub k: usize,
    /// Address of x, f32 rows contiguous along k.
    pub x: Value,
    /// Bytes from one row of x to the next.
    pub x_stride: i64,
    /// Rows of x (i64).
    pub rows: Value,
    /// Address of the block of results, f32 `(rows, nr)`, contiguous.
    pub c: Value,
    /// Address of scratch, `scratch` bytes.
    pub scratch: Value,
}

/// How a microkernel becomes code.
pub enum Emit {
    /// Instructions in the kernel itself.
    Inline(fn(&mut Emitter<'_>, &Block)),
}

/// A row of the table.
pub struct Microkernel {
    /// Name.
    pub name: &'static str,
    /// Weight format it reads.
    pub format: WeightFormat,
    /// Rows of x in registers.
    pub mr: usize,
    /// Weight rows of a block.
    pub nr: usize,
    /// Elements of k a step.
    pub kr: usize,
    /// The most rows of a call that it is meant for.
    pub max_rows: usize,
    /// Whether the CPU has what it takes.
    pub runs_on: fn(&Features) -> bool,
    /// Scratch in bytes for sums of this length.
    pub scratch: fn(k: usize) -> usize,
    /// Its code.
    pub emit: Emit,
}

/// Every microkernel; of those that fit, the first one is taken.
pub const MICROKERNELS: &[Microkernel] = &[
    Microkernel {
        name: "clif_dot",
        format: WeightFormat::Plain,
        mr: 1,
        nr: 16,
        kr: 8,
        max_rows: 4,
        runs_on: |_| true,
        scratch: |_| 0,
        emit: Emit::Inline(clif::dot),
    },
    Microkernel {
        name: "clif_panel",
        format: WeightFormat::Plain,
        mr: 3,
        nr: 16,
        kr: 1,
        max_rows: usize::MAX,
        runs_on: |_| true,
        scratch: |k| k * 16 * 4,
        emit: Emit::Inline(clif::panel),
    },
];

/// The microkernel for calls of up to `rows` rows.
pub fn select(format: WeightFormat, rows: usize, features: &Features) -> &'static Microkernel {
    let fits = |m: &&Microkernel| m.format == format && rows <= m.max_rows && (m.runs_on)(features);
    match MICROKERNELS.iter().find(fits) {
        Some(m) => m,
        None => unreachable!("the portable rows fit everything"),
    }
}
