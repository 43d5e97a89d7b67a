//! What goes into a step, and what comes of it: tokens for sequences, and what is wanted of them.

use std::ops::Range;

use super::step::Head;
use super::{Engine, floats};
use crate::layout::Area;
use crate::program::Phase;
use crate::sequence::Sequence;

/// What is wanted of the tokens of some work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// That the caches hold them.
    Nothing,
    /// The logits after the last.
    Logits,
    /// The logits after each.
    AllLogits,
    /// The most likely token after the last, the lowest id among equals.
    Argmax,
    /// The most likely token after each.
    AllArgmax,
}

impl Want {
    /// The head that computes it, and whether after each token.
    pub(super) fn head(self) -> Option<(Head, bool)> {
        match self {
            Want::Nothing => None,
            Want::Logits => Some((Head::Logits, false)),
            Want::AllLogits => Some((Head::Logits, true)),
            Want::Argmax => Some((Head::Tokens, false)),
            Want::AllArgmax => Some((Head::Tokens, true)),
        }
    }
}

/// Tokens to append to a sequence.
pub struct Work<'a> {
    /// The sequence, of this engine.
    pub sequence: &'a mut Sequence,
    /// At least one if anything is wanted.
    pub tokens: &'a [u32],
    /// What they are computed as.
    pub phase: Phase,
    /// What is wanted of them.
    pub want: Want,
}

impl Work<'_> {
    /// Rows of a head that are wanted.
    pub(super) fn wanted(&self, head: Head) -> usize {
        match self.want.head() {
            Some((of, each)) if of == head => {
                if each {
                    self.tokens.len()
                } else {
                    1
                }
            }
            _ => 0,
        }
    }
}

/// What came of a step's work, by its index; valid until the next.
pub struct Outputs<'a> {
    pub(super) engine: &'a Engine,
}

impl Outputs<'_> {
    /// The logits that were wanted, `(rows, vocab)`, if any were.
    ///
    /// # Panics
    /// If there was no such work.
    pub fn logits(&self, work: usize) -> &[f32] {
        let Range { start, end } = self.engine.outputs[work].logits;
        let vocab = self.engine.plan().vocab;
        &floats(self.engine.area(Area::Logits))[start * vocab..end * vocab]
    }

    /// The token that was wanted.
    ///
    /// # Panics
    /// If there was no such work, or no token of it was wanted.
    pub fn token(&self, work: usize) -> u32 {
        self.tokens(work)[0]
    }

    /// The most likely tokens that were wanted, if any were.
    ///
    /// # Panics
    /// If there was no such work.
    pub fn tokens(&self, work: usize) -> &[u32] {
        &self.engine.tokens[self.engine.outputs[work].tokens.clone()]
    }
}

/// Where what is wanted of some work lies.
pub(super) struct Output {
    /// Rows of logits.
    pub(super) logits: Range<usize>,
    /// Of the most likely tokens.
    pub(super) tokens: Range<usize>,
}
