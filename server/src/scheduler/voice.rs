//! One answer as it is made: rows of logits to tokens, tokens to text.
//!
//! In: a row of logits, or the most likely token. Out: the token chosen, and what becomes certain of the text, with
//! log-probabilities where they are wanted. A token depends on the row, the parameters, the seed and its position
//! alone.

use std::collections::HashMap;
use std::sync::Arc;

use lapidary_runtime::text::AnswerText;
use lapidary_runtime::{Guessed, Phase, Sampler, SamplerOptions};

use super::logprobs::{self, Logprobs};
use super::{Event, Job, Reason};
use crate::error::ApiError;
use crate::guide::{Guide, Guides};
use crate::model::Vocabulary;
use crate::parameters::Parameters;

/// See the module's documentation.
pub(super) struct Voice {
    /// Its index within the request.
    pub(super) answer: usize,
    /// Where `/slots` shows it.
    pub(super) slot: Option<usize>,
    vocabulary: Arc<Vocabulary>,
    parameters: Arc<Parameters>,
    sampler: Sampler,
    guide: Option<Guide>,
    /// The tokens of the prompt and of the answer.
    history: Vec<u32>,
    prompt: usize,
    most: usize,
    /// How often the answer has each token, where that matters.
    counts: HashMap<u32, u32>,
    text: AnswerText,
    /// Bytes that its tokens spell.
    spelled: usize,
    /// What was not sent yet.
    held: String,
    infos: Vec<Logprobs>,
    /// A row that is changed before a token is chosen.
    row: Vec<f32>,
    /// Chosen in the step at hand.
    chosen: Option<Result<(u32, Option<Logprobs>), ApiError>>,
    /// Tokens chosen in the step at hand.
    made: usize,
    /// How it may go on.
    pub(super) guessed: Guessed,
    /// Why it ended, once it did.
    pub(super) ended: Option<Reason>,
}

impl Voice {
    pub(super) fn new(
        job: &Job,
        index: usize,
        slot: usize,
        vocabulary: &Arc<Vocabulary>,
        guides: &Guides,
    ) -> Result<Voice, String> {
        let parameters = job.parameters.clone();
        let seed = parameters.sampler.seed.wrapping_add(index as u64);
        let options = SamplerOptions { seed, ..parameters.sampler };
        let sampler = Sampler::new(options, vocabulary.size).map_err(|error| error.to_string())?;
        let tokenizer = vocabulary.text.tokenizer().ok_or("the model has no tokenizer")?;
        Ok(Voice {
            answer: job.first_answer + index,
            slot: Some(slot),
            vocabulary: vocabulary.clone(),
            sampler,
            guide: job.grammar.as_ref().map(|compiled| guides.guide(compiled)),
            history: job.prompt.clone(),
            prompt: job.prompt.len(),
            most: job.most,
            counts: HashMap::new(),
            text: AnswerText::new(tokenizer.detokenizer(), &parameters.stop),
            spelled: 0,
            held: String::new(),
            infos: vec![],
            row: vec![],
            chosen: None,
            made: 0,
            guessed: Guessed::default(),
            ended: None,
            parameters,
        })
    }

    /// Tokens of the answer.
    pub(super) fn tokens(&self) -> usize {
        self.history.len() - self.prompt
    }

    /// The most tokens that it may still come to.
    pub(super) fn most_more(&self) -> usize {
        self.most - self.tokens()
    }

    /// The token that was chosen, until it goes on with it.
    pub(super) fn chosen_token(&self) -> Option<u32> {
        self.chosen.as_ref()?.as_ref().ok().map(|(token, _)| *token)
    }

    /// Of how many likely tokens log-probabilities are told.
    pub(super) fn top(&self) -> usize {
        self.parameters.logprobs.unwrap_or(0)
    }

    /// The token that is to be appended.
    pub(super) fn last(&self) -> &[u32] {
        &self.history[self.history.len() - 1..]
    }

    /// The tokens before it.
    pub(super) fn held(&self) -> &[u32] {
        &self.history[..self.history.len() - 1]
    }

    /// Of the tokens before it, those after the first `position` that are computed as one phase.
    pub(super) fn missing(&self, position: usize) -> (&[u32], Phase) {
        match position < self.prompt {
            true => (&self.history[position..self.prompt], Phase::Prefill),
            false => (&self.history[position..self.history.len() - 1], Phase::Decode),
        }
    }

    /// Tokens that were chosen in the step at hand, which is over.
    pub(super) fn take_made(&mut self) -> usize {
        std::mem::take(&mut self.made)
    }

