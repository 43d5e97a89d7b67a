//! Weights in blocks of 32 elements along K, one bf16 scale each: what the bytes are, how scales are chosen, and how a
//! checkpoint's matrices are streamed into that form, or into floats of another width.
//!
//! In: rows of F32, F16 or BF16. Out: rows of `q8` or `q4` as the [table of formats](lapidary_ir::format) describes
//! them, one after another without padding.
//!
//! Invariants: a block's bytes are a function of its 32 values alone, so neither threads nor the CPU's vector width
//! change them; a scale is zero or normal and finite (a block too small for one is stored as zeros).

mod scale;
mod stream;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use lapidary_ir::format::BLOCK;
use lapidary_ir::{Format, FormatId};

use crate::dtype::{TensorFormat, WeightDType};

use self::scale::{Block, LANES, q4, q4_scales, q8};
pub(crate) use self::stream::{Matrix, Sink, Source, stream};

/// How a matrix is quantised here: the formats of blocks that are made and not only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// 8 bits: the largest magnitude of a block becomes 127.
    Q8,
    /// 4 bits: the scale of the least squared error among those searched.
    Q4,
}

impl QuantFormat {
    /// All of them.
    pub const ALL: [QuantFormat; 2] = [QuantFormat::Q8, QuantFormat::Q4];

    /// Its row of the table of formats, by number.
    pub const fn id(self) -> FormatId {
        match self {
            QuantFormat::Q8 => FormatId::Q8,
            QuantFormat::Q4 => FormatId::Q4,
        }
    }

    /// Its row of the table of formats.
    pub const fn format(self) -> &'static Format {
        self.id().format()
    }

    /// `q8` or `q4`.
    pub const fn name(self) -> &'static str {
        self.format().name
    }

    /// What it is, in words.
    pub const fn about(self) -> &'static str {
        match self {
            QuantFormat::Q8 => "8 bits in blocks of 32 with a scale",
            QuantFormat::Q4 => "4 bits in blocks of 32 with a scale",
        }
    }

    /// Whether rows of `k` elements divide into blocks.
    pub const fn fits(self, k: usize) -> bool {
        self.format().fits(k)
    }

    /// Bytes of a row of `k` elements.
    pub const fn row_bytes(self, k: usize) -> usize {
        self.format().row_bytes(k)
    }

    /// How blocks of a format are made, if they are.
    pub fn of(id: FormatId) -> Option<QuantFormat> {
        QuantFormat::ALL.into_iter().find(|f| f.id() == id)
    }
}

impl From<QuantFormat> for FormatId {
    fn from(format: QuantFormat) -> FormatId {
        format.id()
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

/// The (n, k) values of rows of blocks.
///
/// # Panics
/// Unless `k` fits the format and `bytes` has the length of the shape.
pub fn dequantize_rows(format: impl Into<FormatId>, bytes: &[u8], n: usize, k: usize) -> Vec<f32> {
    let format = format.into();
    assert!(format.fits(k), "{} needs rows of a multiple of {} elements, not {k}", format.name, format.block);
    assert_eq!(bytes.len(), n * format.row_bytes(k), "the bytes are not those of ({n}, {k})");
    let mut values = vec![0.0; n * k];
    let rows = bytes.chunks_exact(format.row_bytes(k));
    rows.zip(values.chunks_exact_mut(k)).for_each(|(row, values)| format.dequantise_row(row, values));
    values
}

/// The (n, k) values of rows of any format.
pub(crate) fn values_of(from: TensorFormat, source: &[u8], n: usize, k: usize) -> Vec<f32> {
    match from {
        TensorFormat::Quant(format) => dequantize_rows(format, source, n, k),
        TensorFormat::Float(dtype) => {
            let mut values = vec![0.0; n * k];
            decode(dtype, source, &mut values);
            values
        }
    }
}

/// Converts `n` rows of `k` elements from one format to another: to the nearest value, ties to even, or into quants as
/// [`quantize_rows`] does. `source` is (n, row_bytes) of `from`, `out` is (n, row_bytes) of `to`.
///
/// # Errors
/// The first weight that `to` cannot hold: one that is not finite, for quants; one that is but would become infinite,
/// for floats. `out` is then unspecified.
///
/// # Panics
/// Unless `k` fits both formats and the slices have the lengths of their shapes, and for blocks to make that are none
/// of [`QuantFormat`].
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
            let Some(format) = QuantFormat::of(format) else { unreachable!("{to} is read, never made") };
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
pub(crate) fn decode(dtype: WeightDType, source: &[u8], values: &mut [f32]) {
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

/// f32 to little-endian elements, to nearest, ties to even. An error is the place of a finite value that became
/// infinite.
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
        let format = self.format.format();
        let [quant_bytes, scale_bytes] = *format.planes else { unreachable!("quants, then scales") };
        let (quants, scales) = row.split_at_mut(format.plane_at(1, self.k));
        (&mut quants[block * quant_bytes..][..quant_bytes], &mut scales[block * scale_bytes..][..scale_bytes])
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
