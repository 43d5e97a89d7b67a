//! A kernel before it is code: what it computes, over which views, and its tile space.
//!
//! The schedule makes kernels, `lower` turns each into one function of the program's kernel ABI. Tile axes are the axes
//! that [`Kernel::tile_axes`] gives, in order, row-major; a kernel loops over the others itself.

mod attention;
mod elementwise;

use lapidary_ir::{DType, Dim, Id, Program};
use lapidary_runtime::program::Tiles;

use crate::micro::Microkernel;
use crate::view::{Base, Capacity, View};

pub use attention::{AttentionWay, QueryTiles};
pub use elementwise::Elementwise;

/// What a reduction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum.
    Sum,
    /// Sum over the axis' length.
    Mean,
    /// Largest element; -inf of none.
    Max,
    /// Smallest element; inf of none.
    Min,
    /// Product.
    Prod,
    /// Index of the largest element, i32.
    Argmax,
}

/// What a linear kernel does to its accumulators.
#[derive(Clone, Debug, PartialEq)]
pub enum Epilogue {
    /// Stores them; one output a weight.
    Store,
    /// Stores cap tanh(y / cap); one output a weight.
    Softcap(f32),
    /// Two weights, one output: gelu_tanh(first) * second.
    Gate,
    /// So many weights, one output: the program over their sums, then over the kernel's last inputs, which broadcast.
    Then(usize, Program),
}

/// A linear kernel: everything that was chosen for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// eps of an RMSNorm applied to x as it is read.
    pub prologue: Option<f32>,
    /// What happens to the accumulators.
    pub epilogue: Epilogue,
    /// Its inner loop, which also says how x is held.
    pub micro: &'static Microkernel,
    /// Another for calls of few rows, to the same bits.
    pub few: Option<&'static Microkernel>,
    /// Whether a kernel before has normed x and brought it into the form that the microkernel reads.
    pub ready: bool,
}

/// What brings x into the form that a linear kernel reads: for tiles panels f32 (T / panel, K, panel), or bf16 in pairs
/// (T / panel, K / 2, 2 panel), K rounded up to even with a 0, or q8 in blocks, words (T / panel, K / 32, 10 panel);
/// for weight rows in lanes rows of q8 in blocks, words (T, K / 32, 10).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pack {
    /// eps of an RMSNorm applied to x as it is read.
    pub prologue: Option<f32>,
    /// The linear kernel's microkernel.
    pub micro: &'static Microkernel,
    /// The one for calls of few rows.
    pub few: Option<&'static Microkernel>,
}

/// How softmax keeps exp in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maximum {
    /// A running maximum is subtracted.
    Online,
    /// The logits are proven bounded: exp of them and a sum over the cache fit f32.
    Bounded,
}

/// What a kernel computes. Views in the order of `inputs` then `outputs` below.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Inputs, stretched to the output's axes; one output.
    Elementwise(Elementwise),
    /// Inputs of the program, stretched to the output's axes but, under a reduction, the last; one output.
    Map(Program),
    /// Input with the reduced axis moved last; output (.., 1), its axes in the same order.
    Reduce(Reduction),
    /// a (.., M, K), b (.., K, N); output (.., M, N).
    Matmul,
    /// table (V, ..), ids i32 (T); output (T, ..): rows copied (converted to the output's dtype) and scaled.
    Gather {
        /// Multiplies each element; 1 for a plain gather (any dtype then).
        scale: f32,
    },
    /// rows (G, T, D); output: the cache (G, S, D): row t of the call becomes key S - T + t, rounded to its dtype.
    Append,
    /// x (.., K), w (K); output (.., K).
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// residual (.., K), x (.., K), w (K); output (.., K).
    AddRmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// x (T, K), f32 unless there is a prologue, \[norm weight (K) if there is one\], weights (N, K) .., \[what the
    /// epilogue's program takes in\]; outputs (T, N) .. . If x is ready, as [`Body::Pack`] or a rounding wrote it.
    Linear(Linear),
    /// x (T, K), \[norm weight (K) if there is a prologue\]; output x as [`Pack`] says.
    Pack(Pack),
    /// x (H, T, D), pos i32 (T), inverse frequencies (D/2); output (H, T, D).
    Rope,
    /// q (H, T, D), k (G, S, D); output (H, T, S).
    Scores {
        /// Multiplies the products.
        scale: f32,
        /// Softcap after the scale.
        cap: Option<f32>,
    },
    /// b (.., N, K); output its panels f32 (.., N / mr, K, mr).
    PackColumns(&'static Microkernel),
    /// a (.., M, K), b in panels of N; output (.., M, N).
    Product(Product),
    /// scores (.., T, S), pos i32 (T); output (.., T, S).
    WindowMask {
        /// How many last keys are visible.
        window: Option<usize>,
    },
    /// x (.., S) and, if ranged, pos i32 (T); output the same shape.
    Softmax {
        /// Whether only keys (pos - window, pos] count; the rest are 0.
        ranged: bool,
        /// How many last keys are visible.
        window: Option<usize>,
        /// How exp is kept in range.
        maximum: Maximum,
    },
    /// q (H, T, D), k (G, S, D), v (G, S, D), pos i32 (T); output (H, T, D).
    Attention {
        /// Multiplies the products.
        scale: f32,
        /// Softcap after the scale.
        cap: Option<f32>,
        /// How many last keys are visible.
        window: Option<usize>,
        /// How exp is kept in range.
        maximum: Maximum,
        /// Parts of a row's keys that are tiles of their own, if more than 1: then the output is what
        /// [`Body::MergeAttention`] reads, (T, H, parts, width).
        parts: usize,
        /// By which loops.
        way: AttentionWay,
    },
    /// parts (T, H, parts, width) of an attention, pos i32 (T); output (H, T, D): the parts' sums over their
    /// denominators'.
    MergeAttention {
        /// How many last keys are visible.
        window: Option<usize>,
        /// How exp was kept in range.
        maximum: Maximum,
    },
}

