//! Models compiled ahead of time, for this machine or another.
//!
//! In: a [`Model`] and [`Compile`]. Out: files. Nothing that is compiled runs here. Invariants: the same model and
//! options give the same bytes; a file has its name only once it is whole.

mod artifact;
mod function;
mod object;

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapidary_codegen::compile::{ImageCompilation, compile_image_for};
use lapidary_codegen::target::{self, Placement, TARGETS, Target};
use lapidary_runtime::artifact::PrivateKey;
use lapidary_runtime::cpu::Architecture;
use lapidary_runtime::program::Image;

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::model::Model;
use crate::options::{NATIVE, Options};

/// What is written, and for which CPUs.
///
/// ```
/// use lapidary::{Compile, Generate, Model, Options};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.lap");
/// let model = Model::built_in(Options::new().context(64))?;
/// model.compile(&Compile::artifact(), &path)?;
///
/// let stored = Model::open(&path, Options::new())?;
/// let mut session = stored.session()?;
/// let prompt = stored.encode("It is a truth")?;
/// let how = Generate { max_tokens: 4, ..Generate::default() };
/// assert_eq!(stored.generate(&mut session, &prompt, &how)?.count(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
#[must_use]
pub struct Compile {
    is_object: bool,
    target: Option<String>,
    cpus: Vec<String>,
    key: Option<PrivateKey>,
}

impl Compile {
    /// One file with code and weights, that [`Model::open`] and `lapidary-run` run.
    pub fn artifact() -> Compile {
        Compile::default()
    }

    /// An object file (`NAME.o`, or in a folder `model.o`) with a C header and a weights file beside it.
    pub fn object() -> Compile {
        Compile { is_object: true, ..Compile::default() }
    }

    /// The target triple [default: this machine's].
    pub fn target(self, triple: impl Into<String>) -> Compile {
        Compile { target: Some(triple.into()), ..self }
    }

    /// A CPU of the target; of several, an artifact has code for each [default: the options' CPU; where they name none
    /// and a target is named, an artifact's are all of its steps, an object's is the oldest].
    pub fn cpu(mut self, name: impl Into<String>) -> Compile {
        self.cpus.push(name.into());
        self
    }

    /// Signs the artifact.
    pub fn sign(self, key: PrivateKey) -> Compile {
        Compile { key: Some(key), ..self }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The artifact, or the object.
    pub path: PathBuf,
    /// The CPUs that it has code for.
    pub cpus: Vec<String>,
    /// Bytes of the artifact, or of the object's weights file.
    pub bytes: u64,
    /// Bytes of code, equal code once.
    pub code_bytes: u64,
    /// Graph to machine code, wall time.
    pub compile: Duration,
    /// To write the files, wall time.
    pub write: Duration,
}

impl Compile {
    /// The CPUs that code is made for, better ones later, each once: in the order of the table of targets, whatever the
    /// caller's.
    ///
    /// # Errors
    /// [`Error::Compiler`] for names that there are not, or not of this target.
    pub fn targets(&self, options: &Options) -> Result<Vec<Target>> {
        let mut names: Vec<&str> = self.cpus.iter().map(String::as_str).collect();
        if names.is_empty() {
            names.push(&options.cpu);
        }
        if names == [NATIVE] {
            if self.target.is_none() {
                return Ok(vec![Target::new(NATIVE, Placement::Object)?]);
            }
            names.clear();
        }
        if self.is_object && names.len() > 1 {
            return Err(Error::option("cpu", format!("{}: an object is for one CPU", names.join(","))));
        }
        let triple = match (&self.target, names.first()) {
            (Some(triple), _) => target::triple_of(triple),
            (None, Some(first)) => {
                Target::new(first, Placement::Object)?;
                target::row(first).map_or(target::triple(Architecture::HERE), |row| row.triple)
            }
            (None, None) => target::triple(Architecture::HERE),
        };
        let oldest = target::cpu_of_target(triple, None)?;
        if names.is_empty() && self.is_object {
            names.push(oldest);
        } else if names.is_empty() {
            names = TARGETS.iter().filter(|t| t.triple == triple).map(|t| t.name).collect();
        }
        for name in &names {
            target::cpu_of_target(triple, Some(name))?;
        }
        // In the table's order first, so that the caller's changes nothing.
        let rows = target::rows().filter(|row| names.contains(&row.name));
        let mut targets =
            rows.map(|row| Target::new(row.name, Placement::Object)).collect::<Result<Vec<_>, _>>()?;
        targets.sort_by_key(Target::rank);
        Ok(targets)
    }

    /// What is wrong whatever the model: names, and the place of the files. For a caller that has hours of work to do
    /// before.
    ///
    /// # Errors
    /// As [`Compile::targets`] and [`Options::check`]; [`Error::Output`] and [`Error::Write`] for the place.
    pub fn check(&self, options: &Options, output: impl AsRef<Path>) -> Result<()> {
        for target in self.targets(options)? {
            options.clone().cpu(target.name).check()?;
        }
        if self.is_object {
            object::Paths::new(output.as_ref())?.probe()
        } else {
            artifact::probe(output.as_ref())
        }
    }
}

impl Model {
    /// Compiles the model ahead of time, and writes it.
    ///
    /// # Errors
    /// As [`Compile::check`], then as [`Model::weights`]; [`Error::Lacks`] for an artifact, which holds no graph;
    /// [`Error::Compiler`]; [`Error::Write`] and [`Error::Run`] where the system refuses to write.
    pub fn compile(&self, how: &Compile, output: impl AsRef<Path>) -> Result<Written> {
        let output = output.as_ref();
        how.check(&self.options, output)?;
        let targets = how.targets(&self.options)?;
        if how.is_object {
            object::write(self, &targets[0], output)
        } else {
            artifact::write(self, how, &targets, output)
        }
    }

    /// Machine code for a target.
    fn image(&self, graph: &Graph, target: &Target) -> Result<Image> {
        let options = graph.compiler(&self.options.clone().cpu(&target.name))?;
        let ImageCompilation { image, functions, time: _ } =
            compile_image_for(target.clone(), &graph.module, &graph.parts, &options)?;
        self.warn_of(&functions);
        Ok(image)
    }
}

/// The error of a file that cannot be written.
fn refused(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Write { path: path.into(), source }
}
