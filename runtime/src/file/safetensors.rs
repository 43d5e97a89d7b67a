//! The header of one safetensors file: which tensor lies where.
//!
//! In: the file's bytes (8 bytes of header length, a JSON header, the tensors). Out: an [`Entry`] a tensor, in the
//! order of their bytes. It is read here, and not by the `safetensors` crate, because that crate keeps the last of two
//! equal names and cannot say which tensor is at fault. Invariants of what is accepted: names are distinct; tensors
//! follow each other without overlap or hole and end where the file ends; each has exactly the bytes of its shape and
//! dtype, and lies at a multiple of its element size.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::file::cause;
use crate::file::error::{self, Error, Result, quote};

/// Bytes of the field that holds the header's length.
pub const LENGTH_BYTES: usize = 8;
/// Bytes a header may have; the format's own limit.
pub const MAX_HEADER: u64 = 100_000_000;
/// The header's key that is no tensor.
const METADATA: &str = "__metadata__";

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its dtype as the file names it.
    pub dtype: String,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// Its bytes within the file.
    pub bytes: Range<usize>,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their bytes.
    pub entries: Vec<Entry>,
    /// `__metadata__`: names and texts, in the header's order.
    pub metadata: Vec<(String, String)>,
}

/// Reads the tensors of the file whose bytes are `file`; `path` is what errors call it.
///
/// # Errors
/// [`Error::File`] if the file is no safetensors file or its length is wrong, [`Error::Tensor`] for a bad entry.
pub fn read(path: &Path, file: &[u8]) -> Result<Vec<Entry>> {
    Ok(header(path, file)?.entries)
}

/// Reads the header of the file whose bytes are `file`; `path` is what errors call it.
///
/// # Errors
/// As [`read`]; [`Error::Field`] for metadata that is not text.
pub fn header(path: &Path, file: &[u8]) -> Result<Header> {
    let (header, data) = split(path, file)?;
    let mut raw = RawHeader::default();
    raw.read(header).map_err(|e| match raw.at.take() {
        Some(name) if e.is_data() && name == METADATA => Error::Field {
            path: path.into(),
            field: METADATA.into(),
            expected: "an object of texts".into(),
            found: error::line(e),
        },
        Some(name) if e.is_data() => {
            Error::tensor(path, &name, "dtype, shape and data_offsets", error::line(e))
        }
        _ => Error::file(path, "a JSON object as header", error::line(e)),
    })?;
    let RawHeader { tensors, metadata, second, .. } = raw;
    let mut names: HashSet<&str> = HashSet::new();
    let twice = tensors.iter().map(|(name, _)| name.as_str()).find(|name| !names.insert(name));
    if let Some(name) = twice.or(second.then_some(METADATA)) {
        return Err(Error::tensor(path, name, "one entry", "a second of the same name"));
    }
    drop(names);
    let entry = |(name, raw)| entry(path, name, raw, data.start);
    let mut entries = tensors.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
    entries.sort_by_key(|e| (e.bytes.start, e.bytes.end));
    let mut end = data.start;
    for e in &entries {
        if e.bytes.start != end {
            let kind = if e.bytes.start < end { "an overlap" } else { "a hole" };
            let found = format!("{kind}: offset {}", e.bytes.start - data.start);
            return Err(Error::tensor(path, &e.name, format!("offset {}", end - data.start), found));
        }
        end = e.bytes.end;
        if end > data.end {
            let found = format!("{} (the file is cut short)", data.end);
            return Err(Error::tensor(path, &e.name, format!("a file of at least {end} bytes"), found));
        }
    }
    if end != data.end {
        return Err(Error::file(path, format!("{end} bytes"), format!("{} bytes", data.end)));
    }
    Ok(Header { entries, metadata })
}

/// The header's bytes, and where the data lies.
fn split<'a>(path: &Path, file: &'a [u8]) -> Result<(&'a [u8], Range<usize>)> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        let found = match file {
            [] => "0 bytes (an empty file)".into(),
            some => format!("{} bytes", some.len()),
        };
        return Err(Error::file(path, "a safetensors file: at least 8 bytes", found));
    };
    let length = u64::from_le_bytes(*length);
    let most = MAX_HEADER.min(rest.len() as u64);
    if length > most || length == 0 {
        if let Some(found) = cause::of(&file[..file.len().min(1000)]) {
            return Err(Error::file(path, "a safetensors file", found));
        }
        let cut = if length <= MAX_HEADER { " (the file is cut short)" } else { "" };
        let found = format!("a length of {length}{cut}");
        return Err(Error::file(path, format!("a header of at most {most} bytes"), found));
    }
    let length = length as usize;
    Ok((&rest[..length], LENGTH_BYTES + length..file.len()))
}

/// A header's value for one tensor.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn entry(path: &Path, name: String, raw: RawEntry, data: usize) -> Result<Entry> {
    let wrong = |expected: String, found: String| Error::tensor(path, &name, expected, found);
    let elements = raw.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let size = element_bytes(&raw.dtype);
    let bytes = elements.zip(size).and_then(|(n, s)| n.checked_mul(s));
    let [start, end] = raw.data_offsets;
    let range = end.checked_sub(start);
    let Some(length) = range else {
        return Err(wrong("data_offsets that ascend".into(), format!("{start}, {end}")));
    };
    match bytes {
        Some(bytes) if bytes == length => {}
        Some(bytes) => return Err(wrong(format!("{bytes} bytes for its shape"), format!("{length} bytes"))),
        None if size.is_none() => {
            return Err(wrong("dtype F32, F16 or BF16".into(), format!("dtype {}", quote(&raw.dtype))));
        }
        None => return Err(wrong("a shape of less than 2^64 bytes".into(), "a larger one".into())),
    }
    let place = |offset: u64| usize::try_from(offset).ok().and_then(|o| o.checked_add(data));
    let (Some(start), Some(end)) = (place(start), place(end)) else {
        return Err(wrong("data_offsets within the file".into(), format!("{start}, {end}")));
    };
    if let Some(size) = size.filter(|s| !(start as u64).is_multiple_of(*s)) {
        return Err(wrong(format!("a place in the file that {size} divides"), format!("byte {start}")));
    }
    // No overflow: the product of the axes fits, unless one is zero.
    let shape = raw.shape.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    Ok(Entry { name, dtype: raw.dtype, shape, bytes: start..end })
}

/// Bytes of an element of a safetensors dtype that fills whole bytes.
fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Some(1),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "F32" | "I32" | "U32" => Some(4),
        "F64" | "I64" | "U64" | "C64" => Some(8),
        _ => None,
    }
}

/// A header in its own order, equal names kept apart. Nothing is kept that is not asked for, so that it takes no more
/// than a few times the text's memory.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: Vec<(String, String)>,
    /// Whether there were metadata twice.
    second: bool,
    /// The name whose value is being read.
    at: Option<String>,
}

impl RawHeader {
    fn read(&mut self, text: &[u8]) -> serde_json::Result<()> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        deserializer.deserialize_map(&mut *self)?;
        deserializer.end()
    }
}

impl<'de> Visitor<'de> for &mut RawHeader {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = false;
        while let Some(name) = map.next_key::<String>()? {
            let name = self.at.insert(name);
            if name == METADATA {
                self.second |= std::mem::replace(&mut seen, true);
                self.metadata = map.next_value::<Texts>()?.0;
            } else {
                let entry = map.next_value()?;
                self.tensors.push((std::mem::take(name), entry));
            }
        }
        self.at = None;
        Ok(())
    }
}

/// An object of texts, in its own order.
struct Texts(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Texts, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Texts(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
