//! `lapidary eval`: how well a model predicts a text.
//!
//! The text's tokens, without BOS, are cut into windows of context - 1; each is run from position 0 as BOS + window.
//! With a stride, windows start that many tokens apart and only tokens that no window before had are scored, as in the
//! sliding evaluation of Hugging Face; a stride of context - 1 is the plain evaluation. The mean is over all tokens of
//! the text, each scored once, in f64.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lapidary::{Activations, Format, KvCache};
use serde_json::json;

use crate::choices::choices;
use crate::model::{Engine, read_text};
use crate::options::ModelArgs;
use crate::output::{self, Unit};

/// Measure the perplexity of a text.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary eval --text book.txt --context 512 --json\n  \
    lapidary eval -m gemma-2-2b --text book.txt --sliding-window 2048")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens from one window to the next [default: context - 1, no overlap]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stride: Option<u64>,
    /// Compare with the same model in another format: mean KL divergence of the next token's distribution, top-1
    /// agreement
    #[arg(long, value_parser = choices::<Format>(), value_name = "FORMAT")]
    against: Option<Format>,
    /// Compare with the same model with its KV cache held so
    #[arg(long, value_parser = choices::<KvCache>(), value_name = "FORMAT")]
    against_kv_cache: Option<KvCache>,
    /// Compare with the same model with activations of this precision
    #[arg(long, value_parser = choices::<Activations>(), value_name = "PRECISION")]
    against_activations: Option<Activations>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A run of tokens, and the first of them that is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    start: usize,
    end: usize,
    scored_from: usize,
}

impl Args {
    /// The model to compare with, if there is one.
    fn other(&self) -> Option<ModelArgs> {
        let mut other = self.model.clone();
        if let Some(format) = self.against {
            other.weights = self.model.weights.in_format(format);
        }
        other.compile.kv_cache = self.against_kv_cache.or(other.compile.kv_cache);
        if let Some(activations) = self.against_activations {
            other.compile.activations = activations;
        }
        let compares =
            self.against.is_some() || self.against_kv_cache.is_some() || self.against_activations.is_some();
        compares.then_some(other)
    }
}

/// Evaluates.
pub(crate) fn run(args: &Args) -> Result<()> {
    let text = read_text(&args.text)?;
    let mut engine = Engine::new(&args.model)?;
    let tokenizer = engine.model.tokenizer()?;
    let bos = tokenizer.bos_id();
    let ids = tokenizer.encode(&text, false)?;
    ensure!(!ids.is_empty(), "{}: the text has no tokens", args.text.display());
    let context = engine.session.context();
    ensure!(context > 1, "--context is {context}: expected at least 2, BOS and a token");
    let most = context - 1;
    let stride = args.stride.map_or(most, |n| n as usize);
    ensure!(stride <= most, "--stride is {stride}: expected 1 to {most} (context - 1)");

    let mut other = args.other().map(|args| Engine::new(&args)).transpose()?;
    let mut comparison = Comparison::default();

    let bar = output::bar(ids.len() as u64, "scoring", Unit::Tokens);
    let (mut sum, mut tokens) = (0.0, 0usize);
    let mut sequence = Vec::with_capacity(context);
    for window in windows(ids.len(), most, stride) {
        sequence.clear();
        sequence.push(bos);
        sequence.extend_from_slice(&ids[window.start..window.end]);
        // Token i of the window is element i + 1 of the sequence, and the logits after element i predict it.
        let first = window.scored_from - window.start;
        let last = window.end - window.start;
        engine.session.reset();
        engine.session.prefill(&sequence[..first])?;
        if let Some(other) = &mut other {
            other.session.reset();
            other.session.prefill(&sequence[..first])?;
        }
        // In parts, so that no more than a part's logits are held.
        for part in (first..last).step_by(PART) {
            let part = part..last.min(part + PART);
            let mut held: Vec<f32> = vec![];
            engine.session.score(&sequence[part.clone()], &mut |row, logits| {
                sum += negative_log_likelihood(logits, sequence[part.start + row + 1]);
                tokens += 1;
                bar.inc(1);
                if other.is_some() {
                    held.extend(logits);
                }
            })?;
            if let Some(other) = &mut other {
                other.session.score(&sequence[part.clone()], &mut |row, logits| {
                    let ours = &held[row * logits.len()..(row + 1) * logits.len()];
                    comparison.add(ours, logits, sequence[part.start + row + 1]);
                })?;
            }
        }
    }
    bar.finish_and_clear();
    let nll = sum / tokens as f64;
    ensure!(nll.is_finite(), "{}: the nll is {nll}: its weights hold NaN or infinity", engine.name());
    let perplexity = nll.exp();
    let mut result = json!({ "tokens": tokens, "nll": nll, "perplexity": perplexity });
    let mut text =
        format!("tokens      {tokens}\nnll         {nll:.5} nats/token\nperplexity  {perplexity:.3}\n");
    if let Some(other) = &other {
        let n = tokens as f64;
        let (theirs, kl) = ((comparison.nll / n).exp(), comparison.divergence / n);
        let agreement = comparison.agreed as f64 / n;
        result["against"] = json!({
            "weights": other.format.to_string(),
            "perplexity": theirs,
            "mean_kl": kl,
            "top1_agreement": agreement,
        });
        text.push_str(&format!(
            "against     {}: perplexity {theirs:.3} ({:+.2}%), mean KL {kl:.3e} nats, top-1 agreement {:.2}%\n",
            other.format,
            (perplexity / theirs - 1.0) * 100.0,
            agreement * 100.0
        ));
    }
    if args.json { output::print_json(&result) } else { output::print(&text) }
}