/// A kernel: one launch of the schedule.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Name, unique in its variant: `v12_linear`.
    pub name: String,
    /// The fused graph's node that it computes.
    pub node: Id,
    /// What it computes.
    pub body: Body,
    /// Operands read.
    pub inputs: Vec<View>,
    /// Operands written.
    pub outputs: Vec<View>,
    /// Its tile space.
    pub tiles: Tiles,
    /// Whether it works on one sequence's rows after the other's, with tiles of each.
    pub by_segment: bool,
    /// Rows that its microkernels are chosen for: all kernels of a phase have the same, whatever the rows of a call.
    pub regime: usize,
    /// The most rows and keys that it serves.
    pub capacity: Capacity,
}

/// A product of two activations by tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Multiplies the products.
    pub scale: f32,
    /// Softcap after the scale.
    pub cap: Option<f32>,
    /// Matrices of a, along the first axis, that meet one of b.
    pub repeat: usize,
    /// What computes the tiles.
    pub micro: &'static Microkernel,
}

/// Rows of queries that one attention tile handles.
pub const ATTENTION_ROWS: u32 = 4;

impl Body {
    /// The name in a kernel's name.
    pub fn name(&self) -> &'static str {
        match self {
            Body::Elementwise(Elementwise::Copy) => "copy",
            Body::Elementwise(Elementwise::Select) => "select",
            Body::Elementwise(Elementwise::Softcap(_)) => "softcap",
            Body::Elementwise(Elementwise::GatedGelu) => "gated_gelu",
            Body::Elementwise(_) => "elementwise",
            Body::Map(_) => "map",
            Body::Reduce(_) => "reduce",
            Body::Matmul => "matmul",
            Body::Gather { .. } => "gather",
            Body::Append => "append",
            Body::RmsNorm { .. } => "rms_norm",
            Body::AddRmsNorm { .. } => "add_rms_norm",
            Body::Linear(_) => "linear",
            Body::Pack(_) | Body::PackColumns(_) => "pack",
            Body::Product(_) => "product",
            Body::Rope => "rope",
            Body::Scores { .. } => "scores",
            Body::WindowMask { .. } => "window_mask",
            Body::Softmax { .. } => "softmax",
            Body::Attention { .. } => "attention",
            Body::MergeAttention { .. } => "merge_attention",
        }
    }
}

impl Linear {
    /// The weights among the inputs of its kernel.
    pub fn weights<'a>(&self, inputs: &'a [View]) -> &'a [View] {
        let weights = &inputs[1 + usize::from(self.prologue.is_some())..];
        match self.epilogue {
            Epilogue::Then(count, _) => &weights[..count],
            Epilogue::Store | Epilogue::Softcap(_) | Epilogue::Gate => weights,
        }
    }

    /// Whether all weights make one output together.
    pub fn is_joint(&self) -> bool {
        matches!(self.epilogue, Epilogue::Gate | Epilogue::Then(..))
    }
}

impl Kernel {
    /// Whether calls may have several sequences: nothing that it writes for one is written for another, and it asks for
    /// no row but by its number.
    pub fn batches(&self) -> bool {
        let rows = |view: &View| view.axes.iter().filter(|a| a.dim == Dim::Rows).count();
        let own = |view: &View| matches!(view.base, Base::Cache(_)) || rows(view) == 1;
        let mut views = self.inputs.iter().chain(&self.outputs);
        if self.by_segment {
            self.outputs.iter().all(own) && views.all(|view| rows(view) <= 1)
        } else {
            views.all(|view| view.per_row_offset == 0)
        }
    }

    /// Rows that microkernels of products with this many rows are chosen for.
    pub fn regime_of(&self, rows: Dim) -> usize {
        if rows == Dim::Rows { self.regime } else { self.capacity.of(rows) }
    }

    /// Whether calls leave in scratch what later calls of the same launch take up: x normed or rounded.
    pub fn resumes(&self) -> bool {
        let Body::Linear(linear) = &self.body else { return false };
        let rounds = linear.micro.operands == DType::Q8 || linear.micro.has_lanes();
        !linear.ready && (linear.prologue.is_some() || rounds)
    }

    /// The axes of `outputs[0]` that tiles count over, outermost first: every axis but the last, those of keys, and any
    /// second axis of rows.
    ///
    /// Attention and linear kernels have tile spaces of their own: attention `(G, parts, ceil(T / ATTENTION_ROWS))`,
    /// linear the blocks of its weights' rows, one weight after the other (for the gate epilogue the blocks of one).
    pub fn tile_axes(output: &View) -> Vec<usize> {
        let last = output.axes.len().saturating_sub(1);
        let first_rows = output.axes.iter().position(|a| a.dim == Dim::Rows);
        (0..last)
            .filter(|&a| match output.axes[a].dim {
                Dim::Fixed(_) => true,
                Dim::Rows => first_rows == Some(a),
                Dim::Keys => false,
            })
            .collect()
    }

    /// The tile space over [`Kernel::tile_axes`].
    pub fn row_tiles(output: &View) -> Tiles {
        let mut tiles = Tiles { fixed: 1, rows: 0 };
        for a in Kernel::tile_axes(output) {
            match output.axes[a].dim {
                Dim::Fixed(n) => tiles.fixed *= n as u32,
                Dim::Rows => tiles.rows = 1,
                Dim::Keys => unreachable!("keys are no tile axis"),
            }
        }
        tiles
    }
}
