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
    let prefill = start.elapsed();
    let prompt_tokens = text.position() - before;

    let start = Instant::now();
    // One more than there is room for: the last token emitted need not be appended.
    let most = max_new.min(text.context() - text.position() + 1);
    let mut tokens = room("the tokens of an answer", most)?;
    let stop = loop {
        if !complete {
            break StopReason::Interrupted;
        }
        if tokens.len() == max_new {
            break StopReason::Length;
        }
        if let Some(&last) = tokens.last() {
            if text.position() == text.context() {
                break StopReason::Context;
            }
            text.decode(last)?;
        }
        let token = text.choose(sampler)?;
        if stop.contains(&token) {
            break StopReason::EndOfText(token);
        }
        tokens.push(token);
        if on_token(token).is_break() {
            break StopReason::Interrupted;
        }
    };
    Ok(Generation { tokens, stop, prompt_tokens, prefill, decode: start.elapsed() })
}
