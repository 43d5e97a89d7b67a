//! What may lie beside a model's tensors if its values are those that are computed anyway: heads that repeat the
//! embedding table, and the scale of embeddings.

use lapidary_runtime::file::safetensors::Entry;

use super::Checkpoint;
use crate::dtype::{TensorFormat, WeightDType};
use crate::error::{Error, Result};
use crate::layout::{EMBEDDING, TIED_HEAD};

impl Checkpoint {
    /// Fails unless a head's values are those of the embedding table (or, where it is said to be tied, what they round
    /// to: the head then says nothing that the table does not).
    pub(super) fn check_head(&self, file: usize, entry: &Entry, tied: bool) -> Result<()> {
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
    pub(super) fn check_scale(&self, file: usize, entry: &Entry, scale: f32) -> Result<()> {
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

/// Whether a tensor is a head's matrix, under whatever prefix.
pub(super) fn is_head(name: &str) -> bool {
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

/// Whether a head has the values of a table of as many elements; or, with `rounded`, those that the table's round to in
/// its dtype.
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
