//! A model's tensors, in place: mapped from `model.safetensors` or its shards, or borrowed from the binary.
//!
//! In: a folder (or static bytes) and the configuration. Out: a [`Checkpoint`] that hands out each tensor's bytes without a
//! copy. Invariants: exactly the tensors of [`Config::tensors`] are there, each with its shape, in F32, F16 or BF16, or a matrix
//! (N, K) as U8 (N, row_bytes), whose row_bytes say whether it is q8 or q4 ([`quantize`](crate::quantize)); a role
//! (`mlp.up_proj.weight`) has one format in all layers; bytes are aligned to their element. They may lie under another prefix than
//! the published one, in any shard; what lies beside them is a head of the same values, or changes nothing
//! (`names.rs` has the tables). Values are looked at where a head repeats the embedding table, and nowhere else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use lapidary_runtime::file::safetensors::{self, Entry};
use lapidary_runtime::file::{self, Map};
use serde_json::Value;

use crate::config::Config;
use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{self, Error, Result, Warning, list, quote};
use crate::folder;
use crate::layout::{EMBEDDING, TIED_HEAD, TensorSpec, role};
use crate::names;
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
    warning: Option<Warning>,
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

/// What the files hold, before it is checked.
#[derive(Default)]
struct Found {
    /// File and entry of each tensor, by its name without what wrappers put into it.
    tensors: BTreeMap<String, (usize, Entry)>,
    /// Tensors that the index names and no shard holds, and the shard that should.
    absent: BTreeMap<String, String>,
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

    /// What the file itself calls a tensor.
    pub(crate) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.tensors.get(name).map_or(name, |t| &t.entry.name)
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
        let mut roles: HashMap<String, (TensorFormat, String)> = HashMap::new();
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
            let first = roles.entry(role(&spec.name).into()).or_insert_with(|| (format, spec.name.clone()));
            if first.0 != format {
                let expected = format!("dtype {} as in {}", first.0, first.1);
                return Err(Error::tensor(path, &entry.name, expected, format!("dtype {format}")));
            }
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
                let expected = names::expectation(name, config.num_hidden_layers);
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

    /// Fails unless a head's values are those of the embedding table (or, where it is said to be tied, what they round to: the
    /// head then says nothing that the table does not).
    fn check_head(&self, file: usize, entry: &Entry, tied: bool) -> Result<()> {
        let head = &self.files[file].bytes.get()[entry.bytes.clone()];
        let same = self.tensor(EMBEDDING).is_some_and(|t| {
            t.shape == entry.shape
                && match (t.format, WeightDType::from_name(&entry.dtype)) {
                    (TensorFormat::Float(table), Some(dtype)) => {
                        equal_values(table, t.bytes, dtype, head, tied)
                    }
                    (TensorFormat::Float(table), None) if entry.dtype == "F64" => {
                        equal_doubles(table, t.bytes, head)
                    }
                    (TensorFormat::Float(_) | TensorFormat::Quant(_), _) => false,
                }
        });
        // A quantised table has another shape in the file.
        let same = same
            || self.tensors.get(EMBEDDING).is_some_and(|t| {
                t.entry.dtype == entry.dtype
                    && t.entry.shape == entry.shape
                    && self.files[t.file].bytes.get()[t.entry.bytes.clone()] == *head
            });
        if same {
            return Ok(());
        }
        let expected = format!("a copy of {EMBEDDING} (they are tied)");
        Err(Error::tensor(&self.files[file].path, &entry.name, expected, "other values"))
    }

    /// Fails if a buffer holds another scale of embeddings than the one that is computed.
    fn check_scale(&self, file: usize, entry: &Entry, scale: f32) -> Result<()> {
        /// bf16 and f16 round by less.
        const TOLERANCE: f32 = 1.0 / 128.0;
        let bytes = &self.files[file].bytes.get()[entry.bytes.clone()];
        let found =
            WeightDType::from_name(&entry.dtype).and_then(|dtype| match bytes.len() / dtype.bytes() {
                1 => values(dtype, bytes).next(),
                _ => None,
            });
        match found {
            Some(x) if (x / scale - 1.0).abs() <= TOLERANCE => Ok(()),
            _ => {
                let found = found.map_or("no number".into(), |x| x.to_string());
                Err(Error::tensor(&self.files[file].path, &entry.name, format!("{scale}"), found))
            }
        }
    }
}

impl Found {
    /// Takes the tensor of a specification. The embedding table may be there under the name of the head, as programs keep one name
    /// of two that share their memory.
    fn take(&mut self, spec: &TensorSpec, prefix: &str, tied: bool) -> Option<(usize, Entry)> {
        let place = self.tensors.remove(&names::under(prefix, &spec.name));
        if place.is_some() || spec.name != EMBEDDING || !tied {
            return place;
        }
        let mut heads = self.tensors.keys().filter(|name| is_head(name));
        let (head, second) = (heads.next().cloned()?, heads.next());
        if second.is_some() { None } else { self.tensors.remove(&head) }
    }

    /// The error for a tensor that is not there.
    fn missing(&self, place: &Path, spec: &TensorSpec, prefix: &str, quants: Option<String>) -> Error {
        let name = names::under(prefix, &spec.name);
        if let Some(words) = quants {
            return Error::tensor(place, &name, format!("shape {:?}", spec.shape), words);
        }
        if let Some(shard) = self.absent.get(&name) {
            let found = "no such tensor (is the shard of another model?)";
            return Error::tensor(place.join(INDEX), &name, format!("it in {}", quote(shard)), found);
        }
        let adapter = self.tensors.keys().find(|n| n.contains("lora_"));
        let found = match adapter {
            Some(_) => "no such tensor, but those of a LoRA adapter (merge it into its base model)",
            None => "no such tensor",
        };
        Error::tensor(place, &name, format!("shape {:?}", spec.shape), found)
    }

