//! The engine: a compiled model with its weights, threads and buffers, that steps any number of sequences.
//!
//! In: a program, a weight source, and for each step some [`Work`]. Out: the sequences, advanced, and what was wanted
//! of them. Rows of all sequences make one call, of up to a chunk's rows: kernels that treat rows alike run once over
//! all of them, those that touch caches in one launch over a table of segments. Everything is allocated by
//! [`Engine::new`] and [`Engine::sequence`] (room for more logits than before on first use); afterwards a token costs
//! no allocation. Frames are filled once, from the program's [`Layout`]; a call changes their leading words.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, room};
use crate::kv::{Kv, Ledger};
use crate::layout::{Area, Call, HEAD_ROWS, Layout, Weight, Word};
use crate::pool::Pool;
use crate::program::{Aligned, FRAME_ROWS, FRAME_SEGMENTS, Phase, Plan, Program, Segment, WeightSource};
use crate::sequence::Sequence;

/// Where an engine's memory goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights that the program reads, each tensor once. They are the weight source's (mapped, mostly).
    pub weights: usize,
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

/// Times of an engine's launches, by function, variant and step: see [`Engine::start_profile`].
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// `[function][variant][step]`: launches, and their wall time together.
    pub steps: Vec<Vec<Vec<(u64, Duration)>>>,
}

/// What is wanted of the tokens of some work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// That the caches hold them.
    Nothing,
    /// The logits after the last.
    Logits,
    /// The logits after each.
    AllLogits,
    /// The most likely token after the last, the lowest id among equals.
    Argmax,
}

/// Tokens to append to a sequence.
pub struct Work<'a> {
    /// The sequence, of this engine.
    pub sequence: &'a mut Sequence,
    /// At least one if anything is wanted.
    pub tokens: &'a [u32],
    /// What they are computed as.
    pub phase: Phase,
    /// What is wanted of them.
    pub want: Want,
}

impl Work<'_> {
    /// Rows of logits that are wanted.
    fn logits(&self) -> usize {
        match self.want {
            Want::Nothing | Want::Argmax => 0,
            Want::Logits => 1,
            Want::AllLogits => self.tokens.len(),
        }
    }
}

/// What came of a step's work, by its index; valid until the next.
pub struct Outputs<'a> {
    engine: &'a Engine,
}

impl Outputs<'_> {
    /// The logits that were wanted, `(rows, vocab)`.
    ///
    /// # Panics
    /// If there was no such work.
    pub fn logits(&self, work: usize) -> &[f32] {
        let Output { first, rows, .. } = self.engine.outputs[work];
        let vocab = self.engine.plan().vocab;
        &floats(&self.engine.area(Area::Logits)[first * vocab * size_of::<f32>()..])[..rows * vocab]
    }

    /// The token that was wanted.
    ///
    /// # Panics
    /// If there was no such work.
    pub fn token(&self, work: usize) -> u32 {
        self.engine.outputs[work].token
    }
}

/// What is given rows of logits as they are made: the work's index, the token's, and the row.
type Sink<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);

#[derive(Clone, Copy)]
struct Output {
    /// First row of logits, and how many.
    first: usize,
    rows: usize,
    token: u32,
}

/// A work's share of a call: its segment has the same index.
#[derive(Clone, Copy)]
struct Part {
    work: usize,
    /// Tokens of the work before this call.
    before: usize,
}

/// A frame with its addresses.
struct Frame {
    function: usize,
    words: Vec<u64>,
    /// Words of slots that hold rows, and bytes from one row to the next.
    rows: Vec<(usize, u64)>,
}

/// Which head.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    Logits,
    Tokens,
}

/// Rows that a head is about to be called with.
struct Picked {
    /// The work and the token's index of each.
    rows: [(usize, usize); HEAD_ROWS],
    count: usize,
    /// Where the first one's logits go.
    first: usize,
}

/// What calls functions.
struct Caller {
    pool: Pool,
    profile: Option<Profile>,
    program: Arc<Program>,
}

