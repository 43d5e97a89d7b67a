//! Matrices converted on all threads, piece by piece, into memory or a file.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use lapidary_runtime::threads;

use super::{convert_rows, values_of};
use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{Error, Result};
use crate::lora::LowRank;

/// Source bytes read at a time, if a row is no longer than that.
const SOURCE: usize = 1 << 20;
/// Output bytes written at a time: a huge page. Linux keeps what is written in one call, to a multiple of it, in one
/// huge page of its cache (where the file system can), so that even a file just written is mapped in huge pages.
const PIECE: usize = 2 << 20;

/// A matrix to convert, of quants or of floats; a vector is one row.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Its name in the checkpoint.
    pub(crate) name: &'a str,
    /// Where it is, (n, k).
    pub(crate) source: Source<'a>,
    /// How it is stored there.
    pub(crate) from: TensorFormat,
    /// Rows.
    pub(crate) n: usize,
    /// Elements of a row.
    pub(crate) k: usize,
    /// What it becomes.
    pub(crate) to: TensorFormat,
    /// What is added to its values first.
    pub(crate) adapters: &'a [&'a LowRank],
}

/// Fills in a tensor's bytes from an element on: the tensor's number, the element, the bytes.
pub(crate) type Draw<'a> = dyn Fn(usize, u64, &mut [u8]) + Sync + 'a;

/// Where a matrix's elements are.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// In a file, from a byte on. Read, and not mapped: what has been read does not stay resident.
    File { path: &'a Path, file: &'a File, offset: u64 },
    /// In memory; errors call it by `path`.
    Bytes { path: &'a Path, bytes: &'a [u8] },
    /// Nowhere: made when asked for. Elements, not quants.
    Drawn { draw: &'a Draw<'a>, tensor: usize },
}

/// Where the quantised matrices go, one after another.
pub(crate) enum Sink<'a> {
    /// Into memory of exactly their length.
    Memory(&'a mut [u8]),
    /// Into a file, which errors call `path`, from a byte on.
    File { path: &'a Path, file: &'a File, offset: u64 },
}

/// Part of the output, made and written at once.
struct Piece<'s> {
    /// Its bytes within the output.
    range: Range<usize>,
    target: Target<'s>,
}

/// Where a piece goes.
enum Target<'s> {
    Memory(&'s mut [u8]),
    File { path: &'s Path, file: &'s File, offset: u64 },
}

/// A thread's own memory.
#[derive(Default)]
struct Buffers {
    /// Elements of some rows.
    source: Vec<u8>,
    /// The same rows, quantised.
    rows: Vec<u8>,
    /// A piece on its way to a file.
    piece: Vec<u8>,
}

/// Converts all matrices on `threads` threads, fewer where the system refuses them; `progress` is told, on the calling
/// thread, the source bytes done and in all, and ends it by breaking.
///
/// A thread holds about 4 MiB, or a piece, one row and its quants if that is more.
///
/// # Errors
/// [`Error::File`], [`Error::Write`] for a sink that is a file, [`Error::File`] for a weight that is not finite,
/// [`Error::Stopped`] if `progress` broke off.
pub(crate) fn stream(
    matrices: &[Matrix<'_>],
    sink: Sink<'_>,
    threads: usize,
    progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let total = matrices.iter().map(|m| (m.n * m.from.row_bytes(m.k)) as u64).sum();
    let needed = matrices.iter().map(Matrix::bytes).sum();
    let pieces = pieces(needed, sink);
    let threads = threads.clamp(1, pieces.len().max(1));
    let queue = Mutex::new(pieces.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let make = |buffers: &mut Buffers| Some(next()?.make(matrices, buffers, needed as u64));
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let start = |_| {
            let (sender, make) = (sender.clone(), &make);
            let work = move || {
                let mut buffers = Buffers::default();
                while let Some(made) = make(&mut buffers) {
                    // A receiver that is gone met an error: stop.
                    if sender.send(made).is_err() {
                        return;
                    }
                }
            };
            // Where one is refused, so would the next be.
            threads::spawn(scope, work).ok()
        };
        let others = (0..threads).map_while(start).count();
        drop(sender);
        let mut done = 0;
        let mut count = |made: Result<u64>| {
            done += made?;
            if progress(done, total).is_break() { Err(Error::Stopped) } else { Ok(()) }
        };
        if others == 0 {
            // The system gives no thread beside this one.
            let mut buffers = Buffers::default();
            return std::iter::from_fn(|| make(&mut buffers)).try_for_each(count);
        }
        receiver.into_iter().try_for_each(&mut count)
    })
}

