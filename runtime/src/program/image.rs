//! A compiled model whose code is not in place yet, and how it gets there.

use serde::{Deserialize, Serialize};

use super::Plan;
use super::frame::KernelFn;
use super::function::{Function, Step, Variant};

/// A compiled model whose code is not in place: what the compiler makes and an artifact holds. Code is
/// position-independent and refers to nothing outside of itself.
#[derive(Clone, Debug)]
pub struct Image<P = Plan> {
    /// The functions; steps enter `code` by offset.
    pub functions: Vec<Function<u64>>,
    /// See [`Program::constants`](super::Program::constants).
    pub constants: Vec<u8>,
    /// How the functions make up the model.
    pub plan: P,
    /// Machine code and the read-only data among it, aligned to [`CODE_ALIGN`] bytes.
    pub code: Vec<u8>,
    /// What lies where in the code, by rising offset.
    pub symbols: Vec<Symbol>,
}

/// Alignment of code and of every function in it, in bytes: a cache line.
pub const CODE_ALIGN: usize = 64;

/// One function of an image's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symbol {
    /// Unique in its image.
    pub name: String,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Function<u64> {
    /// The function with its code in place at `base`.
    ///
    /// # Safety
    /// At `base` plus each step's offset there must be an executable function of [`KernelFn`]'s kind, which stays
    /// there.
    pub unsafe fn link(self, base: *const u8) -> Function {
        let step = |s: Step<u64>| {
            let address = base.wrapping_add(s.kernel as usize);
            // SAFETY: the caller's promise.
            let kernel = unsafe { std::mem::transmute::<*const u8, KernelFn>(address) };
            Step {
                name: s.name,
                kernel,
                tiles: s.tiles,
                by_segment: s.by_segment,
                tile_ns: s.tile_ns,
                resumes: s.resumes,
                joins: s.joins,
                demand: s.demand,
            }
        };
        let variant = |v: Variant<u64>| Variant {
            rows: v.rows,
            arena_bytes: v.arena_bytes,
            scratch_bytes: v.scratch_bytes,
            steps: v.steps.into_iter().map(step).collect(),
        };
        let variants = self.variants.into_iter().map(variant).collect();
        Function { name: self.name, slots: self.slots, batches: self.batches, variants }
    }
}