    /// Words for the format of tensors that another program quantised, by the most telling sign.
    fn quants(&self) -> Option<String> {
        let sign = |(name, (_, entry)): (&String, &(usize, Entry))| {
            let (rank, format) = names::quantised(name, &entry.dtype)?;
            Some((rank, names::quants(format, &entry.name)))
        };
        let first = self.tensors.iter().filter_map(sign).min_by_key(|(rank, _)| *rank);
        first.map(|(_, words)| words)
    }

    /// What there is to say of tensors that the index names, no shard holds, and nobody needs.
    fn warning(&self, place: &Path) -> Option<Warning> {
        let names: Vec<String> = self.absent.keys().cloned().collect();
        if names.is_empty() {
            return None;
        }
        let message = format!("tensors that no shard holds, and that are not needed: {}", list(&names));
        Some(Warning { path: place.join(INDEX), message })
    }
}

/// Whether a tensor is a head's matrix, under whatever prefix.
fn is_head(name: &str) -> bool {
    name.strip_suffix(TIED_HEAD).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

/// Elements as f32, which holds each exactly.
fn values(dtype: WeightDType, bytes: &[u8]) -> Box<dyn Iterator<Item = f32> + '_> {
    match dtype {
        WeightDType::F32 => Box::new(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        WeightDType::F16 => {
            Box::new(bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()))
        }
        WeightDType::BF16 => {
            Box::new(bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()))
        }
    }
}

/// Whether a head has the values of a table of as many elements; or, with `rounded`, those that the table's round to in its
/// dtype.
fn equal_values(table: WeightDType, a: &[u8], dtype: WeightDType, b: &[u8], rounded: bool) -> bool {
    if table == dtype {
        return a == b;
    }
    let round = |x: f32| match dtype {
        WeightDType::F32 => x,
        WeightDType::F16 => half::f16::from_f32(x).to_f32(),
        WeightDType::BF16 => half::bf16::from_f32(x).to_f32(),
    };
    let same = |(x, y): (f32, f32)| x == y || (rounded && round(x) == y) || (x.is_nan() && y.is_nan());
    values(table, a).zip(values(dtype, b)).all(same)
}

/// The same of a head of 64-bit floats.
fn equal_doubles(table: WeightDType, a: &[u8], b: &[u8]) -> bool {
    let doubles = b.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
    values(table, a).zip(doubles).all(|(x, y)| f64::from(x) == y || (x.is_nan() && y.is_nan()))
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
    let index = file::fields::json(path, bytes)?;
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

/// Maps the shards that the index names. As in transformers, what they hold counts; where a name is in two, the index decides.
fn open_shards(dir: &Path, map: &BTreeMap<String, String>) -> Result<(Vec<Source>, Found)> {
    let names: BTreeSet<&String> = map.values().collect();
    for name in &names {
        if !file::exists(&dir.join(name))? {
            return Err(folder::lacks_shard(dir, name));
        }
    }
    let (mut sources, mut found): (Vec<Source>, Found) = (Vec::new(), Found::default());
    for shard in names {
        let source = self::map(dir.join(shard))?;
        for (name, (file, entry)) in collect(&source, sources.len())?.tensors {
            let Some((other, first)) = found.tensors.get(&name) else {
                found.tensors.insert(name, (file, entry));
                continue;
            };
            let twin = &sources[*other];
            let place = map.get(&entry.name);
            let same = first.dtype == entry.dtype
                && first.shape == entry.shape
                && twin.bytes.get()[first.bytes.clone()] == source.bytes.get()[entry.bytes.clone()];
            if place == Some(shard) {
                found.tensors.insert(name, (file, entry));
            } else if !same && place.is_none_or(|p| !twin.path.ends_with(p)) {
                let expected = format!("the values that it has in {}", quote(&twin.path.to_string_lossy()));
                return Err(Error::tensor(&source.path, &entry.name, expected, "others"));
            }
        }
        sources.push(source);
    }
    let held: BTreeSet<&str> = found.tensors.values().map(|(_, e)| e.name.as_str()).collect();
    let absent = map.iter().filter(|(name, _)| !held.contains(name.as_str()));
    let absent = absent.map(|(name, shard)| (names::unwrapped(name), shard.clone())).collect();
    found.absent = absent;
    Ok((sources, found))
}

/// The tensors of one file.
fn collect(source: &Source, file: usize) -> Result<Found> {
    let mut found = Found::default();
    for entry in safetensors::read(&source.path, source.bytes.get())? {
        if let Some((_, first)) = found.tensors.get(&names::unwrapped(&entry.name)) {
            let found = format!("it and {}", quote(&first.name));
            return Err(Error::tensor(&source.path, &entry.name, "one tensor of this meaning", found));
        }
        found.tensors.insert(names::unwrapped(&entry.name), (file, entry));
    }
    Ok(found)
}

/// Maps a file read-only; that nobody changes it meanwhile is what [`Checkpoint::open`] asks of its caller.
fn map(path: PathBuf) -> Result<Source> {
    let (file, _) = file::open(&path)?;
    let map = Map::new(&path, &file).map_err(|source| Error::read(path.clone(), source))?;
    // What is read from the disk from now on comes in huge pages.
    map.advise_huge();
    Ok(Source { path, bytes: Bytes::Mapped(map) })
}
