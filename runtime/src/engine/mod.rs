//! The engine: a compiled model with its weights, threads and buffers, that steps any number of sequences.
//!
//! In: a program, a weight source, and for each step some [`Work`]. Out: the sequences, advanced, and what was wanted
//! of them. Rows of all sequences make one call, of up to a chunk's rows: kernels that treat rows alike run once over
//! all of them, those that touch caches in one launch over a table of segments. Everything is allocated by
//! [`Engine::new`] and [`Engine::sequence`] (room for more logits or tokens than before on first use); afterwards a
//! token costs no allocation. Frames are filled once, from the program's [`Layout`]; a call changes their leading
//! words.

#![warn(clippy::wildcard_enum_match_arm)]

pub(crate) mod call;
mod empty;
mod guessed;
mod step;
mod work;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, room};
use crate::file::{Residence, map, residence};
use crate::kv::{Ledger, touched};
use crate::layout::{Area, Call, HEAD_ROWS, Layout, Weight, Word};
use crate::pool::Pool;
use crate::program::{Aligned, Plan, Program, Segment, WeightSource};
use crate::sequence::Sequence;

pub use call::Profile;
pub use guessed::Prediction;
pub use work::{Outputs, Want, Work};

pub(crate) use empty::Empty;

use call::{Caller, Frame};
use empty::check;
use step::{Head, Part};
use work::Output;

/// Where an engine's memory goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights that the program reads, each tensor once. They are the weight source's.
    pub weights: usize,
    /// Of them, those in mapped files.
    pub weights_mapped: usize,
    /// A sequence's caches that hold a sliding window.
    pub kv_local: usize,
    /// A sequence's caches that hold the whole context. Only rows in use cost physical memory.
    pub kv_global: usize,
    /// Temporaries of one call.
    pub arena: usize,
    /// Scratch of all threads.
    pub scratch: usize,
    /// The residual stream, inputs and logits.
    pub activations: usize,
}

impl Memory {
    /// All of it, with one sequence.
    pub fn total(&self) -> usize {
        let own = self.kv_local + self.kv_global + self.arena + self.scratch + self.activations;
        self.weights + own
    }
}

/// When weights come to lie where they stay ([`Residence`]).
#[derive(Clone, Copy)]
enum Settling {
    /// After a step: whoever waits for the first token does not wait for them, and that has read them from the disk.
    AfterStep,
    /// With the next step.
    Now,
    /// They have; some are mapped, or none.
    Done { mapped: bool },
}

/// See the module's documentation.
pub struct Engine {
    /// Embedding, then the layers.
    body: Vec<Frame>,
    head: Frame,
    head_argmax: Frame,
    /// By [`Area`]'s order.
    areas: [Aligned; Area::ALL.len()],
    arena: Aligned,
    caller: Caller,
    segments: Vec<Segment>,
    parts: Vec<Part>,
    outputs: Vec<Output>,
    /// The most likely tokens that were wanted.
    tokens: Vec<u32>,
    /// Where each weight lies, each once.
    weight_spans: Vec<Range<usize>>,
    settling: Settling,
    layout: Arc<Layout>,
    ledger: Arc<Ledger>,
    // Frames hold addresses in these, and in the program.
    weights: Arc<dyn WeightSource>,
}

