//! The header of one GGUF file: its keys and their values, and which tensor lies where.
//!
//! In: the file's bytes, of version 2 or 3, little-endian. Out: a [`Header`]. Invariants of what is accepted: keys and
//! names of tensors are distinct; tensors follow each other in the header's order, each at the next multiple of the
//! alignment, and lie within the file; each has exactly the bytes of its shape and form, whose rows are whole blocks.
//! Nothing is allocated by a count that the file merely claims: lists stay where they lie, and what is kept of a key or
//! a tensor is a few times its own bytes. Nothing is read twice: time is that of walking the header once.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use lapidary_runtime::file::cause;

use super::types::{self, TensorType};
use super::value::{Kind, List, Value};
use crate::error::{Error, Result, quote};

/// The first bytes of every file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Versions that are read.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Keys of a file: a thousand times what published ones have.
const MAX_KEYS: u64 = 1 << 16;
/// Tensors of a file: over a hundred times the deepest published.
const MAX_TENSORS: u64 = 1 << 17;
/// Bytes of a key, the format's own limit.
const MAX_KEY: u64 = (1 << 16) - 1;
/// Bytes of a tensor's name, llama.cpp's limit.
const MAX_NAME: u64 = 63;
/// Axes of a tensor.
const MAX_AXES: u32 = 4;
/// The key of [`Header::alignment`].
const ALIGNMENT: &str = "general.alignment";
/// Bytes that tensors are aligned to where the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment that is believed.
const MAX_ALIGNMENT: i128 = 1 << 20;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its form.
    pub kind: &'static TensorType,
    /// Elements along each axis, the last one contiguous: the file's own order turned round.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub bytes: Range<usize>,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Values by key.
    pub keys: HashMap<String, Value>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<Tensor>,
}

/// Reads the header of the file whose bytes are `file`; `path` is what errors call it.
///
/// # Errors
/// [`file::Error::File`](lapidary_runtime::file::Error::File) if the file is no GGUF that is read here or is cut short,
/// `Field` for a bad key, `Tensor` for a bad tensor.
pub fn header(path: &Path, file: &[u8]) -> Result<Header> {
    let mut reader = Reader { path, file, at: 0 };
    let version = reader.version()?;
    let tensors = reader.count("tensors", MAX_TENSORS)?;
    let keys = reader.count("keys", MAX_KEYS)?;
    let keys = reader.keys(keys)?;
    let alignment = reader.alignment(&keys)?;
    let tensors = reader.tensors(tensors, alignment)?;
    Ok(Header { version, keys, tensors })
}

/// The file, and how far it is read.
struct Reader<'a> {
    path: &'a Path,
    file: &'a [u8],
    /// At most the file's length.
    at: usize,
}

impl<'a> Reader<'a> {
    /// The place of the next `length` bytes, of which `what` tells.
    fn take(&mut self, length: u64, what: &str) -> Result<Range<usize>> {
        let left = self.file.len() - self.at;
        match usize::try_from(length).ok().filter(|length| *length <= left) {
            Some(length) => {
                self.at += length;
                Ok(self.at - length..self.at)
            }
            None => {
                let expected = format!("{length} bytes of {what} from byte {} on", self.at);
                Err(Error::file(self.path, expected, format!("{left} (the file is cut short)")))
            }
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let range = self.take(N as u64, what)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.file[range]);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn version(&mut self) -> Result<u32> {
        let refuse = |expected: &str, found: String| Err(Error::file(self.path, expected, found));
        if !self.file.starts_with(MAGIC) {
            let start = &self.file[..self.file.len().min(1000)];
            let found = cause::of(start).unwrap_or_else(|| "other first bytes than GGUF".into());
            return refuse("a GGUF file", found);
        }
        self.at = MAGIC.len();
        let version = self.u32("the version")?;
        let refuse = |found: String| Err(Error::file(self.path, "a GGUF file of version 2 or 3", found));
        match version {
            1 => refuse("version 1 (written in 2023; convert the model anew)".into()),
            v if v & 0xffff == 0 => {
                refuse("a file in big-endian order (made for another kind of machine)".into())
            }
            v if VERSIONS.contains(&v) => Ok(v),
            v => refuse(format!("version {v}")),
        }
    }

    /// How many of something there are; never used to allocate.
    fn count(&mut self, what: &str, most: u64) -> Result<u64> {
        let n = self.u64(&format!("the number of {what}"))?;
        if n <= most {
            return Ok(n);
        }
        Err(Error::file(self.path, format!("at most {most} {what}"), format!("{n}")))
    }

    /// A name in UTF-8 of at most `most` bytes.
    fn name(&mut self, what: &str, number: u64, most: u64) -> Result<&'a str> {
        let length = self.u64(what)?;
        let place = |expected: String, found: String| {
            Err(Error::file(self.path, format!("as {what} {number} {expected}"), found))
        };
        if length > most {
            return place(format!("a text of at most {most} bytes"), format!("{length} bytes"));
        }
        let path = self.path;
        let range = self.take(length, what)?;
        match std::str::from_utf8(&self.file[range]) {
            Ok(text) => Ok(text),
            Err(_) => Err(Error::file(path, format!("as {what} {number} UTF-8 text"), "other bytes")),
        }
    }

