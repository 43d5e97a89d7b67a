//! The files of a checkpoint again, to read piece by piece, and what tells them from others.
//!
//! Converted bytes depend on every byte of the checkpoint, so the key must. Reading a whole checkpoint at each start is
//! what the cache is to avoid. Hence three hashes:
//!
//! - the *outline*, of formats, headers, lengths, times of the last change and both ends of each tensor: cheap, the
//!   same wherever the files are moved to. It finds candidates.
//! - the *content*, of every byte: taken when a cache file is made, and whenever the stamp differs.
//! - the *stamp*, of each file's inode and time of the last change of its inode (ctime), which the system sets and no
//!   program can set back. While it is that of a time when the content was taken, the content is the same. (What writes
//!   past the file system is not seen.)
//!
//! Hashes are XXH3 of 128 bits: they tell files apart by accident, not against an adversary, who has no business in the
//! cache.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

use lapidary_runtime::{file, threads};
use xxhash_rust::xxh3::Xxh3;

use super::{Quantization, VERSION};
use crate::checkpoint::TensorView;
use crate::dtype::TensorFormat;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::quantize::Source;

/// Bytes hashed at each end of a tensor.
const SAMPLE: usize = 64 << 10;
/// Bytes hashed at a time by a thread.
const PIECE: usize = 4 << 20;

/// The files of a checkpoint, to read again.
pub(crate) struct Files<'a> {
    /// By the checkpoint's number.
    files: Vec<Option<OnDisk<'a>>>,
}

/// One file of a checkpoint.
struct OnDisk<'a> {
    path: &'a Path,
    file: File,
    found: Metadata,
    /// What comes before the tensors.
    header: &'a [u8],
}

impl<'a> Files<'a> {
    /// Opens them. Nothing is found for the built-in model, whose bytes are in the binary.
    pub(crate) fn read(model: &'a Model) -> Result<Files<'a>> {
        let mut all = Files { files: Vec::new() };
        for (number, path) in model.checkpoint.paths().enumerate() {
            let failed = |source| Error::read(path, source);
            if !path.try_exists().map_err(failed)? {
                all.files.push(None);
                continue;
            }
            let (file, found) = file::open(path)?;
            let header = model.checkpoint.header(number);
            let mut again = Vec::with_capacity(header.len());
            (&file).take(header.len() as u64).read_to_end(&mut again).map_err(failed)?;
            if again != header {
                return Err(Error::file(path, "the header it was opened with", "another"));
            }
            all.files.push(Some(OnDisk { path, file, found, header }));
        }
        Ok(all)
    }

    /// A tensor as the checkpoint has it, and where it is read again.
    pub(crate) fn tensor<'m>(&'m self, model: &'m Model, name: &str) -> Result<(TensorView<'m>, Source<'m>)> {
        let place = model.checkpoint.place(name);
        let (Some(view), Some((file, offset))) = (model.checkpoint.tensor(name), place) else {
            return Err(Error::tensor(&model.path, name, "it", "no such tensor"));
        };
        match &self.files[file] {
            None => Ok((view, Source::Bytes { path: &model.path, bytes: view.bytes })),
            Some(OnDisk { path, file, .. }) => Ok((view, Source::File { path, file, offset })),
        }
    }

    /// What the options make of such a checkpoint, but for what is between the ends of its tensors.
    pub(super) fn outline(&self, model: &Model, options: &Quantization) -> Result<u64> {
        let mut hash = Fields::new();
        hash.field(&VERSION.to_le_bytes());
        for format in [options.body, options.head] {
            hash.field(format.map_or("", TensorFormat::name).as_bytes());
        }
        for adapter in &options.adapters {
            hash.field(&adapter.identity().to_le_bytes());
        }
        for file in self.files.iter().flatten() {
            let modified = file.found.modified().map_err(|e| Error::read(file.path, e))?;
            let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
            hash.field(&file.found.len().to_le_bytes());
            hash.field(&modified.to_le_bytes());
            hash.field(file.header);
        }
        let mut buffer = Vec::new();
        for name in model.checkpoint.names() {
            let (view, source) = self.tensor(model, name)?;
            hash.field(format!("{name} {} {:?}", view.format, view.shape).as_bytes());
            let length = view.bytes.len();
            let sample = length.min(SAMPLE);
            for start in [0, length - sample] {
                match source {
                    Source::Bytes { bytes, .. } => hash.field(&bytes[start..][..sample]),
                    Source::File { path, file, offset } => {
                        buffer.resize(sample, 0);
                        let read = file.read_exact_at(&mut buffer, offset + start as u64);
                        read.map_err(|source| Error::read(path, source))?;
                        hash.field(&buffer);
                    }
                    Source::Drawn { .. } => unreachable!("a checkpoint's tensors are stored"),
                }
            }
        }
        Ok(hash.0.digest())
    }

