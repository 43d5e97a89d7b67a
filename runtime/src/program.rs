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

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

use crate::demand::Demand;
use crate::memory;

/// A kernel: computes tiles `tile_begin..tile_end` of its tile space.
///
/// `frame` is laid out as the `FRAME_*` constants say. `scratch` is this thread's own, at least the variant's
/// `scratch_bytes` long and 64-byte aligned. No allocation, no libc, no state, no unwinding.
///
/// Of a step that [`Step::resumes`], `tile_begin` may have [`RESUMED`] set: this thread ran the same launch's tiles
/// before, and its scratch is as they left it.
pub type KernelFn = unsafe extern "C" fn(frame: *const u64, tile_begin: u64, tile_end: u64, scratch: *mut u8);

/// Bit of `tile_begin`: see [`KernelFn`].
pub const RESUMED: u64 = 1 << 63;

/// Frame word: rows (tokens) of this call, `T`, of all sequences together.
pub const FRAME_ROWS: usize = 0;
/// Frame word: address of the call's [`Segment`]s, which are its sequences.
pub const FRAME_SEGMENTS: usize = 1;
/// Frame word: address of the arena (temporaries of one call, 64-byte aligned).
pub const FRAME_ARENA: usize = 2;
/// Frame word: address of [`Program::constants`].
pub const FRAME_CONSTANTS: usize = 3;
/// First of the slot words: word `FRAME_SLOTS + i` is the address of slot `i`; of a cache the distance in bytes from
/// its segment's [`Segment::kv`].
pub const FRAME_SLOTS: usize = 4;

/// The rows of one sequence in a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Its first row.
    pub first: u64,
    /// How many rows; they follow one another.
    pub rows: u64,
    /// Keys in its caches after these rows are appended, `S`; the first row's position is `keys - rows`.
    pub keys: u64,
    /// Address of its caches.
    pub kv: u64,
}

impl Segment {
    /// Bytes from one segment to the next.
    pub const BYTES: usize = size_of::<Segment>();
}

/// A compiled model.
pub struct Program {
    /// The functions; [`Plan`] says which is which by index.
    pub functions: Vec<Function>,
    /// Tables folded at compile time (inverse RoPE frequencies and such), 64-byte aligned parts.
    pub constants: Aligned,
    /// How the functions make up the model.
    pub plan: Plan,
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

/// A compiled model whose code is not in place: what the compiler makes and an artifact holds. Code is
/// position-independent and refers to nothing outside of itself.
#[derive(Clone, Debug)]
pub struct Image {
    /// The functions; steps enter `code` by offset.
    pub functions: Vec<Function<u64>>,
    /// See [`Program::constants`].
    pub constants: Vec<u8>,
    /// How the functions make up the model.
    pub plan: Plan,
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

/// Where weights come from: a mapped checkpoint, the built-in model, an artifact.
///
/// # Safety
/// The slices must stay where they are, unchanged, as long as the source lives: sessions keep their addresses.
pub unsafe trait WeightSource: Send + Sync {
    /// The bytes of the tensor of this name in the checkpoint, as stored.
    fn tensor(&self, name: &str) -> Option<&[u8]>;
}

/// Bytes on a 64-byte boundary, zeroed at first: by the system, so that pages never touched cost no physical memory.
pub struct Aligned {
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first byte: within the allocation, which has [`Aligned::BOUNDARY`] bytes to spare.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its allocation, nothing about it is tied to a thread.
unsafe impl Send for Aligned {}
// SAFETY: a shared one only reads.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// What the first byte's address is a multiple of.
    const BOUNDARY: usize = 64;

    /// `len` zero bytes.
    ///
    /// # Panics
    /// If there is no memory for them.
    pub fn zeroed(len: usize) -> Self {
        // SAFETY: as the caller says.
        let ask = |layout| unsafe { alloc_zeroed(layout) };
        Self::allocate(len, ask).unwrap_or_else(|| panic!("there is no memory for {len} bytes"))
    }

    /// `len` zero bytes, or nothing if there is no memory for them.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        // SAFETY: as the caller says.
        Self::allocate(len, |layout| memory::fallible(|| unsafe { alloc_zeroed(layout) }))
    }

    /// Zero bytes; `zeroed` is given a layout of a size that is not zero.
    fn allocate(len: usize, zeroed: impl FnOnce(Layout) -> *mut u8) -> Option<Self> {
        // Word-aligned with room to align by hand: for higher alignments the system allocator zeroes by writing.
        let layout = Layout::from_size_align(len.checked_add(Self::BOUNDARY)?, size_of::<u64>()).ok()?;
        let allocation = NonNull::new(zeroed(layout))?;
        let skip = allocation.as_ptr().align_offset(Self::BOUNDARY);
        // SAFETY: less than a boundary lies before the first multiple of it, which the allocation has to spare.
        let start = unsafe { allocation.add(skip.min(Self::BOUNDARY)) };
        Some(Self { allocation, layout, start, len })
    }

    /// A copy of `bytes`.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::try_from_bytes(bytes).unwrap_or_else(|| panic!("there is no memory for {} bytes", bytes.len()))
    }

    /// A copy of `bytes`, or nothing if there is no memory for it.
    pub(crate) fn try_from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut aligned = Self::try_zeroed(bytes.len())?;
        aligned.as_mut_slice().copy_from_slice(bytes);
        Some(aligned)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The address of the first byte, to write.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the allocation has `len` initialised bytes from the start, borrowed with self.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has `len` initialised bytes from the start, borrowed mutably with self.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}
