//! A model: its configuration, its text, and what engines and files are made of.
//!
//! In: a path, or nothing for the built-in model; [`Options`]. Out: a [`Model`]. Opening maps files and checks them;
//! weights are converted and code is made when they are first needed, each once.

mod text;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lapidary_codegen::compile;
use lapidary_codegen::compile::FunctionReport;
use lapidary_ir::DType;
use lapidary_models::{Config, graph};
use lapidary_runtime::program::{Program, WeightSource};
use lapidary_runtime::{Artifact, Engine, Session};

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::options::{NATIVE, Notice, Options};
use crate::weights::Weights;

/// A model, opened.
///
/// ```
/// use lapidary::{Model, Options};
///
/// let model = Model::built_in(Options::new())?;
/// let ids = model.encode("It is a truth universally acknowledged")?;
/// let mut session = model.session()?;
/// session.prefill(&ids)?;
/// assert_eq!(session.logits().len(), model.config().vocab_size);
/// # Ok::<(), lapidary::Error>(())
/// ```
pub struct Model {
    pub(crate) options: Options,
    /// With what the options override.
    pub(crate) config: Config,
    /// Its files; of an artifact without a checkpoint.
    pub(crate) files: Arc<lapidary_models::Model>,
    source: Source,
}

/// What engines are made from.
enum Source {
    /// A checkpoint, and what was made of it so far.
    Checkpoint { weights: OnceLock<Arc<Weights>>, compilation: OnceLock<Box<Compilation>> },
    /// A file with code in it.
    Artifact { artifact: Arc<Artifact>, program: Arc<Program>, format: DType },
}

/// A model compiled to run in this process.
pub struct Compilation {
    /// The program.
    pub program: Arc<Program>,
    /// How each of its functions came about, by the program's index.
    pub functions: Vec<FunctionReport>,
    /// The options that it was compiled with.
    pub options: lapidary_codegen::Options,
    /// Configuration to machine code, wall time.
    pub time: Duration,
}

