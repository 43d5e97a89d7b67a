//! Guesses by a smaller model: its most likely tokens, one after the other.

use std::time::Instant;

use crate::error::Error;
use crate::session::Session;

use super::Guesses;

/// A model that follows the text.
pub(super) struct Draft {
    session: Session,
    /// Seconds that a guess takes; 0 as long as it is not known.
    seconds: f64,
}

impl Draft {
    pub(super) fn new(session: Session) -> Draft {
        Draft { session, seconds: 0.0 }
    }

    pub(super) fn vocab(&self) -> usize {
        self.session.program().plan.vocab
    }

    /// Seconds that a guess takes; none where it is not known.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Appends `count` guesses to `ids`, whose one token comes after the text `held`; none where its own context is
    /// full.
    pub(super) fn guess(&mut self, held: &[u32], count: usize, ids: &mut Vec<u32>) -> Result<Guesses, Error> {
        let session = &mut self.session;
        let none = Ok(Guesses { count: 0, class: 0 });
        if count == 0 || held.len() + count > session.context() {
            return none;
        }
        let common = session.tokens().iter().zip(held).take_while(|(a, b)| a == b).count();
        if session.rollback(common).is_err() {
            session.reset();
        }
        match &held[session.position()..] {
            [] => {}
            [token] => session.decode(*token)?,
            more => session.prefill(more)?,
        }
        let start = Instant::now();
        for _ in 0..count {
            session.decode(ids[ids.len() - 1])?;
            ids.push(session.argmax());
        }
        let seconds = start.elapsed().as_secs_f64() / count as f64;
        self.seconds += (seconds - self.seconds) * if self.seconds == 0.0 { 1.0 } else { 0.2 };
        Ok(Guesses { count, class: 0 })
    }
}