    /// What tells that no file was touched since.
    pub(super) fn stamp(&self) -> u128 {
        let mut hash = Fields::new();
        for OnDisk { found, .. } in self.files.iter().flatten() {
            hash.field(&found.ino().to_le_bytes());
            hash.field(&found.ctime().to_le_bytes());
            hash.field(&found.ctime_nsec().to_le_bytes());
        }
        hash.0.digest128()
    }

    /// A hash of every byte of the checkpoint, on `threads` threads.
    pub(super) fn content(&self, model: &Model, threads: usize) -> Result<u64> {
        let mut hash = Fields::new();
        for OnDisk { path, file, found, .. } in self.files.iter().flatten() {
            let bytes = usize::try_from(found.len())
                .map_err(|_| Error::read(*path, io::ErrorKind::FileTooLarge.into()))?;
            let read = |start: usize, piece: &mut [u8]| file.read_exact_at(piece, start as u64);
            let file = digest(bytes, threads, &read).map_err(|e| Error::read(*path, e))?;
            hash.field(&file.to_le_bytes());
        }
        for name in model.checkpoint.names() {
            let (view, source) = self.tensor(model, name)?;
            if matches!(source, Source::Bytes { .. }) {
                hash.field(&digest_of(view.bytes, threads).to_le_bytes());
            }
        }
        Ok(hash.0.digest())
    }
}

/// A hash of fields, so that where one ends matters.
struct Fields(Xxh3);

impl Fields {
    fn new() -> Fields {
        Fields(Xxh3::new())
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
        self.0.update(&(bytes.len() as u64).to_le_bytes());
    }
}

/// A hash of bytes in memory (or mapped), at the speed of memory, on `threads` threads: the hash of the hashes of its
/// pieces.
pub(super) fn digest_of(bytes: &[u8], threads: usize) -> u128 {
    pieces(bytes.len(), threads, || {
        |piece: std::ops::Range<usize>| Ok(xxhash_rust::xxh3::xxh3_128(&bytes[piece]))
    })
    .unwrap_or_else(|_| unreachable!("memory is read without fail"))
}

/// The same of bytes that `read` fills in, from a place on.
fn digest(
    bytes: usize,
    threads: usize,
    read: &(dyn Fn(usize, &mut [u8]) -> io::Result<()> + Sync),
) -> io::Result<u128> {
    pieces(bytes, threads, || {
        let mut buffer = Vec::new();
        move |piece: std::ops::Range<usize>| {
            buffer.resize(piece.len(), 0);
            read(piece.start, &mut buffer)?;
            Ok(xxhash_rust::xxh3::xxh3_128(&buffer))
        }
    })
}

/// The hash of the hashes of pieces, each made by one thread's own function.
fn pieces<F>(bytes: usize, threads: usize, make: impl Fn() -> F + Sync) -> io::Result<u128>
where
    F: FnMut(std::ops::Range<usize>) -> io::Result<u128>,
{
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut hash, mut own) = (make(), Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let start = index * PIECE;
            if start >= bytes {
                return Ok(own);
            }
            own.push((index, hash(start..bytes.min(start + PIECE))?));
        }
    };
    let threads = threads.clamp(1, bytes.div_ceil(PIECE).max(1));
    let mut all = threads::share(threads, work).into_iter().collect::<io::Result<Vec<_>>>()?.concat();
    all.sort_unstable();
    let mut hash = Fields::new();
    all.iter().for_each(|(_, piece)| hash.field(&piece.to_le_bytes()));
    hash.field(&(bytes as u64).to_le_bytes());
    Ok(hash.0.digest128())
}
