//! What an engine's sequences are made and known by, on any thread.

use std::sync::Arc;

use crate::error::Error;
use crate::kv::{Kv, Ledger};
use crate::layout::Layout;
use crate::program::Program;
use crate::sequence::Sequence;

/// What makes and knows an engine's sequences, without it.
pub(crate) struct Empty {
    layout: Arc<Layout>,
    ledger: Arc<Ledger>,
    program: Arc<Program>,
}

impl Empty {
    pub(super) fn new(layout: &Arc<Layout>, ledger: &Arc<Ledger>, program: &Arc<Program>) -> Empty {
        Empty { layout: layout.clone(), ledger: ledger.clone(), program: program.clone() }
    }

    /// See [`Engine::sequence`].
    pub(crate) fn sequence(&self) -> Result<Sequence, Error> {
        let kv = Kv::new(self.layout.clone(), self.ledger.clone())?;
        Sequence::new(kv, &self.program.plan)
    }

    /// See [`Engine::check`].
    pub(crate) fn check(&self, sequence: &Sequence, tokens: &[u32]) -> Result<(), Error> {
        check(&self.layout, self.vocab(), sequence, tokens)
    }

    /// Tokens of the vocabulary.
    pub(crate) fn vocab(&self) -> usize {
        self.program.plan.vocab
    }
}

/// See [`Engine::check`].
pub(super) fn check(
    layout: &Arc<Layout>,
    vocab: usize,
    sequence: &Sequence,
    tokens: &[u32],
) -> Result<(), Error> {
    let context = sequence.context();
    if !Arc::ptr_eq(sequence.layout(), layout) {
        return Err(Error::OtherEngine);
    }
    let (adding, position) = (tokens.len(), sequence.position());
    if adding > context - position {
        return Err(Error::ContextExceeded { adding, position, context });
    }
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        Some(&token) => Err(Error::TokenRange { token, vocab }),
        None => Ok(()),
    }
}