impl Caller {
    /// Calls a function on a frame whose slots hold `rows` rows in `segments`.
    fn call(&mut self, frame: &mut Frame, phase: Phase, rows: usize, segments: &[Segment]) {
        if segments.len() <= 1 || self.program.functions[frame.function].batches {
            return self.launch(frame, phase, rows, segments);
        }
        for segment in segments {
            let of_segment = |(word, row): (usize, u64)| (word, segment.first * row);
            for (word, bytes) in frame.rows.iter().copied().map(of_segment) {
                frame.words[word] += bytes;
            }
            self.launch(frame, phase, segment.rows as usize, &[Segment { first: 0, ..*segment }]);
            for (word, bytes) in frame.rows.iter().copied().map(of_segment) {
                frame.words[word] -= bytes;
            }
        }
    }

    /// Launches a function's steps, in order.
    fn launch(&mut self, frame: &mut Frame, phase: Phase, rows: usize, segments: &[Segment]) {
        frame.words[FRAME_ROWS] = rows as u64;
        frame.words[FRAME_SEGMENTS] = segments.as_ptr().expose_provenance() as u64;
        let function = &self.program.functions[frame.function];
        let variant = function.variant_for(phase, rows);
        // What is profiled is launched by itself.
        let alone = self.profile.is_some();
        let mut index = 0;
        for steps in function.variants[variant].steps.chunk_by(|_, next| next.joins && !alone) {
            let start = self.profile.as_ref().map(|_| Instant::now());
            // SAFETY: the frame's addresses are of memory of the lengths that the layout declares, for `rows` rows and
            // the segments' keys, owned by the engine, its program, its weights and the sequences that it was lent, and
            // untouched by anyone else meanwhile; arena and scratch are the largest that any variant asks for.
            unsafe { self.pool.launch(steps, frame.words.as_ptr(), rows, segments) };
            if let (Some(profile), Some(start)) = (self.profile.as_mut(), start) {
                let (launches, time) = &mut profile.steps[frame.function][variant][index];
                *launches += 1;
                *time += start.elapsed();
            }
            index += steps.len();
        }
    }
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
    weight_bytes: usize,
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
        let mut seen: Vec<(u64, usize)> =
            tensors.iter().copied().zip(layout.weights.iter().map(|w| w.bytes)).collect();
        seen.sort_unstable();
        seen.dedup();
        Ok(Self {
            body,
            head,
            head_argmax,
            areas,
            arena,
            segments: room("the segments of a call", plan.chunk)?,
            parts: room("the parts of a call", plan.chunk)?,
            outputs: Vec::with_capacity(HEAD_ROWS),
            weight_bytes: seen.iter().map(|&(_, bytes)| bytes).sum(),
            layout,
            ledger: Arc::new(Ledger::new()),
            caller: Caller { pool, profile: None, program },
            weights,
        })
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no address space for a context.
    pub fn sequence(&self) -> Result<Sequence, Error> {
        let kv = Kv::new(self.layout.clone(), self.ledger.clone())?;
        Sequence::new(kv, self.plan())
    }

