//! Choosing the next token from a row of logits.
//!
//! The steps, in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature, draw. Top-p and min-p
//! look at the probabilities before temperature. Candidates are ordered by logit, then by id, and the draw comes
//! from [`Rng`] at the token's position, so that a seed gives the same tokens on every machine (as far as `exp` is the
//! same), and a text that is restored or computed beside others goes on as it would have.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::error::{Error, room};
use crate::rng::Rng;

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerOptions {
    /// Divides the logits before the draw; 0: always the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities add up to this; 1: all.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the most likely one; 0: all.
    pub min_p: f32,
    /// Divides the positive logits of tokens seen lately, multiplies the negative ones; 1: off.
    pub repetition_penalty: f32,
    /// How many tokens back the penalty looks; 0: off.
    pub repeat_last_n: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Greedy, nothing else.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Whether each option is in its range; the error names the first that is not.
    pub fn validate(&self) -> Result<(), Error> {
        let unit = 0.0..=1.0;
        let finite = "a finite number, 0 or above";
        let positive = "a finite number above 0";
        let p = self.repetition_penalty;
        let t = self.temperature;
        let checks = [
            ("temperature", t, t.is_finite() && t >= 0.0, finite),
            ("top_p", self.top_p, unit.contains(&self.top_p), "between 0 and 1"),
            ("min_p", self.min_p, unit.contains(&self.min_p), "between 0 and 1"),
            ("repetition_penalty", p, p.is_finite() && p > 0.0, positive),
        ];
        match checks.into_iter().find(|&(_, _, good, _)| !good) {
            Some((field, value, _, range)) => Err(Error::SamplerOption { field, value, range }),
            None => Ok(()),
        }
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 && self.repeat_last_n > 0
    }

    /// Whether the choice is simply the most likely token, whatever came before.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.penalises()
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
}

/// Most likely first, the lower id among equals. No candidate's logit is NaN.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Chooses tokens.
pub struct Sampler {
    options: SamplerOptions,
    vocab: usize,
    candidates: Vec<Candidate>,
    /// One bit a token: whether it is to be penalised.
    repeated: Vec<u64>,
}

impl Sampler {
    /// A sampler for rows of `vocab` logits.
    pub fn new(options: SamplerOptions, vocab: usize) -> Result<Self, Error> {
        options.validate()?;
        let plain = options.is_plain_greedy();
        let words = if options.penalises() { vocab.div_ceil(64) } else { 0 };
        let mut repeated = room("the tokens seen lately", words)?;
        repeated.resize(words, 0);
        Ok(Self {
            options,
            vocab,
            candidates: room("the tokens to choose from", if plain { 0 } else { vocab })?,
            repeated,
        })
    }

    /// The options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Whether the choice is simply the most likely token, whatever came before: a caller may then find it without
    /// the logits.
    pub fn is_plain_greedy(&self) -> bool {
        self.options.is_plain_greedy()
    }

    /// Chooses a token. `history` is the text so far, of which the penalty sees the last
    /// [`repeat_last_n`](SamplerOptions::repeat_last_n) tokens; `position` is that of the token, which the draw depends
    /// on.
    ///
    /// NaN and negative infinity are never chosen.
    pub fn sample(&mut self, logits: &[f32], history: &[u32], position: usize) -> Result<u32, Error> {
        if logits.len() != self.vocab {
            return Err(Error::LogitsLength { expected: self.vocab, found: logits.len() });
        }
        if self.is_plain_greedy() {
            return greedy(logits).ok_or(Error::NoCandidate);
        }
        self.collect(logits, history);
        if self.candidates.is_empty() {
            return Err(Error::NoCandidate);
        }
        if self.options.temperature == 0.0 {
            return self.candidates.iter().min_by(|a, b| order(a, b)).map(|c| c.id).ok_or(Error::NoCandidate);
        }
        self.top_k();
        self.top_p();
        self.min_p();
        Ok(self.draw(Rng::at(self.options.seed, position as u64).unit()))
    }