    /// Looks for guesses of how it goes on after a sequence's end, at most so many.
    pub(super) fn look(&mut self, room: usize) {
        let (last, held) = (self.history[self.history.len() - 1], &self.history[..self.history.len() - 1]);
        self.guessed.look(held, last, room.min(self.most_more() - 1));
    }

    /// Fails where it would have gone on.
    pub(super) fn fail(&mut self, error: ApiError) {
        self.chosen = Some(Err(error));
    }

    /// Whether the most likely token is all that it needs.
    pub(super) fn wants_argmax(&self) -> bool {
        let p = &self.parameters;
        self.sampler.is_plain_greedy() && p.logprobs.is_none() && self.guide.is_none() && !self.adjusts()
    }

    fn adjusts(&self) -> bool {
        let p = &self.parameters;
        !p.bias.is_empty() || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }

    /// Takes the most likely token.
    pub(super) fn take(&mut self, token: u32) {
        self.made += 1;
        self.chosen = Some(Ok((token, None)));
    }

    /// Chooses by a row of logits.
    pub(super) fn choose(&mut self, logits: &[f32]) {
        self.made += 1;
        self.chosen = Some(self.chosen_of(logits));
    }

    fn chosen_of(&mut self, logits: &[f32]) -> Result<(u32, Option<Logprobs>), ApiError> {
        let guided = |what: String| {
            ApiError::field("response_format", format!("the grammar or schema cannot be followed: {what}"))
        };
        let mask = self.guide.as_ref().map(Guide::mask).transpose().map_err(guided)?;
        let position = self.history.len();
        let token = if mask.is_none() && !self.adjusts() {
            self.sampler.sample(logits, &self.history, position)
        } else {
            self.row.clear();
            self.row.extend_from_slice(logits);
            let p = &self.parameters;
            for &(id, bias) in &p.bias {
                self.row[id as usize] += bias;
            }
            for (&id, &count) in &self.counts {
                self.row[id as usize] -= p.presence_penalty + p.frequency_penalty * count as f32;
            }
            if let Some(mask) = &mask {
                mask.apply(&mut self.row);
            }
            self.sampler.sample(&self.row, &self.history, position)
        };
        let token = token.map_err(|error| match mask.is_some() {
            true => guided("no token fulfils it any more".into()),
            false => ApiError::internal(error.to_string()),
        })?;
        if let (Some(guide), Some(mask)) = (&self.guide, mask) {
            guide.chosen(mask, token);
        }
        let told = self.parameters.logprobs.map(|top| logprobs::of(logits, token, top));
        Ok((token, told))
    }

    /// Goes on with what was chosen: what is to be sent.
    pub(super) fn advance(&mut self) -> Result<Option<Event>, ApiError> {
        let Some(chosen) = self.chosen.take() else { return Ok(None) };
        let (token, mut info) = chosen?;
        let ends = !self.parameters.ignore_eos || self.guide.is_some();
        if ends && self.vocabulary.text.stop_tokens().contains(&token) {
            return Ok(Some(self.end(Reason::Stop)));
        }
        self.history.push(token);
        if self.parameters.presence_penalty != 0.0 || self.parameters.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        if let Some(info) = &mut info {
            info.at = self.spelled;
            self.spelled += self.vocabulary.bytes(token).len();
        }
        self.infos.extend(info);
        let certain = self.text.push(token);
        self.held.push_str(certain);
        if self.text.stopped() {
            let length = self.text.text().len();
            self.infos.retain(|info| info.at < length);
            return Ok(Some(self.end(Reason::Stop)));
        }
        if self.tokens() >= self.most {
            return Ok(Some(self.end(Reason::Length)));
        }
        Ok((!self.held.is_empty()).then(|| self.piece()))
    }

    fn piece(&mut self) -> Event {
        let (text, infos) = (std::mem::take(&mut self.held), std::mem::take(&mut self.infos));
        Event::Piece { answer: self.answer, text, infos, end: None }
    }

    /// Ends it: the rest of its text.
    pub(super) fn end(&mut self, reason: Reason) -> Event {
        self.ended = Some(reason);
        if !self.text.stopped() {
            let rest = self.text.finish();
            self.held.push_str(rest);
        }
        let (text, infos) = (std::mem::take(&mut self.held), std::mem::take(&mut self.infos));
        Event::Piece { answer: self.answer, text, infos, end: Some((reason, self.tokens())) }
    }
}
