//! Tensors in safetensors files: read by name, held against a type of the tensor language, written.
//!
//! An element type is stored under its own name (`F32`, `F16`, `BF16`, `I32`, `BOOL`); whole numbers may be `I64` where
//! they fit 32 bits; rows of blocks are `U8`, the last axis their bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use lapidary_ir::interp::Tensor;
use lapidary_ir::{DType, Dim, Extent, Function, TensorType};
use lapidary_runtime::file::whole::Output;
use lapidary_runtime::file::{Map, open, safetensors};
use serde_json::{Map as Json, json};

use crate::error::{Error, Result};
use crate::options::{MAX_CHUNK, MAX_CONTEXT};

/// A safetensors file, mapped.
pub struct TensorFile {
    path: PathBuf,
    map: Map,
    entries: HashMap<String, safetensors::Entry>,
}

impl TensorFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Text`] for a file that is no safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<TensorFile> {
        let path = path.as_ref().to_path_buf();
        let (file, _) = open(&path)?;
        let map =
            Map::new(&path, &file).map_err(|e| Error::Text(lapidary_runtime::file::Error::read(&path, e)))?;
        let entries = safetensors::read(&path, &map)?.into_iter().map(|e| (e.name.clone(), e)).collect();
        Ok(TensorFile { path, map, entries })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn entry(&self, name: &str) -> Option<(&safetensors::Entry, &[u8])> {
        self.entries.get(name).map(|e| (e, &self.map[e.bytes.clone()]))
    }
}

/// What the named dims are, as far as shapes have said.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// `T`, and the tensor that said so.
    pub(super) rows: Option<(usize, String)>,
    /// `S`.
    pub(super) keys: Option<(usize, String)>,
}

impl Named {
    /// Holds a tensor's stored shape against its type, and learns the named dims from it; the error is what to say
    /// behind what was found, if there is more to say.
    pub(super) fn learn(&mut self, name: &str, ty: &TensorType, stored: &[usize]) -> Result<(), String> {
        if stored.len() != ty.rank() {
            return Err(String::new());
        }
        for (axis, (&n, &dim)) in stored.iter().zip(ty.shape.iter()).enumerate() {
            let seen = match dim {
                Dim::Fixed(m) if axis + 1 == ty.rank() && ty.dtype.is_quantised() => {
                    if n != ty.dtype.row_bytes(m) {
                        return Err(format!(": rows have {} bytes", ty.dtype.row_bytes(m)));
                    }
                    continue;
                }
                Dim::Fixed(m) if m == n => continue,
                Dim::Fixed(_) => return Err(String::new()),
                Dim::Rows => &mut self.rows,
                Dim::Keys => &mut self.keys,
            };
            match seen {
                Some((known, by)) if *known != n => {
                    return Err(format!(", though {dim} is {known} by `{by}`"));
                }
                Some(_) => {}
                None if n == 0 => return Err(format!(": {dim} is at least 1")),
                None => *seen = Some((n, name.into())),
            }
        }
        Ok(())
    }

    /// `T` and `S`; what no shape has said, `T` is 1 and `S` is `T`.
    pub(super) fn extent(&self, function: &Function) -> Result<Extent> {
        let rows = self.rows.as_ref().map_or(1, |(n, _)| *n);
        let keys = self.keys.as_ref().map_or(rows, |(n, _)| *n);
        let refuse = |reason: String| Err(Error::Graph(format!("function `{}`: {reason}", function.name)));
        if rows > MAX_CHUNK || keys > MAX_CONTEXT {
            return refuse(format!(
                "T is {rows} and S {keys}: expected {MAX_CHUNK} and {MAX_CONTEXT} at most"
            ));
        }
        if keys < rows {
            return refuse(format!("S is {keys}, T is {rows}: the keys include those of the call's rows"));
        }
        Ok(Extent { rows, keys })
    }
}

/// An operand as kernels hold it.
pub(super) enum Bytes<'a> {
    /// In place.
    Mapped(&'a [u8]),
    /// Made of what the file has.
    Own(Vec<u8>),
}

impl Bytes<'_> {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(bytes) => bytes,
            Bytes::Own(bytes) => bytes,
        }
    }
}

/// An element type's name in a file.
pub(super) fn stored_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I32 => "I32",
        DType::Bool => "BOOL",
        DType::Block(_) => "U8",
    }
}

/// The shape in a file: of blocks, the last axis is bytes.
fn stored_shape(dtype: DType, shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let (true, Some(last)) = (dtype.is_quantised(), shape.last_mut()) {
        *last = dtype.row_bytes(*last);
    }
    shape
}

impl TensorFile {
    /// A weight of this type, as kernels hold it: where the file is mapped, or made of what it has.
    ///
    /// # Errors
    /// [`Error::Lacks`] for a tensor that is not there or of another type.
    pub fn weight(&self, name: &str, ty: &TensorType) -> Result<Cow<'_, [u8]>> {
        Ok(match self.operand(name, ty, &mut Named::default())? {
            Bytes::Mapped(bytes) => Cow::Borrowed(bytes),
            Bytes::Own(bytes) => Cow::Owned(bytes),
        })
    }

    /// A tensor of this type; learns the named dims from it.
    pub(super) fn operand(&self, name: &str, ty: &TensorType, named: &mut Named) -> Result<Bytes<'_>> {
        let wrong = |found: String| Error::Lacks {
            path: self.path.clone(),
            what: format!("tensor `{name}`: expected {ty}, found {found}"),
        };
        let Some((entry, bytes)) = self.entry(name) else {
            return Err(Error::Lacks {
                path: self.path.clone(),
                what: format!("no tensor `{name}`: expected {ty}"),
            });
        };
        let found = || format!("{} {:?}", entry.dtype, entry.shape);
        let stored = stored_name(ty.dtype);
        let is_long = ty.dtype == DType::I32 && entry.dtype == "I64";
        if entry.dtype != stored && !is_long {
            return Err(wrong(format!("{} (stored as {stored})", found())));
        }
        named.learn(name, ty, &entry.shape).map_err(|reason| {
            wrong(if reason.is_empty() { found() } else { format!("{}{reason}", found()) })
        })?;
        Ok(match ty.dtype {
            DType::Bool => {
                Bytes::Own(bytes.iter().flat_map(|&b| (-i32::from(b != 0)).to_le_bytes()).collect())
            }
            DType::I32 if is_long => {
                let mut own = Vec::with_capacity(bytes.len() / 2);
                for long in bytes.as_chunks::<8>().0 {
                    let x = i64::from_le_bytes(*long);
                    let x = i32::try_from(x).map_err(|_| wrong(format!("{x}, which 32 bits do not hold")))?;
                    own.extend(x.to_le_bytes());
                }
                Bytes::Own(own)
            }
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Block(_) => Bytes::Mapped(bytes),
        })
    }
}

/// A result of a call.
#[derive(Clone, Debug)]
pub struct Returned {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// Its bytes, as kernels hold them.
    pub(super) bytes: Vec<u8>,
}

impl Returned {
    pub(super) fn new(name: &str, ty: &TensorType, extent: Extent, bytes: Vec<u8>) -> Returned {
        let shape = ty.shape.iter().map(|d| d.at(extent)).collect();
        Returned { name: name.into(), dtype: ty.dtype, shape, bytes }
    }

    /// Its elements.
    pub fn tensor(&self) -> Tensor {
        Tensor::from_bytes(self.dtype, &self.shape, &self.bytes)
    }

    /// As a file has it.
    fn stored(&self) -> Vec<u8> {
        match self.dtype {
            DType::Bool => self.bytes.as_chunks::<4>().0.iter().map(|b| u8::from(*b != [0; 4])).collect(),
            DType::F32 | DType::F16 | DType::BF16 | DType::I32 | DType::Block(_) => self.bytes.clone(),
        }
    }
}

/// Writes results to a safetensors file, in their order.
///
/// # Errors
/// [`Error::Write`] for the system's refusal.
pub fn write_tensors(path: impl AsRef<Path>, tensors: &[Returned]) -> Result<()> {
    let path = path.as_ref();
    let failed = |source: io::Error| Error::Write { path: path.into(), source };
    let mut output = Output::create(path).map_err(failed)?;
    // Wider elements first, so that each lies at a multiple of its size.
    let mut order: Vec<&Returned> = tensors.iter().collect();
    let size = |t: &Returned| match t.dtype {
        DType::Bool | DType::Block(_) => 1,
        dtype => dtype.bytes(),
    };
    order.sort_by_key(|t| std::cmp::Reverse(size(t)));
    let stored: Vec<Vec<u8>> = order.iter().map(|t| t.stored()).collect();
    let mut header = Json::new();
    let mut at = 0;
    for (tensor, bytes) in order.iter().zip(&stored) {
        let shape = stored_shape(tensor.dtype, &tensor.shape);
        let offsets = [at, at + bytes.len()];
        at += bytes.len();
        let entry = json!({ "dtype": stored_name(tensor.dtype), "shape": shape, "data_offsets": offsets });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let write = |out: &mut Output| -> io::Result<()> {
        let mut out = BufWriter::new(out);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        stored.iter().try_for_each(|bytes| out.write_all(bytes))?;
        out.flush()
    };
    write(&mut output).map_err(failed)?;
    output.finish().map(drop).map_err(failed)
}
