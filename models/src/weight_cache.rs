//! A model's weights with its matrices quantised, or in floats of another width: made once, kept in the user's cache
//! directory, mapped from then on. "Quantised" stands for either below.
//!
//! In: a [`Model`] and which formats its matrices take. Out: [`QuantizedWeights`], the bytes of every tensor by name:
//! quantised ones from the cache's file (or from memory), all others from the checkpoint's own map.
//!
//! A cache file is a safetensors file of the quantised matrices alone, in the order of [`Config::tensors`] (elements of 4 bytes
//! first), each as U8 of shape (N, row_bytes), or (N, K) of floats; its name is a hash of what it was made from. Invariants: it has its name only once it is whole
//! and on the disk; its length and its header are exactly those that this model's would have, or it is made anew; writers
//! need no lock, for the files they would write are equal, and the last rename wins. While quantising, the checkpoint is
//! read piece by piece and not mapped, and the output is written piece by piece, so resident memory is a few MiB a thread.
//! A cache that cannot be written costs time only: the weights then stay in memory.
//!
//! [`Config::tensors`]: crate::Config::tensors

use std::cmp::Reverse;
use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapidary_runtime::file::safetensors::{LENGTH_BYTES, MAX_HEADER};
use lapidary_runtime::program::WeightSource;
use memmap2::{Mmap, MmapMut};
use serde_json::{Map, Value, json};

use crate::checkpoint::TensorView;
use crate::dtype::TensorFormat;
use crate::error::{self, Error, Result};
use crate::layout::EMBEDDING;
use crate::model::Model;
use crate::quantize::{self, Matrix, Sink, Source};

/// What errors call memory.
pub const MEMORY: &str = "<memory>";
/// Changes whenever the bytes made from the same weights do; part of the hash.
const VERSION: u32 = 1;
/// The data of a cache file starts at a multiple of this.
const ALIGN: usize = 64;
/// Bytes hashed at each end of a tensor.
const SAMPLE: usize = 64 << 10;
/// End of the name of a cache file, after 32 hexadecimal digits.
const SUFFIX: &str = ".safetensors";
/// End of the name of a file that is being written.
const PARTIAL: &str = ".partial";
/// A file still partial that nobody wrote to for so long was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Which matrices are quantised to what, on how many threads, and where that is kept.
#[derive(Clone, Debug)]
pub struct Quantization {
    /// Every matrix but the embedding table; none leaves them as the checkpoint has them.
    pub body: Option<TensorFormat>,
    /// The embedding table, which is the head's matrix too; none leaves it as the checkpoint has it.
    pub head: Option<TensorFormat>,
    /// Threads that quantise; at least one is used.
    pub threads: usize,
    /// Where the result is kept; none keeps it in memory, for this process alone.
    pub cache: Option<Cache>,
}

impl Quantization {
    /// What the tensor of this name and shape is to be; none if it stays as it is: norms, and rows that do not divide into
    /// blocks.
    pub fn format_of(&self, name: &str, shape: &[usize]) -> Option<TensorFormat> {
        let format = if name == EMBEDDING { self.head } else { self.body };
        match shape {
            [_, k] => format.filter(|f| f.fits(*k)),
            _ => None,
        }
    }
}

/// A directory of cache files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The directory; made if need be. Only files with the names of cache files are ever removed from it.
    pub dir: PathBuf,
    /// The most bytes of all its files; those not used for longest make room.
    pub limit: u64,
}

impl Cache {
    /// The limit unless one is given: 32 GiB.
    pub const LIMIT: u64 = 32 << 30;

    /// The user's: `$XDG_CACHE_HOME/lapidary`, or `$HOME/.cache/lapidary`; none if neither variable is an absolute path.
    pub fn of_user() -> Option<Cache> {
        Cache::of_variables(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
    }

    /// [`Cache::of_user`] with these values of `XDG_CACHE_HOME` and `HOME`.
    pub fn of_variables(xdg: Option<OsString>, home: Option<OsString>) -> Option<Cache> {
        let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|p| p.is_absolute());
        let base = xdg.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
        Some(Cache { dir: base.join("lapidary"), limit: Cache::LIMIT })
    }

