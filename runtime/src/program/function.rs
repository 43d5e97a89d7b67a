//! Functions: what their callers provide, and their kernels in order, once a row regime.

use serde::{Deserialize, Serialize};

use crate::demand::Demand;

use super::frame::{KernelFn, Segment};

/// A compiled function; `E` is what steps enter their kernels by.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function<E = KernelFn> {
    /// `embed`, `layer_local`, ...
    pub name: String,
    /// What the frame's slot words point to, in order.
    pub slots: Vec<Slot>,
    /// Whether a call may have several segments. Else its steps hold what belongs to one sequence where another's would
    /// go.
    pub batches: bool,
    /// One a row regime, by rising `rows`: the last is [`Phase::Prefill`]'s, those before it [`Phase::Decode`]'s.
    pub variants: Vec<Variant<E>>,
}

/// One operand that a function's caller provides.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// `x`, `pos`, `self_attn.q_proj.weight`, ...
    pub name: String,
    /// What it is.
    pub kind: SlotKind,
}

/// What a slot points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum SlotKind {
    /// Read: rows of this call, `bytes_per_row` each.
    Input {
        /// Bytes of one row (token).
        bytes_per_row: usize,
    },
    /// Written: `fixed_bytes`, or rows of this call, `bytes_per_row` each.
    Output {
        /// Bytes whatever the rows of the call.
        fixed_bytes: usize,
        /// Bytes of one row (token), on top.
        bytes_per_row: usize,
    },
    /// Read: a tensor of the checkpoint, as stored.
    Weight {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Read and written: key or value rows `(heads, rows, row_bytes)`, position `p` at row `p % rows`.
    Cache {
        /// KV heads.
        heads: usize,
        /// Rows held a head: the context, or window + chunk for a ring.
        rows: usize,
        /// Bytes of one head's row.
        row_bytes: usize,
        /// Whether old rows are overwritten (`rows` below the context): the window in tokens.
        window: Option<usize>,
    },
}

/// A function compiled for calls of up to `rows` rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant<E = KernelFn> {
    /// The most rows (tokens) of a call.
    pub rows: usize,
    /// Bytes of arena that a call needs.
    pub arena_bytes: usize,
    /// Bytes of scratch that each thread needs.
    pub scratch_bytes: usize,
    /// In order; each sees what those of earlier launches wrote.
    pub steps: Vec<Step<E>>,
}

impl<E> Variant<E> {
    /// The steps of each launch, in order.
    pub fn launches(&self) -> impl Iterator<Item = &[Step<E>]> {
        self.steps.chunk_by(|_, next| next.joins)
    }
}

/// One kernel over its tiles.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step<E = KernelFn> {
    /// The kernel's name, unique in its variant.
    pub name: String,
    /// Its entry point: a function, or, of code that is not in place yet, its offset in bytes.
    pub kernel: E,
    /// Its tile space.
    pub tiles: Tiles,
    /// Whether it works on one segment after the other, with tiles of each, and not on all rows of the call alike.
    pub by_segment: bool,
    /// Predicted time of one tile in nanoseconds: small launches stay on the calling thread.
    pub tile_ns: u32,
    /// Whether a thread's later calls in a launch need not make again what the first one left in scratch: see
    /// [`KernelFn`].
    pub resumes: bool,
    /// Whether it may run at the same time as the step before, and those that that one joins: it is launched with them.
    pub joins: bool,
    /// What a launch reads and computes: for reports, nothing depends on it.
    pub demand: Demand,
}

impl<E> Step<E> {
    /// The tiles of a call of `rows` rows in these segments.
    pub fn tiles(&self, rows: usize, segments: &[Segment]) -> u64 {
        match segments {
            [_, _, ..] if self.by_segment => segments.iter().map(|s| self.tiles.count(s.rows as usize)).sum(),
            _ => self.tiles.count(rows),
        }
    }
}

/// A tile space: `fixed * ceil(T / rows)` tiles, of the call's rows or of each segment's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiles {
    /// Tiles whatever the rows of the call.
    pub fixed: u32,
    /// Rows of one tile; 0: the tile space does not depend on the rows.
    pub rows: u32,
}

impl Tiles {
    /// The tiles of a call of `rows` rows.
    pub fn count(self, rows: usize) -> u64 {
        let groups = if self.rows == 0 { 1 } else { rows.div_ceil(self.rows as usize) };
        u64::from(self.fixed) * groups as u64
    }
}

/// What tokens are computed as. Within a phase a row's result depends on its own text alone; the two may differ in last
/// bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Text that is given: a prompt, were it of one token. By the last variant, whatever the rows.
    Prefill,
    /// Text that is made: a token that was chosen, or several that were drafted. By the variants before the last, if
    /// there are any.
    Decode,
}

impl<E> Function<E> {
    /// The index of the variant that serves `rows` rows of a phase.
    ///
    /// # Panics
    /// If there are more rows than [`Function::most_rows`].
    pub fn variant_for(&self, phase: Phase, rows: usize) -> usize {
        let index = match phase {
            Phase::Prefill => self.variants.len().checked_sub(1),
            Phase::Decode => self.of_decode().iter().position(|v| v.rows >= rows),
        };
        index.unwrap_or_else(|| unreachable!("{}: {rows} rows in one call; callers split", self.name))
    }

    /// The most rows of a call of a phase.
    pub fn most_rows(&self, phase: Phase) -> usize {
        let variant = match phase {
            Phase::Prefill => self.variants.last(),
            Phase::Decode => self.of_decode().last(),
        };
        variant.map_or(0, |v| v.rows)
    }

    fn of_decode(&self) -> &[Variant<E>] {
        &self.variants[..self.variants.len().saturating_sub(1).max(1).min(self.variants.len())]
    }

    /// The index of the smallest variant that serves `rows` rows.
    ///
    /// # Panics
    /// If `rows` is above the last variant's: callers split calls into chunks.
    pub fn variant_index(&self, rows: usize) -> usize {
        self.variants.iter().position(|v| v.rows >= rows).unwrap_or_else(|| {
            unreachable!("{}: {rows} rows in one call; callers split at the chunk", self.name)
        })
    }

    /// The smallest variant that serves `rows` rows.
    ///
    /// # Panics
    /// As [`Function::variant_index`].
    pub fn variant(&self, rows: usize) -> &Variant<E> {
        &self.variants[self.variant_index(rows)]
    }

    /// The index of the slot of this name.
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.name == name)
    }
}
