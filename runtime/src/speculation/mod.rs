//! Speculation: guessing how a text goes on, so that a step of several tokens does the work of several steps.
//!
//! In: a session, the token chosen last. Out: what is chosen after it, one token or more, the same tokens that plain
//! decoding chooses (see [`Engine::decode_guessed`](crate::Engine::decode_guessed)). How many tokens are guessed is
//! decided by what steps took and by how many guesses were right (`pace.rs`): where guessing loses, it stops.

mod draft;
mod lookup;
mod pace;
mod together;

use std::time::Instant;

use crate::error::Error;
use crate::sampler::Sampler;
use crate::session::Session;

use draft::Draft;
use lookup::Lookup;
use pace::Pace;

pub use together::{Guessed, Together};

/// Who guesses.
enum Guesser {
    Lookup(Lookup),
    Draft(Box<Draft>),
}

/// What a guesser has to offer for one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guesses {
    /// How many tokens.
    count: usize,
    /// How sure they are: guesses of one class are about as often right. Below [`pace::CLASSES`].
    class: usize,
}

/// What guessing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speculated {
    /// Steps that tokens were chosen by.
    pub steps: usize,
    /// Tokens that were chosen.
    pub tokens: usize,
    /// Tokens that were guessed and stepped.
    pub guessed: usize,
    /// Those of them that were right.
    pub right: usize,
    /// Seconds that all of it took.
    pub seconds: f64,
    /// Seconds that the same tokens would have taken one by one, by the plain steps that there were.
    pub plain_seconds: f64,
}

impl Speculated {
    /// The share of guesses that were right; 0 of none.
    pub fn acceptance(&self) -> f64 {
        if self.guessed == 0 { 0.0 } else { self.right as f64 / self.guessed as f64 }
    }

    /// How many times as fast as plain decoding it was, as far as that is known; 1 of nothing.
    pub fn gain(&self) -> f64 {
        if self.seconds > 0.0 && self.plain_seconds > 0.0 { self.plain_seconds / self.seconds } else { 1.0 }
    }
}

/// Guesses how a session's text goes on: see the module's documentation.
pub struct Speculation {
    guesser: Guesser,
    /// Most tokens guessed at a time.
    most: usize,
    /// Whether as many are guessed as can be, whatever it costs.
    always: bool,
    pace: Pace,
    told: Speculated,
    /// The token chosen last, and guesses.
    ids: Vec<u32>,
    /// What was guessed last, until it is known what came of it.
    step: Option<Step>,
}

/// A step that is under way.
struct Step {
    offered: Guesses,
    /// How many guesses are stepped.
    count: usize,
    /// When guessing began.
    start: Instant,
    /// When the step began.
    stepping: Instant,
}

impl Speculation {
    /// Guesses up to `most` tokens at a time (of which a step takes no more than it has rows) by what followed the
    /// latest tokens where they stood earlier in the text: prompt lookup decoding (Saxena, 2023).
    pub fn lookup(most: usize) -> Speculation {
        Speculation::of(Guesser::Lookup(Lookup::default()), most)
    }

    /// Guesses up to `most` tokens at a time by the most likely ones of a smaller model, whose session this is. It
    /// must have the same tokens.
    pub fn draft(session: Session, most: usize) -> Speculation {
        Speculation::of(Guesser::Draft(Box::new(Draft::new(session))), most)
    }

    fn of(guesser: Guesser, most: usize) -> Speculation {
        let (told, ids) = (Speculated::default(), Vec::new());
        Speculation { guesser, most, always: false, pace: Pace::default(), told, ids, step: None }
    }

    /// Guesses as many as it may in each step, whether it pays or not: for tests and for measuring.
    pub fn always(mut self) -> Speculation {
        self.always = true;
        self
    }

    /// What it came to so far.
    pub fn told(&self) -> Speculated {
        self.told
    }

    /// The same for several texts that are stepped together, if it guesses by the text itself.
    ///
    /// # Errors
    /// Itself, if it guesses by a model.
    pub fn together(self) -> Result<Together, Box<Speculation>> {
        match self.guesser {
            Guesser::Lookup(_) => Ok(Together::new(self.most, self.always, self.pace)),
            Guesser::Draft(_) => Err(Box::new(self)),
        }
    }

    /// Fails if it guesses by a model that has not as many tokens as the one whose text it guesses.
    ///
    /// # Errors
    /// [`Error::DraftVocab`].
    pub fn check(&self, vocab: usize) -> Result<(), Error> {
        match &self.guesser {
            Guesser::Draft(draft) if draft.vocab() != vocab => {
                Err(Error::DraftVocab { draft: draft.vocab(), vocab })
            }
            Guesser::Draft(_) | Guesser::Lookup(_) => Ok(()),
        }
    }

    /// Appends the token that was chosen last, and gives `chosen` what is chosen after it: at least one token and at
    /// most `most`, which is at least 1.
    pub(crate) fn advance(
        &mut self,
        session: &mut Session,
        last: u32,
        sampler: &mut Sampler,
        most: usize,
        chosen: &mut Vec<u32>,
    ) -> Result<(), Error> {
        // A guess takes room in the context, and a choice after it.
        let room = (session.context() - session.position()).min(most).min(session.most_guessed()) - 1;
        let before = chosen.len();
        let tokens = self.guess(session.tokens(), last, room)?;
        session.decode_guessed(tokens, sampler, chosen)?;
        self.learn(&chosen[before..]);
        Ok(())
    }

    /// What to step after the text `held`: `last`, the token that was chosen last, and at most `room` guesses.
    /// [`Speculation::learn`] is to be told what came of it.
    ///
    /// # Errors
    /// Those of the step of a model that guesses.
    pub fn guess(&mut self, held: &[u32], last: u32, room: usize) -> Result<&[u32], Error> {
        let start = Instant::now();
        let room = room.min(self.most);
        self.ids.clear();
        self.ids.push(last);
        let offered = match &mut self.guesser {
            Guesser::Lookup(lookup) => lookup.guess(held, room, &mut self.ids),
            Guesser::Draft(draft) => {
                let count = if self.always { room } else { self.pace.worth_making(room, 0, draft.seconds()) };
                draft.guess(held, count, &mut self.ids)?
            }
        };
        let count = match &self.guesser {
            _ if self.always => offered.count,
            Guesser::Lookup(_) => self.pace.worth(offered.count, offered.class),
            Guesser::Draft(_) => offered.count,
        };
        self.step = Some(Step { offered, count, start, stepping: Instant::now() });
        Ok(&self.ids[..=count])
    }

    /// What was chosen after the tokens of the last [`Speculation::guess`], one after each that was right.
    pub fn learn(&mut self, chosen: &[u32]) {
        let Some(Step { offered, count, start, stepping }) = self.step.take() else { return };
        let Some(&first) = chosen.first() else { return };
        let (made, end) = (chosen.len(), Instant::now());
        self.pace.stepped(count + 1, (end - stepping).as_secs_f64());
        // A guess that was not stepped tells as much, if it is the first.
        let (tried, right) = match count {
            0 => (offered.count.min(1), usize::from(self.ids.get(1) == Some(&first))),
            _ => (made.min(count), made - 1),
        };
        if tried > 0 {
            self.pace.guessed(offered.class, tried, right);
        }
        let told = &mut self.told;
        told.steps += 1;
        told.tokens += made;
        told.guessed += count;
        told.right += made - 1;
        told.seconds += (end - start).as_secs_f64();
        told.plain_seconds += made as f64 * self.pace.plain_seconds();
    }
}
