//! Which functions a command of the fusion lab is about: options, and what they select.
//!
//! In: a file of the tensor language, a published size, or a model. Out: a [`Source`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use egg::Language;
use lapidary::{Config, Graph};
use lapidary_ir::{DType, Function, text};

use crate::model::{self, read_stdin, read_text};
use crate::options::{self, CompileArgs};
use crate::output::Usage;

/// Which functions, compiled how.
#[derive(Clone, clap::Args)]
pub(crate) struct FunctionArgs {
    /// Hugging Face folder, GGUF file, or name OWNER/REPO[:TAG] [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", value_parser = options::presets())]
    preset: Option<String>,
    /// Only this function
    #[arg(long = "fn", value_name = "NAME")]
    function: Option<String>,
    /// Rows of a call [default: the most]
    #[arg(long, value_name = "N", value_parser = options::rows())]
    rows: Option<usize>,
    #[command(flatten)]
    pub(crate) compile: CompileArgs,
}

impl FunctionArgs {
    /// The file among positional arguments, and the others.
    pub(crate) fn file(what: &[String]) -> (Option<&Path>, Vec<String>) {
        let is_file = |text: &&String| *text == "-" || text.ends_with(".ir");
        let file = what.iter().find(is_file).map(Path::new);
        (file, what.iter().filter(|w| file != Some(Path::new(w))).cloned().collect())
    }

    /// The module.
    pub(crate) fn source(&self, file: Option<&Path>) -> Result<Source> {
        source(file, self.preset.as_deref(), self.model.as_deref(), &self.compile)
    }

    /// The selected functions.
    pub(crate) fn functions(&self, source: &Source) -> Result<Vec<Function>> {
        source.functions(self.function.as_deref())
    }

    /// The rows of a call.
    pub(crate) fn rows(&self, chunk: usize) -> Result<usize> {
        let rows = self.rows.unwrap_or(chunk);
        ensure!(rows <= chunk, "--rows is {rows}: expected 1 to {chunk}, the chunk");
        Ok(rows)
    }
}

/// Positions that a file's functions are compiled for, unless --context says otherwise.
const FILE_CONTEXT: usize = 4096;
/// Bytes that a file of the tensor language may have, thirty times what a model's functions take.
const MOST_BYTES: usize = 1 << 20;
/// Operators, inputs and outputs that its functions may have, all together: twice what a model's have. Each becomes
/// kernels of its own where no rule fuses it, and proofs of a chain are longer than the chain.
const MOST_NODES: usize = 1024;

/// What is compiled.
pub(crate) struct Source {
    /// Its name for people: the model's, or the file's.
    pub(crate) name: String,
    /// The functions, and how they make up the model, if it is one.
    pub(crate) graph: Graph,
}

impl Source {
    /// All functions, or the one of this name.
    pub(crate) fn functions(&self, name: Option<&str>) -> Result<Vec<Function>> {
        let module = &self.graph.module;
        let Some(name) = name else { return Ok(module.functions.clone()) };
        let known: Vec<&str> = module.functions.iter().map(|f| f.name.as_str()).collect();
        let found = module.function(name).cloned();
        Ok(vec![found.ok_or_else(|| anyhow!("no function `{name}`: expected one of {}", known.join(", ")))?])
    }
}

impl Source {
    /// The function of this name, or the only one.
    pub(crate) fn one(&self, name: Option<&str>) -> Result<Function> {
        let functions = self.functions(name)?;
        if let [function] = &functions[..] {
            return Ok(function.clone());
        }
        let names: Vec<&str> = functions.iter().map(|f| f.name.as_str()).collect();
        Err(Usage::new(anyhow!("{}: expected --fn, one of {}", self.name, names.join(", "))).into())
    }
}

/// Operators, inputs and outputs of a function.
fn nodes(function: &Function) -> usize {
    let operators = function.body.as_ref().iter().filter(|op| !op.is_leaf()).count();
    operators + function.inputs.len() + function.outputs.len()
}

/// The functions of a file, a published size or a model, in this order of what is given.
pub(crate) fn source(
    file: Option<&Path>,
    preset: Option<&str>,
    model: Option<&Path>,
    compile: &CompileArgs,
) -> Result<Source> {
    if let Some(path) = file {
        return of_file(path, compile.context.unwrap_or(FILE_CONTEXT));
    }
    let options = compile.unpriced()?;
    let (name, graph) = if let Some(preset) = preset {
        let graph = Graph::of(&Config::preset(preset)?, &options, &|_| DType::BF16);
        (preset.to_string(), graph)
    } else {
        let files = model::files(model)?;
        (files.path.display().to_string(), Graph::stored(&files, &options))
    };
    Ok(Source { name, graph: graph.map_err(options::error)? })
}

/// The functions of a file of the tensor language; of stdin, if it is `-`.
fn of_file(path: &Path, context: usize) -> Result<Source> {
    let (name, source) = if path == Path::new("-") {
        ("stdin".to_string(), read_stdin()?)
    } else {
        (path.display().to_string(), read_text(path)?)
    };
    let bytes = source.len();
    ensure!(bytes <= MOST_BYTES, "{name}: expected at most {MOST_BYTES} bytes, found {bytes}");
    let module = text::parse_module(&source).with_context(|| name.clone())?;
    ensure!(!module.functions.is_empty(), "{name}: expected a function, found none");
    let nodes = module.functions.iter().map(nodes).sum::<usize>();
    ensure!(
        nodes <= MOST_NODES,
        "{name}: expected at most {MOST_NODES} operators, inputs and outputs, found {nodes}"
    );
    Ok(Source { name, graph: Graph::loose(module, context) })
}
