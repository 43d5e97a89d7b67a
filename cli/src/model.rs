//! A model ready to run, for commands; files that commands read.
//!
//! In: [`ModelArgs`]. Out: an [`Engine`]: the model, compiled, its weights bound, at position 0.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lapidary::{Model, Options, Session};
use lapidary_codegen::compile::FunctionReport;
use lapidary_ir::DType;
use lapidary_models::{Model as Files, Warning};
use lapidary_runtime::file;

use crate::hub;
use crate::options::{self, ModelArgs};
use crate::output;
use crate::speculation::SpeculationArgs;

/// The files of a folder, of a GGUF, of a model of the hub, or of the built-in one. What is strange about a folder is
/// said.
pub(crate) fn files(path: Option<&Path>) -> Result<Files> {
    let Some(path) = path else { return Ok(Files::built_in()?) };
    let path = hub::locate(path)?;
    note_input(&path)?;
    let files = Files::open(path)?;
    files.warnings.iter().for_each(warn);
    Ok(files)
}

/// A model, opened.
pub(crate) fn open(path: Option<&Path>, options: Options) -> Result<Model> {
    let opened = match path {
        None => Model::built_in(options),
        Some(path) => {
            note_input(path)?;
            Model::open(path, options)
        }
    };
    opened.map_err(options::error)
}

/// Keeps commands from writing over what they read.
fn note_input(path: &Path) -> Result<()> {
    if let Ok(found) = path.metadata() {
        file::inputs::note_input(path, &found).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Says what is strange about a file.
pub(crate) fn warn(warning: &Warning) {
    output::note("warning", &warning.to_string());
}

/// A model ready to run.
pub(crate) struct Engine {
    /// With what the options override.
    pub(crate) model: Arc<Model>,
    /// At position 0.
    pub(crate) session: Session,
    /// How the layers' matrices are held.
    pub(crate) format: DType,
    /// Graph to machine code.
    pub(crate) compile: Duration,
    /// Opening the files, binding weights, making caches.
    pub(crate) load: Duration,
}

/// A session of a smaller model, to guess the tokens of `model` by; `args` are that one's.
pub(crate) fn draft(path: &Path, model: &Model, args: &ModelArgs) -> Result<Session> {
    let args = ModelArgs { weights: args.weights.without_adapters(), ..args.clone() };
    let draft = open(Some(path), args.options()?)?;
    draft.check_same_tokens(model)?;
    draft.session().map_err(options::error)
}

impl Engine {
    /// Loads and compiles.
    pub(crate) fn new(args: &ModelArgs) -> Result<Engine> {
        let options = args.options()?;
        let start = Instant::now();
        let model = Arc::new(open(args.model.as_deref(), options)?);
        let session = model.session().map_err(options::error)?;
        let compile = model.compilation()?.map_or(Duration::ZERO, |compilation| compilation.time);
        let load = start.elapsed().saturating_sub(compile);
        Ok(Engine { format: model.format()?, model, session, compile, load })
    }

    /// Guesses tokens as is asked for; a smaller model runs as this one does, but for adapters, which are this one's.
    pub(crate) fn speculate(&mut self, how: &SpeculationArgs, args: &ModelArgs) -> Result<()> {
        let model = self.model.clone();
        how.begin(&mut self.session, |path| draft(path, &model, args))
    }

    /// What became of each function, by the program's index; nothing of an artifact, which holds code.
    pub(crate) fn functions(&self) -> &[FunctionReport] {
        match self.model.compilation() {
            Ok(Some(compilation)) => &compilation.functions,
            Ok(None) | Err(_) => &[],
        }
    }

    /// The model's name for errors: its path.
    pub(crate) fn name(&self) -> String {
        self.model.path().display().to_string()
    }

    /// The ids of `what`, BOS first; one far longer than the context is refused before all of it is tokenised.
    pub(crate) fn encode(&self, what: &str, text: &str) -> Result<Vec<u32>> {
        self.encoded(what, text, true)
    }

    /// Text that goes on with another: nothing is put before it.
    pub(crate) fn encode_more(&self, what: &str, text: &str) -> Result<Vec<u32>> {
        self.encoded(what, text, false)
    }

    fn encoded(&self, what: &str, text: &str, bos: bool) -> Result<Vec<u32>> {
        let ids = self.model.tokenizer()?.encode_within(text, bos, self.session.context());
        ids.with_context(|| format!("{what} is too long"))
    }

    /// Fails if the logits after the last token are no numbers, as weights that hold NaN or infinity make them.
    pub(crate) fn check_numbers(&mut self) -> Result<()> {
        let broken = self.session.has_logits() && self.session.logits().iter().all(|x| x.is_nan());
        ensure!(!broken, "{}: the logits are NaN: its weights hold NaN or infinity", self.name());
        Ok(())
    }

    /// Fails if `tokens` of `what` are more than the context.
    pub(crate) fn check_fits(&self, what: &str, tokens: usize) -> Result<()> {
        let context = self.session.context();
        if tokens <= context {
            return Ok(());
        }
        Err(anyhow!("{what} is {tokens} tokens, the context is {context} (--context takes more)"))
    }
}

/// A file as text; the error names it.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    Ok(file::text(path, file::read(path)?)?)
}

/// stdin as text.
pub(crate) fn read_stdin() -> Result<String> {
    let name = Path::new("stdin");
    Ok(file::text(name, file::limited(name, std::io::stdin().lock())?)?)
}
