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

impl Engine {
    /// The most tokens that [`Engine::decode_guessed`] takes.
    pub fn most_guessed(&self) -> usize {
        self.layout.most_rows(Phase::Decode)
    }

    /// Appends a token that was chosen, the first of `tokens`, and of the guesses after it those that the sampler
    /// chooses. `chosen` is given the choice after each token appended, all of the guesses that were right and one more.
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
        assert!((1..=self.most_guessed()).contains(&tokens.len()), "{} tokens with guesses", tokens.len());
        let (before, vocab) = (sequence.position(), self.plan().vocab);
        let greedy = sampler.is_plain_greedy();
        let want = if greedy { Want::AllArgmax } else { Want::AllLogits };
        let work = Work { sequence: &mut *sequence, tokens, phase: Phase::Decode, want };
        let outputs = self.step(&mut [work])?;
        let mut choose = |row: usize| {
            if greedy {
                return Ok(outputs.tokens(0)[row]);
            }
            let end = before + row + 1;
            sampler.sample(&outputs.logits(0)[row * vocab..][..vocab], &sequence.tokens()[..end], end)
        };
        let (mut kept, mut failed) = (0, None);
        while failed.is_none() && kept < tokens.len() {
            match choose(kept) {
                Ok(token) if tokens.get(kept + 1) == Some(&token) => chosen.push(token),
                Ok(token) => {
                    chosen.push(token);
                    kept += 1;
                    break;
                }
                Err(error) => failed = Some(error),
            }
            kept += 1;
        }
        self.keep(sequence, tokens.len(), kept);
        failed.map_or(Ok(()), Err)
    }

    /// Of the `appended` tokens of the last step, which was of this sequence's alone and took one call, keeps the first
    /// `kept`: the sequence goes on, and predicts, as if there had been no others.
    pub(crate) fn keep(&mut self, sequence: &mut Sequence, appended: usize, kept: usize) {
        if kept == appended {
            return;
        }
        sequence.truncate(sequence.position() - (appended - kept));
        let row = Area::Even.row_bytes(self.plan());
        let stream = self.areas[self.layout.last as usize].as_slice();
        sequence.last.as_mut_slice().copy_from_slice(&stream[(kept - 1) * row..kept * row]);
        sequence.predicts = Some(Phase::Decode);
    }
}
