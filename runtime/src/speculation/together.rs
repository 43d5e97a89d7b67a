//! Guesses how several texts go on that are stepped together, by what followed their latest tokens earlier in each.
//!
//! In: the texts, the token that was chosen last of each. Out: guesses of each, which are stepped with it. How many is
//! decided over all of them: those that are likeliest right come first, as long as the tokens that a step is thought to
//! make rise faster than its time, which is measured by its rows, whosever they are. Nothing here changes which tokens
//! come out.

use std::time::Instant;

use super::lookup::Lookup;
use super::pace::Pace;
use super::{Guesses, Speculated};

/// See the module's documentation.
pub struct Together {
    most: usize,
    always: bool,
    pace: Pace,
    told: Speculated,
    /// Rows of the step under way, whether they are one of each text, and when it began.
    step: Option<(usize, bool, Instant)>,
}

/// One of the texts.
#[derive(Default)]
pub struct Guessed {
    lookup: Lookup,
    /// The token that was chosen last, and guesses.
    ids: Vec<u32>,
    offered: Option<Guesses>,
    /// Guesses that are stepped.
    count: usize,
}

impl Guessed {
    /// Looks for guesses of what comes after the text `held` and `last`, the token that was chosen last: at most
    /// `room`.
    pub fn look(&mut self, held: &[u32], last: u32, room: usize) {
        self.ids.clear();
        self.ids.push(last);
        self.offered = Some(self.lookup.guess(held, room, &mut self.ids));
        self.count = 0;
    }

    /// The token that was chosen last, and the guesses that are to be stepped with it.
    pub fn tokens(&self) -> &[u32] {
        &self.ids[..self.ids.len().min(self.count + 1)]
    }
}

impl Together {
    pub(super) fn new(most: usize, always: bool, pace: Pace) -> Together {
        Together { most, always, pace, told: Speculated::default(), step: None }
    }

    /// Most tokens guessed of a text at a time.
    pub fn most(&self) -> usize {
        self.most
    }

    /// What it came to since this was asked last; no times.
    pub fn take_told(&mut self) -> Speculated {
        std::mem::take(&mut self.told)
    }

    /// Of the guesses that were found, says which are to be stepped, so that there are at most `rows` of them and of
    /// the tokens that they come after. The step begins now.
    pub fn begin(&mut self, texts: &mut [&mut Guessed], rows: usize) {
        let none = Guesses { count: 0, class: 0 };
        let offers: Vec<Guesses> = texts.iter().map(|text| text.offered.unwrap_or(none)).collect();
        let counts = self.pace.share(&offers, rows, self.always);
        for (text, count) in texts.iter_mut().zip(&counts) {
            text.count = *count;
        }
        let guesses: usize = counts.iter().sum();
        self.step = Some((texts.len() + guesses, guesses == 0, Instant::now()));
    }

    /// The step is over, which was of nothing else.
    pub fn end(&mut self) {
        let Some((rows, plain, start)) = self.step.take() else { return };
        self.told.steps += 1;
        self.pace.stepped_by(rows, plain, start.elapsed().as_secs_f64());
    }

    /// What was chosen of a text in the step, one token after each that was right.
    pub fn learn(&mut self, text: &mut Guessed, chosen: &[u32]) {
        let (Some(offered), Some(&first)) = (text.offered.take(), chosen.first()) else { return };
        let (made, count) = (chosen.len(), text.count);
        // A guess that was not stepped tells as much, if it is the first.
        let (tried, right) = match count {
            0 => (offered.count.min(1), usize::from(text.ids.get(1) == Some(&first))),
            _ => (made.min(count), made - 1),
        };
        if tried > 0 {
            self.pace.guessed(offered.class, tried, right);
        }
        self.told.tokens += made;
        self.told.guessed += count;
        self.told.right += made - 1;
    }
}
