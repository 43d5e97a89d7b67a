//! A conversation with a compiled model: its caches, its buffers, its threads, and the calls that advance it.
//!
//! Everything is allocated by [`Session::new`] (the buffer of [`Session::score`] on first use); afterwards a token
//! costs no allocation. Each function of the program has frames filled once, one per layer; a call changes their
//! two leading words and, for the heads, the address of `x`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bind::{Binder, Buffers, Call, SCORE_ROWS, address, check_plan};
use crate::error::Error;
use crate::kv::Cache;
use crate::pool::Pool;
use crate::program::{Aligned, FRAME_KEYS, FRAME_ROWS, FRAME_SLOTS, Program, WeightSource};

/// Where a session's memory goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights that the program reads, each tensor once. They are the weight source's (mapped, mostly).
    pub weights: usize,
    /// Caches that hold a sliding window.
    pub kv_local: usize,
    /// Caches that hold the whole context. Only rows in use cost physical memory.
    pub kv_global: usize,
    /// Temporaries of one call.
    pub arena: usize,
    /// Scratch of all threads.
    pub scratch: usize,
    /// The residual stream, inputs and logits.
    pub activations: usize,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> usize {
        let own = self.kv_local + self.kv_global + self.arena + self.scratch + self.activations;
        self.weights + own
    }
}

/// Times of a session's launches, by function, variant and step: see [`Session::start_profile`].
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// `[function][variant][step]`: launches, and their wall time together.
    pub steps: Vec<Vec<Vec<(u64, Duration)>>>,
}

/// A model at some position of some text.
pub struct Session {
    embed: Call,
    layers: Vec<Call>,
    head: Call,
    head_all: Call,
    head_argmax: Call,
    caches: Vec<Cache>,
    buffers: Buffers,
    arena: Aligned,
    pool: Pool,
    position: usize,
    /// One past the highest position written since the session was last empty.
    high: usize,
    /// Address of the last row of the residual stream, if there is one to predict from.
    last: Option<u64>,
    logits_valid: bool,
    token_valid: bool,
    weight_bytes: usize,
    profile: Option<Profile>,
    // Frames hold addresses in these.
    program: Arc<Program>,
    _weights: Arc<dyn WeightSource>,
}

impl Session {
    /// A session at position 0, of `threads` threads, the caller's included (0 is taken as 1).
    ///
    /// Fails if the program's slots do not fit its plan, or a weight is missing or of another length.
    pub fn new(program: Arc<Program>, weights: Arc<dyn WeightSource>, threads: usize) -> Result<Self, Error> {
        let plan = &program.plan;
        check_plan(&program)?;
        let row = plan.hidden * size_of::<f32>();
        let buffer = |what: &str, rows: usize, row: usize| {
            let bytes = rows.saturating_mul(row);
            Aligned::try_zeroed(bytes).ok_or_else(|| Error::Memory { what: what.into(), bytes })
        };
        let mut buffers = Buffers {
            ids: buffer("ids", plan.chunk, size_of::<i32>())?,
            pos: buffer("positions", plan.chunk, size_of::<i32>())?,
            residual: [
                buffer("the residual stream", plan.chunk, row)?,
                buffer("the residual stream", plan.chunk, row)?,
            ],
            logits: buffer("logits", plan.vocab, size_of::<f32>())?,
            token: buffer("a token", 1, size_of::<i32>())?,
            score: Aligned::zeroed(0),
        };
        let variants = || program.functions.iter().flat_map(|f| &f.variants);
        let arena_bytes = variants().map(|v| v.arena_bytes).max().unwrap_or(0);
        let out_of_memory = || Error::Memory { what: "temporaries".into(), bytes: arena_bytes };
        let mut arena = Aligned::try_zeroed(arena_bytes).ok_or_else(out_of_memory)?;
        let scratch_bytes = variants().map(|v| v.scratch_bytes).max().unwrap_or(0);
        let pool = Pool::new(threads, scratch_bytes)?;

        let mut binder = Binder {
            program: &program,
            weights: &*weights,
            buffers: &mut buffers,
            arena: arena.as_mut_ptr().expose_provenance() as u64,
            caches: Vec::new(),
            tensors: Vec::new(),
        };
        let embed = binder.bind(plan.embed, "", 1)?;
        let mut layers = Vec::with_capacity(plan.layers.len());
        for (index, layer) in plan.layers.iter().enumerate() {
            layers.push(binder.bind(layer.function, &layer.prefix, index % 2)?);
        }
        let end = plan.layers.len() % 2;
        let head = binder.bind(plan.head, "", end)?;
        let head_all = binder.bind(plan.head_all, "", end)?;
        let head_argmax = binder.bind(plan.head_argmax, "", end)?;
        let Binder { caches, mut tensors, .. } = binder;
        tensors.sort_unstable();
        tensors.dedup();
        Ok(Self {
            embed,
            layers,
            head,
            head_all,
            head_argmax,
            caches,
            buffers,
            arena,
            pool,
            position: 0,
            high: 0,
            last: None,
            logits_valid: false,
            token_valid: false,
            profile: None,
            weight_bytes: tensors.iter().map(|&(_, bytes)| bytes).sum(),
            program,
            _weights: weights,
        })
    }

