//! Tensors in safetensors files: read by name, held against what a function takes, written.
//!
//! An element type is stored under its own name (`F32`, `F16`, `BF16`, `I32`, `BOOL`); whole numbers may be `I64` where
//! they fit 32 bits; rows of blocks are `U8`, the last axis their bytes.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map as Json, json};

use crate::error::Error;
use crate::file::whole::Output;
use crate::file::{self, Map, open, safetensors};
use crate::program::{Counts, Element, Length, Operand, Role, Signature};

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
    /// [`Error::File`] for a file that is no safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<TensorFile, Error> {
        let path = path.as_ref().to_path_buf();
        let (file, _) = open(&path)?;
        let map = Map::new(&path, &file).map_err(|e| file::Error::read(&path, e))?;
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

/// What the named lengths are, as far as shapes have said.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// `T`, and the tensor that said so.
    pub rows: Option<(usize, String)>,
    /// `S`.
    pub keys: Option<(usize, String)>,
}

impl Named {
    /// Holds a tensor's stored shape (of blocks, the last axis is bytes) against an operand's, and learns the named
    /// lengths from it.
    ///
    /// # Errors
    /// What to say behind what was found, nothing where that says it all.
    pub fn learn(&mut self, operand: &Operand, stored: &[usize]) -> Result<(), String> {
        let (element, rank) = (operand.element, operand.shape.len());
        if stored.len() != rank {
            return Err(String::new());
        }
        for (axis, (&n, &dim)) in stored.iter().zip(&operand.shape).enumerate() {
            let seen = match dim {
                Length::Fixed(m) if axis + 1 == rank && element.is_block() => {
                    if n != element.bytes(m) {
                        return Err(format!(": rows have {} bytes", element.bytes(m)));
                    }
                    continue;
                }
                Length::Fixed(m) if m == n => continue,
                Length::Fixed(_) => return Err(String::new()),
                Length::Rows => &mut self.rows,
                Length::Keys => &mut self.keys,
            };
            match seen {
                Some((known, by)) if *known != n => {
                    return Err(format!(", though {dim} is {known} by `{by}`"));
                }
                Some(_) => {}
                None if n == 0 => return Err(format!(": {dim} is at least 1")),
                None => *seen = Some((n, operand.name.clone())),
            }
        }
        Ok(())
    }

    /// `T` and `S`: 1 and `T` where nothing said so.
    pub fn counts(&self) -> Counts {
        let rows = self.rows.as_ref().map_or(1, |(n, _)| *n);
        Counts { rows, keys: self.keys.as_ref().map_or(rows, |(n, _)| *n) }
    }
}

/// An operand as kernels hold it.
pub enum Bytes<'a> {
    /// In place.
    Mapped(&'a [u8]),
    /// Made of what the file has.
    Own(Vec<u8>),
}

impl Bytes<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(bytes) => bytes,
            Bytes::Own(bytes) => bytes,
        }
    }
}

impl TensorFile {
    /// An operand; learns the named lengths from it.
    ///
    /// # Errors
    /// [`Error::Operand`] for a tensor that is not there, or of another type.
    pub fn operand(&self, operand: &Operand, named: &mut Named) -> Result<Bytes<'_>, Error> {
        let (name, element) = (&operand.name, operand.element);
        let lacks = |what: String| Error::Operand { path: self.path.clone(), what };
        let wrong = |found: String| lacks(format!("tensor `{name}`: expected {operand}, found {found}"));
        let Some((entry, bytes)) = self.entry(name) else {
            return Err(lacks(format!("no tensor `{name}`: expected {operand}")));
        };
        let found = || format!("{} {:?}", entry.dtype, entry.shape);
        let stored = element.stored();
        let is_long = element == Element::I32 && entry.dtype == "I64";
        if entry.dtype != stored && !is_long {
            return Err(wrong(format!("{} (stored as {stored})", found())));
        }
        named.learn(operand, &entry.shape).map_err(|reason| wrong(format!("{}{reason}", found())))?;
        Ok(match element {
            Element::Bool => {
                Bytes::Own(bytes.iter().flat_map(|&b| (-i32::from(b != 0)).to_le_bytes()).collect())
            }
            Element::I32 if is_long => {
                let mut own = Vec::with_capacity(bytes.len() / 2);
                for long in bytes.as_chunks::<8>().0 {
                    let x = i64::from_le_bytes(*long);
                    let x = i32::try_from(x).map_err(|_| wrong(format!("{x}, which 32 bits do not hold")))?;
                    own.extend(x.to_le_bytes());
                }
                Bytes::Own(own)
            }
            Element::F32 | Element::F16 | Element::BF16 | Element::I32 | Element::Block { .. } => {
                Bytes::Mapped(bytes)
            }
        })
    }
}

