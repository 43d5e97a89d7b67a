//! A compiled model, as the runtime sees it: machine code to call, in what order, over how many tiles,
//! with which pointers. Made by the code generator (in memory) or read from an artifact; nothing here knows how.
//!
//! A [`Program`] has a few [`Function`]s (`embed`, one a layer kind, the heads). Each has [`Variant`]s, one a row
//! regime (the most rows of a call that it serves); a variant is a straight list of [`Step`]s, each one kernel
//! over a tile space; steps that do not depend on each other are launched together. Invariants:
//! - `variants` are sorted by `rows`, rising; the last one's `rows` is the model's chunk.
//! - tiles are independent: any split of a step's tiles over threads gives the same bytes.
//! - a kernel reads the frame and its segments, never writes them; it writes only the arena, its outputs, its caches,
//!   its scratch.

#![warn(clippy::wildcard_enum_match_arm)]

mod aligned;
mod frame;
mod function;
mod image;
mod signature;

use std::any::Any;

use serde::{Deserialize, Serialize};

pub use aligned::Aligned;
pub use frame::{
    FRAME_ARENA, FRAME_CONSTANTS, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, KernelFn, RESUMED, Segment,
};
pub use function::{Function, Phase, Slot, SlotKind, Step, Tiles, Variant};
pub use image::{CODE_ALIGN, Image, Symbol};
pub use signature::{Counts, Element, Length, Lookup, Operand, Role, Signature, StrayId};

/// A compiled model; with a [`Signature`] as its plan, a compiled function that is no model's.
pub struct Program<P = Plan> {
    /// The functions; [`Plan`] says which is which by index.
    pub functions: Vec<Function>,
    /// Tables folded at compile time (inverse RoPE frequencies and such), 64-byte aligned parts.
    pub constants: Aligned,
    /// How the functions make up the model.
    pub plan: P,
    /// The CPU that the code was made for.
    pub made_for: MadeFor,
    /// Owner of the machine code that the steps' pointers lead into; dropped with the program.
    pub code: Box<dyn Any + Send + Sync>,
}

impl Program {
    /// Makes sessions hold at most `context` positions, fewer than it was compiled for: caches are laid out as before,
    /// and cost physical memory only where they are used.
    ///
    /// # Errors
    /// [`Error::ContextCompiled`](crate::Error::ContextCompiled) if it is 0, or more than it was compiled for.
    pub fn limit_context(&mut self, context: usize) -> Result<(), crate::Error> {
        let compiled = self.plan.context;
        if context == 0 || context > compiled {
            return Err(crate::Error::ContextCompiled { context, compiled });
        }
        self.plan.context = context;
        Ok(())
    }
}

/// The CPU that code was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeFor {
    /// Its name, as `--cpu` takes it.
    pub cpu: String,
    /// Of `native`, the step of the compiler's table that it comes to, if that is known.
    pub step: Option<String>,
    /// What the code may use, by the names of [`crate::cpu`].
    pub features: Vec<String>,
}

/// In a line: the name, what it comes to, the features.
impl std::fmt::Display for MadeFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cpu)?;
        if let Some(step) = &self.step {
            write!(f, ", here {step}")?;
        }
        if self.features.is_empty() { Ok(()) } else { write!(f, " ({})", self.features.join(", ")) }
    }
}

/// How the functions make up a decoder-only language model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Entries of a row of logits.
    pub vocab: usize,
    /// The most positions that a session may hold, in tokens.
    pub context: usize,
    /// The most rows of one call, in tokens.
    pub chunk: usize,
    /// Element type of keys and values in the caches: `bf16`.
    pub kv: String,
    /// Function: `ids` i32 (T) -> `y` f32 (T, hidden).
    pub embed: usize,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// Function: `x` f32 (T, hidden) -> `logits` f32 (T, vocab).
    pub head: usize,
    /// Function: `x` f32 (T, hidden) -> `token` i32 (T): each row's most likely token.
    pub head_argmax: usize,
}

/// One layer: a function and whose weights it is called with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Function: `x` f32 (T, hidden), `pos` i32 (T), caches, weights -> `y` f32 (T, hidden).
    pub function: usize,
    /// Put before a weight slot's name to get the tensor's name in the checkpoint, `model.layers.3.`.
    pub prefix: String,
}

/// Where weights come from: a mapped checkpoint, the built-in model, an artifact.
///
/// # Safety
/// The slices must stay where they are, unchanged, as long as the source lives: sessions keep their addresses.
pub unsafe trait WeightSource: Send + Sync {
    /// The bytes of the tensor of this name in the checkpoint, as stored.
    fn tensor(&self, name: &str) -> Option<&[u8]>;
}