    /// Appends tokens. Either all ids are in range and fit the context, or nothing changes.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.prefill_with(ids, &mut |_, _| ControlFlow::Continue(())).map(|_| ())
    }

    /// Appends tokens, chunk by chunk, calling `progress(done, total)` after each.
    ///
    /// When `progress` breaks, stops there and returns false: the tokens done are in the session, the others not.
    pub fn prefill_with(
        &mut self,
        ids: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        self.check(ids)?;
        let mut done = 0;
        for part in ids.chunks(self.program.plan.chunk) {
            self.forward(part);
            done += part.len();
            if progress(done, ids.len()).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Appends one token.
    pub fn decode(&mut self, id: u32) -> Result<(), Error> {
        self.check(&[id])?;
        self.forward(&[id]);
        Ok(())
    }

    /// Appends tokens and gives the logits after each to `sink(index in ids, logits)`, in order.
    pub fn score(&mut self, ids: &[u32], sink: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.check(ids)?;
        let plan = &self.program.plan;
        let (chunk, hidden, vocab) = (plan.chunk, plan.hidden, plan.vocab);
        let most = SCORE_ROWS.min(chunk);
        if self.buffers.score.is_empty() {
            let bytes = most.saturating_mul(vocab).saturating_mul(size_of::<f32>());
            let none = || Error::Memory { what: "the logits of a chunk".into(), bytes };
            self.buffers.score = Aligned::try_zeroed(bytes).ok_or_else(none)?;
            let function = &self.program.functions[self.head_all.function];
            if let Some(slot) = function.slot("logits") {
                self.head_all.frame[FRAME_SLOTS + slot] = address(&mut self.buffers.score);
            }
        }
        let mut done = 0;
        for part in ids.chunks(chunk) {
            let first = self.position;
            self.forward(part);
            let base = self.residual_out();
            for row in (0..part.len()).step_by(most) {
                let rows = most.min(part.len() - row);
                let x = base + (row * hidden * size_of::<f32>()) as u64;
                let call = &mut self.head_all;
                call.frame[call.x] = x;
                run(&mut self.pool, &self.program, &mut self.profile, call, rows, first + row + rows);
                for (i, logits) in floats(&self.buffers.score).chunks(vocab).take(rows).enumerate() {
                    sink(done + row + i, logits);
                }
            }
            done += part.len();
        }
        Ok(())
    }

    /// Whether there is a last token to predict from: false at first, after a reset and after a rollback to an
    /// earlier position, until tokens are appended.
    pub fn has_logits(&self) -> bool {
        self.last.is_some()
    }

    /// The logits after the last token. Computed when first asked for.
    ///
    /// # Panics
    /// If [`Session::has_logits`] is false.
    pub fn logits(&mut self) -> &[f32] {
        if !self.logits_valid {
            let x = self.last_row();
            let call = &mut self.head;
            call.frame[call.x] = x;
            run(&mut self.pool, &self.program, &mut self.profile, call, 1, self.position);
            self.logits_valid = true;
        }
        floats(&self.buffers.logits)
    }

    /// The most likely next token, the lowest id among equals. Computed when first asked for, without the logits.
    ///
    /// # Panics
    /// If [`Session::has_logits`] is false.
    pub fn argmax(&mut self) -> u32 {
        if !self.token_valid {
            let x = self.last_row();
            let call = &mut self.head_argmax;
            call.frame[call.x] = x;
            run(&mut self.pool, &self.program, &mut self.profile, call, 1, self.position);
            self.token_valid = true;
        }
        // SAFETY: the buffer is one aligned i32, and any bits are a u32.
        unsafe { self.buffers.token.as_ptr().cast::<u32>().read() }
    }

    /// Tokens held.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The most tokens that can be held.
    pub fn context(&self) -> usize {
        self.program.plan.context
    }

    /// The program that this session runs.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The threads that this session runs on, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The smallest position, other than 0, that [`Session::rollback`] takes.
    pub fn smallest_rollback(&self) -> usize {
        self.caches.iter().map(|cache| cache.smallest_rollback(self.high)).max().unwrap_or(0)
    }

    /// Forgets the tokens from position `to` on. What is appended next comes out as if they had never been.
    ///
    /// Sliding-window caches hold only so much: fails, changing nothing, if the window before `to` is gone.
    /// Rolling back to 0 always works.
    pub fn rollback(&mut self, to: usize) -> Result<(), Error> {
        if to > self.position {
            return Err(Error::RollbackAhead { to, position: self.position });
        }
        if to == self.position {
            return Ok(());
        }
        if to == 0 {
            self.reset();
            return Ok(());
        }
        let smallest = self.smallest_rollback();
        if to < smallest {
            return Err(Error::RollbackTooFar { to, smallest });
        }
        self.position = to;
        self.forget_output();
        Ok(())
    }

    /// Times every launch from here on; a launch more or less costs a clock's reading.
    pub fn start_profile(&mut self) {
        let steps = |v: &crate::program::Variant| vec![(0, Duration::ZERO); v.steps.len()];
        let functions = self.program.functions.iter();
        let steps = functions.map(|f| f.variants.iter().map(steps).collect()).collect();
        self.profile = Some(Profile { steps });
    }

    /// The times since [`Session::start_profile`]; launches are no longer timed.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }

    /// Back to position 0.
    pub fn reset(&mut self) {
        self.position = 0;
        self.high = 0;
        self.forget_output();
    }

    /// Where the memory goes.
    pub fn memory(&self) -> Memory {
        let kv = |ring| self.caches.iter().filter(|c| c.is_ring() == ring).map(Cache::bytes).sum::<usize>();
        let b = &self.buffers;
        let [even, odd] = &b.residual;
        let activations = [&b.ids, &b.pos, even, odd, &b.logits, &b.token, &b.score];
        Memory {
            weights: self.weight_bytes,
            kv_local: kv(true),
            kv_global: kv(false),
            arena: self.arena.len(),
            scratch: self.pool.scratch_bytes(),
            activations: activations.iter().map(|a| a.len()).sum(),
        }
    }

    fn forget_output(&mut self) {
        self.last = None;
        self.logits_valid = false;
        self.token_valid = false;
    }

    fn last_row(&self) -> u64 {
        match self.last {
            Some(address) => address,
            None => panic!("there is no token to predict from: see Session::has_logits"),
        }
    }

    /// Whether these ids can be appended.
    fn check(&self, ids: &[u32]) -> Result<(), Error> {
        let (vocab, context) = (self.program.plan.vocab, self.program.plan.context);
        if ids.len() > context - self.position {
            let (adding, position) = (ids.len(), self.position);
            return Err(Error::ContextExceeded { adding, position, context });
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&token) => Err(Error::TokenRange { token, vocab }),
            None => Ok(()),
        }
    }

    /// Address of the residual stream after the last layer.
    fn residual_out(&mut self) -> u64 {
        address(&mut self.buffers.residual[self.layers.len() % 2])
    }

    /// Appends one chunk of checked ids, at least one.
    fn forward(&mut self, ids: &[u32]) {
        let rows = ids.len();
        let words = ids.iter().zip(self.position..);
        let id_bytes = self.buffers.ids.as_mut_slice().chunks_exact_mut(size_of::<i32>());
        let pos_bytes = self.buffers.pos.as_mut_slice().chunks_exact_mut(size_of::<i32>());
        for (((&id, position), id_word), pos_word) in words.zip(id_bytes).zip(pos_bytes) {
            id_word.copy_from_slice(&id.to_ne_bytes());
            pos_word.copy_from_slice(&(position as u32).to_ne_bytes());
        }
        let keys = self.position + rows;
        run(&mut self.pool, &self.program, &mut self.profile, &mut self.embed, rows, keys);
        for layer in &mut self.layers {
            run(&mut self.pool, &self.program, &mut self.profile, layer, rows, keys);
        }
        self.position = keys;
        self.high = self.high.max(keys);
        self.forget_output();
        let row = self.program.plan.hidden * size_of::<f32>();
        self.last = Some(self.residual_out() + ((rows - 1) * row) as u64);
    }
}

