//! The loop that makes text: prefill, then choose, show and append, token by token.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::{Error, room};
use crate::sampler::Sampler;
use crate::session::Session;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model chose this stop token. It is neither emitted nor in the session.
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

/// Appends `prompt` to the session, then generates up to `max_new` tokens, each given to `on_token`.
///
/// `on_prefill(done, total)` is called after each chunk of the prompt. Either callback ends it by breaking. An
/// empty prompt goes on from the session's last token, if there is one. The sampler's history is what the
/// session holds.
///
/// Afterwards the session holds the prompt and the tokens emitted, except possibly the last of these: a token is
/// appended only when another is to be chosen after it. A caller that goes on (the next turn of a chat) compares
/// [`Session::position`] with the tokens it knows, and starts its next prompt with the one that is not yet there.
pub fn generate(
    session: &mut Session,
    sampler: &mut Sampler,
    prompt: &[u32],
    max_new: usize,
    stop: &[u32],
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    on_prefill: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    if prompt.is_empty() && !session.has_logits() {
        return Err(Error::EmptyPrompt);
    }
    let before = session.position();
    let start = Instant::now();
    let complete = session.prefill_with(prompt, on_prefill)?;
    let prefill = start.elapsed();
    let prompt_tokens = session.position() - before;

    let start = Instant::now();
    // One more than there is room for: the last token emitted need not be appended.
    let most = max_new.min(session.context() - session.position() + 1);
    let mut tokens = room("the tokens of an answer", most)?;
    let greedy = sampler.is_plain_greedy();
    let stop = loop {
        if !complete {
            break StopReason::Interrupted;
        }
        if tokens.len() == max_new {
            break StopReason::Length;
        }
        if let Some(&last) = tokens.last() {
            if session.position() == session.context() {
                break StopReason::Context;
            }
            session.decode(last)?;
        }
        let token = if greedy {
            session.argmax()
        } else {
            let (logits, history) = session.prediction();
            sampler.sample(logits, history, history.len())?
        };
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
