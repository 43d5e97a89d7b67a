//! Writes a full-size checkpoint of random weights, to measure with where the published weights are not at hand.
//!
//! In: a folder, a configuration, a dtype, formats, a seed. Out: a Hugging Face folder: shards of at most 5 GB, index,
//! `config.json`, `generation_config.json`, and the built-in tokenizer where the vocabulary has room for it.
//! Invariants: an element is a function of the seed, its tensor and its place alone, so the files do not depend on
//! threads; quantised matrices are those that [`export()`](crate::export()) makes of the same checkpoint, made tensor
//! by tensor without it; memory is a few MiB a thread; a file has its final name only once all are whole, `config.json`
//! last.
//!
//! Matrices are drawn so that unit inputs give unit outputs. The embedding table is small enough that a token's own
//! logit does not drown the others' (they are tied), and logits stay far below their cap.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use serde_json::json;

use crate::config::{CONFIG, Config};
use crate::dtype::WeightDType;
use crate::error::Result;
use crate::export::{self, Destination, FormatChoice};
use crate::layout::{TensorKind, TensorSpec};
use crate::model::GENERATION_CONFIG;
use crate::quantize::Source;

/// Most threads that draw and write.
const THREADS: usize = 8;

/// Writes the checkpoint: drawn as `dtype`, its matrices converted as `choice` says;
/// `progress` is told the bytes drawn so far and in all, and ends it by breaking.
///
/// # Errors
/// [`Error::File`] for a configuration out of range, [`Error::Occupied`] if the folder holds a model already,
/// [`Error::Write`] with the bytes needed if the system refuses, [`Error::Stopped`] if `progress` broke off. No file is
/// left then.
///
/// [`Error::File`]: crate::Error::File
/// [`Error::Occupied`]: crate::Error::Occupied
/// [`Error::Write`]: crate::Error::Write
/// [`Error::Stopped`]: crate::Error::Stopped
pub fn synthesize<'a>(
    destination: impl Into<Destination<'a>>,
    config: &Config,
    dtype: WeightDType,
    choice: FormatChoice,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let destination = destination.into();
    config.validate(&destination.dir.join(CONFIG))?;
    let specs = config.tensors();
    let mut shared: HashMap<u32, Arc<Table>> = HashMap::new();
    let mut table = |spec: &TensorSpec| {
        let deviation = deviation(spec, config);
        shared.entry(deviation.to_bits()).or_insert_with(|| Arc::new(Table::new(deviation, dtype))).clone()
    };
    let tables: Vec<Arc<Table>> = specs.iter().map(&mut table).collect();
    let draw = |tensor: usize, first: u64, out: &mut [u8]| {
        let key = mix(seed.wrapping_add(mix(tensor as u64 + 1)));
        match &*tables[tensor] {
            Table::Two(table) => fill(out.as_chunks_mut().0, table, key, first),
            Table::Four(table) => fill(out.as_chunks_mut().0, table, key, first),
        }
    };
    let from = dtype.into();
    let matrices: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(tensor, spec)| {
            export::matrix(spec, Source::Drawn { draw: &draw, tensor }, from, choice.of(spec, from))
        })
        .collect();
    let generation = json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    });
    let mut files = vec![(GENERATION_CONFIG, export::text(&generation).into_bytes())];
    files.extend(tokenizer_files(config));
    let mut json = config.to_json();
    json["dtype"] = json!(dtype.config_name());
    export::mark(&mut json, &matrices);
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(THREADS);
    export::write(destination, &specs, &matrices, &files, &json, threads, progress)
}

/// The built-in tokenizer, if every id of it is a row of the embedding table.
#[cfg(feature = "tiny")]
fn tokenizer_files(config: &Config) -> Vec<(&'static str, Vec<u8>)> {
    use lapidary_runtime::text::tokenizer;
    /// Ids of the built-in tokenizer, of which 2 is BOS.
    const IDS: usize = 4096;
    if config.vocab_size < IDS || config.bos_token_id != 2 {
        return Vec::new();
    }
    vec![
        (tokenizer::TOKENIZER, crate::tiny::TOKENIZER.to_vec()),
        (tokenizer::TOKENIZER_CONFIG, crate::tiny::TOKENIZER_CONFIG.to_vec()),
    ]
}

/// There is no built-in tokenizer to write.
#[cfg(not(feature = "tiny"))]
fn tokenizer_files(_: &Config) -> Vec<(&'static str, Vec<u8>)> {
    Vec::new()
}

/// Standard deviation of a tensor's elements.
fn deviation(spec: &TensorSpec, config: &Config) -> f32 {
    match spec.kind {
        // Scaled by sqrt(hidden), rows enter the residual stream at half the size of what each sublayer adds.
        TensorKind::Embedding => 0.5 / (config.hidden_size as f32).sqrt(),
        TensorKind::Matrix => 1.0 / (spec.shape[1] as f32).sqrt(),
        TensorKind::Norm => 0.05,
    }
}

/// Draws elements from `first` on: a hash gives four.
fn fill<const N: usize>(out: &mut [[u8; N]], table: &[[u8; N]; DRAWS], key: u64, first: u64) {
    let draw = |group: u64, from: usize, lanes: &mut [[u8; N]]| {
        let hash = mix(key.wrapping_add(group.wrapping_mul(GOLDEN)));
        for (lane, element) in lanes.iter_mut().enumerate() {
            *element = table[usize::from((hash >> (16 * (from + lane))) as u16)];
        }
    };
    // What is left of the hash that `first` lies in.
    let within = (first % 4) as usize;
    let (begun, out) = out.split_at_mut(if within == 0 { 0 } else { out.len().min(4 - within) });
    draw(first / 4, within, begun);
    let group = first.div_ceil(4);
    let (whole, rest) = out.as_chunks_mut::<4>();
    whole.iter_mut().enumerate().for_each(|(i, lanes)| draw(group + i as u64, 0, lanes));
    draw(group + whole.len() as u64, 0, rest);
}

/// 2^64 over the golden ratio: the step of SplitMix64 (Steele, Lea, Flood, 2014).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Values that 16 random bits choose from.
const DRAWS: usize = 1 << 16;

/// Normally distributed values, encoded in a dtype.
enum Table {
    Two(Box<[[u8; 2]; DRAWS]>),
    Four(Box<[[u8; 4]; DRAWS]>),
}

impl Table {
    fn new(deviation: f32, dtype: WeightDType) -> Table {
        let value = |i: usize| normal(i) * deviation;
        match dtype {
            WeightDType::F32 => Table::Four(table(|i| value(i).to_le_bytes())),
            WeightDType::F16 => Table::Two(table(|i| half::f16::from_f32(value(i)).to_le_bytes())),
            WeightDType::BF16 => Table::Two(table(|i| half::bf16::from_f32(value(i)).to_le_bytes())),
        }
    }
}

fn table<const N: usize>(value: impl Fn(usize) -> [u8; N]) -> Box<[[u8; N]; DRAWS]> {
    let mut table = vec![[0; N]; DRAWS].into_boxed_slice();
    table.iter_mut().enumerate().for_each(|(i, entry)| *entry = value(i));
    table.try_into().unwrap_or_else(|_| unreachable!("it was made with DRAWS entries"))
}

/// Box and Muller's transform of a grid of 256 radii by 256 angles: mean 0, variance 1.
fn normal(i: usize) -> f32 {
    let unit = |n: usize| (n as f64 + 0.5) / 256.0;
    let radius = (-2.0 * unit(i >> 8).ln()).sqrt();
    (radius * (std::f64::consts::TAU * unit(i & 255)).cos()) as f32
}
