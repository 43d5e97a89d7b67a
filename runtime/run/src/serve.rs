//! `lapidary-run serve`: an artifact behind the API of OpenAI, without a compiler.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser};
use lapidary_runtime::text::Text;
use lapidary_runtime::{Artifact, Engine};
use lapidary_server::Served;

use crate::args::Usage;
use crate::artifact::ArtifactArgs;
use crate::flags;
use crate::serving::ServingArgs;

/// Serve an artifact that `lapidary compile` wrote to clients of OpenAI's API, and a page to chat at.
#[derive(Parser)]
#[command(name = "lapidary-run serve", version)]
struct Args {
    /// Artifact
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Artifact
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    model: Option<PathBuf>,
    #[command(flatten)]
    artifact: ArtifactArgs,
    #[command(flatten)]
    serving: ServingArgs,
}

/// Serves until a signal.
pub(crate) fn run(words: Vec<OsString>) -> Result<()> {
    let command = flags::with_numbers_below_zero(Args::command());
    let words = flags::translate(&command, words).map_err(Usage)?;
    let args = Args::from_arg_matches(&command.get_matches_from(words)).unwrap_or_else(|e| e.exit());
    let Some(path) = args.file.clone().or(args.model.clone()) else {
        return Err(Usage("expected FILE, an artifact of `lapidary compile`".into()).into());
    };
    let (serving, options) = (args.serving.clone(), args.serving.options());
    let load = move || -> Result<Served> {
        let start = |program, weights: Arc<Artifact>, threads, residence| {
            Engine::new(program, weights, threads)?.with_residence(residence)
        };
        let (artifact, engine) = args.artifact.open(&path, start, Engine::threads)?;
        let speculation = serving.speculation(|draft| Ok(args.artifact.session(draft)?.1))?;
        let text = Text::of(&artifact, engine.program().plan.vocab)?;
        Ok(Served { name: serving.name(Some(&path)), engine, speculation, text: Box::new(text) })
    };
    let load = Box::new(move || load().map_err(|error| format!("{error:#}").into()));
    Ok(lapidary_server::serve(options, load)?)
}
