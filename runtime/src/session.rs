//! A conversation with a compiled model: one engine with one sequence.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::engine::{Engine, Memory, Profile, Want, Work};
use crate::error::Error;
use crate::file::Residence;
use crate::generate::Continue;
use crate::program::{Phase, Program, WeightSource};
use crate::sampler::Sampler;
use crate::sequence::Sequence;
use crate::snapshot::Notes;
use crate::speculation::{Speculated, Speculation};

/// A model at some position of some text.
pub struct Session {
    engine: Engine,
    sequence: Sequence,
    /// Whether the engine's logits are those after the last token.
    logits: bool,
    /// The most likely next token, if it is known.
    token: Option<u32>,
    /// Who guesses how the text goes on.
    speculation: Option<Box<Speculation>>,
    /// Where the last step of guesses began, as long as nothing came after it.
    guessed: Option<usize>,
}

impl Session {
    /// A session at position 0, of `threads` threads, the caller's included (0 is taken as 1).
    ///
    /// # Errors
    /// As [`Engine::new`] and [`Engine::sequence`].
    pub fn new(program: Arc<Program>, weights: Arc<dyn WeightSource>, threads: usize) -> Result<Self, Error> {
        let engine = Engine::new(program, weights, threads)?;
        let sequence = engine.sequence()?;
        Ok(Self { engine, sequence, logits: false, token: None, speculation: None, guessed: None })
    }

    /// See [`Engine::with_residence`].
    ///
    /// # Errors
    /// As [`Engine::with_residence`].
    pub fn with_residence(self, residence: Residence) -> Result<Self, Error> {
        Ok(Self { engine: self.engine.with_residence(residence)?, ..self })
    }

    /// Appends tokens. Either all ids are in range and fit the context, or nothing changes.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.step(ids, Phase::Prefill)
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
        for part in ids.chunks(self.program().plan.chunk) {
            self.step(part, Phase::Prefill)?;
            done += part.len();
            if progress(done, ids.len()).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Appends one token.
    pub fn decode(&mut self, id: u32) -> Result<(), Error> {
        self.step(&[id], Phase::Decode)
    }

    /// Appends tokens as [`Session::decode`] does one after the other, with the same bits, in as few calls as can be.
    pub fn decode_all(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.step(ids, Phase::Decode)
    }

    /// From here on, texts are generated with guesses; none ends that. What was guessed with before, if it was.
    ///
    /// # Errors
    /// [`Error::DraftVocab`] if the guesses' model has not as many tokens.
    pub fn speculate(&mut self, with: Option<Speculation>) -> Result<Option<Speculation>, Error> {
        if let Some(speculation) = &with {
            speculation.check(self.program().plan.vocab)?;
        }
        let before = std::mem::replace(&mut self.speculation, with.map(Box::new));
        Ok(before.map(|speculation| *speculation))
    }

    /// What guessing came to, if there is any.
    pub fn speculated(&self) -> Option<Speculated> {
        self.speculation.as_ref().map(|speculation| speculation.told())
    }

    /// See [`Engine::most_guessed`].
    pub fn most_guessed(&self) -> usize {
        self.engine.most_guessed()
    }

    /// See [`Engine::decode_guessed`].
    ///
    /// # Errors
    /// As [`Engine::decode_guessed`].
    ///
    /// # Panics
    /// As [`Engine::decode_guessed`].
    pub fn decode_guessed(
        &mut self,
        tokens: &[u32],
        sampler: &mut Sampler,
        chosen: &mut Vec<u32>,
    ) -> Result<(), Error> {
        self.forget_outputs();
        let before = self.position();
        self.engine.decode_guessed(&mut self.sequence, tokens, sampler, chosen)?;
        self.guessed = Some(before);
        Ok(())
    }

    /// Appends tokens and gives the logits after each to `sink(index in ids, logits)`, in order.
    pub fn score(&mut self, ids: &[u32], sink: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.forget_outputs();
        let want = if ids.is_empty() { Want::Nothing } else { Want::AllLogits };
        let work = Work { sequence: &mut self.sequence, tokens: ids, phase: Phase::Prefill, want };
        self.engine.step_each(&mut [work], &mut |_, index, logits| sink(index, logits)).map(|_| ())
    }

    /// Whether there is a last token to predict from: false at first, after a reset and after a rollback to an
    /// earlier position, until tokens are appended.
    pub fn has_logits(&self) -> bool {
        self.sequence.has_prediction()
    }

    /// The logits after the last token. Computed when first asked for.
    ///
    /// # Panics
    /// If [`Session::has_logits`] is false.
    pub fn logits(&mut self) -> &[f32] {
        if std::mem::replace(&mut self.logits, true) {
            return self.engine.known_logits();
        }
        self.engine.logits(&self.sequence)
    }

    /// The logits after the last token, as [`Session::logits`], and the tokens held.
    ///
    /// # Panics
    /// If [`Session::has_logits`] is false.
    pub fn prediction(&mut self) -> (&[f32], &[u32]) {
        self.logits();
        (self.engine.known_logits(), self.sequence.tokens())
    }

    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// Writes what it holds to a file: see [`Engine::save`].
    ///
    /// # Errors
    /// As [`Engine::save`].
    pub fn save(&self, path: &Path, notes: &Notes) -> Result<(), Error> {
        self.engine.save(&self.sequence, path, notes)
    }

    /// Goes on from a file, in the place of what it holds: see [`Engine::load`].
    ///
    /// # Errors
    /// As [`Engine::load`]; the session is as it was then.
    pub fn load(&mut self, path: &Path) -> Result<Notes, Error> {
        self.load_with(path, |_| Ok(())).map(|(notes, ())| notes)
    }

    /// The same, if `read` makes something of the notes: them, and that.
    pub(crate) fn load_with<T>(
        &mut self,
        path: &Path,
        read: impl FnOnce(&Notes) -> Result<T, Error>,
    ) -> Result<(Notes, T), Error> {
        let (sequence, notes) = self.engine.load(path)?;
        let made = read(&notes)?;
        self.forget_outputs();
        self.sequence = sequence;
        Ok((notes, made))
    }

    /// The most likely next token, the lowest id among equals. Computed when first asked for, without the logits.
    ///
    /// # Panics
    /// If [`Session::has_logits`] is false.
    pub fn argmax(&mut self) -> u32 {
        *self.token.get_or_insert_with(|| self.engine.argmax(&self.sequence))
    }

    /// Tokens held.
    pub fn position(&self) -> usize {
        self.sequence.position()
    }

    /// The most tokens that can be held.
    pub fn context(&self) -> usize {
        self.sequence.context()
    }

    /// The program that this session runs.
    pub fn program(&self) -> &Arc<Program> {
        self.engine.program()
    }

    /// The threads that this session runs on, the caller's included.
    pub fn threads(&self) -> usize {
        self.engine.threads()
    }

    /// The smallest position, other than 0, that [`Session::rollback`] takes.
    pub fn smallest_rollback(&self) -> usize {
        self.sequence.smallest()
    }

    /// Forgets the tokens from position `to` on. What is appended next comes out as if they had never been.
    ///
    /// Sliding-window caches hold only so much: fails, changing nothing, if the window before `to` is gone.
    /// Rolling back to 0 always works.
    pub fn rollback(&mut self, to: usize) -> Result<(), Error> {
        let (position, smallest) = (self.position(), self.smallest_rollback());
        if to > position {
            return Err(Error::RollbackAhead { to, position });
        }
        if to != 0 && to != position && to < smallest {
            return Err(Error::RollbackTooFar { to, smallest });
        }
        if to != position {
            self.forget_outputs();
            self.sequence.truncate(to);
        }
        Ok(())
    }

    /// Back to position 0.
    pub fn reset(&mut self) {
        self.forget_outputs();
        self.sequence.truncate(0);
    }

    /// See [`Engine::start_profile`].
    pub fn start_profile(&mut self) {
        self.engine.start_profile();
    }

    /// See [`Engine::take_profile`].
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.engine.take_profile()
    }

