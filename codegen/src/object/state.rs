//! Where everything of an object lies in the memory that the caller provides, all of it fixed at compile time: of an
//! engine, and of each state, which is one sequence.
//!
//! In: a program's [`Layout`], its plan and the weights file. Out: offsets in bytes, and the template that `init` fills
//! frames from. Invariants: areas start at multiples of [`STATE_ALIGN`] and do not overlap; each frame word is the
//! address of at least the bytes that its slot declares.

use lapidary_runtime::layout::{self, Area, Cache, Layout, Word};
use lapidary_runtime::program::{FRAME_SEGMENTS, Phase, Plan, Segment};

use super::refuse;
use super::weights::WeightsFile;
use crate::Error;

/// Alignment of an engine, of a state and of their areas, in bytes.
pub const STATE_ALIGN: usize = 64;

/// Words at the start of an engine, by byte offset.
pub mod engine_word {
    /// [`super::READY`] once `init` has succeeded.
    pub const READY: i32 = 0;
    /// The caller's `parallel_for`, or 0.
    pub const PARALLEL_FOR: i32 = 8;
    /// What it is called with.
    pub const CONTEXT: i32 = 16;
    /// Segments of the call.
    pub const SEGMENTS: i32 = 24;
    /// What the call's rows are computed as: 1 prefill, 2 decode.
    pub const PHASE: i32 = 32;
}

/// Words at the start of a state, by byte offset.
pub mod word {
    /// [`super::OPEN`] once `open` has succeeded.
    pub const READY: i32 = 0;
    /// Address of its engine.
    pub const ENGINE: i32 = 8;
    /// Tokens held.
    pub const POSITION: i32 = 16;
    /// One past the highest position written since rings were last whole.
    pub const HIGH: i32 = 24;
    /// What the last row of the residual stream was computed as, [`super::engine_word::PHASE`]; 0: there is none to
    /// predict from.
    pub const PREDICTS: i32 = 32;
    /// Whether the logits are those of the last row.
    pub const LOGITS_VALID: i32 = 40;
    /// Whether the token is that of the last row.
    pub const TOKEN_VALID: i32 = 48;
    /// The most likely token after it, i32.
    pub const TOKEN: i32 = 56;
    /// Bytes of all of them, as of an engine's.
    pub const BYTES: usize = 64;
}

/// Says that an engine was initialised: "lapidary" in ASCII, little-endian.
pub const READY: u64 = u64::from_le_bytes(*b"lapidary");
/// Says that a state was opened.
pub const OPEN: u64 = u64::from_le_bytes(*b"sequence");

/// What a template's word is an offset from; the low two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Nothing: it is the word.
    Nothing,
    /// The engine.
    Engine,
    /// The weights file.
    Weights,
    /// The constants.
    Constants,
}

/// Bits of a template's word that say what it is an offset from.
pub const FROM_BITS: u32 = 2;

impl From {
    /// A template's word.
    pub fn word(self, offset: usize) -> u64 {
        (offset as u64) << FROM_BITS | self as u64
    }
}

/// A function to call, with its frame.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Index of the function.
    pub function: usize,
    /// Offset of its frame in the engine, in bytes.
    pub frame: usize,
}

/// [`engine_word::PHASE`] of a phase.
pub fn number(phase: Phase) -> i64 {
    match phase {
        Phase::Prefill => 1,
        Phase::Decode => 2,
    }
}

/// A head, whose rows are a state's.
#[derive(Clone, Copy, Debug)]
pub struct HeadCall {
    /// What is called.
    pub call: Call,
    /// Offset of the frame's word of what it reads, in the engine, in bytes.
    pub reads: usize,
    /// The same of what it writes.
    pub writes: usize,
}

/// A kind of sliding-window cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ring {
    /// Rows held.
    pub rows: usize,
    /// Rows that a query reads.
    pub window: usize,
}

/// What an engine has whatever its program: offsets in it in bytes, and lengths.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Segments of a call.
    pub segments: usize,
    /// The calling thread's scratch.
    pub scratch: usize,
    /// Bytes of scratch a thread.
    pub scratch_bytes: usize,
    /// Temporaries.
    pub arena: usize,
    /// Their bytes.
    pub arena_bytes: usize,
    /// First frame; the others follow.
    pub frames: usize,
    /// One word a frame word: `offset << FROM_BITS | from`.
    pub template: Vec<u64>,
    /// Bytes of an engine.
    pub bytes: usize,
}

