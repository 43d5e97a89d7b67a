//! Options that are one of a few: each has a name, by which commands and other languages ask for it.

use std::fmt;
use std::str::FromStr;

use lapidary_ir::DType;
use lapidary_models::{QuantFormat, TensorFormat, WeightDType};

use crate::error::Error;

/// A closed set of values with names.
pub trait Choice: Copy + PartialEq + Sized + 'static {
    /// What errors call a value.
    const KIND: &'static str;
    /// Each value, its name, and what it is.
    const ALL: &'static [(Self, &'static str, &'static str)];

    /// Its name.
    fn name(self) -> &'static str {
        match Self::ALL.iter().find(|(value, ..)| *value == self) {
            Some((_, name, _)) => name,
            None => unreachable!("`ALL` has every value"),
        }
    }

    /// The value of a name.
    ///
    /// # Errors
    /// [`Error::Choice`], which lists the names.
    fn parse(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(value, ..)| *value);
        found.ok_or_else(|| {
            let known = Self::ALL.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ");
            Error::Choice { kind: Self::KIND, name: lapidary_runtime::file::error::quote(name), known }
        })
    }
}

/// A format that weights can be made in: floats, and the blocks of [`QuantFormat`]. Those that are only read, as GGUF's
/// are, weights have as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format(TensorFormat);

impl Format {
    /// 32-bit floats.
    pub const F32: Format = Format(TensorFormat::Float(WeightDType::F32));
    /// 16-bit floats of 8 bits' precision.
    pub const BF16: Format = Format(TensorFormat::Float(WeightDType::BF16));
    /// 16-bit floats of 11 bits' precision.
    pub const F16: Format = Format(TensorFormat::Float(WeightDType::F16));
    /// 8 bits in blocks of 32 with a scale.
    pub const Q8: Format = Format(TensorFormat::Quant(QuantFormat::Q8.id()));
    /// 4 bits in blocks of 32 with a scale.
    pub const Q4: Format = Format(TensorFormat::Quant(QuantFormat::Q4.id()));

    /// As checkpoints store it.
    pub const fn stored(self) -> TensorFormat {
        self.0
    }
}

/// The formats: floats, then all quants that are made.
const FORMATS: [(Format, &str, &str); 3 + QuantFormat::ALL.len()] = {
    let f32 = (Format::F32, "f32", "32-bit floats");
    let mut rows = [f32; 3 + QuantFormat::ALL.len()];
    rows[1] = (Format::BF16, "bf16", "16-bit floats of 8 bits' precision");
    rows[2] = (Format::F16, "f16", "16-bit floats of 11 bits' precision");
    let mut i = 0;
    while i < QuantFormat::ALL.len() {
        let quant = QuantFormat::ALL[i];
        rows[3 + i] = (Format(TensorFormat::Quant(quant.id())), quant.name(), quant.about());
        i += 1;
    }
    rows
};

impl Choice for Format {
    const KIND: &'static str = "format of weights";
    const ALL: &'static [(Format, &'static str, &'static str)] = &FORMATS;
}

/// How exact activations are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// As fast as the CPU can: products may round them to bf16, or to 8 bits in blocks.
    #[default]
    Auto,
    /// 32-bit floats throughout.
    F32,
}

impl Choice for Activations {
    const KIND: &'static str = "precision of activations";
    const ALL: &'static [(Activations, &'static str, &'static str)] = &[
        (Activations::Auto, "auto", "As fast as the CPU can; the KV cache in bf16"),
        (Activations::F32, "f32", "32-bit floats throughout, the KV cache too"),
    ];
}

/// How cached keys and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvCache {
    /// 32-bit floats.
    F32,
    /// 16-bit floats of 8 bits' precision.
    Bf16,
    /// 8 bits in blocks of 32 with a scale.
    Int8,
}

impl Choice for KvCache {
    const KIND: &'static str = "format of the KV cache";
    const ALL: &'static [(KvCache, &'static str, &'static str)] = &[
        (KvCache::F32, "f32", "32-bit floats"),
        (KvCache::Bf16, "bf16", "16-bit floats of 8 bits' precision"),
        (KvCache::Int8, "int8", "8 bits in blocks of 32 with a scale"),
    ];
}

impl KvCache {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            KvCache::F32 => DType::F32,
            KvCache::Bf16 => DType::BF16,
            KvCache::Int8 => DType::Q8,
        }
    }
}

/// Names as text, both ways.
macro_rules! named {
    ($($choice:ty),*) => {$(
        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $choice {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self, Error> {
                Self::parse(name)
            }
        }
    )*};
}

named!(Format, Activations, KvCache);

#[cfg(test)]
mod tests {
    use super::*;

    fn every_name<T: Choice + fmt::Debug + FromStr<Err = Error> + fmt::Display>() {
        for (value, name, _) in T::ALL {
            assert_eq!(name.parse::<T>().expect(name), *value);
            assert_eq!(value.to_string(), *name);
        }
        let error = "q3\n".parse::<T>().expect_err("there is none").to_string();
        assert!(error.contains(T::KIND) && error.contains(T::ALL[0].1) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn names_come_back() {
        every_name::<Format>();
        every_name::<Activations>();
        every_name::<KvCache>();
    }
}
