//! A model's tensors, in place: mapped from `model.safetensors` or its shards, or borrowed from the binary.
//!
//! In: a folder (or static bytes) and the configuration. Out: a [`Checkpoint`] that hands out each tensor's bytes
//! without a copy. Invariants: exactly the tensors of [`Config::tensors`] are there, each with its shape, in F32, F16
//! or BF16, or a matrix (N, K) as U8 (N, row_bytes), whose row_bytes say whether it is q8 or q4
//! ([`quantize`](crate::quantize)), in each layer in a format of its own; bytes are aligned to their element. They may
//! lie under another prefix than the published one, in any shard; what lies beside them is a head of the same values,
//! or changes nothing (`names.rs` has the tables). Values are looked at where a head repeats the embedding table, and
//! nowhere else.

mod found;
mod gguf;
mod head;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lapidary_runtime::file::safetensors::{Entry, LENGTH_BYTES, MAX_HEADER};
use lapidary_runtime::file::{self, Map};

use crate::config::Config;
use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{self, Error, Result, Warning, quote};
use crate::folder;
use crate::layout::{EMBEDDING, TIED_HEAD};
use crate::names;
use crate::quantize::QuantFormat;

pub use found::parse_index;
use found::{Found, collect, open_shards};
use head::is_head;

/// The file of a checkpoint that is not sharded.
pub const SINGLE: &str = "model.safetensors";
/// The safetensors dtype of quantised rows.
const U8: &str = "U8";
/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// How it is stored.
    pub format: TensorFormat,
    /// Elements along each axis, however they are stored.
    pub shape: &'a [usize],
    /// Little-endian elements, the last axis fastest, aligned to the element; or rows of quants and scales.
    pub bytes: &'a [u8],
}

/// A model's tensors.
pub struct Checkpoint {
    files: Vec<Source>,
    tensors: BTreeMap<String, Tensor>,
    warning: Option<Warning>,
}

/// One file.
struct Source {
    path: PathBuf,
    bytes: Bytes,
    /// Bytes before its tensors.
    header: usize,
}

impl Source {
    /// A safetensors file.
    fn new(path: PathBuf, bytes: Bytes) -> Source {
        let length = bytes.get().first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        // One that is longer than the file is refused when it is read.
        let header = (LENGTH_BYTES + length.min(MAX_HEADER) as usize).min(bytes.get().len());
        Source { path, bytes, header }
    }
}

enum Bytes {
    Mapped(Map),
    Static(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

struct Tensor {
    file: usize,
    format: TensorFormat,
    shape: Vec<usize>,
    entry: Entry,
}

impl Checkpoint {
    /// Maps the checkpoint in `dir`. The files must not change while they are mapped.
    ///
    /// # Errors
    /// [`Error::Missing`] without weights or a shard, [`Error::File`] for a malformed file or for tensors that
    /// are not the configuration's.
    pub fn open(dir: &Path, config: &Config) -> Result<Checkpoint> {
        let single = dir.join(SINGLE);
        if file::exists(&single)? {
            let source = map(single)?;
            let found = collect(&source, 0)?;
            return Checkpoint::check(dir, vec![source], found, config);
        }
        let path = dir.join(INDEX);
        let Some(bytes) = file::read_if_present(&path)? else {
            return Err(folder::lacks(dir, format!("{SINGLE} and no {INDEX}")));
        };
        let (sources, found) = open_shards(dir, &parse_index(&path, &bytes)?)?;
        Checkpoint::check(dir, sources, found, config)
    }

    /// A checkpoint without tensors: an artifact's model has its weights in the artifact.
    pub fn absent() -> Checkpoint {
        Checkpoint { files: Vec::new(), tensors: BTreeMap::new(), warning: None }
    }

    /// The checkpoint in the bytes of one safetensors file; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::File`] too if the bytes do not start at a multiple of 8.
    pub fn from_static(name: &Path, bytes: &'static [u8], config: &Config) -> Result<Checkpoint> {
        if !bytes.as_ptr().addr().is_multiple_of(8) {
            return Err(Error::file(
                name,
                "bytes at an address that 8 divides",
                format!("{:p}", bytes.as_ptr()),
            ));
        }
        let source = Source::new(name.into(), Bytes::Static(bytes));
        let found = collect(&source, 0)?;
        Checkpoint::check(name, vec![source], found, config)
    }

    /// A tensor by its whole name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.tensors.get(name)?;
        let bytes = &self.files[tensor.file].bytes.get()[tensor.entry.bytes.clone()];
        Some(TensorView { format: tensor.format, shape: &tensor.shape, bytes })
    }

    /// A tensor's format by its whole name.
    pub fn format_of(&self, name: &str) -> Option<TensorFormat> {
        self.tensors.get(name).map(|t| t.format)
    }

    /// Where a tensor lies: the number of its file, and its first byte there.
    pub(crate) fn place(&self, name: &str) -> Option<(usize, u64)> {
        self.tensors.get(name).map(|t| (t.file, t.entry.bytes.start as u64))
    }

    /// The bytes of a file before its tensors.
    pub(crate) fn header(&self, file: usize) -> &[u8] {
        let Source { bytes, header, .. } = &self.files[file];
        &bytes.get()[..*header]
    }

    /// What is strange about its files, if anything is.
    pub fn warning(&self) -> Option<&Warning> {
        self.warning.as_ref()
    }

    /// All names, sorted as text.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.entry.bytes.len() as u64).sum()
    }