/// What a function takes, from files.
pub struct Taken<'a> {
    /// `T` and `S`.
    pub counts: Counts,
    /// Its operands but for those it only gives, in their order; none of those that the files were not asked for.
    pub operands: Vec<Option<Bytes<'a>>>,
}

impl<'a> Taken<'a> {
    /// Finds each operand in the file that `file` gives for it, if it gives one.
    ///
    /// # Errors
    /// As [`TensorFile::operand`], and what `file` returns.
    pub fn new<E: From<Error>>(
        signature: &Signature,
        mut file: impl FnMut(&Operand) -> Result<Option<&'a TensorFile>, E>,
    ) -> Result<Taken<'a>, E> {
        let mut named = Named::default();
        let mut operands = Vec::with_capacity(signature.operands.len());
        for operand in signature.operands.iter().filter(|operand| operand.role != Role::Output) {
            let found = file(operand)?.map(|file| file.operand(operand, &mut named));
            operands.push(found.transpose()?);
        }
        Ok(Taken { counts: named.counts(), operands })
    }
}

/// A result of a call.
#[derive(Clone, Debug)]
pub struct Returned {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub element: Element,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// Its bytes, as kernels hold them.
    pub bytes: Vec<u8>,
}

impl Returned {
    /// Room for what a function returns in a call, in its order.
    pub fn room(signature: &Signature, counts: Counts) -> Vec<Returned> {
        let room = |&at: &usize| {
            let operand = &signature.operands[at];
            Returned {
                name: operand.name.clone(),
                element: operand.element,
                shape: operand.shape_at(counts),
                bytes: vec![0; operand.bytes(counts)],
            }
        };
        signature.returns.iter().map(room).collect()
    }

    /// As a file has it.
    fn stored(&self) -> Vec<u8> {
        match self.element {
            Element::Bool => self.bytes.as_chunks::<4>().0.iter().map(|b| u8::from(*b != [0; 4])).collect(),
            Element::F32 | Element::F16 | Element::BF16 | Element::I32 | Element::Block { .. } => {
                self.bytes.clone()
            }
        }
    }
}

/// `y f32[3, 6]`.
impl std::fmt::Display for Returned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.element, self.shape)
    }
}

/// Writes results to a safetensors file, in their order.
///
/// # Errors
/// [`Error::Write`] for the system's refusal.
pub fn write_tensors(path: impl AsRef<Path>, tensors: &[Returned]) -> Result<(), Error> {
    let path = path.as_ref();
    let needed: u64 = tensors.iter().map(|t| t.bytes.len() as u64).sum();
    let failed = |source: io::Error| Error::Write { path: path.into(), needed, source };
    let mut output = Output::create(path).map_err(failed)?;
    // Wider elements first, so that each lies at a multiple of its size.
    let mut order: Vec<&Returned> = tensors.iter().collect();
    let size = |t: &Returned| match t.element {
        Element::Bool | Element::Block { .. } => 1,
        Element::F32 | Element::F16 | Element::BF16 | Element::I32 => t.element.bytes(1),
    };
    order.sort_by_key(|t| std::cmp::Reverse(size(t)));
    let stored: Vec<Vec<u8>> = order.iter().map(|t| t.stored()).collect();
    let mut header = Json::new();
    let mut at = 0;
    for (tensor, bytes) in order.iter().zip(&stored) {
        let offsets = [at, at + bytes.len()];
        at += bytes.len();
        let entry =
            json!({ "dtype": tensor.element.stored(), "shape": tensor.shape, "data_offsets": offsets });
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