impl Engine {
    /// An engine of `threads` threads, the caller's included (0 is taken as 1).
    ///
    /// # Errors
    /// A program whose slots do not fit its plan, a weight that is missing or of another length, memory or threads that
    /// cannot be had.
    pub fn new(program: Arc<Program>, weights: Arc<dyn WeightSource>, threads: usize) -> Result<Self, Error> {
        let plan = &program.plan;
        let layout = Arc::new(Layout::new(&program.functions, plan)?);
        let allocate = |what: &str, bytes: usize| {
            Aligned::try_zeroed(bytes).ok_or_else(|| Error::Memory { what: what.into(), bytes })
        };
        let mut areas: [Aligned; Area::ALL.len()] = std::array::from_fn(|_| Aligned::zeroed(0));
        for area in Area::ALL {
            // Most ask for one row of logits at a time.
            let bytes = Layout::area_bytes(area, plan, if area == Area::Logits { 1 } else { HEAD_ROWS });
            areas[area as usize] = allocate(area.name(), bytes)?;
        }
        let mut arena = allocate("temporaries", layout.arena_bytes)?;
        let pool = Pool::new(threads, layout.scratch_bytes)?;

        let mut tensors = Vec::with_capacity(layout.weights.len());
        for weight in &layout.weights {
            let (tensor, expected) = (weight.tensor.clone(), weight.bytes);
            match weights.tensor(&tensor) {
                None => return Err(Error::MissingWeight { tensor, expected }),
                Some(bytes) if bytes.len() != expected => {
                    return Err(Error::WeightLength { tensor, expected, found: bytes.len() });
                }
                Some(bytes) => tensors.push(bytes.as_ptr().expose_provenance() as u64),
            }
        }
        let arena_at = address(&mut arena);
        let constants = program.constants.as_ptr().expose_provenance() as u64;
        let mut frame = |call: &Call| {
            let mut rows = vec![];
            let words = call.words.iter().enumerate().map(|(index, &word)| match word {
                Word::Call => 0,
                Word::Arena => arena_at,
                Word::Constants => constants,
                Word::Weight(weight) => tensors[weight],
                Word::Cache(cache) => layout.caches[cache].offset as u64,
                Word::Area(area) => {
                    let first = address(&mut areas[area as usize]);
                    rows.push((index, area.row_bytes(plan) as u64));
                    first
                }
            });
            let words = words.collect();
            Frame { function: call.function, words, rows }
        };
        let body = layout.body.iter().map(&mut frame).collect();
        let (head, head_argmax) = (frame(&layout.head), frame(&layout.head_argmax));
        let span = |(&at, weight): (&u64, &Weight)| at as usize..at as usize + weight.bytes;
        let mut weight_spans: Vec<Range<usize>> = tensors.iter().zip(&layout.weights).map(span).collect();
        weight_spans.sort_unstable_by_key(|span| (span.start, span.end));
        weight_spans.dedup();
        Ok(Self {
            body,
            head,
            head_argmax,
            areas,
            arena,
            segments: room("the segments of a call", plan.chunk)?,
            parts: room("the parts of a call", plan.chunk)?,
            outputs: Vec::with_capacity(HEAD_ROWS),
            tokens: Vec::with_capacity(HEAD_ROWS),
            weight_spans,
            settling: Settling::AfterStep,
            layout,
            ledger: Arc::new(Ledger::new()),
            caller: Caller { pool, profile: None, program },
            weights,
        })
    }

