//! The weights file of an object: a safetensors file whose tensors lie where the code expects them.
//!
//! In: a program's layout and the type of each of its weights. Out: the file's header and the place of each tensor, in
//! the layout's order. Invariants: each tensor starts at a multiple of [`WEIGHT_ALIGN`] bytes from the file's
//! start; safetensors allows no holes, so bytes between tensors are tensors of their own, `_padding.N`. The code checks
//! the file's header by [`WeightsFile::hash`], so weights of another shape, format or order are refused, and a
//! fine-tune of the same shapes is taken.

use std::io::{self, Write};

use lapidary_runtime::layout::Weight;
use lapidary_runtime::program::{Counts, Element, Operand, WeightSource};
use serde_json::{Map, json};

use super::refuse;
use crate::Error;

/// Alignment of tensors in the file and of the file in memory, in bytes: a cache line and the widest vector.
pub const WEIGHT_ALIGN: usize = 64;
/// First part of the names of tensors that only fill.
const PADDING: &str = "_padding.";
/// Multiplier of the header's hash: 2^64 over the golden ratio, odd (Knuth, TAOCP 3, 6.4).
pub const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Right shift of the header's hash, near half of the word so that high bits reach low ones.
pub const HASH_SHIFT: u32 = 29;

/// What the file's header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// safetensors' name of the element type: `F32`, `BF16`, `F16`, or `U8` for quantised rows.
    pub dtype: &'static str,
    /// Elements along each axis; of quantised rows `(N, row bytes)`.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// Of a weight as kernels hold it: truth values are I32, rows of blocks their bytes.
    pub fn held(operand: &Operand) -> TensorType {
        let mut shape = operand.shape_at(Counts { rows: 1, keys: 1 });
        let held = if operand.element == Element::Bool { Element::I32 } else { operand.element };
        let dtype = held.stored();
        if let (true, Some(last)) = (operand.element.is_block(), shape.last_mut()) {
            *last = operand.element.bytes(*last);
        }
        TensorType { dtype, shape }
    }
}

/// A tensor's place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name in the checkpoint.
    pub name: String,
    /// Bytes from the file's start.
    pub offset: usize,
    /// Its length in bytes.
    pub bytes: usize,
}

/// The file's layout.
#[derive(Clone, Debug)]
pub struct WeightsFile {
    /// Length field and JSON; a multiple of [`WEIGHT_ALIGN`] bytes.
    pub header: Vec<u8>,
    /// In the layout's order, which is that of rising offsets; padding left out.
    pub tensors: Vec<Place>,
    /// Length of the file in bytes, a multiple of [`WEIGHT_ALIGN`].
    pub bytes: usize,
}

impl WeightsFile {
    /// Lays the file out.
    ///
    /// # Errors
    /// [`Error::Object`] for a weight without a type, or one that two layers take for two lengths.
    pub fn new(
        weights: &[Weight],
        tensor: &dyn Fn(&str) -> Option<TensorType>,
    ) -> Result<WeightsFile, Error> {
        let mut tensors: Vec<Place> = vec![];
        let mut entries = Map::new();
        let mut end = 0;
        for Weight { tensor: name, bytes } in weights {
            if name.starts_with(PADDING) {
                return Err(refuse(format!("weight `{name}`: names that start with {PADDING} are taken")));
            }
            let TensorType { dtype, shape } =
                tensor(name).ok_or_else(|| refuse(format!("there is no weight `{name}`")))?;
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] });
            if entries.insert(name.clone(), entry).is_some() {
                return Err(refuse(format!("`{name}` is taken for two lengths")));
            }
            tensors.push(Place { name: name.clone(), offset: end, bytes: *bytes });
            end += bytes;
            let padding = end.next_multiple_of(WEIGHT_ALIGN) - end;
            if padding > 0 {
                let entry =
                    json!({ "dtype": "U8", "shape": [padding], "data_offsets": [end, end + padding] });
                entries.insert(format!("{PADDING}{}", tensors.len()), entry);
                end += padding;
            }
        }
        let mut text = serde_json::Value::Object(entries).to_string();
        let length = size_of::<u64>();
        let blanks = (length + text.len()).next_multiple_of(WEIGHT_ALIGN) - length - text.len();
        text.push_str(&" ".repeat(blanks));
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(text.as_bytes());
        for place in &mut tensors {
            place.offset += header.len();
        }
        Ok(WeightsFile { bytes: header.len() + end, header, tensors })
    }

    /// Writes the file, its tensors from `source`.
    ///
    /// # Errors
    /// What `out` returns; a tensor that the source lacks, or has in another length.
    pub fn write(&self, source: &dyn WeightSource, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        let mut end = self.header.len();
        for place in &self.tensors {
            let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no weight `{}`", place.name));
            let bytes = source.tensor(&place.name).filter(|b| b.len() == place.bytes).ok_or_else(missing)?;
            out.write_all(&vec![0; place.offset - end])?;
            out.write_all(bytes)?;
            end = place.offset + place.bytes;
        }
        out.write_all(&vec![0; self.bytes - end])
    }

    /// What the code compares: the header's 64-bit words, folded.
    pub fn hash(&self) -> u64 {
        self.header.as_chunks().0.iter().fold(0, |hash, word| {
            let mixed = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(HASH_FACTOR);
            mixed ^ (mixed >> HASH_SHIFT)
        })
    }
}
