//! A model's weights with its matrices quantised, or in floats of another width: made once, kept in the user's cache
//! directory, mapped from then on. "Quantised" stands for either below.
//!
//! In: a [`Model`] and which formats its matrices take. Out: [`QuantizedWeights`], the bytes of every tensor by name:
//! quantised ones from the cache's file (or from memory), all others from the checkpoint's own map.
//!
//! Invariants: a cache file has its name only once it is whole and on the disk; it is used only if it is of this
//! checkpoint (`source`), its body has the hash it was written with (`entry`), and nobody else could write it
//! (`directory`); writers need no lock, for the files they would write are equal, and the last rename wins. While
//! quantising, the checkpoint is read piece by piece and not mapped, and the output is written piece by piece, so
//! resident memory is a few MiB a thread. A cache that cannot be used costs time only: the weights then stay in memory.

mod directory;
mod entry;
mod source;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::{ControlFlow, Deref, Range};
use std::path::PathBuf;
use std::sync::Arc;

use lapidary_runtime::file::Map;
use lapidary_runtime::program::WeightSource;
use memmap2::{Mmap, MmapMut};

use crate::dtype::TensorFormat;
use crate::error::{Error, Result};
use crate::layout::EMBEDDING;
use crate::lora::{Adapter, LowRank};
use crate::model::Model;
use crate::quantize::{self, Matrix, QuantFormat, Sink};

pub use directory::Cache;
use entry::{Entry, Failure, Wanted};
pub(crate) use source::Files;

/// What errors call memory.
pub const MEMORY: &str = "<memory>";
/// Changes whenever the bytes made from the same weights do; part of the hash.
const VERSION: u32 = 2;
/// Which matrices are quantised to what, on how many threads, and where that is kept.
#[derive(Clone, Debug)]
pub struct Quantization {
    /// Every matrix but the embedding table; none leaves them as the checkpoint has them.
    pub body: Option<TensorFormat>,
    /// The embedding table, which is the head's matrix too; none leaves it as the checkpoint has it.
    pub head: Option<TensorFormat>,
    /// What is merged into matrices first, in this order.
    pub adapters: Vec<Arc<Adapter>>,
    /// Threads that quantise; at least one is used.
    pub threads: usize,
    /// Where the result is kept; none keeps it in memory, for this process alone.
    pub cache: Option<Cache>,
}

impl Quantization {
    /// What the tensor of this name and shape is to be; none if it stays as it is: norms, and rows that do not divide
    /// into blocks.
    pub fn format_of(&self, name: &str, shape: &[usize]) -> Option<TensorFormat> {
        let format = if name == EMBEDDING { self.head } else { self.body };
        match shape {
            [_, k] => format.filter(|f| f.fits(*k)),
            _ => None,
        }
    }

    /// The same of a tensor that is stored so, which adapters may change: quants of others are then not made again
    /// ([`lora`](crate::lora)).
    fn merged_format(&self, name: &str, shape: &[usize], stored: TensorFormat) -> Option<TensorFormat> {
        let kept = match stored {
            TensorFormat::Quant(_) => QuantFormat::Q8.into(),
            float => float,
        };
        let changes = self.adapters.iter().any(|adapter| adapter.of(name).is_some());
        self.format_of(name, shape).or(changes.then_some(kept))
    }
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
    bytes: Option<Bytes>,
    origin: Origin,
}

impl QuantizedWeights {
    /// Maps the quantised matrices of a model, and makes them first if they are not in the cache. Meanwhile `progress`
    /// is told, on this thread, the bytes of the checkpoint done and in all, and ends it by breaking. The model's files
    /// must not change, nor may the cache's be written to, while this lives.
    ///
    /// # Errors
    /// [`Error::File`] for a checkpoint that cannot be read again or for a weight that is
    /// not finite, [`Error::Stopped`] if `progress` broke off, [`Error::Write`] of [`MEMORY`] where there is no cache
    /// and too little address space.
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

// SAFETY: the bytes are a read-only map of this or of the checkpoint, which this shares; neither is unmapped before it
// drops.
#[allow(unsafe_code)]
unsafe impl WeightSource for QuantizedWeights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        QuantizedWeights::tensor(self, name)
    }
}

/// Where the quantised matrices lie.
enum Bytes {
    File(Map),
    Memory(Mmap),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::File(map) => map,
            Bytes::Memory(memory) => memory,
        }
    }
}

/// Format and place of each quantised tensor.
type Places = HashMap<String, (TensorFormat, Range<usize>)>;

fn make(
    model: &Model,
    options: &Quantization,
    progress: &dyn Fn(u64, u64) -> ControlFlow<()>,
) -> Result<(Option<Bytes>, Places, Origin)> {
    let files = Files::read(model)?;
    let specs = model.config.tensors();
    let mut matrices = Vec::new();
    let of = |name: &str| options.adapters.iter().filter_map(|a| a.of(name)).collect::<Vec<_>>();
    let added: Vec<Vec<&LowRank>> = specs.iter().map(|spec| of(&spec.name)).collect();
    for (spec, adapters) in specs.iter().zip(&added) {
        let (view, source) = files.tensor(model, &spec.name)?;
        let Some(to) = options.merged_format(&spec.name, &spec.shape, view.format) else { continue };
        let (n, k) = (spec.shape[0], spec.shape[1]);
        if view.format != to || !adapters.is_empty() {
            matrices.push(Matrix { name: &spec.name, source, from: view.format, n, k, to, adapters });
        }
    }
    // The widest elements first: all are then aligned.
    matrices.sort_by_key(|m| Reverse(m.to.alignment()));
    if matrices.is_empty() {
        return Ok((None, Places::new(), Origin::Checkpoint));
    }
    let mut unused = None;
    if let Some(cache) = &options.cache {
        let wanted = Wanted { model, files: &files, matrices: &matrices, options };
        let places = places(&matrices, wanted.header_bytes());
        match wanted.get(cache, progress) {
            Ok(Entry { path, map, made }) => {
                let origin = if made { Origin::Made(path) } else { Origin::Found(path) };
                return Ok((Some(Bytes::File(map)), places, origin));
            }
            Err(Failure::Cache(error)) => unused = Some(error),
            Err(Failure::Model(error)) => return Err(error),
        }
    }
    let memory = in_memory(&matrices, options.threads, progress)?;
    Ok((Some(Bytes::Memory(memory)), places(&matrices, 0), Origin::Memory(unused)))
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
