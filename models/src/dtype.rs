//! The forms a checkpoint's weights may have: element types under their safetensors names, and blocks of quants.

use std::fmt;

use lapidary_ir::FormatId;

use crate::quantize::QuantFormat;

/// The element type of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightDType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
}

impl WeightDType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            WeightDType::F32 => 4,
            WeightDType::F16 | WeightDType::BF16 => 2,
        }
    }

    /// The name in a safetensors header.
    pub const fn name(self) -> &'static str {
        match self {
            WeightDType::F32 => "F32",
            WeightDType::F16 => "F16",
            WeightDType::BF16 => "BF16",
        }
    }

    /// The name in a `config.json`.
    pub const fn config_name(self) -> &'static str {
        match self {
            WeightDType::F32 => "float32",
            WeightDType::F16 => "float16",
            WeightDType::BF16 => "bfloat16",
        }
    }

    /// The type of a safetensors name, if it is one that weights may have.
    pub fn from_name(name: &str) -> Option<WeightDType> {
        [WeightDType::F32, WeightDType::F16, WeightDType::BF16].into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for WeightDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a tensor is stored: plain elements, or rows of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorFormat {
    /// Elements.
    Float(WeightDType),
    /// Rows of blocks, a format of [`FORMATS`](lapidary_ir::FORMATS).
    Quant(FormatId),
}

impl TensorFormat {
    /// Whether rows of `k` elements can be stored so.
    pub const fn fits(self, k: usize) -> bool {
        match self {
            TensorFormat::Float(_) => k > 0,
            TensorFormat::Quant(format) => format.format().fits(k),
        }
    }

    /// Bytes of a row of `k` elements.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            TensorFormat::Float(dtype) => k * dtype.bytes(),
            TensorFormat::Quant(format) => format.format().row_bytes(k),
        }
    }

    /// What a tensor's place in a file must divide by, in bytes.
    pub const fn alignment(self) -> usize {
        match self {
            TensorFormat::Float(dtype) => dtype.bytes(),
            TensorFormat::Quant(_) => 1,
        }
    }

    /// The dtype in a safetensors header.
    pub const fn stored_dtype(self) -> &'static str {
        match self {
            TensorFormat::Float(dtype) => dtype.name(),
            TensorFormat::Quant(_) => "U8",
        }
    }

    /// The shape in a safetensors header of a tensor of this shape: (N, row_bytes) of a quantised (N, K).
    pub fn stored_shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (TensorFormat::Quant(format), [n, k]) => vec![*n, format.row_bytes(*k)],
            _ => shape.to_vec(),
        }
    }

    /// `F32`, `F16`, `BF16`, or the name of a format of blocks.
    pub const fn name(self) -> &'static str {
        match self {
            TensorFormat::Float(dtype) => dtype.name(),
            TensorFormat::Quant(format) => format.format().name,
        }
    }
}

impl From<WeightDType> for TensorFormat {
    fn from(dtype: WeightDType) -> TensorFormat {
        TensorFormat::Float(dtype)
    }
}

impl From<QuantFormat> for TensorFormat {
    fn from(format: QuantFormat) -> TensorFormat {
        TensorFormat::Quant(format.id())
    }
}

impl From<FormatId> for TensorFormat {
    fn from(format: FormatId) -> TensorFormat {
        TensorFormat::Quant(format)
    }
}

impl fmt::Display for TensorFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
