//! How many tokens of prompts a step takes, by how long steps take.
//!
//! In: the times of steps. Out: a number of tokens that makes a step with answers about twice as long as one without.
//! Prompts take a pass over the weights, however few their tokens are, and more with each token: a line through what
//! was measured tells both. Where the pass alone takes longer than there is room for, it takes tokens along that add a
//! quarter to it. Nothing here changes which tokens come out.

use std::time::Duration;

/// Weight of the newest measurement of answers.
const NEWEST: f64 = 0.2;
/// What is left of a measurement's weight in the line with the next one.
const KEPT: f64 = 0.9;
/// The most times that one measurement may differ from what is known: something else may have had the machine.
const OUTLIER: f64 = 2.0;
/// Tokens of prompts in a step while nothing was measured yet.
const START: usize = 16;
/// The fewest tokens of prompts in a step.
const LEAST: usize = 4;
/// The longest that prompts may make a step, in times of a step without.
const SHARE: f64 = 1.25;
/// What prompts' tokens may add to their pass, in times of it, where it alone takes longer.
const ALONG: f64 = 0.25;

/// Times of steps so far.
pub(super) struct Pace {
    /// Rows of a call.
    chunk: usize,
    /// The most tokens, if that was said.
    fixed: Option<usize>,
    /// Seconds of a step of answers alone, by their number.
    decode: Vec<Option<f64>>,
    /// What prompts took.
    prompts: Line,
}

/// Seconds over tokens, by least squares of measurements that fade.
#[derive(Default)]
struct Line {
    weight: f64,
    tokens: f64,
    seconds: f64,
    /// Of squares, and of products.
    squares: f64,
    products: f64,
    /// Seconds a token, when lengths last told.
    slope: Option<f64>,
}

impl Line {
    /// Seconds of a pass and of a token, once something was measured. While all calls have been about as long the pass
    /// is taken to be `likely`.
    fn fit(&self, likely: f64) -> Option<(f64, f64)> {
        if self.weight == 0.0 {
            return None;
        }
        let (tokens, seconds) = (self.tokens / self.weight, self.seconds / self.weight);
        let each = seconds / tokens;
        let slope = self.slope.unwrap_or((seconds - likely) / tokens).clamp(each / 16.0, each);
        Some(((seconds - slope * tokens).max(0.0), slope))
    }

    fn add(&mut self, tokens: f64, seconds: f64, likely: f64) {
        let seconds = match self.fit(likely) {
            Some((pass, token)) => {
                let known = pass + token * tokens;
                seconds.clamp(known / OUTLIER, known * OUTLIER)
            }
            None => seconds,
        };
        let new = [1.0, tokens, seconds, tokens * tokens, tokens * seconds];
        let sums =
            [&mut self.weight, &mut self.tokens, &mut self.seconds, &mut self.squares, &mut self.products];
        for (sum, new) in sums.into_iter().zip(new) {
            *sum = KEPT * *sum + new;
        }
        let [tokens, seconds, squares, products] =
            [self.tokens, self.seconds, self.squares, self.products].map(|sum| sum / self.weight);
        let spread = squares - tokens * tokens;
        if spread > 0.01 * squares {
            self.slope = Some((products - tokens * seconds) / spread);
        }
    }
}

impl Pace {
    pub(super) fn new(chunk: usize, fixed: Option<usize>) -> Pace {
        Pace { chunk, fixed, decode: vec![], prompts: Line::default() }
    }

    /// Tokens of prompts in a step with so many answers.
    pub(super) fn budget(&self, answers: usize) -> usize {
        if answers == 0 {
            return self.chunk;
        }
        if let Some(fixed) = self.fixed {
            return fixed.max(1);
        }
        let tokens = self.decode(answers).and_then(|decode| {
            let (pass, token) = self.prompts.fit(decode)?;
            let left = (SHARE * decode - pass).max(ALONG * pass);
            // No further than twice what was tried.
            let tried = (2.0 * self.prompts.tokens / self.prompts.weight).max(START as f64);
            Some((left / token.max(1e-9)).min(tried) as usize)
        });
        tokens.unwrap_or(START).clamp(LEAST.min(self.chunk), self.chunk)
    }