    fn path(&self, key: u128) -> PathBuf {
        self.dir.join(format!("{key:032x}{SUFFIX}"))
    }

    /// Removes what was not used for longest until `needed` bytes more are within the limit, and what was abandoned.
    /// A file that cannot be removed stays. An error says that `needed` alone is above the limit.
    fn make_room(&self, needed: u64) -> Result<()> {
        if needed > self.limit {
            let expected = format!("room for {needed} bytes");
            return Err(Error::file(&self.dir, expected, format!("a limit of {} bytes", self.limit)));
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let (Some(name), Ok(data)) = (name.to_str(), entry.metadata()) else { continue };
            let modified = data.modified().unwrap_or(UNIX_EPOCH);
            if is_partial(name) && modified.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(&path);
            } else if is_whole(name) {
                // Where the system keeps no time of access, a file counts as used when it was made.
                let used = data.accessed().map_or(modified, |accessed| accessed.max(modified));
                files.push((used, path, data.len()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, _, length)| length).sum();
        for (_, path, length) in files {
            if total + needed <= self.limit {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= length;
            }
        }
        Ok(())
    }
}

fn is_whole(name: &str) -> bool {
    name.strip_suffix(SUFFIX).is_some_and(is_key)
}

/// `.{key}.{process}.{count}.partial`
fn is_partial(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|n| n.strip_suffix(PARTIAL));
    inner.and_then(|n| n.split_once('.')).is_some_and(|(key, _)| is_key(key))
}

fn is_key(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Where the quantised matrices came from.
#[derive(Debug)]
pub enum Origin {
    /// No matrix is quantised.
    Checkpoint,
    /// They were found in this cache file.
    Found(PathBuf),
    /// They were made, and are now in this cache file.
    Made(PathBuf),
    /// They were made in memory; if there was a cache, this is why it was not used.
    Memory(Option<Error>),
}

/// A model's weights with its matrices quantised.
///
/// A quantised tensor's bytes are (N, row_bytes) as [`quantize`] describes, at an even address (at a
/// multiple of 64 if every quantised matrix has a multiple of 32 rows, as Gemma 2's have); any other's are the
/// checkpoint's.
pub struct QuantizedWeights {
    model: Arc<Model>,
    /// Format, and place in `bytes`.
    quantized: HashMap<String, (TensorFormat, Range<usize>)>,
    /// The cache file or the memory; none if nothing is quantised.
    bytes: Option<Mmap>,
    origin: Origin,
}

impl QuantizedWeights {
    /// Maps the quantised matrices of a model, and makes them first if they are not in the cache. Meanwhile `progress` is told,
    /// on this thread, the bytes of the checkpoint done and in all, and ends it by breaking. The model's files must not change, nor may the cache's be
    /// written to, while this lives.
    ///
    /// # Errors
    /// [`Error::File`] for a checkpoint that cannot be read again or for a weight that is
    /// not finite, [`Error::Stopped`] if `progress` broke off, [`Error::Write`] of [`MEMORY`] where there is no cache and
    /// too little address space.
    pub fn open(
        model: Arc<Model>,
        options: &Quantization,
        progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
    ) -> Result<QuantizedWeights> {
        let (bytes, quantized, origin) = make(&model, options, progress)?;
        Ok(QuantizedWeights { model, quantized, bytes, origin })
    }

    /// A tensor's bytes by its whole name; they stay in place, unchanged, as long as this lives.
    pub fn tensor(&self, name: &str) -> Option<&[u8]> {
        match (self.quantized.get(name), &self.bytes) {
            (Some((_, range)), Some(bytes)) => Some(&bytes[range.clone()]),
            _ => Some(self.model.checkpoint.tensor(name)?.bytes),
        }
    }

    /// What a tensor was quantised to; none if it is as the checkpoint has it.
    pub fn format(&self, name: &str) -> Option<TensorFormat> {
        self.quantized.get(name).map(|(format, _)| *format)
    }

    /// Where the quantised matrices came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Bytes of all tensors, quantised or not.
    pub fn weight_bytes(&self) -> u64 {
        let checkpoint = &self.model.checkpoint;
        checkpoint.names().filter_map(|name| self.tensor(name)).map(|bytes| bytes.len() as u64).sum()
    }
}

// SAFETY: the bytes are a read-only map of this or of the checkpoint, which this shares; neither is unmapped before it drops.
#[allow(unsafe_code)]
unsafe impl WeightSource for QuantizedWeights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        QuantizedWeights::tensor(self, name)
    }
}

