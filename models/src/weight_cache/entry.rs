//! One file of the cache: found, checked and mapped, or made.
//!
//! It is a safetensors file of the converted matrices alone; its metadata name the formats, the checkpoint it was made
//! of ([`Files`]) and a hash of its body. Invariants: its header is exactly the one that this model's would have; its
//! body's hash is checked each time before it is used, which costs what reading the weights once costs, one token's
//! worth; it belongs to this user.

use std::fs::{File, FileTimes};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lapidary_runtime::file::safetensors::LENGTH_BYTES;
use lapidary_runtime::file::whole::Output;
use lapidary_runtime::file::{self, Map};
use serde_json::{Value, json};

use super::directory::check_owner;
use super::source::{Files, digest_of};
use super::{Cache, Quantization, VERSION, end};
use crate::dtype::TensorFormat;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::quantize::{self, Matrix, Sink};

/// The data of a cache file starts at a multiple of this.
const ALIGN: usize = 64;

/// What a file says of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marks {
    /// Its name: the outline and the content of what it was made of.
    key: u128,
    /// The stamp of the checkpoint's files when their content was taken.
    stamp: u128,
    /// The hash of its body.
    body: u128,
}

/// What a cache file of this model would be.
pub(super) struct Wanted<'a> {
    pub(super) model: &'a Model,
    pub(super) files: &'a Files<'a>,
    pub(super) matrices: &'a [Matrix<'a>],
    pub(super) options: &'a Quantization,
}

/// Why nothing was written.
pub(super) enum Failure {
    /// The cache's fault: memory will do.
    Cache(Error),
    /// The checkpoint's fault.
    Model(Error),
}

/// A mapped cache file.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) map: Map,
    /// Whether it had to be made.
    pub(super) made: bool,
}

impl Wanted<'_> {
    /// Bytes before the body.
    pub(super) fn header_bytes(&self) -> usize {
        self.header(Marks { key: 0, stamp: 0, body: 0 }).len()
    }

    /// Finds the file, or makes it.
    pub(super) fn get(
        &self,
        cache: &Cache,
        progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
    ) -> Result<Entry, Failure> {
        cache.make(end(self.matrices, self.header_bytes()) as u64).map_err(Failure::Cache)?;
        let outline = self.files.outline(self.model, self.options).map_err(Failure::Model)?;
        let (outline, stamp) = (u128::from(outline) << 64, self.files.stamp());
        // Files that were not touched since: what they hold is known.
        for path in cache.like(outline) {
            if let Some(map) = self.find(&path, stamp) {
                return Ok(Entry { path, map, made: false });
            }
        }
        let content = self.files.content(self.model, self.options.threads).map_err(Failure::Model)?;
        let key = outline | u128::from(content);
        let path = cache.path(key);
        if let Some(map) = self.find_moved(&path, key, stamp) {
            return Ok(Entry { path, map, made: false });
        }
        let map = self.make(cache, key, stamp, progress)?;
        Ok(Entry { path, map, made: true })
    }

    /// The head of the file: length field, JSON, blanks up to [`ALIGN`]. Its length does not depend on the marks.
    fn header(&self, marks: Marks) -> Vec<u8> {
        let name = |format: Option<TensorFormat>| format.map_or("none", TensorFormat::name);
        let Quantization { body, head, .. } = self.options;
        let mut map = serde_json::Map::new();
        let metadata = json!({
            "format": format!("lapidary-{}", name(*body)),
            "head": name(*head),
            "version": VERSION.to_string(),
            "source": format!("{:032x}", marks.key),
            "stamp": format!("{:032x}", marks.stamp),
            "body": format!("{:032x}", marks.body),
        });
        map.insert("__metadata__".into(), metadata);
        let mut start = 0;
        for m in self.matrices {
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

    /// Maps a file if it is what it should be and was made of files with this stamp, and marks it as used. Whatever
    /// else is found is as good as nothing: it will be made anew.
    fn find(&self, path: &Path, stamp: u128) -> Option<Map> {
        let (file, marks) = self.open(path)?;
        if marks.stamp != stamp {
            return None;
        }
        self.map(path, &file, marks)
    }

    /// The same of a file whose checkpoint was touched since, or moved, and has the same content.
    fn find_moved(&self, path: &Path, key: u128, stamp: u128) -> Option<Map> {
        let (file, marks) = self.open(path)?;
        if marks.key != key {
            return None;
        }
        let map = self.map(path, &file, marks)?;
        // Best effort: without it the next start reads the checkpoint again. What is mapped is the body.
        if let Ok(file) = File::options().write(true).open(path) {
            let _ = file.write_all_at(&self.header(Marks { stamp, ..marks }), 0);
        }
        Some(map)
    }

    /// Opens a file of this user whose length and header are right.
    fn open(&self, path: &Path) -> Option<(File, Marks)> {
        let (file, found) = file::open_unnoted(path).ok()?;
        check_owner(path, &found).ok()?;
        let length = self.header_bytes();
        if found.len() != end(self.matrices, length) as u64 {
            return None;
        }
        let mut header = vec![0; length];
        file.read_exact_at(&mut header, 0).ok()?;
        let json: Value = serde_json::from_slice(&header[LENGTH_BYTES..]).ok()?;
        let mark = |name: &str| u128::from_str_radix(json["__metadata__"][name].as_str()?, 16).ok();
        let marks = Marks { key: mark("source")?, stamp: mark("stamp")?, body: mark("body")? };
        (self.header(marks) == header).then_some((file, marks))
    }

    fn map(&self, path: &Path, file: &File, marks: Marks) -> Option<Map> {
        let map = Map::new(path, file).ok()?;
        map.advise_huge();
        if digest_of(&map[self.header_bytes()..], self.options.threads) != marks.body {
            return None;
        }
        // Many systems note an access once a day, or never. A file that cannot be marked is still a file.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        Some(map)
    }

    /// Makes the file and maps it.
    fn make(
        &self,
        cache: &Cache,
        key: u128,
        stamp: u128,
        progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
    ) -> Result<Map, Failure> {
        let start = self.header_bytes();
        let needed = end(self.matrices, start) as u64;
        let path = cache.path(key);
        let failed = |source| Failure::Cache(Error::Write { path: path.clone(), needed, source });
        let output = Output::create(&path).map_err(failed)?;
        // It counts from now on with all its bytes, for others that make room.
        output.file().set_len(needed).map_err(failed)?;
        cache.make_room(output.temporary(), needed).map_err(Failure::Cache)?;
        let sink = Sink::File { path: &path, file: output.file(), offset: start as u64 };
        let of = |error| {
            if matches!(error, Error::Write { .. }) { Failure::Cache(error) } else { Failure::Model(error) }
        };
        quantize::stream(self.matrices, sink, self.options.threads, progress).map_err(of)?;
        let map = Map::new(&path, output.file()).map_err(failed)?;
        map.advise_huge();
        let body = digest_of(&map[start..], self.options.threads);
        let header = self.header(Marks { key, stamp, body });
        let written = output.file().write_all_at(&header, 0).and_then(|()| output.file().sync_data());
        written.and_then(|()| output.finish()).map_err(failed)?;
        Ok(map)
    }
}
