//! Steps ahead of what is chosen: guesses are appended with the token that was chosen, in one call, and those that the
//! sampler does not choose are forgotten. A row's bits are those that it has alone, and a draw is a function of its
//! position, so that what is chosen is what would be chosen one by one. After Leviathan et al., "Fast Inference from
//! Transformers via Speculative Decoding" (2023), with equality of tokens in the place of their rejection sampling.

use crate::error::Error;
use crate::layout::Area;
use crate::program::Phase;
use crate::sampler::Sampler;
use crate::sequence::Sequence;

use super::{Engine, Want, Work};

/// What is known after a token.
#[derive(Clone, Copy, Debug)]
pub enum Prediction<'a> {
    /// The most likely next token, the lowest id among equals.
    Token(u32),
    /// The logits, one a token of the vocabulary.
    Logits(&'a [f32]),
}

impl Engine {
    /// The most tokens that [`Engine::decode_guessed`] takes.
    pub fn most_guessed(&self) -> usize {
        self.layout.most_rows(Phase::Decode)
    }

    /// Appends a token that was chosen, the first of `tokens`, and of the guesses after it those that the sampler
    /// chooses. `chosen` is given the choice after each token appended, all of the guesses that were right and one
    /// more.
    ///
    /// # Errors
    /// As [`Engine::step`], and then nothing changes; as [`Sampler::sample`], once what it was to choose from is there.
    ///
    /// # Panics
    /// If there are none, or more than [`Engine::most_guessed`].
    pub fn decode_guessed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        sampler: &mut Sampler,
        chosen: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let (greedy, mut failed) = (sampler.is_plain_greedy(), None);
        self.decode_guessed_by(sequence, tokens, greedy, &mut |held, prediction| {
            let choice = match prediction {
                Prediction::Token(token) => Ok(token),
                Prediction::Logits(logits) => sampler.sample(logits, held, held.len()),
            };
            let token = choice.map_err(|error| failed = Some(error)).ok()?;
            chosen.push(token);
            Some(token)
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The same by any choice: `choose` is given the tokens held and what is predicted after them, the most likely
    /// token if `greedy`, and gives the token that comes next, or none where the text ends. How many tokens were
    /// appended.
    ///
    /// # Errors
    /// As [`Engine::step`], and then nothing changes.
    ///
    /// # Panics
    /// As [`Engine::decode_guessed`].
    pub fn decode_guessed_by(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        greedy: bool,
        choose: &mut dyn FnMut(&[u32], Prediction<'_>) -> Option<u32>,
    ) -> Result<usize, Error> {
        assert!((1..=self.most_guessed()).contains(&tokens.len()), "{} tokens with guesses", tokens.len());
        let (before, vocab) = (sequence.position(), self.plan().vocab);
        let want = if greedy { Want::AllArgmax } else { Want::AllLogits };
        let work = Work { sequence: &mut *sequence, tokens, phase: Phase::Decode, want };
        let outputs = self.step(&mut [work])?;
        let mut kept = 0;
        loop {
            let prediction = match greedy {
                true => Prediction::Token(outputs.tokens(0)[kept]),
                false => Prediction::Logits(&outputs.logits(0)[kept * vocab..][..vocab]),
            };
            kept += 1;
            let choice = choose(&sequence.tokens()[..before + kept], prediction);
            if choice.is_none() || choice.as_ref() != tokens.get(kept) {
                break;
            }
        }
        self.keep(0, sequence, tokens.len(), kept);
        Ok(kept)
    }

    /// Of the `appended` tokens of a work of the last step, all of whose tokens that were decoded took one call, keeps
    /// the first `kept`: the sequence, which is the work's, goes on, and predicts, as if there had been no others.
    ///
    /// # Panics
    /// If there was no such work, or nothing of it is kept.
    pub fn keep(&mut self, work: usize, sequence: &mut Sequence, appended: usize, kept: usize) {
        if kept == appended {
            return;
        }
        let place = self.parts.iter().position(|part| part.work == work);
        let first = place.map(|place| self.segments[place].first as usize);
        let Some(at) = first.filter(|_| kept > 0).map(|first| first + kept - 1) else {
            panic!("work {work} has no {kept} of {appended} tokens in the last call")
        };
        sequence.truncate(sequence.position() - (appended - kept));
        let row = Area::Even.row_bytes(self.plan());
        let stream = self.areas[self.layout.last as usize].as_slice();
        sequence.last.as_mut_slice().copy_from_slice(&stream[at * row..(at + 1) * row]);
        sequence.predicts = Some(Phase::Decode);
    }
}
