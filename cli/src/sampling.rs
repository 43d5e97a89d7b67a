//! The options of choosing tokens, shared by `run` and `chat`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use lapidary_runtime::SamplerOptions;

/// How to choose the next token.
#[derive(clap::Args)]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 always takes the most likely token
    #[arg(long = "temp", value_name = "F", default_value_t = 0.7, value_parser = at_least_zero)]
    temperature: f32,
    /// Keep this many most likely tokens; 0 or -1 keeps all
    #[arg(long, value_name = "N", default_value = "40", value_parser = tokens_kept)]
    top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities add up to this; 1 keeps all
    #[arg(long, value_name = "F", default_value_t = 0.95, value_parser = probability)]
    top_p: f32,
    /// Keep tokens at least this many times as likely as the most likely one; 0 keeps all
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = probability)]
    min_p: f32,
    /// Make tokens of the last --repeat-last-n less likely; 1 does not
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = above_zero)]
    repeat_penalty: f32,
    /// How many tokens back --repeat-penalty looks; -1: to the start
    #[arg(long, value_name = "N", default_value = "64", value_parser = tokens_back)]
    repeat_last_n: usize,
    /// Where the random numbers start: the same seed gives the same text; -1: anywhere
    #[arg(long, value_name = "N", default_value = "0", value_parser = seed)]
    seed: u64,
}

impl SamplingArgs {
    /// As the sampler wants them.
    pub(crate) fn options(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
        }
    }
}

/// A seed; -1 is one that nobody chose.
fn seed(text: &str) -> Result<u64, String> {
    match text {
        "-1" => Ok(RandomState::new().build_hasher().finish()),
        _ => text.parse().map_err(|_| "expected a number from 0 on, or -1: anywhere".into()),
    }
}

fn tokens_kept(text: &str) -> Result<usize, String> {
    count(text, 0)
}

fn tokens_back(text: &str) -> Result<usize, String> {
    count(text, usize::MAX)
}

/// A number of tokens; -1 is `all`.
fn count(text: &str, all: usize) -> Result<usize, String> {
    match text {
        "-1" => Ok(all),
        _ => text.parse().map_err(|_| "expected a number of tokens, or -1: all".into()),
    }
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "a finite number, 0 or above")
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0, "a finite number above 0")
}

fn probability(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

/// A finite number that `fits`.
fn number(text: &str, fits: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|x: &f32| x.is_finite() && fits(*x))
        .ok_or_else(|| format!("expected {expected}"))
}
