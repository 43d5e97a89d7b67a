//! A model's tensors, in place: mapped from `model.safetensors` or its shards, or borrowed from the binary.
//!
//! In: a folder (or static bytes) and the configuration. Out: a [`Checkpoint`] that hands out each tensor's bytes without a
//! copy. Invariants: exactly the tensors of [`Config::tensors`] are there, each with its shape, in F32, F16 or BF16, or a matrix
//! (N, K) as U8 (N, row_bytes), whose row_bytes say whether it is q8 or q4 ([`quantize`](crate::quantize)); a role
//! (`mlp.up_proj.weight`) has one format in all layers; bytes are aligned to their element. Values are not looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use lapidary_runtime::file::safetensors::{self, Entry};
use lapidary_runtime::file::{self, Map};
use serde_json::Value;

use crate::config::Config;
use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{self, Error, Result, quote};
use crate::layout::{EMBEDDING, ROTARY_BUFFER, TIED_HEAD, role};
use crate::quantize::QuantFormat;

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
}

/// One file.
struct Source {
    path: PathBuf,
    bytes: Bytes,
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

/// Tensors as the files name them, before they are checked.
type Found = HashMap<String, (usize, Entry)>;

impl Checkpoint {
    /// Maps the checkpoint in `dir`. The files must not change while they are mapped.
    ///
    /// # Errors
    /// [`Error::Missing`] without weights or a shard, [`Error::File`] for a malformed file or for tensors that
    /// are not the configuration's.
    pub fn open(dir: &Path, config: &Config) -> Result<Checkpoint> {
        let single = dir.join(SINGLE);
        if exists(&single)? {
            let source = map(single)?;
            let found = collect(&source, 0)?;
            return Checkpoint::check(dir, vec![source], found, config);
        }
        let path = dir.join(INDEX);
        let Some(bytes) = file::read_if_present(&path)? else {
            return Err(Error::Missing { path: dir.into(), file: format!("{SINGLE} and no {INDEX}") });
        };
        let (sources, found) = open_shards(dir, &path, &parse_index(&path, &bytes)?)?;
        Checkpoint::check(dir, sources, found, config)
    }

    /// A checkpoint without tensors: an artifact's model has its weights in the artifact.
    pub fn absent() -> Checkpoint {
        Checkpoint { files: Vec::new(), tensors: BTreeMap::new() }
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
        let source = Source { path: name.into(), bytes: Bytes::Static(bytes) };
        let found = collect(&source, 0)?;
        Checkpoint::check(name, vec![source], found, config)
    }

    /// A tensor by its whole name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let tensor = self.tensors.get(name)?;
        let bytes = &self.files[tensor.file].bytes.get()[tensor.entry.bytes.clone()];
        Some(TensorView { format: tensor.format, shape: &tensor.shape, bytes })
    }

    /// A tensor's format by its whole name; layers agree, so layer 0's stands for all.
    pub fn format_of(&self, name: &str) -> Option<TensorFormat> {
        self.tensors.get(name).map(|t| t.format)
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
        let mut tensors = BTreeMap::new();
        let mut roles: HashMap<String, (TensorFormat, String)> = HashMap::new();
        for spec in config.tensors() {
            let Some((file, entry)) = found.remove(&spec.name) else {
                return Err(Error::tensor(
                    place,
                    &spec.name,
                    format!("shape {:?}", spec.shape),
                    "no such tensor",
                ));
            };
            let path = &files[file].path;
            let format = match format_of(&entry, &spec.shape) {
                Ok(format) => format,
                Err((expected, found)) => {
                    return Err(Error::tensor(path, &spec.name, expected, error::line(found)));
                }
            };
            let first = roles.entry(role(&spec.name).into()).or_insert_with(|| (format, spec.name.clone()));
            if first.0 != format {
                let expected = format!("dtype {} as in {}", first.0, first.1);
                return Err(Error::tensor(path, &spec.name, expected, format!("dtype {format}")));
            }
            tensors.insert(spec.name, Tensor { file, format, shape: spec.shape, entry });
        }
        let checkpoint = Checkpoint { files, tensors };
        checkpoint.check_rest(found)?;
        Ok(checkpoint)
    }

