//! Weights in blocks of 32 elements along K, one bf16 scale each: what the bytes are, how scales are chosen, and how a
//! checkpoint's matrices are streamed into that form, or into floats of another width.
//!
//! In: rows of F32, F16 or BF16. Out: rows of quants then scales, one after another without padding; a value is quant times
//! scale.
//!
//! | format | quants of a row | scales of a row | bits a weight |
//! |---|---|---|---|
//! | q8 | K bytes: element k is the i8 at byte k, -127..=127 | K/32 bf16 | 8.5 |
//! | q4 | K/2 bytes: byte j of block b's 16 has element 32b+j in its low nibble, 32b+16+j in its high one, as q + 8, q in -8..=7 | K/32 bf16 | 4.5 |
//!
//! Invariants: a block's bytes are a function of its 32 values alone, so neither threads nor the CPU's vector width change
//! them; a scale is zero or normal and finite (a block too small for one is stored as zeros).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{Error, Result};

/// Elements that share a scale.
pub const BLOCK: usize = 32;
/// Bytes of a scale: bf16, little endian.
pub const SCALE_BYTES: usize = 2;
/// Adding it rounds a float of less than 2^22 to an integer, ties to even, and leaves that integer in the low bits: 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;
/// Source bytes read at a time, if a row is no longer than that.
const SOURCE: usize = 1 << 20;
/// Output bytes written at a time: a huge page. Linux keeps what is written in one call, to a multiple of it, in one huge
/// page of its cache (where the file system can), so that even a file just written is mapped in huge pages.
const PIECE: usize = 2 << 20;

/// How a matrix is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// 8 bits: the largest magnitude of a block becomes 127.
    Q8,
    /// 4 bits: the scale of the least squared error among those searched.
    Q4,
}

impl QuantFormat {
    /// `q8` or `q4`.
    pub const fn name(self) -> &'static str {
        match self {
            QuantFormat::Q8 => "q8",
            QuantFormat::Q4 => "q4",
        }
    }

    /// Whether rows of `k` elements divide into blocks.
    pub const fn fits(self, k: usize) -> bool {
        k > 0 && k.is_multiple_of(BLOCK)
    }

    /// Bytes of the quants of `k` elements.
    pub const fn quant_bytes(self, k: usize) -> usize {
        match self {
            QuantFormat::Q8 => k,
            QuantFormat::Q4 => k / 2,
        }
    }

    /// Bytes of a row of `k` elements: quants, then scales.
    pub const fn row_bytes(self, k: usize) -> usize {
        self.quant_bytes(k) + k / BLOCK * SCALE_BYTES
    }
}

/// A weight that is NaN or infinite, or would be in a narrower format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// Its row, below N.
    pub row: usize,
    /// Its place in the row, below K.
    pub column: usize,
    /// What it is.
    pub value: f32,
}