/// Format and place of each quantised tensor.
type Places = HashMap<String, (TensorFormat, Range<usize>)>;

fn make(
    model: &Model,
    options: &Quantization,
    progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
) -> Result<(Option<Mmap>, Places, Origin)> {
    let files = Files::read(model)?;
    let specs = model.config.tensors();
    let mut matrices = Vec::new();
    for spec in &specs {
        let Some(to) = options.format_of(&spec.name, &spec.shape) else { continue };
        let (view, source) = files.tensor(model, &spec.name)?;
        let (n, k) = (spec.shape[0], spec.shape[1]);
        if view.format != to {
            matrices.push(Matrix { name: &spec.name, source, from: view.format, n, k, to });
        }
    }
    // The widest elements first: all are then aligned.
    matrices.sort_by_key(|m| Reverse(m.to.alignment()));
    if matrices.is_empty() {
        return Ok((None, Places::new(), Origin::Checkpoint));
    }
    let mut unused = None;
    if let Some(cache) = &options.cache {
        let key = key(model, &files, options)?;
        let header = header(&matrices, options, key);
        let path = cache.path(key);
        if let Some(map) = find(&path, &header, end(&matrices, header.len())) {
            return Ok((Some(map), places(&matrices, header.len()), Origin::Found(path)));
        }
        match write(cache, key, &header, &matrices, options.threads, progress) {
            Ok(map) => return Ok((Some(map), places(&matrices, header.len()), Origin::Made(path))),
            Err(Failure::Cache(error)) => unused = Some(error),
            Err(Failure::Model(error)) => return Err(error),
        }
    }
    let map = in_memory(&matrices, options.threads, progress)?;
    Ok((Some(map), places(&matrices, 0), Origin::Memory(unused)))
}

/// Where each matrix lies, the first at `start`.
fn places(matrices: &[Matrix<'_>], start: usize) -> Places {
    let mut end = start;
    let mut place = |m: &Matrix<'_>| {
        let range = end..end + m.bytes();
        end = range.end;
        (m.name.to_string(), (m.to, range))
    };
    matrices.iter().map(&mut place).collect()
}

/// Where the last matrix ends.
fn end(matrices: &[Matrix<'_>], start: usize) -> usize {
    start + matrices.iter().map(Matrix::bytes).sum::<usize>()
}

/// Quantises into memory, on huge pages where there are.
fn in_memory(
    matrices: &[Matrix<'_>],
    threads: usize,
    progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
) -> Result<Mmap> {
    let needed = end(matrices, 0);
    let failed = |source| Error::Write { path: MEMORY.into(), needed: needed as u64, source };
    let mut memory = MmapMut::map_anon(needed).map_err(failed)?;
    // Without huge pages it is slower and nothing else.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    quantize::stream(matrices, Sink::Memory(&mut memory), threads, progress)?;
    memory.make_read_only().map_err(failed)
}

/// The files of a checkpoint, to read again.
pub(crate) struct Files<'a> {
    files: Vec<OnDisk<'a>>,
    /// Which file holds a tensor, and its first byte there.
    tensors: HashMap<String, (usize, u64)>,
}

/// One file of a checkpoint.
struct OnDisk<'a> {
    path: &'a Path,
    /// Length in bytes, and time of the last change in nanoseconds since 1970.
    length: u64,
    modified: u128,
    /// Length field and JSON.
    header: Vec<u8>,
}