    /// Seconds of a step of so many answers, or of the number nearest to it that was measured.
    fn decode(&self, answers: usize) -> Option<f64> {
        let known = self.decode.iter().enumerate().filter_map(|(count, time)| Some((count, (*time)?)));
        known.min_by_key(|(count, _)| count.abs_diff(answers)).map(|(_, time)| time)
    }

    /// A step of so many answers and tokens of prompts took so long.
    pub(super) fn note(&mut self, answers: usize, prompts: usize, time: Duration) {
        let time = time.as_secs_f64();
        if prompts == 0 {
            if answers > 0 {
                if self.decode.len() <= answers {
                    self.decode.resize(answers + 1, None);
                }
                self.decode[answers] = mix(self.decode[answers], time, NEWEST);
            }
            return;
        }
        // Where answers alone were never measured they are half of it.
        let decode = if answers == 0 { 0.0 } else { self.decode(answers).unwrap_or(time / 2.0) };
        let likely = self.decode(answers.max(1)).unwrap_or(time / 2.0);
        self.prompts.add(prompts as f64, (time - decode).max(time / 10.0), likely);
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
    fn step(answers: usize, prompts: usize, pass: f64) -> Duration {
        let call =
            |pass: f64, rows: usize, each: f64| if rows == 0 { 0.0 } else { pass + rows as f64 * each };
        Duration::from_secs_f64(call(0.080, answers, 0.004) + call(pass, prompts, 0.002))
    }

    #[test]
    fn prompts_take_about_as_long_as_answers() {
        let mut pace = Pace::new(512, None);
        assert_eq!((pace.budget(0), pace.budget(1)), (512, START));
        for _ in 0..20 {
            pace.note(0, 512, step(0, 512, 0.080));
            pace.note(8, 0, step(8, 0, 0.080));
        }
        // Not once is a step three times as long, from the first on.
        for _ in 0..50 {
            let budget = pace.budget(8);
            assert!(step(8, budget, 0.080) < 3 * step(8, 0, 0.080), "{budget}");
            pace.note(8, budget, step(8, budget, 0.080));
        }
        assert!((20..=40).contains(&pace.budget(8)), "{}", pace.budget(8));
        assert_eq!(Pace::new(512, Some(64)).budget(3), 64);
    }

    #[test]
    fn a_pass_that_takes_long_takes_many_tokens_along() {
        let mut pace = Pace::new(512, None);
        pace.note(0, 512, step(0, 512, 0.160));
        pace.note(1, 0, step(1, 0, 0.160));
        for _ in 0..50 {
            let budget = pace.budget(1);
            pace.note(1, budget, step(1, budget, 0.160));
        }
        assert!((12..=30).contains(&pace.budget(1)), "{}", pace.budget(1));
    }

    #[test]
    fn answers_are_measured_by_their_number() {
        let mut pace = Pace::new(512, None);
        for answers in [1, 8, 1, 8] {
            pace.note(answers, 0, step(answers, 0, 0.020));
            for _ in 0..20 {
                let budget = pace.budget(answers);
                pace.note(answers, budget, step(answers, budget, 0.020));
            }
        }
        // 1.25 of 84 and of 112 ms, less 20, at 2 a token.
        let budgets = [1, 3, 6, 9].map(|answers| pace.budget(answers));
        assert!(budgets[0] == budgets[1] && budgets[2] == budgets[3], "{budgets:?}");
        assert!((38..=46).contains(&budgets[0]) && (54..=64).contains(&budgets[3]), "{budgets:?}");
        // What took long once does not stop prompts.
        pace.note(1, 50, Duration::from_secs(9));
        assert!(pace.budget(1) >= 15, "{}", pace.budget(1));
    }
}