    /// Fills the candidates with the penalised logits, by rising id.
    fn collect(&mut self, logits: &[f32], history: &[u32]) {
        self.candidates.clear();
        let penalises = self.options.penalises();
        let recent = &history[history.len().saturating_sub(self.options.repeat_last_n)..];
        if penalises {
            self.repeated.fill(0);
            for &id in recent.iter().filter(|&&id| (id as usize) < logits.len()) {
                self.repeated[id as usize / 64] |= 1 << (id % 64);
            }
        }
        let penalty = self.options.repetition_penalty;
        for (id, &logit) in (0..).zip(logits) {
            let mut logit = logit;
            if penalises && self.repeated[id as usize / 64] >> (id % 64) & 1 == 1 {
                logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
            // False for NaN too. Positive infinity comes down to a number, so that differences stay numbers.
            if logit > f32::NEG_INFINITY {
                self.candidates.push(Candidate { logit: logit.min(f32::MAX), id });
            }
        }
    }

    /// The highest logit.
    fn max(&self) -> f32 {
        self.candidates.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit))
    }

    fn top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, order);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by(order);
        }
    }

    /// Sorts no more than it has to: the likely tokens are few, the vocabulary is large.
    fn top_p(&mut self) {
        let p = f64::from(self.options.top_p);
        if p >= 1.0 {
            return;
        }
        let max = self.max();
        let likelihood = |c: &Candidate| f64::from(c.logit - max).exp();
        let wanted = p * self.candidates.iter().map(likelihood).sum::<f64>();
        let mut sum = 0.0;
        let mut sorted = 0;
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let part = rest.len().min(sorted.max(64) * 3);
            if part < rest.len() {
                rest.select_nth_unstable_by(part - 1, order);
            }
            rest[..part].sort_unstable_by(order);
            for (index, candidate) in rest[..part].iter().enumerate() {
                sum += likelihood(candidate);
                if sum >= wanted {
                    self.candidates.truncate(sorted + index + 1);
                    return;
                }
            }
            sorted += part;
        }
    }

    fn min_p(&mut self) {
        if self.options.min_p > 0.0 {
            let max = self.max();
            let least = max + self.options.min_p.ln();
            self.candidates.retain(|c| c.logit >= least || c.logit == max);
        }
    }

    /// The candidate, of which there is at least one, that a number in [0, 1) falls to.
    fn draw(&self, unit: f64) -> u32 {
        let max = self.max();
        let temperature = f64::from(self.options.temperature);
        let weight = |c: &Candidate| ((f64::from(c.logit) - f64::from(max)) / temperature).exp();
        let mut left = unit * self.candidates.iter().map(weight).sum::<f64>();
        let mut chosen = 0;
        for candidate in &self.candidates {
            let weight = weight(candidate);
            // Rounding may leave something at the end: then it is the last candidate with any weight.
            if weight > 0.0 {
                chosen = candidate.id;
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        chosen
    }
}

/// The id of the highest logit, the lowest among equals; none if all are NaN or negative infinity.
fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        if logit > max {
            max = logit;
            best = Some(id);
        }
    }
    best
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options() -> SamplerOptions {
        SamplerOptions { temperature: 1.0, seed: 7, ..SamplerOptions::default() }
    }

    /// How often each token is drawn, of `n`.
    fn counts(options: SamplerOptions, logits: &[f32], history: &[u32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(options, logits.len()).unwrap();
        let mut counts = vec![0; logits.len()];
        for position in 0..n {
            counts[sampler.sample(logits, history, position).unwrap() as usize] += 1;
        }
        counts
    }

    fn logs<const N: usize>(p: [f32; N]) -> [f32; N] {
        p.map(f32::ln)
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_never_nan() {
        let logits = [f32::NAN, 1.0, 3.0, f32::NAN, 3.0, f32::NEG_INFINITY];
        let mut plain = Sampler::new(SamplerOptions::default(), 6).unwrap();
        assert!(plain.is_plain_greedy());
        assert_eq!(plain.sample(&logits, &[], 0).unwrap(), 2);
        let penalty = SamplerOptions { repetition_penalty: 2.0, ..SamplerOptions::default() };
        let mut sampler = Sampler::new(penalty, 6).unwrap();
        assert!(!sampler.is_plain_greedy());
        assert_eq!(sampler.sample(&logits, &[], 0).unwrap(), 2);
        assert_eq!(sampler.sample(&logits, &[2, 99], 0).unwrap(), 4);
        assert_eq!(sampler.sample(&logits, &[2, 4, 4], 0).unwrap(), 2);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let counts = counts(options(), &logs([0.5, 0.3, 0.2, 0.0]), &[], 20_000);
        assert!(counts[0].abs_diff(10_000) < 300, "{counts:?}");
        assert!(counts[1].abs_diff(6_000) < 300, "{counts:?}");
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn filters_keep_what_they_should() {
        let logits = logs([0.1, 0.4, 0.2, 0.3]);
        let kept = |o: SamplerOptions| -> Vec<bool> {
            counts(o, &logits, &[], 2_000).iter().map(|&n| n > 0).collect()
        };
        assert_eq!(kept(options()), [true; 4]);
        assert_eq!(kept(SamplerOptions { top_k: 2, ..options() }), [false, true, false, true]);
        assert_eq!(kept(SamplerOptions { top_p: 0.6, ..options() }), [false, true, false, true]);
        assert_eq!(kept(SamplerOptions { top_p: 0.0, ..options() }), [false, true, false, false]);
        assert_eq!(kept(SamplerOptions { min_p: 0.45, ..options() }), [false, true, true, true]);
        assert_eq!(kept(SamplerOptions { min_p: 1.0, ..options() }), [false, true, false, false]);
        // Top-p looks at what top-k left: 0.4 / 0.7 is enough.
        let both = SamplerOptions { top_k: 2, top_p: 0.5, ..options() };
        assert_eq!(kept(both), [false, true, false, false]);
        // Temperature comes after top-p: a flat draw, but of the same tokens.
        let hot = SamplerOptions { top_p: 0.6, temperature: 100.0, ..options() };
        assert_eq!(kept(hot), [false, true, false, true]);
    }

    #[test]
    fn top_p_agrees_with_a_full_sort() {
        let mut rng = Rng::new(3);
        let logits: Vec<f32> = (0..5_000).map(|_| (rng.unit() * 3.0) as f32).collect();
        for p in [0.01, 0.3, 0.9, 0.999] {
            let mut sampler = Sampler::new(SamplerOptions { top_p: p, ..options() }, logits.len()).unwrap();
            sampler.collect(&logits, &[]);
            let mut all = sampler.candidates.clone();
            all.sort_by(order);
            sampler.top_p();
            let n = sampler.candidates.len();
            let ids = |c: &[Candidate]| c.iter().map(|c| c.id).collect::<Vec<_>>();
            assert_eq!(ids(&sampler.candidates), ids(&all[..n]));
            let mass = |c: &[Candidate]| c.iter().map(|c| f64::from(c.logit).exp()).sum::<f64>();
            let share = |n: usize| mass(&all[..n]) / mass(&all);
            assert!(share(n) >= f64::from(p) - 1e-6 && share(n - 1) <= f64::from(p) + 1e-6);
        }
    }

    #[test]
    fn infinities_and_nans() {
        let mut sampler = Sampler::new(options(), 3).unwrap();
        for position in 0..100 {
            assert_eq!(sampler.sample(&[0.0, f32::INFINITY, f32::NAN], &[], position).unwrap(), 1);
        }
        let nothing = sampler.sample(&[f32::NAN, f32::NEG_INFINITY, f32::NAN], &[], 0);
        assert!(matches!(nothing, Err(Error::NoCandidate)));
        assert!(matches!(sampler.sample(&[0.0], &[], 0), Err(Error::LogitsLength { .. })));
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let draw = |seed| {
            let mut s = Sampler::new(SamplerOptions { seed, ..options() }, 64).unwrap();
            (0..50).map(|p| s.sample(&[0.0; 64], &[], p).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn options_are_checked_by_name() {
        let bad = [
            ("temperature", SamplerOptions { temperature: -1.0, ..options() }),
            ("temperature", SamplerOptions { temperature: f32::NAN, ..options() }),
            ("top_p", SamplerOptions { top_p: 1.5, ..options() }),
            ("min_p", SamplerOptions { min_p: -0.5, ..options() }),
            ("repetition_penalty", SamplerOptions { repetition_penalty: 0.0, ..options() }),
        ];
        for (field, options) in bad {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }
}
