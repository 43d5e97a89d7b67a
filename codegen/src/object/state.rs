//! The state of an object: where everything lies in the memory that the caller provides, all of it fixed at compile time.
//!
//! In: an image and the layout of its weights. Out: offsets in bytes, and the template that `init` fills frames from. It is
//! what `runtime::Session` allocates, in one piece. Invariants: areas start at multiples of [`STATE_ALIGN`] and do not overlap;
//! each frame word is the address of at least the bytes that its slot declares.

use lapidary_runtime::program::{FRAME_ARENA, FRAME_CONSTANTS, FRAME_SLOTS, Image, Slot, SlotKind};

use super::refuse;
use super::weights::WeightsFile;
use crate::Error;

/// Alignment of the state and of its areas, in bytes.
pub const STATE_ALIGN: usize = 64;

/// Words at the start of the state, by byte offset.
pub mod word {
    /// [`super::READY`] once `init` has succeeded.
    pub const READY: i32 = 0;
    /// Tokens held.
    pub const POSITION: i32 = 8;
    /// One past the highest position written since the state was last empty.
    pub const HIGH: i32 = 16;
    /// The caller's `parallel_for`, or 0.
    pub const PARALLEL_FOR: i32 = 24;
    /// What it is called with.
    pub const CONTEXT: i32 = 32;
    /// Address of the last row of the residual stream; 0: there is none to predict from.
    pub const LAST: i32 = 40;
    /// Whether the logits are those of the last row.
    pub const LOGITS_VALID: i32 = 48;
    /// Whether the token is that of the last row.
    pub const TOKEN_VALID: i32 = 56;
    /// Bytes of all of them.
    pub const BYTES: usize = 64;
}

/// Says that a state was initialised: "lapidary" in ASCII, little-endian.
pub const READY: u64 = u64::from_le_bytes(*b"lapidary");

/// What a template's word is an offset from; the low two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Nothing: the word is 0.
    Nothing,
    /// The state.
    State,
    /// The weights file.
    Weights,
    /// The constants.
    Constants,
}

/// Bits of a template's word that say what it is an offset from.
pub const FROM_BITS: u32 = 2;

/// A function to call, with its frame.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Index of the function.
    pub function: usize,
    /// Offset of its frame in bytes.
    pub frame: usize,
    /// Offset of the frame's word of slot `x` in bytes, for functions that have it.
    pub x: usize,
}

/// An old row that a ring still needs: see [`State::rings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ring {
    /// Rows held.
    pub rows: usize,
    /// Rows that a query reads.
    pub window: usize,
}

/// Offsets in bytes.
#[derive(Clone, Debug)]
pub struct State {
    /// i32 (chunk).
    pub ids: usize,
    /// i32 (chunk).
    pub pos: usize,
    /// f32 (chunk, hidden), twice.
    pub residual: [usize; 2],
    /// f32 (vocab).
    pub logits: usize,
    /// i32.
    pub token: usize,
    /// The calling thread's scratch.
    pub scratch: usize,
    /// Bytes of scratch a thread.
    pub scratch_bytes: usize,
    /// First frame; the others follow.
    pub frames: usize,
    /// Embedding, then the layers.
    pub body: Vec<Call>,
    /// Logits of the last row.
    pub head: Call,
    /// Most likely token of the last row.
    pub head_argmax: Call,
    /// One word a frame word: `offset << FROM_BITS | from`.
    pub template: Vec<u64>,
    /// The kinds of sliding-window caches there are.
    pub rings: Vec<Ring>,
    /// Bytes of caches.
    pub cache_bytes: usize,
    /// Bytes of temporaries.
    pub arena_bytes: usize,
    /// Bytes of the whole.
    pub bytes: usize,
}

/// Offsets handed out one after the other.
struct Areas {
    end: usize,
}

impl Areas {
    fn take(&mut self, bytes: usize) -> Result<usize, Error> {
        let at = self.end;
        let bytes = bytes.checked_next_multiple_of(STATE_ALIGN);
        let end = bytes.and_then(|b| at.checked_add(b)).filter(|&end| end < 1 << 46);
        self.end = end.ok_or_else(|| refuse("the state is larger than 64 TiB"))?;
        Ok(at)
    }
}

