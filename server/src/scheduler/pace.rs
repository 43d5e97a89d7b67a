//! How many tokens of prompts a step takes, by how long steps take.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// Tokens of prompts in a step while nothing was measured yet.
const START: usize = 32;
/// The fewest tokens of prompts in a step.
const LEAST: usize = 8;
/// The longest that prompts may make a step, in times of a step without.
const SHARE: f64 = 1.0;

/// Times of steps so far.
pub(super) struct Pace {
    /// Rows of a call.
    chunk: usize,
    /// The most tokens, if that was said.
    fixed: Option<usize>,
    /// Seconds of a step of answers alone.
    decode: Option<f64>,
    /// Seconds of a token of a prompt.
    prefill: Option<f64>,
}

impl Pace {
    pub(super) fn new(chunk: usize, fixed: Option<usize>) -> Pace {
        Pace { chunk, fixed, decode: None, prefill: None }
    }

    /// Tokens of prompts in a step with so many answers.
    pub(super) fn budget(&self, answers: usize) -> usize {
        if answers == 0 {
            return self.chunk;
        }
        if let Some(fixed) = self.fixed {
            return fixed.max(1);
        }
        match (self.decode, self.prefill) {
            (Some(decode), Some(prefill)) => {
                ((SHARE * decode / prefill.max(1e-9)) as usize).clamp(LEAST, self.chunk.max(LEAST))
            }
            _ => START,
        }
    }

    /// A step of so many answers and tokens of prompts took so long.
    pub(super) fn note(&mut self, answers: usize, prompts: usize, time: Duration) {
        let time = time.as_secs_f64();
        let mix = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old + NEWEST * (new - old)));
        match (answers, prompts, self.decode) {
            (0, 0, _) => {}
            (_, 0, _) => self.decode = mix(self.decode, time),
            (0, _, _) => self.prefill = mix(self.prefill, time / prompts as f64),
            (_, _, Some(decode)) => {
                let more = (time - decode).max(time / 10.0);
                self.prefill = mix(self.prefill, more / prompts as f64);
            }
            (_, _, None) => self.prefill = mix(self.prefill, time / (answers + prompts) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_take_about_as_long_as_answers() {
        let mut pace = Pace::new(512, None);
        assert_eq!((pace.budget(0), pace.budget(1)), (512, START));
        for _ in 0..50 {
            pace.note(8, 0, Duration::from_millis(100));
            pace.note(0, 512, Duration::from_millis(5120));
        }
        assert!((9..=11).contains(&pace.budget(8)), "{}", pace.budget(8));
        assert_eq!(Pace::new(512, Some(64)).budget(3), 64);
    }
}
