//! How many tokens of prompts a step takes, by how long steps take.
//!
//! In: the times of steps. Out: a number of tokens that makes a step with answers about twice as long as one without.
//! What prompts take beside answers is measured there: a few tokens cost more each than a call full of them. Nothing
//! here changes which tokens come out.

use std::time::Duration;

/// Weight of the newest measurement, and of one of prompts beside answers that took longer than those before.
const NEWEST: f64 = 0.2;
const LONGER: f64 = 0.5;
/// The most times that one measurement may differ from what is known: something else may have had the machine.
const OUTLIER: f64 = 2.0;
/// Tokens of prompts in a step while nothing was measured yet.
const START: usize = 16;
/// What a token beside answers takes, in tokens of a call full of them, until it is measured.
const BESIDE: f64 = 2.0;
/// The fewest tokens of prompts in a step.
const LEAST: usize = 4;
/// The longest that prompts may make a step, in times of a step without.
const SHARE: f64 = 1.0;

/// Times of steps so far.
pub(super) struct Pace {
    /// Rows of a call.
    chunk: usize,
    /// The most tokens, if that was said.
    fixed: Option<usize>,
    /// Seconds of a step of answers alone, by their number.
    decode: Vec<Option<f64>>,
    /// Seconds of a token of a prompt where there are no answers.
    alone: Option<f64>,
    /// The same where there are.
    beside: Option<f64>,
}

impl Pace {
    pub(super) fn new(chunk: usize, fixed: Option<usize>) -> Pace {
        Pace { chunk, fixed, decode: vec![], alone: None, beside: None }
    }

    /// Tokens of prompts in a step with so many answers.
    pub(super) fn budget(&self, answers: usize) -> usize {
        if answers == 0 {
            return self.chunk;
        }
        if let Some(fixed) = self.fixed {
            return fixed.max(1);
        }
        let token = self.beside.or(self.alone.map(|token| token * BESIDE));
        let tokens = match (self.decode(answers), token) {
            (Some(decode), Some(token)) => (SHARE * decode / token.max(1e-9)) as usize,
            _ => START,
        };
        tokens.clamp(LEAST.min(self.chunk), self.chunk)
    }

    /// Seconds of a step of so many answers, or of the number nearest to it that was measured.
    fn decode(&self, answers: usize) -> Option<f64> {
        let known = self.decode.iter().enumerate().filter_map(|(count, time)| Some((count, (*time)?)));
        known.min_by_key(|(count, _)| count.abs_diff(answers)).map(|(_, time)| time)
    }

    /// A step of so many answers and tokens of prompts took so long.
    pub(super) fn note(&mut self, answers: usize, prompts: usize, time: Duration) {
        let time = time.as_secs_f64();
        match (answers, prompts) {
            (0, 0) => {}
            (_, 0) => {
                if self.decode.len() <= answers {
                    self.decode.resize(answers + 1, None);
                }
                self.decode[answers] = mix(self.decode[answers], time, NEWEST);
            }
            (0, _) => self.alone = mix(self.alone, time / prompts as f64, NEWEST),
            (_, _) => {
                // Where answers alone were never measured they are half of it.
                let decode = self.decode(answers).unwrap_or(time / 2.0);
                let token = (time - decode).max(time / 10.0) / prompts as f64;
                let weight = if self.beside.is_some_and(|known| token > known) { LONGER } else { NEWEST };
                self.beside = mix(self.beside, token, weight);
            }
        }
    }
}

/// What is known, and a new measurement.
fn mix(known: Option<f64>, new: f64, weight: f64) -> Option<f64> {
    let mixed = |known: f64| known + weight * (new.clamp(known / OUTLIER, known * OUTLIER) - known);
    Some(known.map_or(new, mixed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine where a call takes as long as reading the weights, and more with more rows.
    fn step(answers: usize, prompts: usize) -> Duration {
        let call = |rows: usize, each: f64| if rows == 0 { 0.0 } else { 0.080 + rows as f64 * each };
        Duration::from_secs_f64(call(answers, 0.004) + call(prompts, 0.002))
    }

    #[test]
    fn prompts_take_about_as_long_as_answers() {
        let mut pace = Pace::new(512, None);
        assert_eq!((pace.budget(0), pace.budget(1)), (512, START));
        for _ in 0..20 {
            pace.note(0, 512, step(0, 512));
            pace.note(8, 0, step(8, 0));
        }
        // Not once is a step three times as long, from the first on.
        for _ in 0..50 {
            let budget = pace.budget(8);
            assert!(step(8, budget) < 3 * step(8, 0), "{budget}");
            pace.note(8, budget, step(8, budget));
        }
        assert!((LEAST..=20).contains(&pace.budget(8)), "{}", pace.budget(8));
        assert_eq!(Pace::new(512, Some(64)).budget(3), 64);
    }

    #[test]
    fn answers_are_measured_by_their_number() {
        let mut pace = Pace::new(512, None);
        let millis = Duration::from_millis;
        pace.note(1, 0, millis(50));
        pace.note(8, 0, millis(200));
        pace.note(1, 10, millis(60));
        assert_eq!([1, 3, 6, 9].map(|answers| pace.budget(answers)), [50, 50, 200, 200]);
        // What took long once does not stop prompts.
        pace.note(1, 50, millis(9000));
        assert!(pace.budget(1) >= 25, "{}", pace.budget(1));
    }
}
