//! Writes a full-size checkpoint of random weights, to measure with where the published weights are not at hand.
//!
//! In: a folder, a configuration, a dtype, a seed. Out: a Hugging Face folder: shards of at most 5 GB, index, `config.json`,
//! `generation_config.json`, and the built-in tokenizer where the vocabulary has room for it. Invariants: an element is a
//! function of the seed, its tensor and its place alone, so the files do not depend on threads; memory is a few pieces of
//! 8 MiB; a file has its final name only once all are whole, `config.json` last.
//!
//! Matrices are drawn so that unit inputs give unit outputs. The embedding table is small enough that a token's own logit
//! does not drown the others' (they are tied), and logits stay far below their cap.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use serde_json::{Map, Value, json};

use crate::checkpoint::{INDEX, SINGLE};
use crate::config::Config;
use crate::dtype::WeightDType;
use crate::error::{Error, Result};
use crate::layout::{TensorKind, TensorSpec};
use crate::model::GENERATION_CONFIG;

/// Bytes of tensors in one shard; transformers' own default.
const SHARD_BYTES: u64 = 5_000_000_000;
/// Elements drawn and written at a time; a multiple of the lanes of one hash.
const PIECE: u64 = 4 << 20;
/// The tensors of a file start at a multiple of this.
const ALIGN: usize = 64;
/// Most threads that draw and write.
const THREADS: usize = 8;

/// Writes the checkpoint into `dir`, which is made if need be; `progress` is told the bytes written so far and in all, and
/// ends it by breaking.
///
/// # Errors
/// [`Error::File`] for a configuration out of range, [`Error::Occupied`] if the folder holds a model already, [`Error::Write`]
/// with the bytes needed if the system refuses, [`Error::Stopped`] if `progress` broke off. No file is left then.
pub fn synthesize(
    dir: &Path,
    config: &Config,
    dtype: WeightDType,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    config.validate(&dir.join("config.json"))?;
    let shards = shards(config, dtype);
    let total = shards.iter().map(|s| s.data_end).sum();
    let mut folder = Folder::new(dir, total)?;
    let mut pieces = Vec::new();
    for shard in &shards {
        let path = folder.create(&shard.name, &shard.header)?;
        let path: Arc<Path> = path.into();
        pieces.extend(shard.pieces(&path, config, dtype));
    }
    draw(&pieces, dtype, seed, &mut |done| progress(done, total)).map_err(|failure| match failure {
        Failure::Write(path, source) => folder.failed(&path, source),
        Failure::Stopped => Error::Stopped,
    })?;
    if shards.len() > 1 {
        folder.create(INDEX, text(&index(&shards, total)).as_bytes())?;
    }
    let generation = json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    });
    folder.create(GENERATION_CONFIG, text(&generation).as_bytes())?;
    write_tokenizer(&mut folder, config)?;
    let mut file = config.to_json();
    file["dtype"] = json!(dtype.config_name());
    folder.create("config.json", text(&file).as_bytes())?;
    folder.finish()
}

/// The built-in tokenizer, if every id of it is a row of the embedding table.
#[cfg(feature = "tiny")]
fn write_tokenizer(folder: &mut Folder, config: &Config) -> Result<()> {
    /// Ids of the built-in tokenizer, of which 2 is BOS.
    const IDS: usize = 4096;
    if config.vocab_size >= IDS && config.bos_token_id == 2 {
        folder.create(lapidary_runtime::text::tokenizer::TOKENIZER, crate::tiny::TOKENIZER)?;
        folder.create(lapidary_runtime::text::tokenizer::TOKENIZER_CONFIG, crate::tiny::TOKENIZER_CONFIG)?;
    }
    Ok(())
}

/// There is no built-in tokenizer to write.
#[cfg(not(feature = "tiny"))]
fn write_tokenizer(_: &mut Folder, _: &Config) -> Result<()> {
    Ok(())
}

/// One file of tensors.
struct Shard {
    name: String,
    /// Length field, JSON, blanks up to [`ALIGN`].
    header: Vec<u8>,
    /// Tensors, each with its number in the checkpoint and its offset in the data.
    tensors: Vec<(usize, TensorSpec, u64)>,
    /// Bytes of the data.
    data_end: u64,
}

/// Splits the tensors into files, in order.
fn shards(config: &Config, dtype: WeightDType) -> Vec<Shard> {
    let mut shards: Vec<Shard> = Vec::new();
    for (number, spec) in config.tensors().into_iter().enumerate() {
        let bytes = spec.elements() * dtype.bytes() as u64;
        match shards.last_mut() {
            Some(shard) if shard.data_end + bytes <= SHARD_BYTES => {
                shard.tensors.push((number, spec, shard.data_end));
                shard.data_end += bytes;
            }
            _ => shards.push(Shard {
                name: String::new(),
                header: Vec::new(),
                tensors: vec![(number, spec, 0)],
                data_end: bytes,
            }),
        }
    }
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.name = match count {
            1 => SINGLE.into(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        shard.header = header(&shard.tensors, dtype);
    }
    shards
}

fn header(tensors: &[(usize, TensorSpec, u64)], dtype: WeightDType) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    for (_, spec, start) in tensors {
        let end = start + spec.elements() * dtype.bytes() as u64;
        let entry = json!({ "dtype": dtype.name(), "shape": spec.shape, "data_offsets": [start, end] });
        map.insert(spec.name.clone(), entry);
    }
    let mut json = Value::Object(map).to_string();
    let whole = (8 + json.len()).next_multiple_of(ALIGN);
    json.extend(std::iter::repeat_n(' ', whole - 8 - json.len()));
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header
}

