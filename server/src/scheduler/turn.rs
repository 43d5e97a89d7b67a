//! A turn: one step of the engine over everything that runs, and what comes of it.

use std::time::Instant;

use lapidary_runtime::{Phase, Sequence, Want, Work};

use super::running::Running;
use super::voice::Voice;
use super::{Event, Logprobs, Scheduler, logprobs};
use crate::error::ApiError;

/// Whose a row of logits is.
enum Target<'a> {
    Answer(&'a mut Voice),
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
            Target::Answer(voice) => voice.choose(logits),
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
            Target::Answer(voice) => voice.take(token),
            Target::Prompt(voices) => voices.iter_mut().for_each(|voice| voice.take(token)),
            Target::Scores { .. } | Target::Nobody => {}
        }
    }
}

impl Scheduler {
    /// One step, if anything runs.
    pub(super) fn turn(&mut self) {
        if self.running.is_empty() || self.turn_alone() {
            return;
        }
        let speaking: usize = self.running.iter().map(Running::stepped).sum();
        let mut budget = self.pace.budget(speaking);
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
                    let want = if voice.wants_argmax() { Want::Argmax } else { Want::Logits };
                    // The work borrows the token, the target the rest.
                    works.push((sequence, Tokens::Last(voice.last()[0]), Phase::Decode, want));
                    targets.push(Target::Answer(voice));
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
        let sink = &mut |work: usize, index: usize, logits: &[f32]| targets[work].row(index, logits);
        let failed = match self.engine.step_each(&mut step, sink) {
            Ok(outputs) => {
                let tokens: Vec<Option<u32>> = (0..step.len())
                    .map(|work| (step[work].want == Want::Argmax).then(|| outputs.token(work)))
                    .collect();
                for (target, token) in targets.iter_mut().zip(tokens) {
                    token.into_iter().for_each(|token| target.token(token));
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        drop((step, targets));
        drop(works);
        self.pace.note(speaking, prompts, start.elapsed());
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
        let mut spoke = 0;
        for index in 0..running.voices.len() {
            let voice = &mut running.voices[index];
            let silent = running.job.most == 0;
            if voice.ended.is_some() || !(silent || voice.has_chosen()) {
                continue;
            }
            spoke += 1;
            // Nothing is wanted of an answer of no tokens.
            let event = if silent { Some(voice.end(super::Reason::Length)) } else { voice.advance()? };
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
        Ok(self.spoke(running, spoke, spoke))
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
    Last(u32),
    Part(&'a [u32]),
}

impl Tokens<'_> {
    fn as_slice(&self) -> &[u32] {
        match self {
            Tokens::Last(token) => std::slice::from_ref(token),
            Tokens::Part(part) => part,
        }
    }
}