    /// Its engine and its sequence, for steps that other sequences take part in.
    pub fn parts(&mut self) -> (&mut Engine, &mut Sequence) {
        self.forget_outputs();
        (&mut self.engine, &mut self.sequence)
    }

    /// Where the memory goes.
    pub fn memory(&self) -> Memory {
        self.engine.memory()
    }

    fn step(&mut self, tokens: &[u32], phase: Phase) -> Result<(), Error> {
        self.check(tokens)?;
        self.forget_outputs();
        let work = Work { sequence: &mut self.sequence, tokens, phase, want: Want::Nothing };
        self.engine.step(&mut [work]).map(|_| ())
    }

    /// Whether these ids can be appended.
    fn check(&self, ids: &[u32]) -> Result<(), Error> {
        self.engine.check(&self.sequence, ids)
    }

    fn forget_outputs(&mut self) {
        self.logits = false;
        self.token = None;
        self.guessed = None;
    }
}

impl Continue for Session {
    fn position(&self) -> usize {
        Session::position(self)
    }

    fn context(&self) -> usize {
        Session::context(self)
    }

    fn has_prediction(&self) -> bool {
        self.has_logits()
    }

    fn prefill(
        &mut self,
        ids: &[u32],
        on_chunk: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        self.prefill_with(ids, on_chunk)
    }

    fn decode(&mut self, id: u32) -> Result<(), Error> {
        Session::decode(self, id)
    }

    fn advance(
        &mut self,
        last: u32,
        sampler: &mut Sampler,
        most: usize,
        chosen: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let Some(mut speculation) = self.speculation.take() else {
            Session::decode(self, last)?;
            chosen.push(self.choose(sampler)?);
            return Ok(());
        };
        let advanced = speculation.advance(self, last, sampler, most, chosen);
        self.speculation = Some(speculation);
        advanced
    }

    fn settle(&mut self, at: usize) {
        let (position, guessed) = (self.position(), self.guessed);
        if at >= position {
            return;
        }
        match guessed.filter(|&before| before < at) {
            Some(before) => {
                self.forget_outputs();
                self.engine.keep(0, &mut self.sequence, position - before, at - before);
            }
            None => {
                self.forget_outputs();
                self.sequence.truncate(at);
            }
        }
    }

    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32, Error> {
        if sampler.is_plain_greedy() {
            return Ok(self.argmax());
        }
        let (logits, history) = self.prediction();
        sampler.sample(logits, history, history.len())
    }
}
