//! Generation: a prompt appended, and text that comes a piece at a time.

use std::ffi::{c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard};

use lapidary_runtime::text::{AnswerEnd, AnswerText};
use lapidary_runtime::{Continue, Engine, Error, Phase, Sampler, SamplerOptions, Want, Work, generate};

use crate::boundary::{Failure, Status, call, give, reference, slice, text};
use crate::sequence::{Sequence, State};

/// How a token is chosen: lapidary_sampling_greedy() has the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sampling {
    /// Divides the logits before the draw; 0: always the most likely token, the lowest of equals.
    temperature: f32,
    /// Keep this many most likely tokens; 0: all.
    top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities add up to this; 1: all.
    top_p: f32,
    /// Keep tokens at least this many times as likely as the most likely one; 0: all.
    min_p: f32,
    /// Divides the positive logits of tokens seen lately, multiplies the negative ones; 1: off.
    repetition_penalty: f32,
    /// How many tokens back the penalty looks; 0: off.
    repeat_last_n: usize,
    /// What random numbers come from, with the position: the same seed draws the same.
    seed: u64,
}

impl From<SamplerOptions> for Sampling {
    fn from(options: SamplerOptions) -> Sampling {
        let SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, repeat_last_n, seed } =
            options;
        Sampling { temperature, top_k, top_p, min_p, repetition_penalty, repeat_last_n, seed }
    }
}

impl From<Sampling> for SamplerOptions {
    fn from(sampling: Sampling) -> SamplerOptions {
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, repeat_last_n, seed } = sampling;
        SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, repeat_last_n, seed }
    }
}

/// What is generated.
#[repr(C)]
pub struct Request {
    /// Most tokens; 0: as many as the context has room for.
    most_tokens: usize,
    /// How they are chosen.
    sampling: Sampling,
    /// Texts that end it, which is not given out; null if there are none.
    stop_texts: *const *const c_char,
    /// How many.
    stop_text_count: usize,
    /// Not 0: go on where the model would end.
    ignore_end: u32,
}

/// Why a generation ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub enum Stop {
    /// The model ended it.
    EndOfText = 0,
    /// A stop text did.
    Text = 1,
    /// It has as many tokens as were asked for.
    Length = 2,
    /// The context is full.
    Context = 3,
    /// The callback did.
    Callback = 4,
}

impl From<AnswerEnd> for Stop {
    fn from(end: AnswerEnd) -> Stop {
        match end {
            AnswerEnd::EndOfText => Stop::EndOfText,
            AnswerEnd::StopText => Stop::Text,
            AnswerEnd::Length => Stop::Length,
            AnswerEnd::Context => Stop::Context,
            AnswerEnd::Interrupted => Stop::Callback,
        }
    }
}

/// What a generation came to.
#[repr(C)]
pub struct Outcome {
    /// Why it ended.
    stop: Stop,
    /// Tokens that were made, the one that ends the text not among them.
    tokens: usize,
    /// Seconds to append the prompt.
    prefill_seconds: f64,
    /// Seconds from there to the end, callbacks included.
    decode_seconds: f64,
}

/// Is given the text that became certain with a token: `bytes` bytes and a null, whole characters, good until it
/// returns. A result other than 0 ends the generation. It must return: no exception and no jump may leave it.
pub type OnText = Option<unsafe extern "C" fn(data: *mut c_void, text: *const c_char, bytes: usize) -> c_int>;

/// The most likely token, always.
#[unsafe(no_mangle)]
pub extern "C" fn lapidary_sampling_greedy() -> Sampling {
    SamplerOptions::default().into()
}

/// Chooses the token after a sequence's last one; nothing is appended. It fails with LAPIDARY_STATUS_ARGUMENT if there
/// is none to predict from: the sequence is empty, or was truncated since tokens were appended.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_sample(
    sequence: *mut Sequence,
    sampling: *const Sampling,
    token: *mut u32,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let (sequence, sampling) =
            unsafe { (reference(sequence, "sequence")?, reference(sampling, "sampling")?) };
        let mut state = sequence.state()?;
        let State { tokens, sampler } = &mut *state;
        if !tokens.has_prediction() {
            return Err(Error::EmptyPrompt.into());
        }
        let sampler = sampler_of(sampler, *sampling, sequence.model.vocab)?;
        let chosen = Text { engine: &sequence.model.engine, tokens }.choose(sampler)?;
        // SAFETY: the caller's promise.
        unsafe { give(token, chosen, "token") }
    })
}

