//! The three files of an object: `NAME.o`, `NAME.h`, `NAME.weights`.
//!
//! In: an image and weights. Out: the files. Invariants: names of the C functions start with NAME; none of the files
//! changes before all of them are written.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lapidary_codegen::object::weights::TensorType;
use lapidary_codegen::object::{Object, Parts};
use lapidary_ir::DType;
use lapidary_models::Model;
use lapidary_runtime::file::whole::Output;
use lapidary_runtime::program::Image;

use crate::output::Usage;
use crate::weights::Weights;

/// The name where the output is a folder.
const DEFAULT_NAME: &str = "model";

/// Where the files go.
pub(crate) struct Paths {
    /// What the names of C functions start with.
    prefix: String,
    /// The object.
    pub(crate) object: PathBuf,
    header: PathBuf,
    weights: PathBuf,
}

/// The files, until they are whole.
pub(crate) struct Files<'a> {
    paths: &'a Paths,
    object: Output,
    header: Output,
    weights: Output,
}

impl Paths {
    /// The paths of an output: `NAME.o`, or an existing folder.
    pub(crate) fn new(output: &Path) -> Result<Paths> {
        let object = match output.extension() {
            Some(extension) if extension == "o" && !output.is_dir() => output.to_path_buf(),
            _ if output.is_dir() => output.join(DEFAULT_NAME).with_extension("o"),
            _ => bail!(Usage::new(anyhow!(
                "-o {}: expected a file NAME.o, or a folder that exists",
                output.display()
            ))),
        };
        let stem = object.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let prefix = stem.to_ascii_lowercase().replace(['-', '.'], "_");
        let is_identifier = prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_identifier {
            bail!(Usage::new(anyhow!(
                "-o {}: expected a name that C functions can start with: a letter, then letters, digits, `_`, `-`, `.`",
                output.display()
            )));
        }
        let (header, weights) = (object.with_extension("h"), object.with_extension("weights"));
        Ok(Paths { prefix, object, header, weights })
    }

    /// Begins the files.
    pub(crate) fn create(&self) -> Result<Files<'_>> {
        let create =
            |path: &Path| Output::create(path).with_context(|| format!("cannot write {}", path.display()));
        Ok(Files {
            object: create(&self.object)?,
            header: create(&self.header)?,
            weights: create(&self.weights)?,
            paths: self,
        })
    }
}

/// Makes the object.
pub(crate) fn build(
    image: &Image,
    cpu: &str,
    paths: &Paths,
    model: &Model,
    weights: &Weights,
) -> Result<Object> {
    let tensor = |name: &str| tensor_type(model, weights, name);
    let stop: Vec<i32> = model.stop_tokens.iter().map(|&id| id as i32).collect();
    let bos = model.config.bos_token_id as i32;
    let parts = Parts { image, cpu, prefix: &paths.prefix, bos, stop: &stop, tensor: &tensor };
    Ok(lapidary_codegen::object::build(&parts)?)
}

/// A weight's type as safetensors files state it: blocks are bytes.
pub(crate) fn tensor_type(model: &Model, weights: &Weights, name: &str) -> Option<TensorType> {
    let stored = model.checkpoint.tensor(name)?;
    let dtype = weights.dtype(model, name);
    let shape = match dtype {
        DType::Block(_) => {
            let (n, k) = (stored.shape[0], stored.shape[1]);
            vec![n, dtype.row_bytes(k)]
        }
        _ => stored.shape.to_vec(),
    };
    let dtype = match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::Block(_) => "U8",
        DType::I32 | DType::Bool => return None,
    };
    Some(TensorType { dtype, shape })
}

impl Files<'_> {
    /// Writes all, then gives each its name.
    pub(crate) fn write(self, object: &Object, weights: &Weights) -> Result<()> {
        let Files { paths, object: mut elf, mut header, weights: mut tensors } = self;
        let failed = |path: &Path, bytes: usize| format!("cannot write {} ({bytes} bytes)", path.display());
        let written = elf.write_all(&object.elf);
        written.with_context(|| failed(&paths.object, object.elf.len()))?;
        let written = header.write_all(object.header.as_bytes());
        written.with_context(|| failed(&paths.header, object.header.len()))?;
        let mut out = BufWriter::new(&mut tensors);
        let written = object.weights.write(weights, &mut out).and_then(|()| out.flush());
        drop(out);
        written.with_context(|| failed(&paths.weights, object.weights.bytes))?;
        Output::finish_all(vec![tensors, header, elf])
            .map_err(|(path, e)| anyhow!(e).context(format!("cannot write {}", path.display())))?;
        Ok(())
    }
}