impl Model {
    /// Opens a Hugging Face folder, a GGUF, or an artifact (`NAME.lap`); what leads nowhere and can be a name of the
    /// hub (`OWNER/REPO`, `OWNER/REPO:TAG`) is found in the shared cache, or fetched into it. Its files must not change
    /// while the model lives.
    ///
    /// # Errors
    /// What is wrong with the options whatever the model ([`Options::check`]), then what is wrong with its files:
    /// [`Error::Model`] for a folder, [`Error::Run`] for an artifact, [`Error::Hub`] for a name. [`Error::Option`] for
    /// an option that an artifact cannot take any more, or that only an artifact takes.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Model> {
        options.check()?;
        let path = located(path.as_ref(), &options)?;
        let path = path.as_path();
        // Each kind of file is told by its name; what is no artifact, `lapidary_models` knows.
        if Artifact::is_named_so(path) {
            return Model::from_artifact(path, options);
        }
        refuse_trust(&options, path)?;
        Ok(Model::from_files(Arc::new(lapidary_models::Model::open(path)?), options))
    }

    /// The model in the library: a tiny Gemma 2 that writes a little like Jane Austen.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn built_in(options: Options) -> Result<Model> {
        Model::of(Arc::new(lapidary_models::Model::built_in()?), options)
    }

    /// A model whose files are open already: they may be shared by models of several options.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn of(files: Arc<lapidary_models::Model>, options: Options) -> Result<Model> {
        options.check()?;
        refuse_trust(&options, &files.path)?;
        Ok(Model::from_files(files, options))
    }

    fn from_files(files: Arc<lapidary_models::Model>, options: Options) -> Model {
        files.warnings.iter().for_each(|warning| options.warn(warning));
        let source = Source::Checkpoint { weights: OnceLock::new(), compilation: OnceLock::new() };
        Model { config: options.adjusted(&files.config), options, files, source }
    }

    fn from_artifact(path: &Path, options: Options) -> Result<Model> {
        if let Some(option) = options.of_compilation() {
            return Err(Error::option(option, format!("{} is compiled already", path.display())));
        }
        let (artifact, _) = Artifact::open_trusted(path, &options.trust)?;
        if options.verify {
            artifact.verify()?;
        }
        let mut program = artifact.program(Some(options.cpu.as_str()).filter(|&cpu| cpu != NATIVE))?;
        if let Some(context) = options.context {
            program
                .limit_context(context)
                .map_err(|source| Error::Artifact { path: path.into(), source: source.into() })?;
        }
        let files = Arc::new(lapidary_models::Model::from_artifact(&artifact)?);
        let format = DType::ALL.iter().copied().find(|d| d.name() == artifact.weights());
        let format = format.ok_or_else(|| {
            let (found, known) = (artifact.weights(), DType::ALL.map(DType::name).join(", "));
            lapidary_runtime::file::Error::file(path, format!("weights held as one of {known}"), found)
        })?;
        let source = Source::Artifact { artifact: Arc::new(artifact), program: Arc::new(program), format };
        Ok(Model { config: files.config.clone(), options, files, source })
    }

    /// The folder or the file; of the built-in model a name for errors.
    pub fn path(&self) -> &Path {
        &self.files.path
    }

    /// Its configuration, with what the options override.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The most tokens of a sequence.
    pub fn context(&self) -> usize {
        match &self.source {
            Source::Checkpoint { .. } => self.options.context.unwrap_or(self.config.max_position_embeddings),
            Source::Artifact { program, .. } => program.plan.context,
        }
    }

    /// An engine, which steps any number of sequences. Several engines of a model share its code and its weights.
    ///
    /// ```
    /// use lapidary::{Model, Options, Phase, Want, Work};
    ///
    /// let model = Model::built_in(Options::new().context(64))?;
    /// let mut engine = model.engine()?;
    /// let (mut one, mut other) = (engine.sequence()?, engine.sequence()?);
    /// let prompts = [model.encode("It is a truth")?, model.encode("She was")?];
    /// let outputs = engine.step(&mut [
    ///     Work { sequence: &mut one, tokens: &prompts[0], phase: Phase::Prefill, want: Want::Argmax },
    ///     Work { sequence: &mut other, tokens: &prompts[1], phase: Phase::Prefill, want: Want::Argmax },
    /// ])?;
    /// let next = [outputs.token(0), outputs.token(1)];
    /// assert!(next.iter().all(|&id| (id as usize) < model.config().vocab_size));
    /// # Ok::<(), lapidary::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Option`] for a CPU whose code does not run here; else as [`Model::compilation`] and [`Engine::new`].
    pub fn engine(&self) -> Result<Engine> {
        let engine = Engine::new(self.program()?.clone(), self.weights()?, self.options.threads);
        let engine = engine.and_then(|engine| engine.with_residence(self.options.mmap.into()));
        let engine = engine.map_err(|error| self.of_artifact(error))?;
        self.check_threads(engine.threads());
        Ok(engine)
    }

    /// An engine with one sequence.
    ///
    /// # Errors
    /// As [`Model::engine`].
    pub fn session(&self) -> Result<Session> {
        let session = Session::new(self.program()?.clone(), self.weights()?, self.options.threads);
        let session = session.and_then(|session| session.with_residence(self.options.mmap.into()));
        let session = session.map_err(|error| self.of_artifact(error))?;
        self.check_threads(session.threads());
        Ok(session)
    }

    /// The program that engines run: an artifact's, or compiled when first asked for.
    ///
    /// # Errors
    /// As [`Model::compilation`].
    pub fn program(&self) -> Result<&Arc<Program>> {
        match &self.source {
            Source::Artifact { program, .. } => Ok(program),
            Source::Checkpoint { .. } => match self.compilation()? {
                Some(compilation) => Ok(&compilation.program),
                None => unreachable!("what is no artifact is compiled"),
            },
        }
    }

    /// The compiled model, with what the compiler did; compiled when first asked for. None of an artifact, which holds
    /// code.
    ///
    /// # Errors
    /// [`Error::Option`] for a CPU whose code does not run here, [`Error::Model`] for weights that cannot be converted,
    /// [`Error::Compiler`].
    pub fn compilation(&self) -> Result<Option<&Compilation>> {
        let Source::Checkpoint { compilation, .. } = &self.source else { return Ok(None) };
        if let Some(known) = compilation.get() {
            return Ok(Some(known));
        }
        self.options.runs_here()?;
        // Before the time that compiling takes.
        self.converted()?;
        let start = Instant::now();
        let graph = self.graph()?;
        let options = graph.compiler(&self.options)?;
        let lapidary_codegen::Compilation { program, functions, time: _ } =
            compile(&graph.module, &graph.parts, &options)?;
        self.warn_of(&functions);
        let made = Compilation { program, functions, options, time: start.elapsed() };
        Ok(Some(compilation.get_or_init(|| Box::new(made))))
    }

    /// The weights, converted where that is asked for.
    ///
    /// # Errors
    /// [`Error::Model`] for weights that cannot be converted.
    pub fn weights(&self) -> Result<Arc<dyn WeightSource>> {
        match &self.source {
            Source::Artifact { artifact, .. } => Ok(artifact.clone()),
            Source::Checkpoint { .. } => Ok(self.converted()?.clone()),
        }
    }

    /// How the layers' matrices are held.
    ///
    /// # Errors
    /// As [`Model::weights`].
    pub fn format(&self) -> Result<DType> {
        match &self.source {
            Source::Artifact { format, .. } => Ok(*format),
            Source::Checkpoint { .. } => Ok(format_of(self.converted()?)),
        }
    }

    /// The weights of a checkpoint.
    pub(crate) fn converted(&self) -> Result<&Arc<Weights>> {
        let Source::Checkpoint { weights, .. } = &self.source else {
            return Err(
                self.lacks("no checkpoint: an artifact holds code and weights; compile the model's folder")
            );
        };
        if let Some(known) = weights.get() {
            return Ok(known);
        }
        let made = Arc::new(Weights::open(&self.files, &self.options)?);
        Ok(weights.get_or_init(|| made))
    }

    /// The graph that is compiled, over the weights as the options have them.
    ///
    /// # Errors
    /// As [`Model::weights`] and [`Graph::of`]; [`Error::Lacks`] for an artifact, which holds code.
    pub fn graph(&self) -> Result<Graph> {
        let weights = self.converted()?;
        Graph::of(&self.config, &self.options, &|name| weights.dtype(name))
    }

    /// Warns of limits that saturation met.
    pub(crate) fn warn_of(&self, functions: &[FunctionReport]) {
        functions
            .iter()
            .filter_map(|f| f.saturation.warning())
            .for_each(|warning| self.options.warn(warning));
    }

    fn lacks(&self, what: &str) -> Error {
        Error::Lacks { path: self.path().into(), what: what.into() }
    }

    /// What a file's program cannot do is the file's.
    fn of_artifact(&self, source: lapidary_runtime::Error) -> Error {
        match &self.source {
            Source::Artifact { .. } => Error::Artifact { path: self.path().into(), source: source.into() },
            Source::Checkpoint { .. } => Error::Run(source),
        }
    }

    fn check_threads(&self, given: usize) {
        let asked = self.options.threads;
        if given < asked {
            self.options.warn(format!("the system gives {given} of {asked} threads"));
        }
    }
}

