//! Types of values: element type, shape with named dims, and the structural types of terms that are no tensors.

use std::fmt;

use crate::format::{FORMATS, Format, FormatId};

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Signed 32-bit integer: token ids and positions.
    I32,
    /// Truth value; in memory an i32 that is 0 or -1, a SIMD lane mask.
    Bool,
    /// Blocks of quants with scales along the last axis: a row of the table of formats. Weights; of caches q8 alone.
    Block(FormatId),
}

/// Those that are no blocks.
const PLAIN: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::Bool];

impl DType {
    /// Our own format in 8 bits, which caches may have too, and rounded activations.
    pub const Q8: DType = DType::Block(FormatId::Q8);
    /// Our own format in 4 bits.
    pub const Q4: DType = DType::Block(FormatId::Q4);

    /// Every element type: the plain ones, then blocks in the order of their table.
    pub const ALL: [DType; PLAIN.len() + FORMATS.len()] = {
        let mut all = [DType::F32; PLAIN.len() + FORMATS.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = if i < PLAIN.len() { PLAIN[i] } else { DType::Block(FormatId::nth(i - PLAIN.len())) };
            i += 1;
        }
        all
    };

    /// Size of an element in bytes.
    ///
    /// # Panics
    /// For blocks, whose elements have no address: ask for [`DType::row_bytes`].
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::Bool => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Block(_) => unreachable!("an element of {self} has no address"),
        }
    }

    /// Size in bytes of `n` elements, whole blocks where the type has blocks.
    pub fn row_bytes(self, n: usize) -> usize {
        match self {
            DType::Block(format) => format.row_bytes(n),
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Bool => n * self.bytes(),
        }
    }

    /// Bytes that an element takes, its share of its block's scales included.
    pub fn mean_bytes(self) -> f64 {
        match self {
            DType::Block(format) => format.block_bytes() as f64 / format.block as f64,
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Bool => self.bytes() as f64,
        }
    }

    /// The format, of blocks.
    pub fn format(self) -> Option<&'static Format> {
        match self {
            DType::Block(format) => Some(format.format()),
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Bool => None,
        }
    }

    /// Whether its elements come in blocks with a scale.
    pub fn is_quantised(self) -> bool {
        self.format().is_some()
    }

    /// Whether its elements are real numbers.
    pub fn is_float(self) -> bool {
        match self {
            DType::F32 | DType::F16 | DType::BF16 | DType::Block(_) => true,
            DType::I32 | DType::Bool => false,
        }
    }

    /// The name in text, `f32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::Bool => "bool",
            DType::Block(format) => format.format().name,
        }
    }

    /// The type of this name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        DType::from_name(s).ok_or(())
    }
}

/// One axis' length: fixed, or named and known only at the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// A number of elements.
    Fixed(usize),
    /// `T`: rows (tokens) of the call.
    Rows,
    /// `S`: keys in the cache once the call's rows are appended.
    Keys,
}

impl Dim {
    /// The length when it is fixed.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::Rows | Dim::Keys => None,
        }
    }

    /// The length under an assignment of the named dims.
    pub fn at(self, extent: Extent) -> usize {
        match self {
            Dim::Fixed(n) => n,
            Dim::Rows => extent.rows,
            Dim::Keys => extent.keys,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Rows => f.write_str("T"),
            Dim::Keys => f.write_str("S"),
        }
    }
}

/// The named dims' lengths in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// `T`: rows (tokens).
    pub rows: usize,
    /// `S`: keys, the call's own rows included.
    pub keys: usize,
}

/// A list of dims: a shape, or (all fixed) a permutation. Printed `[T,4,64]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dims(pub Vec<Dim>);

impl Dims {
    /// A list of fixed dims.
    pub fn fixed(lengths: &[usize]) -> Dims {
        Dims(lengths.iter().map(|&n| Dim::Fixed(n)).collect())
    }

    /// The axes when this is a permutation of `0..rank`.
    pub fn permutation(&self) -> Option<Vec<usize>> {
        let axes: Vec<usize> = self.0.iter().map(|d| d.fixed()).collect::<Option<_>>()?;
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        sorted.iter().enumerate().all(|(i, &a)| i == a).then_some(axes)
    }
}

impl From<Vec<Dim>> for Dims {
    fn from(dims: Vec<Dim>) -> Dims {
        Dims(dims)
    }
}

impl std::ops::Deref for Dims {
    type Target = [Dim];

    fn deref(&self) -> &[Dim] {
        &self.0
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl std::str::FromStr for Dims {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let inner = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).ok_or(())?;
        if inner.is_empty() {
            return Ok(Dims::default());
        }
        let dim = |d: &str| match d {
            "T" => Ok(Dim::Rows),
            "S" => Ok(Dim::Keys),
            _ if d.bytes().all(|b| b.is_ascii_digit()) => d.parse().map(Dim::Fixed).map_err(|_| ()),
            _ => Err(()),
        };
        inner.split(',').map(dim).collect::<Result<Vec<_>, ()>>().map(Dims)
    }
}

/// Type of a tensor: element type and shape. Printed `f32[T,2304]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Length of each axis, outermost first.
    pub shape: Dims,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: impl Into<Dims>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements in a call of this extent.
    pub fn elements(&self, extent: Extent) -> usize {
        self.shape.iter().map(|d| d.at(extent)).product()
    }

    /// Bytes in a call of this extent.
    pub fn bytes(&self, extent: Extent) -> usize {
        self.dtype.row_bytes(self.elements(extent))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

impl std::str::FromStr for TensorType {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let at = s.find('[').ok_or(())?;
        Ok(TensorType { dtype: s[..at].parse()?, shape: s[at..].parse()? })
    }
}

/// Type of any node of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// A tensor; a number is one of rank 0.
    Tensor(TensorType),
    /// Rows that a consumer computes as it reads them; never in memory of their own.
    Prologue(TensorType),
    /// Several tensors made by one kernel; `output` picks one.
    Tuple(Vec<TensorType>),
    /// The weight matrices of a linear kernel, `(N, K)` each.
    Weights(Vec<TensorType>),
    /// What a linear kernel does to its accumulators before it stores them.
    Epilogue,
    /// An attribute: a number of elements, a shape, a dtype, a mode, or none.
    Attribute,
}

impl Type {
    /// The tensor, of what is one in memory.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) => Some(t),
            Type::Prologue(_) | Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => None,
        }
    }

    /// The tensor, also of what a consumer computes as it reads it.
    pub fn tensor_or_prologue(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) | Type::Prologue(t) => Some(t),
            Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, types: &[TensorType]| {
            write!(f, "{name}(")?;
            for (i, t) in types.iter().enumerate() {
                write!(f, "{}{t}", if i > 0 { ", " } else { "" })?;
            }
            f.write_str(")")
        };
        match self {
            Type::Tensor(t) => t.fmt(f),
            Type::Prologue(t) => write!(f, "prologue({t})"),
            Type::Tuple(types) => list(f, "tuple", types),
            Type::Weights(types) => list(f, "weights", types),
            Type::Epilogue => f.write_str("epilogue"),
            Type::Attribute => f.write_str("attribute"),
        }
    }
}
