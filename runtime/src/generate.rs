//! The loop that makes text: prefill, then choose, show and append, token by token.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::{Error, room};
use crate::sampler::Sampler;

/// A text at some position that a model continues: a [`Session`](crate::Session), or a sequence and its engine.
pub trait Continue {
    /// Tokens held.
    fn position(&self) -> usize;

    /// The most tokens that can be held.
    fn context(&self) -> usize;

    /// Whether there is a last token to predict from.
    fn has_prediction(&self) -> bool;

    /// Appends tokens of a prompt, a chunk at a time, calling `on_chunk(done, total)` after each; false if that broke
    /// it off. Either all ids are in range and fit the context, or nothing changes.
    ///
    /// # Errors
    /// As [`Engine::step`](crate::Engine::step).
    fn prefill(
        &mut self,
        ids: &[u32],
        on_chunk: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<bool, Error>;

    /// Appends a token that was chosen.
    ///
    /// # Errors
    /// As [`Engine::step`](crate::Engine::step).
    fn decode(&mut self, id: u32) -> Result<(), Error>;

    /// Chooses the token after the last; what the penalty looks back at is what is held.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32, Error>;

    /// Appends a token that was chosen, and gives `chosen` the token after it; and those after that, up to `most` in
    /// all, where they were guessed. The text then holds all of them but the last.
    ///
    /// # Errors
    /// As [`Continue::decode`] and [`Continue::choose`].
    fn advance(
        &mut self,
        last: u32,
        sampler: &mut Sampler,
        _most: usize,
        chosen: &mut Vec<u32>,
    ) -> Result<(), Error> {
        self.decode(last)?;
        chosen.push(self.choose(sampler)?);
        Ok(())
    }

    /// Forgets what the last [`Continue::advance`] appended from a position on: the text is as if it had been advanced
    /// by a token at a time, up to there.
    fn settle(&mut self, _at: usize) {}
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model chose this stop token. It is neither emitted nor held.
    EndOfText(u32),
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// A callback broke off.
    Interrupted,
}

/// What a generation came to.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens emitted.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt that were appended: all, unless `on_prefill` broke off.
    pub prompt_tokens: usize,
    /// Time to append the prompt.
    pub prefill: Duration,
    /// Time from there to the end, callbacks included.
    pub decode: Duration,
}

/// A generation under way: what is emitted so far, and why it ended if it did.
#[derive(Debug)]
pub struct Decoding {
    tokens: Vec<u32>,
    /// Tokens that were chosen ahead of being emitted, first the next one, and how many of them were emitted.
    chosen: Vec<u32>,
    emitted: usize,
    /// Most tokens to emit.
    most: usize,
    end: Option<StopReason>,
}

impl Decoding {
    /// Nothing emitted yet, of at most `most` tokens, from where `text` is.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] if the text has no token to go on from, [`Error::Memory`].
    pub fn new(text: &dyn Continue, most: usize) -> Result<Decoding, Error> {
        if !text.has_prediction() {
            return Err(Error::EmptyPrompt);
        }
        // One more than there is room for: the last token emitted need not be appended.
        let room_for = most.min(text.context() - text.position() + 1);
        let tokens = room("the tokens of an answer", room_for)?;
        Ok(Decoding { tokens, chosen: Vec::new(), emitted: 0, most, end: None })
    }

    /// Chooses the next token, having appended the one before it; none once the generation has ended.
    ///
    /// # Errors
    /// If the text cannot go on, or no token can be chosen.
    pub fn next(
        &mut self,
        text: &mut dyn Continue,
        sampler: &mut Sampler,
        stop: &[u32],
    ) -> Result<Option<u32>, Error> {
        if self.end.is_some() {
            return Ok(None);
        }
        if self.tokens.len() == self.most {
            return Ok(self.finish(StopReason::Length));
        }
        if self.emitted == self.chosen.len() {
            self.chosen.clear();
            self.emitted = 0;
            match self.tokens.last() {
                None => self.chosen.push(text.choose(sampler)?),
                Some(_) if text.position() == text.context() => {
                    return Ok(self.finish(StopReason::Context));
                }
                Some(&last) => {
                    let most = self.most - self.tokens.len();
                    text.advance(last, sampler, most, &mut self.chosen)?;
                }
            }
        }
        let token = self.chosen[self.emitted];
        if stop.contains(&token) {
            self.hold(text, self.emitted);
            return Ok(self.finish(StopReason::EndOfText(token)));
        }
        self.emitted += 1;
        self.tokens.push(token);
        Ok(Some(token))
    }

    /// Breaks off here: the text forgets what was chosen ahead of what is emitted.
    pub fn settle(&mut self, text: &mut dyn Continue) {
        self.hold(text, self.emitted.saturating_sub(1));
    }

    /// Of the tokens chosen last, of which the text holds all but one, it is to hold so many.
    fn hold(&mut self, text: &mut dyn Continue, tokens: usize) {
        let ahead = self.chosen.len().saturating_sub(tokens + 1);
        self.chosen.truncate(self.emitted);
        if ahead > 0 {
            text.settle(text.position() - ahead);
        }
    }

    /// The tokens emitted.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why it ended, if it did.
    pub fn end(&self) -> Option<StopReason> {
        self.end
    }

    fn finish(&mut self, reason: StopReason) -> Option<u32> {
        self.end = Some(reason);
        None
    }
}

/// Appends `prompt` to a text, then generates up to `max_new` tokens, each given to `on_token`.
///
/// `on_prefill(done, total)` is called after each chunk of the prompt. Either callback ends it by breaking. An
/// empty prompt goes on from the text's last token, if there is one.
///
/// Afterwards the text holds the prompt and the tokens emitted, except possibly the last of these: a token is
/// appended only when another is to be chosen after it. A caller that goes on (the next turn of a chat) compares
/// [`Continue::position`] with the tokens it knows, and starts its next prompt with the one that is not yet there.
pub fn generate(
    text: &mut dyn Continue,
    sampler: &mut Sampler,
    prompt: &[u32],
    max_new: usize,
    stop: &[u32],
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    on_prefill: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    if prompt.is_empty() && !text.has_prediction() {
        return Err(Error::EmptyPrompt);
    }
    let before = text.position();
    let start = Instant::now();
    let complete = text.prefill(prompt, on_prefill)?;
    let (prefill, prompt_tokens) = (start.elapsed(), text.position() - before);
    if !complete {
        let (tokens, stop, decode) = (Vec::new(), StopReason::Interrupted, Duration::ZERO);
        return Ok(Generation { tokens, stop, prompt_tokens, prefill, decode });
    }
    let start = Instant::now();
    let mut decoding = Decoding::new(text, max_new)?;
    let mut broken = false;
    while !broken && let Some(token) = decoding.next(text, sampler, stop)? {
        broken = on_token(token).is_break();
    }
    decoding.settle(text);
    let stop = decoding.end.unwrap_or(StopReason::Interrupted);
    Ok(Generation { tokens: decoding.tokens, stop, prompt_tokens, prefill, decode: start.elapsed() })
}