/// Positions whose logits are held at once when two models are compared.
const PART: usize = 32;

/// How far two models' predictions are apart, summed over positions.
#[derive(Default)]
struct Comparison {
    /// Of the other model.
    nll: f64,
    /// KL(other || ours), nats.
    divergence: f64,
    /// Positions where the most likely token is the same.
    agreed: usize,
}

impl Comparison {
    fn add(&mut self, ours: &[f32], theirs: &[f32], target: u32) {
        let (log_ours, log_theirs) = (log_sum_exp(ours), log_sum_exp(theirs));
        let each = ours.iter().zip(theirs);
        self.divergence += each
            .map(|(&a, &b)| {
                let (a, b) = (f64::from(a) - log_ours, f64::from(b) - log_theirs);
                b.exp() * (b - a)
            })
            .sum::<f64>();
        self.nll += log_theirs - f64::from(theirs[target as usize]);
        self.agreed += usize::from(argmax(ours) == argmax(theirs));
    }
}

fn argmax(logits: &[f32]) -> usize {
    let best = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, best)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    sum.ln() + f64::from(most)
}

/// Windows of at most `most` of `len` tokens, `stride` apart.
fn windows(len: usize, most: usize, stride: usize) -> Vec<Window> {
    let mut all = Vec::new();
    let (mut start, mut scored) = (0, 0);
    while scored < len {
        let end = (start + most).min(len);
        all.push(Window { start, end, scored_from: scored });
        scored = end;
        start += stride;
    }
    all
}

/// Minus the logarithm of the target's probability, in nats.
fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[target as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_scored_once() {
        for len in 1..40 {
            for most in 1..12 {
                for stride in 1..=most {
                    let mut next = 0;
                    for w in windows(len, most, stride) {
                        assert_eq!(w.scored_from, next);
                        assert!(w.start <= w.scored_from && w.scored_from < w.end && w.end - w.start <= most);
                        next = w.end;
                    }
                    assert_eq!(next, len);
                }
            }
        }
    }

    #[test]
    fn likelihood_of_even_odds() {
        assert!((negative_log_likelihood(&[3.0; 8], 5) - 8f64.ln()).abs() < 1e-12);
    }
}