/// Appends the tokens of a prompt to a sequence, then generates: each piece of text is given to `on_text` with `data`.
/// No prompt (`prompt` null, `count` 0) goes on from the sequence's last token. `on_text`, `outcome` may be null.
///
/// Afterwards the sequence holds the prompt and every token that was made, but for a last one that the context has no
/// room for. Where it fails with LAPIDARY_STATUS_MEMORY or LAPIDARY_STATUS_INTERNAL it may hold some of them.
///
/// # Safety
/// As the header says of every function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapidary_generate(
    sequence: *mut Sequence,
    prompt: *const u32,
    count: usize,
    request: *const Request,
    on_text: OnText,
    data: *mut c_void,
    outcome: *mut Outcome,
) -> Status {
    call(|| {
        // SAFETY: the caller's promise.
        let (sequence, request) =
            unsafe { (reference(sequence, "sequence")?, reference(request, "request")?) };
        // SAFETY: the caller's promise.
        let prompt = unsafe { slice(prompt, count, "prompt") }?;
        // SAFETY: the caller's promise.
        let stops = unsafe { slice(request.stop_texts, request.stop_text_count, "stop_texts") }?;
        // SAFETY: the caller's promise.
        let stops = stops.iter().map(|&stop| unsafe { text(stop, "a stop text") }.map(String::from));
        let stops = stops.collect::<Result<Vec<String>, Failure>>()?;
        if stops.iter().any(String::is_empty) {
            return Err(Failure::argument("a stop text is empty"));
        }
        let model = &sequence.model;
        let mut answer = AnswerText::new(model.tokenizer()?.detokenizer(), &stops);
        let ends: &[u32] = if request.ignore_end == 0 { &model.text.stop_tokens } else { &[] };
        let most = if request.most_tokens == 0 { usize::MAX } else { request.most_tokens };

        let mut state = sequence.state()?;
        let State { tokens, sampler } = &mut *state;
        let sampler = sampler_of(sampler, request.sampling, model.vocab)?;
        let mut piece = Vec::new();
        let mut show = |text: &str| {
            let Some(on_text) = on_text.filter(|_| !text.is_empty()) else {
                return ControlFlow::Continue(());
            };
            piece.clear();
            piece.extend_from_slice(text.as_bytes());
            piece.push(0);
            // SAFETY: the caller's promise; the text is there until it returns.
            match unsafe { on_text(data, piece.as_ptr().cast(), text.len()) } {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        };
        let before = tokens.position();
        let mut text = Text { engine: &model.engine, tokens };
        let mut on_token = |id: u32| {
            let flow = show(answer.push(id));
            if answer.stopped() { ControlFlow::Break(()) } else { flow }
        };
        let all = &mut |_, _| ControlFlow::Continue(());
        let made = generate(&mut text, sampler, prompt, most, ends, &mut on_token, all)?;
        let end = AnswerEnd::of(made.stop, answer.stopped());
        let held = text.position() - before - made.prompt_tokens;
        if let Some(&last) = made.tokens.get(held)
            && text.position() < text.context()
        {
            text.decode(last)?;
        }
        // What it says no longer matters.
        let _ = show(answer.finish());
        if outcome.is_null() {
            return Ok(());
        }
        let told = Outcome {
            stop: end.into(),
            tokens: made.tokens.len(),
            prefill_seconds: made.prefill.as_secs_f64(),
            decode_seconds: made.decode.as_secs_f64(),
        };
        // SAFETY: the caller's promise.
        unsafe { give(outcome, told, "outcome") }
    })
}

/// A sampler of these options: the one that there is, if they are its.
fn sampler_of(
    sampler: &mut Option<Sampler>,
    sampling: Sampling,
    vocab: usize,
) -> Result<&mut Sampler, Failure> {
    let options = SamplerOptions::from(sampling);
    let kept = sampler.take().filter(|kept| *kept.options() == options);
    let made = kept.map_or_else(|| Sampler::new(options, vocab), Ok)?;
    Ok(sampler.insert(made))
}

/// The engine, once others have done their calls. One that is broken ends this call as it ended the one that broke it.
fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(|_| resume_unwind(Box::new("an earlier call failed within the library")))
}

/// A sequence and its engine, which it takes for a chunk or a token at a time.
struct Text<'a> {
    engine: &'a Mutex<Engine>,
    tokens: &'a mut lapidary_runtime::Sequence,
}

impl Text<'_> {
    fn append(&mut self, tokens: &[u32], phase: Phase) -> Result<(), Error> {
        let (sequence, want) = (&mut *self.tokens, Want::Nothing);
        lock(self.engine).step(&mut [Work { sequence, tokens, phase, want }]).map(|_| ())
    }
}

impl Continue for Text<'_> {
    fn position(&self) -> usize {
        self.tokens.position()
    }

    fn context(&self) -> usize {
        self.tokens.context()
    }

    fn has_prediction(&self) -> bool {
        self.tokens.has_prediction()
    }

    fn prefill(
        &mut self,
        ids: &[u32],
        on_chunk: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        let engine = lock(self.engine);
        engine.check(self.tokens, ids)?;
        let chunk = engine.program().plan.chunk;
        drop(engine);
        let mut done = 0;
        for part in ids.chunks(chunk) {
            self.append(part, Phase::Prefill)?;
            done += part.len();
            if on_chunk(done, ids.len()).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn decode(&mut self, id: u32) -> Result<(), Error> {
        self.append(&[id], Phase::Decode)
    }

    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32, Error> {
        let mut engine = lock(self.engine);
        if sampler.is_plain_greedy() {
            return Ok(engine.argmax(self.tokens));
        }
        let held = self.tokens.tokens();
        sampler.sample(engine.logits(self.tokens), held, held.len())
    }
}