/// Quantises `n` rows of `k` elements; `source` is (n, k) of `dtype`, little endian; `out` is (n, row_bytes).
///
/// # Errors
/// The first weight that is not finite; `out` is then unspecified.
///
/// # Panics
/// Unless `k` fits the format and the slices have the lengths of their shapes.
pub fn quantize_rows(
    format: QuantFormat,
    dtype: WeightDType,
    source: &[u8],
    n: usize,
    k: usize,
    out: &mut [u8],
) -> std::result::Result<(), NotFinite> {
    assert!(format.fits(k), "{} needs rows of a multiple of {BLOCK} elements, not {k}", format.name());
    assert_eq!(source.len(), n * k * dtype.bytes(), "the source's bytes are not those of ({n}, {k}) {dtype}");
    assert_eq!(out.len(), n * format.row_bytes(k), "the output's bytes are not those of ({n}, {k})");
    let mut rows = Rows { format, k, out };
    let result = match dtype {
        WeightDType::F32 => rows.fill::<4, _>(source, |bytes, x| {
            x.iter_mut().zip(bytes).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }),
        WeightDType::BF16 => rows.fill::<2, _>(source, |bytes, x| {
            x.iter_mut()
                .zip(bytes)
                .for_each(|(x, b)| *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
        }),
        WeightDType::F16 => rows.fill::<2, _>(source, |bytes, x| {
            bytes.map(f16::from_le_bytes).convert_to_f32_slice(x);
        }),
    };
    result.map_err(|(element, value)| NotFinite { row: element / k, column: element % k, value })
}

/// The (n, k) values of rows as [`quantize_rows`] makes them.
///
/// # Panics
/// Unless `k` fits the format and `bytes` has the length of the shape.
pub fn dequantize_rows(format: QuantFormat, bytes: &[u8], n: usize, k: usize) -> Vec<f32> {
    assert!(format.fits(k), "{} needs rows of a multiple of {BLOCK} elements, not {k}", format.name());
    assert_eq!(bytes.len(), n * format.row_bytes(k), "the bytes are not those of ({n}, {k})");
    let mut values = Vec::with_capacity(n * k);
    for row in bytes.chunks_exact(format.row_bytes(k)) {
        let (quants, scales) = row.split_at(format.quant_bytes(k));
        let blocks = quants.chunks_exact(format.quant_bytes(BLOCK)).zip(scales.as_chunks().0);
        for (quants, scale) in blocks {
            let scale = bf16::from_le_bytes(*scale).to_f32();
            match format {
                QuantFormat::Q8 => values.extend(quants.iter().map(|&q| f32::from(q as i8) * scale)),
                QuantFormat::Q4 => {
                    let value = |nibble: u8| (f32::from(nibble) - 8.0) * scale;
                    values.extend(quants.iter().map(|&q| value(q & 15)));
                    values.extend(quants.iter().map(|&q| value(q >> 4)));
                }
            }
        }
    }
    values
}

/// Converts `n` rows of `k` elements from one format to another: to the nearest value, ties to even, or into quants as
/// [`quantize_rows`] does. `source` is (n, row_bytes) of `from`, `out` is (n, row_bytes) of `to`.
///
/// # Errors
/// The first weight that `to` cannot hold: one that is not finite, for quants; one that is but would become infinite, for
/// floats. `out` is then unspecified.
///
/// # Panics
/// Unless `k` fits both formats and the slices have the lengths of their shapes.
pub fn convert_rows(
    from: TensorFormat,
    to: TensorFormat,
    source: &[u8],
    n: usize,
    k: usize,
    out: &mut [u8],
) -> std::result::Result<(), NotFinite> {
    assert_eq!(source.len(), n * from.row_bytes(k), "the source's bytes are not those of ({n}, {k}) {from}");
    assert_eq!(out.len(), n * to.row_bytes(k), "the output's bytes are not those of ({n}, {k}) {to}");
    match (from, to) {
        _ if from == to => out.copy_from_slice(source),
        (TensorFormat::Float(dtype), TensorFormat::Quant(format)) => {
            return quantize_rows(format, dtype, source, n, k, out);
        }
        (TensorFormat::Quant(format), _) => {
            let values: Vec<u8> =
                dequantize_rows(format, source, n, k).iter().flat_map(|x| x.to_le_bytes()).collect();
            return convert_rows(WeightDType::F32.into(), to, &values, n, k, out);
        }
        (TensorFormat::Float(from), TensorFormat::Float(to)) => {
            let mut values = [0.0; CONVERTED];
            let sources = source.chunks(CONVERTED * from.bytes());
            for (i, (source, out)) in sources.zip(out.chunks_mut(CONVERTED * to.bytes())).enumerate() {
                let values = &mut values[..source.len() / from.bytes()];
                decode(from, source, values);
                encode(to, values, out).map_err(|j| {
                    let element = i * CONVERTED + j;
                    NotFinite { row: element / k, column: element % k, value: values[j] }
                })?;
            }
        }
    }
    Ok(())
}

/// Elements that are converted at a time; they stay in the first level's cache.
const CONVERTED: usize = 1024;

/// Little-endian elements to f32, which is exact.
fn decode(dtype: WeightDType, source: &[u8], values: &mut [f32]) {
    match dtype {
        WeightDType::F32 => {
            values.iter_mut().zip(source.as_chunks().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
        }
        WeightDType::BF16 => values
            .iter_mut()
            .zip(source.as_chunks().0)
            .for_each(|(x, b)| *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
        WeightDType::F16 => values
            .iter_mut()
            .zip(source.as_chunks().0)
            .for_each(|(x, b)| *x = f16::from_le_bytes(*b).to_f32()),
    }
}

/// f32 to little-endian elements, to nearest, ties to even. An error is the place of a finite value that became infinite.
fn encode(dtype: WeightDType, values: &[f32], out: &mut [u8]) -> std::result::Result<(), usize> {
    // Rounding carries what is above the largest finite value to infinity, whose exponent is all ones.
    let mut infinite = false;
    match dtype {
        WeightDType::F32 => {
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, x)| *b = x.to_le_bytes());
        }
        WeightDType::BF16 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, x)| {
            let y = bf16::from_f32(*x);
            infinite |= !y.is_finite();
            *b = y.to_le_bytes();
        }),
        WeightDType::F16 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, x)| {
            let y = f16::from_f32(*x);
            infinite |= !y.is_finite();
            *b = y.to_le_bytes();
        }),
    }
    let overflows = |x: &f32| {
        x.is_finite()
            && match dtype {
                WeightDType::F32 => false,
                WeightDType::BF16 => !bf16::from_f32(*x).is_finite(),
                WeightDType::F16 => !f16::from_f32(*x).is_finite(),
            }
    };
    match if infinite { values.iter().position(overflows) } else { None } {
        Some(place) => Err(place),
        None => Ok(()),
    }
}