    /// The files the tensors lie in.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|s| s.path.as_path())
    }

    /// Holds what was found against the configuration.
    fn check(place: &Path, files: Vec<Source>, mut found: Found, config: &Config) -> Result<Checkpoint> {
        let specs = config.tensors();
        let names = found.tensors.keys().map(String::as_str);
        let prefix = names::prefix(names, &specs, |n| found.tensors.contains_key(n)).map_err(|[a, b]| {
            let found = format!("it under {} and under {}", quote(&a), quote(&b));
            Error::tensor(place, EMBEDDING, "one model", found)
        })?;
        let quants = found.quants();
        let mut tensors = BTreeMap::new();
        for spec in &specs {
            let Some((file, entry)) = found.take(spec, &prefix, config.tie_word_embeddings) else {
                return Err(found.missing(place, spec, &prefix, quants));
            };
            let path = &files[file].path;
            let format = match format_of(&entry, &spec.shape) {
                Ok(format) => format,
                Err((expected, found)) => {
                    let found = quants.unwrap_or_else(|| error::line(found));
                    return Err(Error::tensor(path, &entry.name, expected, found));
                }
            };
            tensors.insert(spec.name.clone(), Tensor { file, format, shape: spec.shape.clone(), entry });
        }
        let warning = found.warning(place);
        let checkpoint = Checkpoint { files, tensors, warning };
        checkpoint.check_rest(found, config)?;
        Ok(checkpoint)
    }

    /// Lets pass what changes nothing: heads that repeat the embedding table, and what [`names`] knows.
    fn check_rest(&self, found: Found, config: &Config) -> Result<()> {
        let mut tied = config.tie_word_embeddings;
        for (name, (file, entry)) in &found.tensors {
            let path = &self.files[*file].path;
            if is_head(name) {
                self.check_head(*file, entry, config.tie_word_embeddings)?;
                tied = true;
            } else if name.ends_with("embed_scale") || name.ends_with("normalizer") {
                self.check_scale(*file, entry, config.embedding_scale())?;
            } else if !names::is_harmless(name) {
                let found = match names::quantised(name, &entry.dtype) {
                    Some((_, format)) => names::quants(format, &entry.name),
                    None => error::line(format!("{} {:?}", entry.dtype, entry.shape)),
                };
                let expected = names::expectation(name, config);
                return Err(Error::tensor(path, &entry.name, expected, found));
            }
        }
        if tied {
            return Ok(());
        }
        let path = self.files.first().map_or(Path::new(""), |f| f.path.as_path());
        let expected = "a head of its own, as tie_word_embeddings is false";
        Err(Error::tensor(path, TIED_HEAD, expected, "no such tensor"))
    }
}

/// How an entry stores a tensor of this shape; else what was expected and what was found.
fn format_of(entry: &Entry, shape: &[usize]) -> std::result::Result<TensorFormat, (String, String)> {
    let found = || format!("shape {:?}", entry.shape);
    if let (U8, [n, k]) = (entry.dtype.as_str(), shape) {
        let formats = QuantFormat::ALL.into_iter().filter(|f| f.fits(*k));
        let quant = formats.clone().find(|f| entry.shape == [*n, f.row_bytes(*k)]);
        if let Some(quant) = quant {
            return Ok(quant.into());
        }
        if entry.shape != shape {
            let quants = formats.map(|f| format!("{} [{n}, {}]", f.name(), f.row_bytes(*k)));
            let expected = format!("shape {shape:?}, or U8 as {}", quants.collect::<Vec<_>>().join(" or "));
            return Err((expected, found()));
        }
    }
    if entry.shape != shape {
        return Err((format!("shape {shape:?}"), found()));
    }
    let dtype = WeightDType::from_name(&entry.dtype);
    dtype
        .map(TensorFormat::from)
        .ok_or_else(|| ("dtype F32, F16 or BF16".into(), format!("dtype {}", entry.dtype)))
}

/// Maps a file read-only; that nobody changes it meanwhile is what [`Checkpoint::open`] asks of its caller.
fn map(path: PathBuf) -> Result<Source> {
    let (file, _) = file::open(&path)?;
    let map = Map::new(&path, &file).map_err(|source| Error::read(path.clone(), source))?;
    // What is read from the disk from now on comes in huge pages.
    map.advise_huge();
    Ok(Source::new(path, Bytes::Mapped(map)))
}