    /// Appends tokens to sequences, and computes what is wanted of them. Either all of it can be done, or nothing
    /// changes.
    ///
    /// # Errors
    /// Tokens that the model does not have or that do not fit a context, sequences of another engine, memory that
    /// cannot be had or may not be used.
    pub fn step(&mut self, works: &mut [Work<'_>]) -> Result<Outputs<'_>, Error> {
        self.admit(works)?;
        self.outputs.clear();
        let mut first = 0;
        for work in &*works {
            let rows = work.logits();
            self.outputs.push(Output { first, rows, token: 0 });
            first += rows;
        }
        self.reserve(first)?;
        self.advance(works, None);
        Ok(Outputs { engine: self })
    }

    /// The same, but rows of logits are given to `sink(work, index of the token, logits)` as they are made, each work's
    /// in order; no more than a few are held at once.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_each(
        &mut self,
        works: &mut [Work<'_>],
        sink: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), Error> {
        self.admit(works)?;
        self.outputs.clear();
        self.outputs.extend(works.iter().map(|_| Output { first: 0, rows: 0, token: 0 }));
        let rows = works.iter().map(Work::logits).sum::<usize>();
        self.reserve(rows.min(HEAD_ROWS))?;
        self.advance(works, Some(sink));
        Ok(())
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

    /// The most bytes that they may take: steps beyond are refused.
    pub fn limit_kv(&mut self, bytes: usize) {
        self.ledger.set_most(bytes);
    }

    /// Times every launch from here on; a launch more or less costs a clock's reading.
    pub fn start_profile(&mut self) {
        let steps = |v: &crate::program::Variant| vec![(0, Duration::ZERO); v.steps.len()];
        let functions = self.program().functions.iter();
        let steps = functions.map(|f| f.variants.iter().map(steps).collect()).collect();
        self.caller.profile = Some(Profile { steps });
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
        Memory {
            weights: self.weight_bytes,
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

    /// Whether tokens can be appended to a sequence.
    pub(crate) fn check(&self, sequence: &Sequence, tokens: &[u32]) -> Result<(), Error> {
        let (vocab, context) = (self.plan().vocab, sequence.context());
        if !Arc::ptr_eq(sequence.layout(), &self.layout) {
            return Err(Error::OtherEngine);
        }
        let (adding, position) = (tokens.len(), sequence.position());
        if adding > context - position {
            return Err(Error::ContextExceeded { adding, position, context });
        }
        match tokens.iter().find(|&&id| id as usize >= vocab) {
            Some(&token) => Err(Error::TokenRange { token, vocab }),
            None => Ok(()),
        }
    }

    /// Whether all of it can be done.
    fn admit(&mut self, works: &mut [Work<'_>]) -> Result<(), Error> {
        for work in &*works {
            self.check(work.sequence, work.tokens)?;
            if work.tokens.is_empty() && work.want != Want::Nothing {
                return Err(Error::EmptyPrompt);
            }
        }
        let admitted = works.iter_mut().try_for_each(|work| work.sequence.admit(work.tokens.len()));
        if admitted.is_err() {
            works.iter_mut().for_each(|work| work.sequence.dismiss());
        }
        admitted
    }

    /// Room for so many rows of logits.
    fn reserve(&mut self, rows: usize) -> Result<(), Error> {
        let bytes = rows.saturating_mul(Area::Logits.row_bytes(self.plan()));
        if bytes > self.area(Area::Logits).len() {
            let none = || Error::Memory { what: "the logits of a step".into(), bytes };
            self.areas[Area::Logits as usize] = Aligned::try_zeroed(bytes).ok_or_else(none)?;
        }
        Ok(())
    }

    /// Does admitted work: the tokens of a phase, a chunk at a time.
    fn advance(&mut self, works: &mut [Work<'_>], mut sink: Option<Sink<'_>>) {
        for phase in [Phase::Prefill, Phase::Decode] {
            loop {
                let rows = self.gather(works, phase);
                if rows == 0 {
                    break;
                }
                for frame in &mut self.body {
                    self.caller.call(frame, phase, rows, &self.segments);
                }
                self.settle(works, phase);
                self.predict(works, phase, &mut sink);
            }
        }
    }

    /// Fills a call with rows of the works of a phase, as many as there are and as fit: their number.
    fn gather(&mut self, works: &mut [Work<'_>], phase: Phase) -> usize {
        let chunk = self.layout.most_rows(phase);
        self.segments.clear();
        self.parts.clear();
        let mut rows = 0;
        for (index, work) in works.iter_mut().enumerate().filter(|(_, work)| work.phase == phase) {
            let sequence = &mut *work.sequence;
            let left = &work.tokens[sequence.done..];
            let count = left.len().min(chunk - rows);
            if count == 0 {
                continue;
            }
            let position = sequence.position();
            let words = left[..count].iter().zip(position..).zip(rows..);
            let [ids, positions] = &mut self.areas[..2] else { unreachable!("areas of ids and positions") };
            for ((&id, position), row) in words {
                let at = row * size_of::<u32>()..(row + 1) * size_of::<u32>();
                ids.as_mut_slice()[at.clone()].copy_from_slice(&id.to_ne_bytes());
                positions.as_mut_slice()[at].copy_from_slice(&(position as u32).to_ne_bytes());
            }
            let (keys, kv) = ((position + count) as u64, sequence.kv.address());
            self.segments.push(Segment { first: rows as u64, rows: count as u64, keys, kv });
            self.parts.push(Part { work: index, before: sequence.done });
            rows += count;
        }
        rows
    }

    /// What the call appended is its sequences'.
    fn settle(&mut self, works: &mut [Work<'_>], phase: Phase) {
        let row = Area::Even.row_bytes(self.plan());
        for (part, segment) in self.parts.iter().zip(&self.segments) {
            let work = &mut works[part.work];
            let count = segment.rows as usize;
            work.sequence.append(&work.tokens[part.before..part.before + count]);
            let last = (segment.first as usize + count - 1) * row;
            let stream = self.areas[self.layout.last as usize].as_slice();
            work.sequence.last.as_mut_slice().copy_from_slice(&stream[last..last + row]);
            work.sequence.predicts = Some(phase);
        }
    }

    /// What is wanted of the call's rows.
    fn predict(&mut self, works: &[Work<'_>], phase: Phase, sink: &mut Option<Sink<'_>>) {
        let most = HEAD_ROWS.min(self.layout.most_rows(phase));
        for head in [Head::Logits, Head::Tokens] {
            let mut picked = Picked { rows: [(0, 0); HEAD_ROWS], count: 0, first: 0 };
            for at in 0..self.parts.len() {
                let (Part { work: index, before }, segment) = (self.parts[at], self.segments[at]);
                let work = &works[index];
                let count = segment.rows as usize;
                let ends = before + count == work.tokens.len();
                let wanted = match (head, work.want) {
                    (Head::Logits, Want::AllLogits) => 0..count,
                    (Head::Logits, Want::Logits) | (Head::Tokens, Want::Argmax) if ends => count - 1..count,
                    _ => continue,
                };
                for row in wanted {
                    let place = self.outputs[index].first
                        + if work.want == Want::AllLogits { before + row } else { 0 };
                    let follows =
                        sink.is_some() || head == Head::Tokens || place == picked.first + picked.count;
                    if picked.count == most || !follows {
                        self.deliver(head, phase, &mut picked, sink);
                    }
                    if picked.count == 0 {
                        picked.first = if sink.is_some() { 0 } else { place };
                    }
                    self.pick(segment.first as usize + row, picked.count);
                    picked.rows[picked.count] = (index, before + row);
                    picked.count += 1;
                }
            }
            self.deliver(head, phase, &mut picked, sink);
        }
    }

    /// Copies a row of the residual stream to where heads read.
    fn pick(&mut self, row: usize, to: usize) {
        let bytes = Area::Picked.row_bytes(self.plan());
        let areas = self.areas.get_disjoint_mut([self.layout.last as usize, Area::Picked as usize]);
        let Ok([stream, picked]) = areas else { unreachable!("rows are picked out of another area") };
        let from = &stream.as_slice()[row * bytes..(row + 1) * bytes];
        picked.as_mut_slice()[to * bytes..(to + 1) * bytes].copy_from_slice(from);
    }

    /// Runs a head on the rows that were picked, and delivers what it makes.
    fn deliver(&mut self, head: Head, phase: Phase, picked: &mut Picked, sink: &mut Option<Sink<'_>>) {
        let rows = std::mem::take(&mut picked.count);
        if rows == 0 {
            return;
        }
        self.call_head(head, phase, rows, picked.first);
        let vocab = self.plan().vocab;
        for (row, &(work, index)) in picked.rows[..rows].iter().enumerate() {
            match (head, &mut *sink) {
                (Head::Tokens, _) => self.outputs[work].token = self.token(row),
                (Head::Logits, Some(sink)) => {
                    sink(work, index, &floats(self.area(Area::Logits))[row * vocab..][..vocab]);
                }
                (Head::Logits, None) => {}
            }
        }
    }

    /// Runs a head on so many picked rows; logits go to row `to` of theirs and on.
    fn call_head(&mut self, head: Head, phase: Phase, rows: usize, to: usize) {
        let segments = [Segment { first: 0, rows: rows as u64, keys: rows as u64, kv: 0 }];
        let logits = address(&mut self.areas[Area::Logits as usize]);
        let frame = match head {
            Head::Logits => &mut self.head,
            Head::Tokens => &mut self.head_argmax,
        };
        if head == Head::Logits
            && let Some(&(word, row)) = frame.rows.last()
        {
            frame.words[word] = logits + to as u64 * row;
        }
        self.caller.call(frame, phase, rows, &segments);
    }

    fn predict_from(&mut self, sequence: &Sequence, head: Head) {
        let phase = sequence.predicts.filter(|_| Arc::ptr_eq(sequence.layout(), &self.layout));
        let Some(phase) = phase else {
            panic!("there is no token of this engine to predict from: see Sequence::has_prediction")
        };
        let last = sequence.last.as_slice();
        self.areas[Area::Picked as usize].as_mut_slice()[..last.len()].copy_from_slice(last);
        self.call_head(head, phase, 1, 0);
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