    /// Lets pass what changes nothing: a head that repeats the embedding table, rotary buffers.
    fn check_rest(&self, mut found: Found) -> Result<()> {
        if let Some((file, entry)) = found.remove(TIED_HEAD) {
            let path = &self.files[file].path;
            let head = &self.files[file].bytes.get()[entry.bytes];
            let table = self.tensor(EMBEDDING);
            let same = table
                .is_some_and(|t| t.format.name() == entry.dtype && t.shape == entry.shape && t.bytes == head);
            if !same {
                return Err(Error::tensor(
                    path,
                    TIED_HEAD,
                    format!("a copy of {EMBEDDING} (they are tied)"),
                    "other values",
                ));
            }
        }
        let left: BTreeSet<&String> = found.keys().filter(|n| !n.ends_with(ROTARY_BUFFER)).collect();
        match left.first() {
            None => Ok(()),
            Some(name) => {
                let (file, entry) = &found[*name];
                let found = error::line(format!("{} {:?}", entry.dtype, entry.shape));
                Err(Error::tensor(&self.files[*file].path, name, "no tensor of this name", found))
            }
        }
    }
}

/// How an entry stores a tensor of this shape; else what was expected and what was found.
fn format_of(entry: &Entry, shape: &[usize]) -> std::result::Result<TensorFormat, (String, String)> {
    let found = || format!("shape {:?}", entry.shape);
    if let (U8, [n, k]) = (entry.dtype.as_str(), shape) {
        let formats = [QuantFormat::Q8, QuantFormat::Q4].into_iter().filter(|f| f.fits(*k));
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

/// Which shard holds each tensor, from the index's bytes; `path` is what errors call it.
///
/// # Errors
/// [`Error::File`] unless it has a `weight_map` of names to plain file names.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let refuse = |field: &str, expected: &str, found: String| -> Error {
        let field = error::line(field.escape_debug());
        file::Error::Field { path: path.into(), field, expected: expected.into(), found }.into()
    };
    let index: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::file(path, "a JSON object", error::line(format!("malformed JSON: {e}"))))?;
    let map = match index.get("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        Some(other) => return Err(refuse("weight_map", "an object of tensors", error::json(other))),
        None => return Err(refuse("weight_map", "an object of tensors", "nothing".into())),
    };
    let mut shards = BTreeMap::new();
    for (tensor, file) in map {
        match file.as_str().filter(|name| is_plain(name)) {
            Some(name) => shards.insert(tensor.clone(), name.to_string()),
            None => {
                let field = format!("weight_map.{tensor}");
                let expected = "the plain name of a .safetensors file in the same folder";
                return Err(refuse(&field, expected, error::json(file)));
            }
        };
    }
    Ok(shards)
}

/// Whether a name leads to a file of the same folder on every system.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| !matches!(c, '/' | '\\' | ':') && !c.is_control();
    name.len() > ".safetensors".len()
        && name.len() < 256
        && name.ends_with(".safetensors")
        && name.chars().all(plain)
}

/// Maps the shards and holds them against the index.
fn open_shards(dir: &Path, index: &Path, map: &BTreeMap<String, String>) -> Result<(Vec<Source>, Found)> {
    let names: BTreeSet<&String> = map.values().collect();
    for name in &names {
        if !exists(&dir.join(name))? {
            return Err(Error::Missing {
                path: dir.into(),
                file: format!("{name}, a shard that {INDEX} names"),
            });
        }
    }
    let (mut sources, mut found) = (Vec::new(), Found::new());
    for name in names {
        let source = self::map(dir.join(name))?;
        for (tensor, place) in collect(&source, sources.len())? {
            if map.get(&tensor) != Some(name) {
                let expected = match map.get(&tensor) {
                    Some(other) => format!("it in {other}, where {INDEX} puts it"),
                    None => format!("only tensors that {INDEX} names"),
                };
                return Err(Error::tensor(&source.path, &tensor, expected, "it here"));
            }
            found.insert(tensor, place);
        }
        sources.push(source);
    }
    match map.iter().find(|(tensor, _)| !found.contains_key(*tensor)) {
        None => Ok((sources, found)),
        Some((tensor, file)) => {
            Err(Error::tensor(index, tensor, format!("it in {}", quote(file)), "no such tensor"))
        }
    }
}

/// The tensors of one file.
fn collect(source: &Source, file: usize) -> Result<Found> {
    let entries = safetensors::read(&source.path, source.bytes.get())?;
    Ok(entries.into_iter().map(|e| (e.name.clone(), (file, e))).collect())
}

fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(|source| Error::read(path, source))
}

/// Maps a file read-only; that nobody changes it meanwhile is what [`Checkpoint::open`] asks of its caller.
fn map(path: PathBuf) -> Result<Source> {
    let (file, _) = file::open(&path)?;
    let map = Map::new(&path, &file).map_err(|source| Error::read(path.clone(), source))?;
    // What is read from the disk from now on comes in huge pages.
    map.advise_huge();
    Ok(Source { path, bytes: Bytes::Mapped(map) })
}