/// Cuts an output of `length` bytes at multiples of [`PIECE`], of the file where it is one.
fn pieces(length: usize, mut sink: Sink<'_>) -> Vec<Piece<'_>> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    while start < length {
        let target;
        let end;
        (target, sink, end) = match sink {
            Sink::Memory(memory) => {
                let (first, rest) = memory.split_at_mut(PIECE.min(length - start));
                let end = start + first.len();
                (Target::Memory(first), Sink::Memory(rest), end)
            }
            Sink::File { path, file, offset } => {
                let most = PIECE - (offset % PIECE as u64) as usize;
                let bytes = most.min(length - start);
                let rest = Sink::File { path, file, offset: offset + bytes as u64 };
                (Target::File { path, file, offset }, rest, start + bytes)
            }
        };
        pieces.push(Piece { range: start..end, target });
        start = end;
    }
    pieces
}

impl Piece<'_> {
    /// Reads, quantises, writes; returns the source bytes of the rows that begin in it. `needed` is the whole output's
    /// length.
    fn make(self, matrices: &[Matrix<'_>], buffers: &mut Buffers, needed: u64) -> Result<u64> {
        let Buffers { source, rows, piece } = buffers;
        match self.target {
            Target::Memory(memory) => fill(matrices, self.range, memory, source, rows),
            Target::File { path, file, offset } => {
                piece.resize(self.range.len(), 0);
                let done = fill(matrices, self.range, piece, source, rows)?;
                match file.write_all_at(piece, offset) {
                    Ok(()) => Ok(done),
                    Err(source) => Err(Error::Write { path: path.into(), needed, source }),
                }
            }
        }
    }
}

/// Makes the bytes of `range` within the matrices laid one after another. A row that it cuts is quantised for either
/// side.
fn fill(
    matrices: &[Matrix<'_>],
    range: Range<usize>,
    out: &mut [u8],
    source: &mut Vec<u8>,
    quantized: &mut Vec<u8>,
) -> Result<u64> {
    let (mut start, mut done) = (0, 0);
    for matrix in matrices {
        let (row_bytes, source_bytes) = (matrix.to.row_bytes(matrix.k), matrix.from.row_bytes(matrix.k));
        let end = start + matrix.bytes();
        let (first, last) = (range.start.clamp(start, end), range.end.clamp(start, end));
        let rows = (first - start) / row_bytes..(last - start).div_ceil(row_bytes);
        if first < last {
            let most = (SOURCE / source_bytes).max(1);
            for row in rows.clone().step_by(most) {
                let count = most.min(rows.end - row);
                quantized.resize(count * row_bytes, 0);
                matrix.convert(row, count, source, quantized)?;
                // What of these rows is wanted.
                let at = start + row * row_bytes;
                let wanted = at.max(first)..(at + quantized.len()).min(last);
                out[wanted.start - range.start..wanted.end - range.start]
                    .copy_from_slice(&quantized[wanted.start - at..wanted.end - at]);
            }
            let begin = (first - start).div_ceil(row_bytes)..rows.end;
            done += (begin.len() * source_bytes) as u64;
        }
        start = end;
    }
    Ok(done)
}

impl Matrix<'_> {
    /// Bytes of all its rows, converted.
    pub(crate) fn bytes(&self) -> usize {
        self.n * self.to.row_bytes(self.k)
    }

    /// Converts `rows` rows, of which the first is `row`; `buffer` is for what has to be read.
    fn convert(&self, row: usize, rows: usize, buffer: &mut Vec<u8>, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.from.row_bytes(self.k);
        let (first, length) = (row * row_bytes, rows * row_bytes);
        let (path, source) = match self.source {
            Source::Bytes { path, bytes } => (path, &bytes[first..][..length]),
            Source::Drawn { draw, tensor } => {
                buffer.resize(length, 0);
                draw(tensor, (row * self.k) as u64, buffer);
                (Path::new(DRAWN), &buffer[..])
            }
            Source::File { path, file, offset } => {
                buffer.resize(length, 0);
                let read = file.read_exact_at(buffer, offset + first as u64);
                read.map_err(|source| Error::read(path, source))?;
                (path, &buffer[..])
            }
        };
        let merged: Vec<u8>;
        let (from, source) = match self.adapters {
            [] => (self.from, source),
            adapters => {
                let mut values = values_of(self.from, source, rows, self.k);
                adapters.iter().for_each(|adapter| adapter.add_to(row, &mut values));
                merged = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                (WeightDType::F32.into(), &merged[..])
            }
        };
        convert_rows(from, self.to, source, rows, self.k, out).map_err(|bad| {
            let found = format!("{} at row {}, column {}", bad.value, row + bad.row, bad.column);
            let expected = match bad.value.is_finite() {
                true => format!("values that {} holds", self.to),
                false => "finite values".into(),
            };
            Error::tensor(path, self.name, expected, found)
        })
    }
}

/// What errors call the place of random weights.
const DRAWN: &str = "<random>";