/// One block's values.
type Block = [f32; BLOCK];

/// Rows being written.
struct Rows<'a> {
    format: QuantFormat,
    k: usize,
    out: &'a mut [u8], // (rows, row_bytes)
}

impl Rows<'_> {
    /// Quantises a whole number of rows; `decode` reads one block. An error is the element's number and its value.
    fn fill<const BYTES: usize, D>(
        &mut self,
        source: &[u8],
        decode: D,
    ) -> std::result::Result<(), (usize, f32)>
    where
        D: Fn(&[[u8; BYTES]; BLOCK], &mut Block),
    {
        let blocks = source.as_chunks::<BYTES>().0.as_chunks::<BLOCK>().0;
        for (group, sources) in blocks.chunks(LANES).enumerate() {
            // Lanes past the last block stay zero.
            let mut values = [[0.0; BLOCK]; LANES];
            for (lane, (bytes, x)) in sources.iter().zip(&mut values).enumerate() {
                decode(bytes, x);
                check(x).map_err(|(i, value)| ((group * LANES + lane) * BLOCK + i, value))?;
            }
            let values = &values[..sources.len()];
            match self.format {
                QuantFormat::Q8 => {
                    for (lane, x) in values.iter().enumerate() {
                        let (quants, scale) = self.block(group * LANES + lane);
                        q8(x, quants, scale);
                    }
                }
                QuantFormat::Q4 => {
                    let scales = q4_scales(values);
                    for (lane, x) in values.iter().enumerate() {
                        let (quants, scale) = self.block(group * LANES + lane);
                        q4(x, scales[lane], quants, scale);
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the quants and the scale of a block go; blocks are counted through all rows.
    fn block(&mut self, index: usize) -> (&mut [u8], &mut [u8]) {
        let (row, block) = (index / (self.k / BLOCK), index % (self.k / BLOCK));
        let row_bytes = self.format.row_bytes(self.k);
        let row = &mut self.out[row * row_bytes..][..row_bytes];
        let (quants, scales) = row.split_at_mut(self.format.quant_bytes(self.k));
        let quant_bytes = self.format.quant_bytes(BLOCK);
        (&mut quants[block * quant_bytes..][..quant_bytes], &mut scales[block * SCALE_BYTES..][..SCALE_BYTES])
    }
}

/// Refuses what is not finite, with its place.
fn check(x: &Block) -> std::result::Result<(), (usize, f32)> {
    // Zero times a finite number is zero; anything else makes the sum NaN.
    let mut sums = [0.0f32; 8];
    for eight in x.as_chunks::<8>().0 {
        sums.iter_mut().zip(eight).for_each(|(sum, x)| *sum += x * 0.0);
    }
    if sums.iter().sum::<f32>() == 0.0 {
        return Ok(());
    }
    match x.iter().position(|x| !x.is_finite()) {
        Some(i) => Err((i, x[i])),
        None => unreachable!("the sum of zeros is zero"),
    }
}

/// The nearest bf16 that is a normal number, or zero. `s` is finite.
#[inline(always)]
fn to_scale(s: f32) -> f32 {
    let bits = s.to_bits();
    // Half a unit less one, plus the last bit kept: to nearest, ties to even.
    let rounded = f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000);
    if rounded.abs() < f32::MIN_POSITIVE { 0.0 } else { rounded }
}

/// a / b, or 0 where b is.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    let quotient = a / b;
    if b == 0.0 { 0.0 } else { quotient }
}

/// `x` to the nearest of the integers `LOW..=HIGH`, plus [`ROUND`].
#[inline(always)]
fn round<const LOW: i32, const HIGH: i32>(x: f32) -> f32 {
    // Comparisons, and not f32::clamp: they are one instruction each.
    let x = if x < LOW as f32 { LOW as f32 } else { x };
    let x = if x > HIGH as f32 { HIGH as f32 } else { x };
    x + ROUND
}

/// Writes a block as q8. A scale of max|x| / 127, rounded to bf16, leaves max|x| within 127.5 scales: each error is at most
/// half a scale. A search changes the squared error by less than the rounding of the scale does, 1%.
fn q8(x: &Block, quants: &mut [u8], scale: &mut [u8]) {
    let mut most = [0.0f32; 8];
    for eight in x.as_chunks::<8>().0 {
        most.iter_mut()
            .zip(eight)
            .for_each(|(most, x)| *most = if x.abs() > *most { x.abs() } else { *most });
    }
    let most = most.into_iter().fold(0.0, f32::max);
    let s = to_scale(most / 127.0);
    let inverse = ratio(1.0, s);
    for (q, x) in quants.iter_mut().zip(x) {
        *q = round::<-127, 127>(x * inverse).to_bits() as u8;
    }
    scale.copy_from_slice(&bf16::from_f32(s).to_le_bytes());
}

/// Writes a block as q4 with a scale from [`q4_scales`].
fn q4(x: &Block, s: f32, quants: &mut [u8], scale: &mut [u8]) {
    let inverse = ratio(1.0, s);
    let nibble = |x: f32| (round::<-8, 7>(x * inverse).to_bits() as u8).wrapping_add(8) & 15;
    let (low, high) = x.split_at(BLOCK / 2);
    for ((q, &low), &high) in quants.iter_mut().zip(low).zip(high) {
        *q = nibble(low) | nibble(high) << 4;
    }
    scale.copy_from_slice(&bf16::from_f32(s).to_le_bytes());
}

/// Blocks searched side by side, each in a lane of its own: two AVX2 registers, so that one's latency hides the other's.
const LANES: usize = 16;
type Lanes = [f32; LANES];

/// Scales tried: the extreme of a block as -6.4, -6.6, ..., -9.6 quants. Every bf16 from half to twice that does 0.03%
/// better on normal weights, at seven times the time; max|x| as -8 alone does 13% worse.
const CANDIDATES: usize = 17;
const FIRST_CANDIDATE: f32 = 6.4;
const CANDIDATE_STEP: f32 = 0.2;

/// The bf16 scales of the least squared error among the candidates, for up to [`LANES`] blocks.
fn q4_scales(blocks: &[Block]) -> Lanes {
    let mut x = [[0.0; LANES]; BLOCK];
    for (lane, block) in blocks.iter().enumerate() {
        x.iter_mut().zip(block).for_each(|(x, value)| x[lane] = *value);
    }
    search_dispatch(&x)
}

/// [`search`], in the widest registers there are. The bytes are the same: no product is fused into a sum.
#[cfg(target_arch = "x86_64")]
fn search_dispatch(x: &[Lanes; BLOCK]) -> Lanes {
    #[target_feature(enable = "avx2")]
    fn avx2(x: &[Lanes; BLOCK]) -> Lanes {
        search(x)
    }
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this CPU has AVX2, which is all that the function asks for.
        #[allow(unsafe_code)]
        return unsafe { avx2(x) };
    }
    search(x)
}

/// [`search`], in the registers of the target.
#[cfg(not(target_arch = "x86_64"))]
fn search_dispatch(x: &[Lanes; BLOCK]) -> Lanes {
    search(x)
}

/// The search; `x` is (element, lane).
#[inline(always)]
fn search(x: &[Lanes; BLOCK]) -> Lanes {
    let (mut high, mut low) = ([0.0f32; LANES], [0.0f32; LANES]);
    for row in x {
        for l in 0..LANES {
            high[l] = if row[l] > high[l] { row[l] } else { high[l] };
            low[l] = if row[l] < low[l] { row[l] } else { low[l] };
        }
    }
    // The value of the largest magnitude takes the side that has one quant more.
    let extreme: Lanes = std::array::from_fn(|l| if high[l] >= -low[l] { high[l] } else { low[l] });
    let mut best: Lanes = std::array::from_fn(|l| to_scale(extreme[l] / -8.0));
    let mut least = squared_error(x, &best);
    for candidate in 0..CANDIDATES {
        let quants = -(FIRST_CANDIDATE + CANDIDATE_STEP * candidate as f32);
        let inverse: Lanes = std::array::from_fn(|l| ratio(quants, extreme[l]));
        let (mut xq, mut qq) = ([0.0f32; LANES], [0.0f32; LANES]);
        for row in x {
            for l in 0..LANES {
                let q = round::<-8, 7>(row[l] * inverse[l]) - ROUND;
                xq[l] += row[l] * q;
                qq[l] += q * q;
            }
        }
        // The scale of the least squared error for these quants.
        let scale: Lanes = std::array::from_fn(|l| to_scale(ratio(xq[l], qq[l])));
        let error = squared_error(x, &scale);
        for l in 0..LANES {
            let better = error[l] < least[l];
            least[l] = if better { error[l] } else { least[l] };
            best[l] = if better { scale[l] } else { best[l] };
        }
    }
    best
}

/// What rounding to quants of `scale` leaves, squared and summed over a block.
#[inline(always)]
fn squared_error(x: &[Lanes; BLOCK], scale: &Lanes) -> Lanes {
    let inverse: Lanes = std::array::from_fn(|l| ratio(1.0, scale[l]));
    let mut sum = [0.0f32; LANES];
    for row in x {
        for l in 0..LANES {
            let q = round::<-8, 7>(row[l] * inverse[l]) - ROUND;
            let error = row[l] - q * scale[l];
            sum[l] += error * error;
        }
    }
    sum
}

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
}

