//! A turn: one step of the engine over everything that runs, and what comes of it.

use std::time::Instant;

use lapidary_runtime::{Phase, Sequence, Want, Work};
use tokio::sync::mpsc::UnboundedSender;

use super::running::Running;
use super::voice::Voice;
use super::{Event, Logprobs, Scheduler, logprobs};
use crate::error::ApiError;

/// Whose a row of logits is.
enum Target<'a> {
    Answer(Answer<'a>),
    /// A prompt's last token: all answers to it choose by its row.
    Prompt(&'a mut [Voice]),
    /// A prompt whose tokens are scored, from this one of its tokens on.
    Scores {
        scores: &'a mut Vec<Logprobs>,
        prompt: &'a [u32],
        from: usize,
        voices: &'a mut [Voice],
    },
    Nobody,
}

impl Target<'_> {
    fn row(&mut self, index: usize, logits: &[f32]) {
        match self {
            Target::Answer(answer) => answer.choose(|voice| voice.choose(logits)),
            Target::Prompt(voices) => voices.iter_mut().for_each(|voice| voice.choose(logits)),
            Target::Scores { scores, prompt, from, voices } => match prompt.get(*from + index + 1) {
                Some(&next) => {
                    let top = voices.first().map_or(0, Voice::top);
                    scores.push(logprobs::of(logits, next, top));
                }
                None => voices.iter_mut().for_each(|voice| voice.choose(logits)),
            },
            Target::Nobody => {}
        }
    }

    fn token(&mut self, token: u32) {
        match self {
            Target::Answer(answer) => answer.choose(|voice| voice.take(token)),
            Target::Prompt(voices) => voices.iter_mut().for_each(|voice| voice.take(token)),
            Target::Scores { .. } | Target::Nobody => {}
        }
    }
}

/// An answer in a step, with the tokens that are appended to it.
struct Answer<'a> {
    voice: &'a mut Voice,
    events: &'a UnboundedSender<Event>,
    /// The token that was chosen last, and guesses.
    tokens: Vec<u32>,
    /// Of them those that were right, the first always.
    kept: usize,
    /// Chosen after each of these.
    chosen: Vec<u32>,
    over: bool,
}

impl Answer<'_> {
    /// Chooses after the next token, if it is the one that was chosen before.
    fn choose(&mut self, choose: impl FnOnce(&mut Voice)) {
        self.over = self.over || self.kept > 0 && !self.goes_on();
        if self.over {
            return;
        }
        choose(self.voice);
        self.kept += 1;
        self.chosen.extend(self.voice.chosen_token());
    }

    fn goes_on(&mut self) -> bool {
        if self.voice.chosen_token().as_ref() != self.tokens.get(self.kept) {
            return false;
        }
        match self.voice.advance() {
            Ok(event) => {
                // Whoever asked may be gone.
                event.into_iter().for_each(|event| drop(self.events.send(event)));
                self.voice.ended.is_none()
            }
            Err(error) => {
                self.voice.fail(error);
                false
            }
        }
    }
}

impl Scheduler {
    /// Guesses how answers go on, if the step has nothing else: whether it did.
    fn guess(&mut self) -> bool {
        let Some(together) = &mut self.together else { return false };
        if self.running.iter().any(|running| running.stepped() < running.speaking()) {
            return false;
        }
        let mut texts = vec![];
        for running in &mut self.running {
            for (sequence, voice) in running.sequences.iter().zip(&mut running.voices) {
                let (Some(sequence), None) = (sequence, voice.ended) else { continue };
                let room = sequence.context() - sequence.position() - 1;
                voice.look(room.min(together.most()));
                texts.push(&mut voice.guessed);
            }
        }
        together.begin(&mut texts, self.engine.most_guessed());
        true
    }