    /// Says where weights lie that are in files [default: [`Residence::Auto`]].
    ///
    /// # Errors
    /// [`Error::Memory`] if it is not had.
    pub fn with_residence(mut self, residence: Residence) -> Result<Self, Error> {
        self.settling = match residence {
            Residence::Auto => Settling::AfterStep,
            Residence::Mapped => Settling::Done { mapped: true },
            Residence::Memory => {
                let mapped = residence::reside(&self.weight_spans, residence, self.threads())?;
                Settling::Done { mapped }
            }
        };
        Ok(self)
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no address space for a context.
    pub fn sequence(&self) -> Result<Sequence, Error> {
        self.empty().sequence()
    }

    /// What its sequences are made of.
    pub(crate) fn empty(&self) -> Empty {
        Empty::new(&self.layout, &self.ledger, self.program())
    }

    /// Appends tokens to sequences, and computes what is wanted of them. Either all of it can be done, or nothing
    /// changes.
    ///
    /// # Errors
    /// Tokens that the model does not have or that do not fit a context, sequences of another engine, memory that
    /// cannot be had or may not be used.
    pub fn step(&mut self, works: &mut [Work<'_>]) -> Result<Outputs<'_>, Error> {
        self.admit(works)?;
        let rows = self.place(works);
        self.reserve(rows)?;
        self.advance(works, None);
        Ok(Outputs { engine: self })
    }

    /// The same, but rows of logits are given to `sink(work, index of the token, logits)` as they are made, each work's
    /// in order; no more than a few are held at once. What is given out has the tokens that were wanted, and no logits.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_each(
        &mut self,
        works: &mut [Work<'_>],
        sink: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<Outputs<'_>, Error> {
        self.admit(works)?;
        let rows = self.place(works);
        self.reserve(rows.min(HEAD_ROWS))?;
        self.advance(works, Some(sink));
        Ok(Outputs { engine: self })
    }

    /// The logits after a sequence's last token; valid until the next step.
    ///
    /// # Panics
    /// If [`Sequence::has_prediction`] is false.
    pub fn logits(&mut self, sequence: &Sequence) -> &[f32] {
        self.predict_from(sequence, Head::Logits);
        self.known_logits()
    }

    /// The most likely token after a sequence's last one, the lowest id among equals.
    ///
    /// # Panics
    /// If [`Sequence::has_prediction`] is false.
    pub fn argmax(&mut self, sequence: &Sequence) -> u32 {
        self.predict_from(sequence, Head::Tokens);
        self.token(0)
    }

    /// The program that it runs.
    pub fn program(&self) -> &Arc<Program> {
        &self.caller.program
    }

    /// The threads that it runs on, the caller's included.
    pub fn threads(&self) -> usize {
        self.caller.pool.threads()
    }

    /// Bytes that the caches of its sequences take together, in whole pages.
    pub fn kv_bytes(&self) -> usize {
        self.ledger.used()
    }

    /// Bytes that the caches of a sequence of so many tokens take, in whole pages.
    pub fn kv_bytes_of(&self, tokens: usize) -> usize {
        touched(&self.layout, tokens.min(self.plan().context))
    }

    /// The most bytes that they may take: steps beyond are refused.
    pub fn limit_kv(&mut self, bytes: usize) {
        self.ledger.set_most(bytes);
    }

    /// Times every launch from here on; a launch more or less costs a clock's reading.
    pub fn start_profile(&mut self) {
        self.caller.start_profile();
    }

    /// The times since [`Engine::start_profile`]; launches are no longer timed.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.caller.profile.take()
    }

    /// Where the memory goes, with one sequence.
    pub fn memory(&self) -> Memory {
        let caches = &self.layout.caches;
        let kv =
            |ring| caches.iter().filter(|c| c.window.is_some() == ring).map(|c| c.bytes()).sum::<usize>();
        let spans = self.weight_spans.iter();
        Memory {
            weights: spans.clone().map(Range::len).sum(),
            weights_mapped: match self.settling {
                Settling::Done { mapped: false } => 0,
                Settling::AfterStep | Settling::Now | Settling::Done { mapped: true } => {
                    spans.filter(|span| map::holds(span.start)).map(Range::len).sum()
                }
            },
            kv_local: kv(true),
            kv_global: kv(false),
            arena: self.arena.len(),
            scratch: self.caller.pool.scratch_bytes(),
            activations: self.areas.iter().map(Aligned::len).sum(),
        }
    }

    /// The tensors that the program reads, each with its bytes.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&Weight, &[u8])> {
        self.layout.weights.iter().filter_map(|weight| Some((weight, self.weights.tensor(&weight.tensor)?)))
    }

    /// Sees to where weights lie, once a step has read them: what cannot be moved stays where it is.
    fn settle_weights(&mut self) {
        self.settling = match self.settling {
            Settling::AfterStep => Settling::Now,
            Settling::Now => {
                let reside = residence::reside(&self.weight_spans, Residence::Auto, self.threads());
                Settling::Done { mapped: reside.unwrap_or(true) }
            }
            done @ Settling::Done { .. } => done,
        };
    }

    fn area(&self, area: Area) -> &[u8] {
        self.areas[area as usize].as_slice()
    }

    /// The token of a picked row.
    fn token(&self, row: usize) -> u32 {
        let word = &self.area(Area::Tokens)[row * size_of::<u32>()..];
        word.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
    }

    /// The logits that [`Engine::logits`] gave last, if nothing else was asked for since.
    pub(crate) fn known_logits(&self) -> &[f32] {
        &floats(self.area(Area::Logits))[..self.plan().vocab]
    }

    /// Whether tokens can be appended to a sequence, as far as they and the context go.
    ///
    /// # Errors
    /// [`Error::OtherEngine`], [`Error::ContextExceeded`], [`Error::TokenRange`].
    pub fn check(&self, sequence: &Sequence, tokens: &[u32]) -> Result<(), Error> {
        check(&self.layout, self.plan().vocab, sequence, tokens)
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn plan(&self) -> &Plan {
        &self.caller.program.plan
    }
}

/// The address of a buffer, for a frame.
fn address(buffer: &mut Aligned) -> u64 {
    buffer.as_mut_ptr().expose_provenance() as u64
}

/// Bytes of an area of f32.
fn floats(bytes: &[u8]) -> &[f32] {
    // SAFETY: areas are 64-byte aligned and rows whole words; initialised, borrowed with the bytes; any bits are an
    // f32.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<f32>(), bytes.len() / size_of::<f32>()) }
}