/// The path itself, or that of the model of this name.
#[cfg(feature = "hub")]
fn located(path: &Path, options: &Options) -> Result<PathBuf> {
    let mut progress = |p: lapidary_hub::Progress<'_>| {
        // A download that is broken off is gone on with by the next one: whoever wants to ends the process.
        let _ = options.tell(Notice::Fetching { file: p.file, done: p.done, total: p.total });
    };
    Ok(lapidary_hub::locate(path, lapidary_hub::Wanted::Model, &mut progress)?)
}

/// The path itself: there are no names without the hub.
#[cfg(not(feature = "hub"))]
fn located(path: &Path, _options: &Options) -> Result<PathBuf> {
    Ok(path.into())
}

/// How the layers' matrices are held.
pub(crate) fn format_of(weights: &Weights) -> DType {
    weights.dtype(&format!("{}self_attn.q_proj.weight", graph::layer_prefix(0)))
}

/// Fails if keys are named for what nothing signs.
fn refuse_trust(options: &Options, path: &Path) -> Result<()> {
    if options.trust.is_empty() {
        return Ok(());
    }
    let what = if path == Path::new(lapidary_models::model::BUILT_IN) {
        "the built-in model".to_string()
    } else {
        path.display().to_string()
    };
    Err(Error::option("trust", format!("{what} is no artifact (NAME.lap), which alone can be signed")))
}
