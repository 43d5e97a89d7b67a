//! A sequence: some text at some position, with the caches of its tokens. What an engine steps.
//!
//! A cache that holds a sliding window is a ring: position `p` is row `p % rows`, and old rows are overwritten. The
//! next query, at position `n`, reads from `n - window + 1` on.

use std::sync::Arc;

use crate::error::{Error, room};
use crate::kv::Kv;
use crate::layout::Layout;
use crate::program::{Aligned, Phase, Plan};

/// Tokens, their caches, and the last one's row of the residual stream.
pub struct Sequence {
    pub(crate) kv: Kv,
    /// Room for a context's.
    tokens: Vec<u32>,
    context: usize,
    /// One past the highest position written since rings were last whole.
    high: usize,
    /// The smallest position other than 0 that it can go back to, by what it was restored from.
    floor: usize,
    /// f32 (hidden).
    pub(crate) last: Aligned,
    /// What the last row was computed as, if there is one to predict from.
    pub(crate) predicts: Option<Phase>,
    /// Tokens of a step's work that are done.
    pub(crate) done: usize,
}

impl Sequence {
    pub(crate) fn new(kv: Kv, plan: &Plan) -> Result<Self, Error> {
        let bytes = plan.hidden.saturating_mul(size_of::<f32>());
        let none = || Error::Memory { what: "a row of the residual stream".into(), bytes };
        let last = Aligned::try_zeroed(bytes).ok_or_else(none)?;
        let tokens = room("the tokens of a sequence", plan.context)?;
        let context = plan.context;
        Ok(Self { kv, tokens, context, high: 0, floor: 0, last, predicts: None, done: 0 })
    }

    /// Tokens held.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The most tokens that can be held.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Whether there is a last token to predict from: false at first and after a truncation to an earlier position,
    /// until tokens are appended.
    pub fn has_prediction(&self) -> bool {
        self.predicts.is_some()
    }

    /// Bytes that its caches take, in whole pages.
    pub fn kv_bytes(&self) -> usize {
        self.kv.bytes()
    }

    /// The smallest position, other than 0, that [`Sequence::truncate`] reaches.
    pub fn smallest(&self) -> usize {
        self.smallest_after(0)
    }

    /// The same once `adding` more tokens are appended.
    pub fn smallest_after(&self, adding: usize) -> usize {
        let high = self.high.max(self.position() + adding);
        let layout = self.kv.layout();
        let rings = layout.caches.iter().filter_map(|cache| Some((cache.rows, cache.window?)));
        let smallest = |(rows, window): (usize, usize)| match high.saturating_sub(rows) {
            0 => 0,
            // What a query there reads must all be held.
            oldest => (oldest + window).saturating_sub(1),
        };
        rings.map(smallest).max().unwrap_or(0).max(self.floor)
    }

    /// The first position whose rows all caches still hold; those that keep the whole context hold all positions'.
    pub fn windows_from(&self) -> usize {
        let rings = self.kv.layout().caches.iter().filter_map(|cache| Some((cache.rows, cache.window?)));
        let oldest = |(rows, window): (usize, usize)| {
            self.high.saturating_sub(rows).max((self.floor + 1).saturating_sub(window))
        };
        rings.map(oldest).max().unwrap_or(0)
    }

    /// Forgets the tokens from position `to` on, or all if the windows before `to` are gone: the position reached, `to`
    /// or 0. What is appended next comes out as if what is forgotten had never been.
    ///
    /// Does nothing at or after the sequence's end. Memory of what is forgotten is given back.
    pub fn truncate(&mut self, to: usize) -> usize {
        if to >= self.position() {
            return self.position();
        }
        let to = if to < self.smallest() { 0 } else { to };
        self.kv.give_back(to, self.high);
        self.tokens.truncate(to);
        self.predicts = None;
        let layout = self.kv.layout();
        let wrapped = layout.caches.iter().any(|c| c.window.is_some() && self.high > c.rows);
        if to == 0 {
            (self.high, self.floor) = (0, 0);
        } else if !wrapped {
            self.high = to;
        }
        to
    }

    /// A copy that shares nothing with it.
    ///
    /// # Errors
    /// [`Error::Memory`], or [`Error::KvLimit`] where its engine's sequences may not take as much.
    pub fn fork(&self) -> Result<Sequence, Error> {
        self.fork_at(self.position())
    }

    /// A copy that is truncated to position `to`, as [`Sequence::truncate`] does it: no more is copied than it needs.
    ///
    /// # Errors
    /// As [`Sequence::fork`].
    pub fn fork_at(&self, to: usize) -> Result<Sequence, Error> {
        let to = to.min(self.position());
        let layout = self.kv.layout();
        let wrapped = layout.caches.iter().any(|c| c.window.is_some() && self.high > c.rows);
        let high = if wrapped || to == self.position() { self.high } else { to };
        let mut kv = Kv::new(layout.clone(), self.kv.ledger().clone())?;
        kv.charge(high)?;
        kv.copy(&self.kv, high);
        let mut tokens = room("the tokens of a sequence", self.context)?;
        let held = if wrapped { self.position() } else { to };
        tokens.extend_from_slice(&self.tokens[..held]);
        let bytes = self.last.len();
        let none = || Error::Memory { what: "a row of the residual stream".into(), bytes };
        let last = Aligned::try_from_bytes(self.last.as_slice()).ok_or_else(none)?;
        let (context, floor) = (self.context, self.floor);
        let predicts = self.predicts.filter(|_| held == self.position());
        let mut copy = Sequence { kv, tokens, context, high, floor, last, predicts, done: 0 };
        copy.truncate(to);
        Ok(copy)
    }

    /// Puts memory for so many tokens aside.
    pub(crate) fn admit(&mut self, adding: usize) -> Result<(), Error> {
        self.done = 0;
        self.kv.charge(self.high.max(self.position() + adding))
    }

    /// Takes back what was put aside.
    pub(crate) fn dismiss(&mut self) {
        self.kv.discharge(self.high);
    }

    /// Tokens whose rows were appended to the caches.
    pub(crate) fn append(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.done += tokens.len();
        self.high = self.high.max(self.position());
    }

    /// What a file says of it, once its tokens are appended.
    pub(crate) fn restore(&mut self, floor: usize, predicts: Option<Phase>) {
        self.floor = floor;
        self.predicts = predicts;
    }

    /// See [`Sequence::smallest`]: what a file says of it.
    pub(crate) fn floor(&self) -> usize {
        self.floor
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        self.kv.layout()
    }
}