/// Fills in a tensor's bytes from an element on: the tensor's number, the element, the bytes.
pub(crate) type Draw<'a> = dyn Fn(usize, u64, &mut [u8]) + Sync + 'a;

/// Where a matrix's elements are.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// In a file, from a byte on. Read, and not mapped: what has been read does not stay resident.
    File { path: &'a Path, offset: u64 },
    /// In memory; errors call it by `path`.
    Bytes { path: &'a Path, bytes: &'a [u8] },
    /// Nowhere: made when asked for. Elements, not quants.
    Drawn { draw: &'a Draw<'a>, tensor: usize },
}

/// Where the quantised matrices go, one after another.
pub(crate) enum Sink<'a> {
    /// Into memory of exactly their length.
    Memory(&'a mut [u8]),
    /// Into a file that is there, from a byte on.
    File { path: &'a Path, offset: u64 },
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
    File { path: &'s Path, offset: u64 },
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

/// Converts all matrices on `threads` threads; `progress` is told, on the calling thread, the source bytes done and in all,
/// and ends it by breaking.
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
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut buffers = Buffers::default();
                while let Some(piece) = next() {
                    // A receiver that is gone met an error: stop.
                    if sender.send(piece.make(matrices, &mut buffers, needed as u64)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut done = 0;
        for result in receiver {
            done += result?;
            if progress(done, total).is_break() {
                return Err(Error::Stopped);
            }
        }
        Ok(())
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
            Sink::File { path, offset } => {
                let most = PIECE - (offset % PIECE as u64) as usize;
                let bytes = most.min(length - start);
                let rest = Sink::File { path, offset: offset + bytes as u64 };
                (Target::File { path, offset }, rest, start + bytes)
            }
        };
        pieces.push(Piece { range: start..end, target });
        start = end;
    }
    pieces
}

impl Piece<'_> {
    /// Reads, quantises, writes; returns the source bytes of the rows that begin in it. `needed` is the whole output's length.
    fn make(self, matrices: &[Matrix<'_>], buffers: &mut Buffers, needed: u64) -> Result<u64> {
        let Buffers { source, rows, piece } = buffers;
        match self.target {
            Target::Memory(memory) => fill(matrices, self.range, memory, source, rows),
            Target::File { path, offset } => {
                piece.resize(self.range.len(), 0);
                let done = fill(matrices, self.range, piece, source, rows)?;
                match write_at(path, offset, piece) {
                    Ok(()) => Ok(done),
                    Err(source) => Err(Error::Write { path: path.into(), needed, source }),
                }
            }
        }
    }
}

/// Makes the bytes of `range` within the matrices laid one after another. A row that it cuts is quantised for either side.
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
            Source::File { path, offset } => {
                buffer.resize(length, 0);
                read_at(path, offset + first as u64, buffer).map_err(|source| Error::read(path, source))?;
                (path, &buffer[..])
            }
        };
        convert_rows(self.from, self.to, source, rows, self.k, out).map_err(|bad| {
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

/// Fills `buffer` from a byte of a file on. Opened each time: threads must not share a file's position.
pub(crate) fn read_at(path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(buffer)
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}
