//! The three files of an object: `NAME.o`, `NAME.h`, `NAME.weights`. Invariants: names of the C functions start with
//! NAME; none of the files changes before all of them are written.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lapidary_codegen::object::weights::TensorType;
use lapidary_codegen::object::{Object, Parts, build};
use lapidary_codegen::target::Target;
use lapidary_runtime::file::whole::Output;
use lapidary_runtime::program::WeightSource;

use super::{Written, refused};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::weights::Weights;

/// The name where the output is a folder.
const DEFAULT_NAME: &str = "model";

/// Where the files go.
pub(super) struct Paths {
    /// What the names of C functions start with.
    prefix: String,
    object: PathBuf,
    header: PathBuf,
    weights: PathBuf,
}

/// The files, until they are whole.
struct Files {
    object: Output,
    header: Output,
    weights: Output,
}

impl Paths {
    /// The paths of an output: `NAME.o`, or an existing folder.
    pub(super) fn new(output: &Path) -> Result<Paths> {
        let wrong = |expected: &str| Error::Output { path: output.into(), expected: expected.into() };
        let object = match output.extension() {
            Some(extension) if extension == "o" && !output.is_dir() => output.to_path_buf(),
            _ if output.is_dir() => output.join(DEFAULT_NAME).with_extension("o"),
            _ => return Err(wrong("expected a file NAME.o, or a folder that exists")),
        };
        let stem = object.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let prefix = stem.to_ascii_lowercase().replace(['-', '.'], "_");
        let is_identifier = prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_identifier {
            return Err(wrong(
                "expected a name that C functions can start with: a letter, then letters, digits, `_`, `-`, `.`",
            ));
        }
        let (header, weights) = (object.with_extension("h"), object.with_extension("weights"));
        Ok(Paths { prefix, object, header, weights })
    }

    /// Fails where the files cannot be made, and leaves none.
    pub(super) fn probe(&self) -> Result<()> {
        self.create().map(drop)
    }

    /// Begins the files.
    fn create(&self) -> Result<Files> {
        let create = |path: &Path| Output::create(path).map_err(refused(path));
        Ok(Files {
            object: create(&self.object)?,
            header: create(&self.header)?,
            weights: create(&self.weights)?,
        })
    }
}

/// Compiles and writes.
pub(super) fn write(model: &Model, target: &Target, output: &Path) -> Result<Written> {
    let begun = Begun::new(output)?;
    let weights = model.converted()?;
    let start = Instant::now();
    let image = model.image(&model.graph()?, target)?;
    let stop: Vec<i32> = model.stop_tokens().iter().map(|&id| id as i32).collect();
    let tensor = |name: &str| tensor_type(model, weights, name);
    let bos = model.config.bos_token_id as i32;
    let prefix = begun.prefix();
    let object =
        build(&Parts { image: &image, cpu: &target.name, prefix, bos, stop: &stop, tensor: &tensor })?;
    begun.finish(&object, &**weights, target, image.code.len(), start.elapsed())
}

/// The files of an object that is being made.
pub(super) struct Begun {
    paths: Paths,
    files: Files,
}

impl Begun {
    /// Begins the files.
    pub(super) fn new(output: &Path) -> Result<Begun> {
        let paths = Paths::new(output)?;
        let files = paths.create()?;
        Ok(Begun { paths, files })
    }

    /// What the names of C functions start with.
    pub(super) fn prefix(&self) -> &str {
        &self.paths.prefix
    }

    /// Writes an object that took so long to compile.
    pub(super) fn finish(
        self,
        object: &Object,
        weights: &dyn WeightSource,
        target: &Target,
        code_bytes: usize,
        compile: Duration,
    ) -> Result<Written> {
        let start = Instant::now();
        self.files.write(&self.paths, object, weights)?;
        Ok(Written {
            path: self.paths.object,
            cpus: vec![target.name.clone()],
            bytes: object.weights.bytes as u64,
            code_bytes: code_bytes as u64,
            compile,
            write: start.elapsed(),
        })
    }
}

/// A weight's type as safetensors files state it: blocks are bytes.
fn tensor_type(model: &Model, weights: &Weights, name: &str) -> Option<TensorType> {
    let stored = model.files.checkpoint.tensor(name)?;
    let format = weights.format(name)?;
    Some(TensorType { dtype: format.stored_dtype(), shape: format.stored_shape(stored.shape) })
}

impl Files {
    /// Writes all, then gives each its name.
    fn write(self, paths: &Paths, object: &Object, weights: &dyn WeightSource) -> Result<()> {
        let Files { object: mut elf, mut header, weights: mut tensors } = self;
        let failed = |path: &Path, bytes: usize| {
            let (path, needed) = (path.to_path_buf(), bytes as u64);
            move |source: io::Error| lapidary_runtime::Error::Write { path, needed, source }
        };
        elf.write_all(&object.elf).map_err(failed(&paths.object, object.elf.len()))?;
        header.write_all(object.header.as_bytes()).map_err(failed(&paths.header, object.header.len()))?;
        if object.weights.tensors.is_empty() {
            let whole = Output::finish_all(vec![header, elf]);
            return whole.map_err(|(path, source)| Error::Write { path, source });
        }
        let mut out = BufWriter::new(&mut tensors);
        let written = object.weights.write(weights, &mut out).and_then(|()| out.flush());
        drop(out);
        written.map_err(failed(&paths.weights, object.weights.bytes))?;
        Output::finish_all(vec![tensors, header, elf]).map_err(|(path, source)| Error::Write { path, source })
    }
}