/// Calls a function: its steps, in order.
fn run(
    pool: &mut Pool,
    program: &Program,
    profile: &mut Option<Profile>,
    call: &mut Call,
    rows: usize,
    keys: usize,
) {
    call.frame[FRAME_ROWS] = rows as u64;
    call.frame[FRAME_KEYS] = keys as u64;
    let function = &program.functions[call.function];
    let variant = function.variant_index(rows);
    // What is profiled is launched by itself.
    let alone = profile.is_some();
    let mut index = 0;
    for steps in function.variants[variant].steps.chunk_by(|_, next| next.joins && !alone) {
        let start = profile.as_ref().map(|_| Instant::now());
        // SAFETY: the frame's addresses were bound by `Binder` to memory of the lengths that the slots declare, for
        // `rows` rows, owned by the session (or its program and weights) and untouched by anyone else meanwhile;
        // arena and scratch are the largest that any variant asks for.
        unsafe { pool.launch(steps, call.frame.as_ptr(), rows) };
        if let (Some(profile), Some(start)) = (profile.as_mut(), start) {
            let (launches, time) = &mut profile.steps[call.function][variant][index];
            *launches += 1;
            *time += start.elapsed();
        }
        index += steps.len();
    }
}

/// A buffer of f32.
fn floats(buffer: &Aligned) -> &[f32] {
    // SAFETY: 64-byte aligned, initialised, borrowed with the buffer; any bits are an f32.
    unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<f32>(), buffer.len() / size_of::<f32>()) }
}