/// Offsets in bytes, and lengths.
#[derive(Clone, Debug)]
pub struct Places {
    /// What any engine has.
    pub engine: Engine,
    /// Engine: i32 (chunk).
    pub ids: usize,
    /// Engine: i32 (chunk).
    pub positions: usize,
    /// Engine: f32 (chunk, hidden), before even and before odd layers.
    pub residual: [usize; 2],
    /// Engine: the one that the last layer writes.
    pub residual_out: usize,
    /// Embedding, then the layers.
    pub body: Vec<Call>,
    /// Logits.
    pub head: HeadCall,
    /// Most likely token.
    pub head_argmax: HeadCall,
    /// State: the last row of the residual stream, f32 (hidden).
    pub last: usize,
    /// State: f32 (vocab).
    pub logits: usize,
    /// State: its caches.
    pub kv: usize,
    /// Bytes of them.
    pub kv_bytes: usize,
    /// The kinds of sliding-window caches there are.
    pub rings: Vec<Ring>,
    /// Bytes of a state.
    pub state_bytes: usize,
    /// The most rows of a call that decodes.
    pub decode_rows: usize,
}

/// Offsets handed out one after the other.
pub(super) struct Areas {
    end: usize,
}

impl Areas {
    /// Behind the words at the start.
    pub(super) fn new() -> Areas {
        Areas { end: word::BYTES }
    }

    /// Bytes so far.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<usize, Error> {
        let at = self.end;
        let bytes = bytes.checked_next_multiple_of(STATE_ALIGN);
        let end = bytes.and_then(|b| at.checked_add(b)).filter(|&end| end < 1 << 46);
        self.end = end.ok_or_else(|| refuse("the memory is larger than 64 TiB"))?;
        Ok(at)
    }
}

impl Places {
    /// Lays engine and state out.
    ///
    /// # Errors
    /// [`Error::Object`] for a size beyond any memory.
    pub fn new(layout: &Layout, plan: &Plan, weights: &WeightsFile) -> Result<Places, Error> {
        let calls: Vec<&layout::Call> =
            layout.body.iter().chain([&layout.head, &layout.head_argmax]).collect();
        let mut engine = Areas::new();
        let mut area = |area: Area| engine.take(Layout::area_bytes(area, plan, 1));
        let (ids, positions) = (area(Area::Ids)?, area(Area::Positions)?);
        let residual = [area(Area::Even)?, area(Area::Odd)?];
        let segments = engine.take(plan.chunk * Segment::BYTES)?;
        let scratch_bytes = layout.scratch_bytes.max(STATE_ALIGN);
        let scratch = engine.take(scratch_bytes)?;
        let arena = engine.take(layout.arena_bytes)?;
        let words: usize = calls.iter().map(|call| call.words.len()).sum();
        let frames = engine.take(words * size_of::<u64>())?;

        let of_area = |area: Area| match area {
            Area::Ids => ids,
            Area::Positions => positions,
            Area::Even => residual[0],
            Area::Odd => residual[1],
            // A state's: set for each call.
            Area::Picked | Area::Logits | Area::Tokens => 0,
        };
        let mut template = Vec::with_capacity(words);
        let mut placed = vec![];
        for call in calls {
            placed.push(Call { function: call.function, frame: frames + template.len() * size_of::<u64>() });
            for (index, word) in call.words.iter().enumerate() {
                let (from, offset) = match *word {
                    Word::Call if index == FRAME_SEGMENTS => (From::Engine, segments),
                    Word::Call => (From::Nothing, 0),
                    Word::Arena => (From::Engine, arena),
                    Word::Constants => (From::Constants, 0),
                    Word::Area(area) => (From::Engine, of_area(area)),
                    Word::Weight(index) => (From::Weights, weights.tensors[index].offset),
                    Word::Cache(index) => (From::Nothing, layout.caches[index].offset),
                };
                template.push(from.word(offset));
            }
        }
        let head = |call: Call, words: &[Word], to: Area| {
            let word = |area: Area| {
                let index = words.iter().position(|word| *word == Word::Area(area)).unwrap_or(0);
                call.frame + index * size_of::<u64>()
            };
            HeadCall { call, reads: word(Area::Picked), writes: word(to) }
        };
        let (argmax, logits) = (placed.pop(), placed.pop());
        let (Some(argmax), Some(logits)) = (argmax, logits) else { unreachable!("both heads were placed") };
        let head_argmax = head(argmax, &layout.head_argmax.words, Area::Tokens);
        let head = head(logits, &layout.head.words, Area::Logits);

        let mut state = Areas::new();
        let last = state.take(Area::Picked.row_bytes(plan))?;
        let logits = state.take(Area::Logits.row_bytes(plan))?;
        let kv = state.take(layout.kv_bytes)?;
        let ring = |cache: &Cache| cache.window.map(|window| Ring { rows: cache.rows, window });
        let mut rings: Vec<Ring> = layout.caches.iter().filter_map(ring).collect();
        rings.sort_unstable();
        rings.dedup();
        Ok(Places {
            ids,
            positions,
            residual,
            residual_out: of_area(layout.last),
            engine: Engine {
                segments,
                scratch,
                scratch_bytes,
                arena,
                arena_bytes: layout.arena_bytes,
                frames,
                template,
                bytes: engine.end,
            },
            body: placed,
            head,
            head_argmax,
            last,
            logits,
            kv,
            kv_bytes: layout.kv_bytes,
            rings,
            state_bytes: state.end,
            decode_rows: layout.most_rows(Phase::Decode),
        })
    }
}
