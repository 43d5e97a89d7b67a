//! The element types a checkpoint's weights may have, under their safetensors names.

use std::fmt;

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