    /// One step, if anything runs.
    pub(super) fn turn(&mut self) {
        if self.running.is_empty() || self.turn_alone() {
            return;
        }
        let speaking: usize = self.running.iter().map(Running::stepped).sum();
        let waits = self.running.iter().find(|running| !running.speaks);
        let left = |running: &Running| {
            let done = running.sequences.first().and_then(Option::as_ref).map_or(0, Sequence::position);
            running.job.prompt.len().saturating_sub(done)
        };
        let mut budget = self.pace.budget(speaking, waits.map_or(usize::MAX, left));
        let guesses = self.guess();
        let (mut works, mut targets, mut prompts) = (vec![], vec![], 0);
        for running in &mut self.running {
            if running.speaks {
                let parts = running.sequences.iter_mut().zip(&mut running.voices);
                for (sequence, voice) in parts {
                    let (Some(sequence), None) = (sequence, voice.ended) else { continue };
                    let position = sequence.position();
                    if position < voice.held().len() {
                        // Memory was short for a while: what it said is computed again, as it was.
                        let (missing, phase) = voice.missing(position);
                        let count = budget.min(missing.len());
                        if count > 0 {
                            budget -= count;
                            prompts += count;
                            works.push((sequence, Tokens::Part(&missing[..count]), phase, Want::Nothing));
                            targets.push(Target::Nobody);
                        }
                        continue;
                    }
                    let tokens = if guesses { voice.guessed.tokens() } else { voice.last() }.to_vec();
                    let want = match (voice.wants_argmax(), tokens.len()) {
                        (true, 1) => Want::Argmax,
                        (true, _) => Want::AllArgmax,
                        (false, 1) => Want::Logits,
                        (false, _) => Want::AllLogits,
                    };
                    works.push((sequence, Tokens::Own(tokens.clone()), Phase::Decode, want));
                    let (events, kept, chosen) = (&running.job.events, 0, vec![]);
                    targets.push(Target::Answer(Answer { voice, events, tokens, kept, chosen, over: false }));
                }
                continue;
            }
            let Some(Some(sequence)) = running.sequences.first_mut() else { continue };
            let (position, prompt) = (sequence.position(), &running.job.prompt);
            let until = running.parting.filter(|&at| at > position).unwrap_or(prompt.len());
            let count = budget.min(until - position);
            if count == 0 {
                continue;
            }
            budget -= count;
            prompts += count;
            let ends = position + count == prompt.len();
            let argmax = running.voices.iter().all(Voice::wants_argmax);
            let want = match (running.job.scores_prompt, ends) {
                (true, _) => Want::AllLogits,
                (false, false) => Want::Nothing,
                (false, true) if argmax => Want::Argmax,
                (false, true) => Want::Logits,
            };
            let tokens = Tokens::Part(&prompt[position..position + count]);
            works.push((sequence, tokens, Phase::Prefill, want));
            let voices = &mut running.voices[..];
            targets.push(if running.job.scores_prompt {
                Target::Scores { scores: &mut running.scores, prompt, from: position, voices }
            } else if ends {
                Target::Prompt(voices)
            } else {
                Target::Nobody
            });
        }
        let start = Instant::now();
        let mut step: Vec<Work<'_>> = works
            .iter_mut()
            .map(|(sequence, tokens, phase, want)| {
                let sequence: &mut Sequence = sequence;
                Work { sequence, tokens: tokens.as_slice(), phase: *phase, want: *want }
            })
            .collect();
        let rows: usize = step.iter().map(|work| work.tokens.len()).sum();
        let sink = &mut |work: usize, index: usize, logits: &[f32]| targets[work].row(index, logits);
        let failed = match self.engine.step_each(&mut step, sink) {
            Ok(outputs) => {
                for (work, target) in targets.iter_mut().enumerate() {
                    outputs.tokens(work).iter().for_each(|&token| target.token(token));
                }
                for (index, (work, target)) in step.iter_mut().zip(&mut targets).enumerate() {
                    let Target::Answer(answer) = target else { continue };
                    self.engine.keep(index, work.sequence, work.tokens.len(), answer.kept.max(1));
                    if let Some(together) = self.together.as_mut().filter(|_| guesses) {
                        together.learn(&mut answer.voice.guessed, &answer.chosen);
                    }
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        drop((step, targets));
        drop(works);
        if let Some(together) = self.together.as_mut().filter(|_| guesses) {
            together.end();
            let told = together.take_told();
            self.metrics.guessed_tokens.add(told.guessed);
            self.metrics.guessed_right.add(told.right);
        }
        // A step with guesses tells nothing of one without.
        if rows == speaking + prompts {
            self.pace.note(speaking, prompts, start.elapsed());
        }
        self.metrics.steps.add(1);
        match failed {
            None => self.settle(),
            Some(message) => {
                for running in std::mem::take(&mut self.running) {
                    let _ = running.job.events.send(Event::Failed(ApiError::internal(message.clone())));
                    self.release(running);
                }
            }
        }
    }

    /// What the step brought is sent; what ended is done with.
    fn settle(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            let mut running = self.running.remove(at);
            match self.settle_one(&mut running) {
                Ok(true) => {
                    self.running.insert(at, running);
                    at += 1;
                }
                Ok(false) => self.release(running),
                Err(error) => {
                    let _ = running.job.events.send(Event::Failed(error));
                    self.release(running);
                }
            }
        }
    }

    /// Whether it goes on.
    fn settle_one(&mut self, running: &mut Running) -> Result<bool, ApiError> {
        if !running.speaks && !self.settle_prompt(running)? {
            return Ok(true);
        }
        let (mut spoke, mut tokens) = (0, 0);
        for index in 0..running.voices.len() {
            let Some(Some(_)) = running.sequences.get(index) else { continue };
            let voice = &mut running.voices[index];
            let (silent, made) = (running.job.most == 0, voice.take_made());
            if made == 0 && !silent {
                continue;
            }
            spoke += 1;
            tokens += made.max(1);
            // Nothing is wanted of an answer of no tokens.
            let event = if silent {
                Some(voice.end(super::Reason::Length))
            } else if voice.ended.is_none() {
                voice.advance()?
            } else {
                None
            };
            if let Some(event) = event {
                let _ = running.job.events.send(event);
            }
            if running.voices[index].ended.is_some() {
                self.end_of(running, index);
            }
        }
        if spoke == 0 {
            return Ok(running.speaking() > 0);
        }
        self.share(running);
        Ok(self.spoke(running, spoke, tokens))
    }

    /// So many answers came to so many tokens in a step: whether the job goes on.
    pub(super) fn spoke(&self, running: &mut Running, answers: usize, tokens: usize) -> bool {
        let now = Instant::now();
        let last = running.last.replace(now);
        let time = now.duration_since(last.unwrap_or(running.job.arrived));
        let histogram = if last.is_some() { &self.metrics.inter_token } else { &self.metrics.first_token };
        // Tokens that come together share their time.
        let each = time.mul_f64(answers as f64 / tokens.max(1) as f64);
        (0..tokens).for_each(|_| histogram.observe(each));
        self.metrics.generated_tokens.add(tokens);
        let goes_on = running.speaking() > 0;
        if !goes_on {
            self.metrics.request.observe(running.job.arrived.elapsed());
            self.metrics.finished.add(1);
        }
        goes_on
    }

    /// Whether the prompt is done; then its answers have sequences.
    fn settle_prompt(&mut self, running: &mut Running) -> Result<bool, ApiError> {
        let said = |error: lapidary_runtime::Error| ApiError::internal(error.to_string());
        let prompt = running.job.prompt.len();
        let Some(Some(sequence)) = running.sequences.first() else { return Ok(false) };
        let position = sequence.position();
        self.share(running);
        if position < prompt {
            return Ok(false);
        }
        for _ in 1..running.voices.len() {
            let Some(Some(first)) = running.sequences.first() else { return Ok(false) };
            let copy = first.fork().map_err(said)?;
            running.sequences.push(Some(copy));
        }
        running.speaks = true;
        if running.job.scores_prompt {
            let (answer, infos) = (running.job.first_answer, std::mem::take(&mut running.scores));
            let _ = running.job.events.send(Event::Prompt { answer, infos });
        }
        Ok(true)
    }

    /// An answer is done: its text is kept, its slot is free.
    pub(super) fn end_of(&mut self, running: &mut Running, index: usize) {
        let Some(sequence) = running.sequences.get_mut(index).and_then(Option::take) else { return };
        running.reserved = running.reserved.saturating_sub(self.engine.kv_bytes_of(running.room));
        let left = self.left().saturating_sub(running.reserved);
        let kept = self.keep(sequence, running.prefilled, running.job.prompt.len());
        self.prefixes.shrink(left);
        self.slots.give_back(running.voices[index].slot.take(), kept);
    }
}

/// The tokens of a work.
enum Tokens<'a> {
    Own(Vec<u32>),
    Part(&'a [u32]),
}

impl Tokens<'_> {
    fn as_slice(&self) -> &[u32] {
        match self {
            Tokens::Own(tokens) => tokens,
            Tokens::Part(part) => part,
        }
    }
}