fn index(shards: &[Shard], total: u64) -> Value {
    let mut map = Map::new();
    for shard in shards {
        map.extend(shard.tensors.iter().map(|(_, spec, _)| (spec.name.clone(), json!(shard.name))));
    }
    json!({ "metadata": { "total_size": total }, "weight_map": map })
}

/// JSON as transformers lays it out.
fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Part of a tensor, to be drawn and written at once.
struct Piece {
    path: Arc<Path>,
    /// Where in the file its bytes go.
    offset: u64,
    /// Number of the tensor in the checkpoint.
    tensor: usize,
    /// Its elements within the tensor.
    first: u64,
    elements: u64,
    table: Arc<Table>,
}

impl Shard {
    fn pieces(&self, path: &Arc<Path>, config: &Config, dtype: WeightDType) -> Vec<Piece> {
        let mut tables: HashMap<u32, Arc<Table>> = HashMap::new();
        let mut pieces = Vec::new();
        for (number, spec, start) in &self.tensors {
            let deviation = deviation(spec, config);
            let table =
                tables.entry(deviation.to_bits()).or_insert_with(|| Arc::new(Table::new(deviation, dtype)));
            let start = self.header.len() as u64 + start;
            for first in (0..spec.elements()).step_by(PIECE as usize) {
                pieces.push(Piece {
                    path: path.clone(),
                    offset: start + first * dtype.bytes() as u64,
                    tensor: *number,
                    first,
                    elements: PIECE.min(spec.elements() - first),
                    table: table.clone(),
                });
            }
        }
        pieces
    }
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

/// Why drawing ended early.
enum Failure {
    /// The file, and the system's answer.
    Write(PathBuf, io::Error),
    /// The caller wanted no more.
    Stopped,
}

/// Draws and writes all pieces; `done` is told the bytes so far.
fn draw(
    pieces: &[Piece],
    dtype: WeightDType,
    seed: u64,
    done: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> std::result::Result<(), Failure> {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(THREADS);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    buffer.resize(piece.elements as usize * dtype.bytes(), 0);
                    piece.fill(&mut buffer, seed);
                    let result =
                        piece.write(&buffer).map_err(|e| Failure::Write(piece.path.to_path_buf(), e));
                    // A receiver that is gone met a failure: stop.
                    if sender.send(result.map(|()| buffer.len() as u64)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut bytes = 0;
        for result in receiver {
            bytes += result?;
            if done(bytes).is_break() {
                return Err(Failure::Stopped);
            }
        }
        Ok(())
    })
}

impl Piece {
    fn fill(&self, out: &mut [u8], seed: u64) {
        let key = mix(seed.wrapping_add(mix(self.tensor as u64 + 1)));
        match &*self.table {
            Table::Two(table) => fill(out.as_chunks_mut().0, table, key, self.first),
            Table::Four(table) => fill(out.as_chunks_mut().0, table, key, self.first),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::options().write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        file.write_all(bytes)
    }
}

/// Draws elements from `first` (a multiple of 4) on: a hash gives four.
fn fill<const N: usize>(out: &mut [[u8; N]], table: &[[u8; N]; DRAWS], key: u64, first: u64) {
    let draw = |i: usize, lanes: &mut [[u8; N]]| {
        let hash = mix(key.wrapping_add((first / 4 + i as u64).wrapping_mul(GOLDEN)));
        for (lane, element) in lanes.iter_mut().enumerate() {
            *element = table[usize::from((hash >> (16 * lane)) as u16)];
        }
    };
    let (whole, rest) = out.as_chunks_mut::<4>();
    whole.iter_mut().enumerate().for_each(|(i, lanes)| draw(i, lanes));
    draw(whole.len(), rest);
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

/// A folder whose files get their names at the end.
struct Folder {
    dir: PathBuf,
    needed: u64,
    /// Temporary and final path of each file.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Folder {
    fn new(dir: &Path, needed: u64) -> Result<Folder> {
        let folder = Folder { dir: dir.into(), needed, files: Vec::new() };
        fs::create_dir_all(dir).map_err(|e| folder.failed(dir, e))?;
        for entry in fs::read_dir(dir).map_err(|source| Error::read(dir, source))? {
            let entry = entry.map_err(|source| Error::read(dir, source))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "config.json" || name == INDEX || name.ends_with(".safetensors") {
                return Err(Error::Occupied { path: dir.into(), found: name });
            }
        }
        Ok(folder)
    }

    /// Makes a file under its temporary name, which is returned.
    fn create(&mut self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let partial = self.dir.join(format!(".{name}.partial"));
        self.files.push((partial.clone(), self.dir.join(name)));
        fs::write(&partial, bytes).map_err(|e| self.failed(&partial, e))?;
        Ok(partial)
    }

    /// Gives all files their names.
    fn finish(mut self) -> Result<()> {
        for (partial, path) in &self.files {
            fs::rename(partial, path).map_err(|e| self.failed(path, e))?;
        }
        self.files.clear();
        Ok(())
    }

    fn failed(&self, path: &Path, source: io::Error) -> Error {
        Error::Write { path: path.into(), needed: self.needed, source }
    }
}

impl Drop for Folder {
    /// Takes what has no final name away; that it may fail changes nothing.
    fn drop(&mut self) {
        for (partial, _) in &self.files {
            let _ = fs::remove_file(partial);
        }
    }
}