impl<'a> Files<'a> {
    /// Reads the headers. Nothing is found for the built-in model, whose bytes are in the binary.
    pub(crate) fn read(model: &'a Model) -> Result<Files<'a>> {
        let mut all = Files { files: Vec::new(), tensors: HashMap::new() };
        for path in model.checkpoint.paths() {
            let failed = |source| Error::read(path, source);
            let mut file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(failed(source)),
            };
            let data = file.metadata().map_err(failed)?;
            let modified = data.modified().map_err(failed)?;
            let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
            let mut header = vec![0; LENGTH_BYTES];
            file.read_exact(&mut header).map_err(failed)?;
            let length = header.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            file.take(length.min(MAX_HEADER)).read_to_end(&mut header).map_err(failed)?;
            let json: Map<String, Value> = serde_json::from_slice(&header[LENGTH_BYTES..])
                .map_err(|e| Error::file(path, "the header it was opened with", error::line(e)))?;
            for (name, entry) in json {
                if let Some(start) = entry["data_offsets"][0].as_u64() {
                    all.tensors.insert(name, (all.files.len(), start + header.len() as u64));
                }
            }
            all.files.push(OnDisk { path, length: data.len(), modified, header });
        }
        Ok(all)
    }

    /// A tensor as the checkpoint has it, and where it is read again.
    pub(crate) fn tensor<'m>(&'m self, model: &'m Model, name: &str) -> Result<(TensorView<'m>, Source<'m>)> {
        let Some(view) = model.checkpoint.tensor(name) else {
            return Err(Error::tensor(&model.path, name, "it", "no such tensor"));
        };
        let Some((file, offset)) = self.tensors.get(name) else {
            return Ok((view, Source::Bytes { path: &model.path, bytes: view.bytes }));
        };
        Ok((view, Source::File { path: self.files[*file].path, offset: *offset }))
    }
}

/// The name of what the options make of a checkpoint: a hash of all that the bytes depend on, and of nothing else, so that
/// a model that is moved keeps its cache.
///
/// Hashing every weight would read the whole checkpoint at each start, which is what the cache is to avoid. Hashed are the
/// formats, and of each file the length, the time of the last change, and the header; of each tensor both ends. The ends
/// tell apart checkpoints that agree in all else (fine-tunes unpacked by one tool, `synth` with two seeds): training leaves
/// no tensor as it was. The time tells of a change in the middle.
fn key(model: &Model, files: &Files<'_>, options: &Quantization) -> Result<u128> {
    let mut hash = Hash::new();
    hash.write(&VERSION.to_le_bytes());
    for format in [options.body, options.head] {
        hash.write(format.map_or("", TensorFormat::name).as_bytes());
    }
    for file in &files.files {
        hash.write(&file.length.to_le_bytes());
        hash.write(&file.modified.to_le_bytes());
        hash.write(&file.header);
    }
    let mut buffer = Vec::new();
    for name in model.checkpoint.names() {
        let (view, source) = files.tensor(model, name)?;
        hash.write(format!("{name} {} {:?}", view.format, view.shape).as_bytes());
        let length = view.bytes.len();
        let sample = length.min(SAMPLE);
        for start in [0, length - sample] {
            match source {
                Source::Bytes { bytes, .. } => hash.write(&bytes[start..][..sample]),
                Source::File { path, offset } => {
                    buffer.resize(sample, 0);
                    quantize::read_at(path, offset + start as u64, &mut buffer)
                        .map_err(|source| Error::read(path, source))?;
                    hash.write(&buffer);
                }
                Source::Drawn { .. } => unreachable!("a checkpoint's tensors are stored"),
            }
        }
    }
    Ok(hash.finish())
}

/// A hash of 128 bits for telling files apart by accident, not against an adversary: two chains of multiplications folded
/// onto themselves, as in wyhash (Wang Yi, 2019).
struct Hash([u64; 2]);

impl Hash {
    /// Odd constants with as many ones as zeros: wyhash's.
    const KEYS: [u64; 2] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];

    fn new() -> Hash {
        Hash(Hash::KEYS)
    }

    fn word(&mut self, word: u64) {
        for (state, key) in self.0.iter_mut().zip(Hash::KEYS) {
            let product = u128::from(*state ^ word) * u128::from(key);
            *state = (product as u64 ^ (product >> 64) as u64).wrapping_add(key);
        }
    }

    /// Adds bytes and their number, so that where one field ends matters.
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|w| self.word(u64::from_le_bytes(*w)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    fn finish(mut self) -> u128 {
        self.word(0);
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }
}

