//! Which functions a command of the fusion lab is about: options, and what they select.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use lapidary_ir::Function;

use crate::model::{self, CompileArgs, MAX_CHUNK};
use crate::opt::{self, Source};

/// Which functions, compiled how.
#[derive(Clone, clap::Args)]
pub(crate) struct FunctionArgs {
    /// Hugging Face folder of a Gemma 2 [default: the built-in tiny model]
    #[arg(short, long, value_name = "MODEL", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// Published size: 2b, 9b or 27b
    #[arg(long, value_name = "NAME", value_parser = model::presets())]
    preset: Option<String>,
    /// Only this function
    #[arg(long = "fn", value_name = "NAME")]
    function: Option<String>,
    /// Rows of a call [default: the most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CHUNK))]
    rows: Option<u64>,
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
        opt::source(file, self.preset.as_deref(), self.model.as_deref(), &self.compile)
    }

    /// The selected functions.
    pub(crate) fn functions(&self, source: &Source) -> Result<Vec<Function>> {
        let Some(name) = &self.function else { return Ok(source.module.functions.clone()) };
        let known: Vec<&str> = source.module.functions.iter().map(|f| f.name.as_str()).collect();
        let found = source.module.function(name).cloned();
        Ok(vec![found.ok_or_else(|| anyhow!("no function `{name}`: expected one of {}", known.join(", ")))?])
    }

    /// The rows of a call.
    pub(crate) fn rows(&self, chunk: usize) -> Result<usize> {
        let rows = self.rows.map_or(chunk, |n| n as usize);
        ensure!(rows <= chunk, "--rows is {rows}: expected 1 to {chunk}, the chunk");
        Ok(rows)
    }
}