impl State {
    /// Lays the state out.
    ///
    /// # Errors
    /// [`Error::Object`] for a slot that nothing fills, or a size beyond any memory.
    pub fn new(image: &Image, weights: &WeightsFile) -> Result<State, Error> {
        let plan = &image.plan;
        let word = size_of::<f32>();
        let layers = plan.layers.iter().map(|l| (l.function, l.prefix.as_str()));
        let called: Vec<(usize, &str)> = std::iter::once((plan.embed, ""))
            .chain(layers)
            .chain([(plan.head, ""), (plan.head_argmax, "")])
            .collect();
        let variants = || called.iter().flat_map(|&(f, _)| &image.functions[f].variants);
        let mut areas = Areas { end: word::BYTES };
        let (ids, pos) = (areas.take(plan.chunk * word)?, areas.take(plan.chunk * word)?);
        let row = plan.hidden * word;
        let residual = [areas.take(plan.chunk * row)?, areas.take(plan.chunk * row)?];
        let (logits, token) = (areas.take(plan.vocab * word)?, areas.take(word)?);
        let scratch_bytes = variants().map(|v| v.scratch_bytes).max().unwrap_or(0).max(STATE_ALIGN);
        let scratch = areas.take(scratch_bytes)?;
        let arena_bytes = variants().map(|v| v.arena_bytes).max().unwrap_or(0);
        let arena = areas.take(arena_bytes)?;
        let words: usize = called.iter().map(|&(f, _)| FRAME_SLOTS + image.functions[f].slots.len()).sum();
        let frames = areas.take(words * size_of::<u64>())?;
        let mut state = State {
            ids,
            pos,
            residual,
            logits,
            token,
            scratch,
            scratch_bytes,
            frames,
            body: vec![],
            head: Call { function: plan.head, frame: 0, x: 0 },
            head_argmax: Call { function: plan.head_argmax, frame: 0, x: 0 },
            template: Vec::with_capacity(words),
            rings: vec![],
            cache_bytes: 0,
            arena_bytes,
            bytes: 0,
        };
        let mut calls = vec![];
        let caches = areas.end;
        for (index, &(function, prefix)) in called.iter().enumerate() {
            let slots = &image.functions[function].slots;
            let frame = frames + state.template.len() * size_of::<u64>();
            let mut own: Vec<(&str, usize)> = vec![];
            let mut template = vec![template_word(From::Nothing, 0); FRAME_SLOTS];
            template[FRAME_ARENA] = template_word(From::State, arena);
            template[FRAME_CONSTANTS] = template_word(From::Constants, 0);
            for slot in slots {
                let name = slot.name.as_str();
                template.push(match slot.kind {
                    SlotKind::Input { .. } | SlotKind::Output { .. } => {
                        // The embedding writes the even buffer, each layer the one that it does not read, as heads read
                        // what the last layer wrote.
                        let reads = match index {
                            0 => 1,
                            i => (i - 1).min(plan.layers.len()) % 2,
                        };
                        template_word(From::State, state.activation(slot, reads)?)
                    }
                    SlotKind::Weight { .. } => {
                        let name = format!("{prefix}{name}");
                        let at = weights.offset(&name);
                        template_word(From::Weights, at.ok_or_else(|| refuse(format!("no weight `{name}`")))?)
                    }
                    SlotKind::Cache { heads, rows, row_bytes, window } => {
                        // A function may have a cache in two slots, as what it reads and as what it writes.
                        let known = own.iter().find(|(known, _)| *known == name).map(|&(_, at)| at);
                        let at = match known {
                            Some(at) => at,
                            None => {
                                let bytes = heads.checked_mul(rows).and_then(|n| n.checked_mul(row_bytes));
                                let at =
                                    areas.take(bytes.ok_or_else(|| refuse("a cache beyond any memory"))?)?;
                                own.push((name, at));
                                state.rings.extend(window.map(|window| Ring { rows, window }));
                                at
                            }
                        };
                        template_word(From::State, at)
                    }
                });
            }
            state.template.extend(template);
            let x = slots.iter().position(|s| s.name == "x").unwrap_or(0);
            calls.push(Call { function, frame, x: frame + (FRAME_SLOTS + x) * size_of::<u64>() });
        }
        state.rings.sort_unstable();
        state.rings.dedup();
        state.cache_bytes = areas.end - caches;
        state.bytes = areas.end;
        if let (Some(argmax), Some(head)) = (calls.pop(), calls.pop()) {
            (state.head, state.head_argmax) = (head, argmax);
        }
        state.body = calls;
        Ok(state)
    }

    /// Where the residual stream is after the last layer.
    pub fn residual_out(&self) -> usize {
        self.residual[(self.body.len() - 1) % 2]
    }

    fn activation(&self, slot: &Slot, reads: usize) -> Result<usize, Error> {
        Ok(match slot.name.as_str() {
            "ids" => self.ids,
            "pos" => self.pos,
            "x" => self.residual[reads],
            "y" => self.residual[1 - reads],
            "token" => self.token,
            "logits" => self.logits,
            other => return Err(refuse(format!("nothing fills the slot `{other}`"))),
        })
    }
}

fn template_word(from: From, offset: usize) -> u64 {
    (offset as u64) << FROM_BITS | from as u64
}