/// The head of a cache file: length field, JSON, blanks up to [`ALIGN`].
fn header(matrices: &[Matrix<'_>], options: &Quantization, key: u128) -> Vec<u8> {
    let name = |format: Option<TensorFormat>| format.map_or("none", TensorFormat::name);
    let mut map = Map::new();
    let metadata = json!({
        "format": format!("lapidary-{}", name(options.body)),
        "head": name(options.head),
        "version": VERSION.to_string(),
        "source": format!("{key:032x}"),
    });
    map.insert("__metadata__".into(), metadata);
    let mut start = 0;
    for m in matrices {
        let end = start + m.bytes();
        let shape = m.to.stored_shape(&[m.n, m.k]);
        let entry = json!({ "dtype": m.to.stored_dtype(), "shape": shape, "data_offsets": [start, end] });
        map.insert(m.name.into(), entry);
        start = end;
    }
    let mut json = Value::Object(map).to_string();
    let whole = (LENGTH_BYTES + json.len()).next_multiple_of(ALIGN);
    json.extend(std::iter::repeat_n(' ', whole - LENGTH_BYTES - json.len()));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

/// Maps a cache file if it is there and is what it should be, and marks it as used. Whatever else is found is as good as
/// nothing: it will be made anew.
fn find(path: &Path, header: &[u8], length: usize) -> Option<Mmap> {
    let mut file = File::open(path).ok()?;
    let data = file.metadata().ok()?;
    if !data.is_file() || data.len() != length as u64 {
        return None;
    }
    let mut found = vec![0; header.len()];
    file.read_exact(&mut found).ok()?;
    if found != header {
        return None;
    }
    // Many systems note an access once a day, or never. A file that cannot be marked is still a file.
    let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    map(&file).ok()
}

/// Maps a file read-only.
#[allow(unsafe_code)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only; that nobody writes to the file meanwhile is what `open` asks of its caller. A cache file
    // is replaced or removed by name only, which leaves what is mapped as it is.
    let map = unsafe { Mmap::map(file) }?;
    // Where the file system can, what is read from the disk from now on comes in huge pages.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Why nothing was written.
enum Failure {
    /// The cache's fault: memory will do.
    Cache(Error),
    /// The checkpoint's fault.
    Model(Error),
}

/// Makes a cache file and maps it.
fn write(
    cache: &Cache,
    key: u128,
    header: &[u8],
    matrices: &[Matrix<'_>],
    threads: usize,
    progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
) -> Result<Mmap, Failure> {
    let needed = end(matrices, header.len()) as u64;
    let failed = |path: &Path, source| Failure::Cache(Error::Write { path: path.into(), needed, source });
    fs::create_dir_all(&cache.dir).map_err(|e| failed(&cache.dir, e))?;
    cache.make_room(needed).map_err(Failure::Cache)?;
    let partial = Partial::new(cache, key);
    let path = &partial.0;
    let mut file =
        File::options().read(true).write(true).create_new(true).open(path).map_err(|e| failed(path, e))?;
    file.write_all(header).map_err(|e| failed(path, e))?;
    let sink = Sink::File { path, offset: header.len() as u64 };
    quantize::stream(matrices, sink, threads, progress).map_err(|error| match error {
        Error::Write { .. } => Failure::Cache(error),
        _ => Failure::Model(error),
    })?;
    // Only what is on the disk gets the name: after a crash, length and header alone would not tell.
    file.sync_data().map_err(|e| failed(path, e))?;
    fs::rename(path, cache.path(key)).map_err(|e| failed(path, e))?;
    map(&file).map_err(|e| failed(path, e))
}

/// The path of a file without its final name, removed on drop; after the rename there is none.
struct Partial(PathBuf);

impl Partial {
    fn new(cache: &Cache, key: u128) -> Partial {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Partial(cache.dir.join(format!(".{key:032x}.{}.{count}{PARTIAL}", process::id())))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