    fn keys(&mut self, count: u64) -> Result<HashMap<String, Value>> {
        let mut keys = HashMap::new();
        for number in 0..count {
            let key = self.name("key", number, MAX_KEY)?;
            let value = self.value(key)?;
            if keys.insert(key.to_string(), value).is_some() {
                return Err(super::field(self.path, key, "it once", "it a second time".into()));
            }
        }
        Ok(keys)
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        const LIST: u32 = 9;
        let (path, what) = (self.path, format!("key {}", quote(key)));
        let refuse = |expected: &str, found: String| super::field(path, key, expected, found);
        let kind = |id: u32| Kind::of(id).ok_or_else(|| refuse("a type from 0 to 12", format!("type {id}")));
        let id = self.u32(&what)?;
        if id == LIST {
            return match self.u32(&what)? {
                LIST => Err(refuse("a list of plain values", "a list of lists".into())),
                id => Ok(Value::List(self.list(kind(id)?, &what)?)),
            };
        }
        let kind = kind(id)?;
        let Some(bytes) = kind.bytes() else {
            let length = self.u64(&what)?;
            return Ok(Value::Text(self.take(length, &what)?));
        };
        let range = self.take(bytes as u64, &what)?;
        let scalar = Value::scalar(kind, &self.file[range.clone()]);
        scalar.ok_or_else(|| refuse("0 or 1 as a truth", format!("{}", self.file[range.start])))
    }

    /// A list, walked over where it lies.
    fn list(&mut self, kind: Kind, what: &str) -> Result<List> {
        let count = self.u64(what)?;
        let start = self.at;
        match kind.bytes() {
            Some(bytes) => {
                // A product that is no u64 is longer than any file.
                let length = count.saturating_mul(bytes as u64);
                self.take(length, what)?;
            }
            None => {
                for _ in 0..count {
                    let length = self.u64(what)?;
                    self.take(length, what)?;
                }
            }
        }
        // It fits a usize: each element takes a byte of the file, or the file would have ended.
        Ok(List { kind, count: count as usize, bytes: start..self.at })
    }

    fn alignment(&self, keys: &HashMap<String, Value>) -> Result<u64> {
        match keys.get(ALIGNMENT) {
            None => Ok(DEFAULT_ALIGNMENT),
            Some(Value::Integer(n)) if (1..=MAX_ALIGNMENT).contains(n) && n.count_ones() == 1 => {
                Ok(*n as u64)
            }
            Some(other) => {
                let expected = format!("a power of two up to {MAX_ALIGNMENT}");
                Err(super::field(self.path, ALIGNMENT, &expected, other.describe()))
            }
        }
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Vec<Tensor>> {
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut names: HashSet<&'a str> = HashSet::new();
        // Bytes from the data's start to where the next tensor must lie; each term is held to the file's length.
        let mut next = 0u64;
        for number in 0..count {
            let name = self.name("tensor", number, MAX_NAME)?;
            if !names.insert(name) {
                return Err(Error::tensor(self.path, name, "one entry", "a second of the same name"));
            }
            let (kind, shape, bytes) = self.shape(name)?;
            let offset = self.u64(&format!("tensor {}", quote(name)))?;
            if offset != next {
                let found = format!("offset {offset}");
                return Err(Error::tensor(self.path, name, format!("offset {next}"), found));
            }
            let end = next + bytes;
            next = end.next_multiple_of(alignment);
            if next > self.file.len() as u64 + alignment {
                return Err(self.outside(name, end));
            }
            // From the data's start until that is known.
            tensors.push(Tensor { name: name.into(), kind, shape, bytes: offset as usize..end as usize });
        }
        let start = self.at.next_multiple_of(alignment as usize);
        for t in &mut tensors {
            t.bytes = start + t.bytes.start..start + t.bytes.end;
            if t.bytes.end > self.file.len() {
                return Err(self.outside(&t.name, t.bytes.end as u64));
            }
        }
        Ok(tensors)
    }

    fn outside(&self, name: &str, end: u64) -> Error {
        let found = format!("{} (the file is cut short)", self.file.len());
        Error::tensor(self.path, name, format!("a file of at least {end} bytes"), found)
    }

    /// A tensor's form, its shape, and its bytes, which are no more than the file's.
    fn shape(&mut self, name: &str) -> Result<(&'static TensorType, Vec<usize>, u64)> {
        let path = self.path;
        let what = format!("tensor {}", quote(name));
        let refuse = |expected: String, found: String| Err(Error::tensor(path, name, expected, found));
        let axes = self.u32(&what)?;
        if axes > MAX_AXES {
            return refuse(format!("at most {MAX_AXES} axes"), axes.to_string());
        }
        let mut sizes = (0..axes).map(|_| self.u64(&what)).collect::<Result<Vec<u64>>>()?;
        let id = self.u32(&what)?;
        let Some(kind) = types::of(id) else {
            return refuse("a type of llama.cpp's".into(), format!("type {id}"));
        };
        let row = sizes.first().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block) {
            let expected = format!("rows of a multiple of {} elements, as {} has", kind.block, kind.name);
            return refuse(expected, format!("{row} elements"));
        }
        let elements = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
        let bytes = elements.and_then(|n| (n / kind.block).checked_mul(kind.bytes));
        // Of an empty axis beside a large one the product says nothing.
        let plausible = sizes.iter().all(|&size| size <= i64::MAX as u64);
        let Some(bytes) = bytes.filter(|&bytes| plausible && bytes <= self.file.len() as u64) else {
            return refuse(
                format!("at most the file's {} bytes", self.file.len()),
                format!("shape {sizes:?}"),
            );
        };
        sizes.reverse();
        Ok((kind, sizes.into_iter().map(|n| n as usize).collect(), bytes))
    }
}
