//! `lapidary-run serve`: an artifact behind the API of OpenAI, without a compiler.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::{CommandFactory, FromArgMatches, Parser};
use lapidary_runtime::text::Text;
use lapidary_runtime::{Artifact, Engine, threads};
use lapidary_server::Served;

use crate::args::Usage;
use crate::flags;
use crate::serving::ServingArgs;
use crate::trust::TrustArgs;

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
    /// CPU whose code is run [default: the best that the file has for this machine]
    #[arg(long, value_name = "NAME")]
    cpu: Option<String>,
    /// Threads [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Most positions, in tokens, fewer than the file is compiled for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    context: Option<u64>,
    /// Hold every section of the file against its hash first
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    trust: TrustArgs,
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
    let (name, options) = (args.serving.name(Some(&path)), args.serving.options());
    let load = move || -> Result<Served> {
        let artifact = Arc::new(Artifact::open_trusted(&path, &args.trust.trust)?.0);
        if args.verify {
            artifact.verify()?;
        }
        let mut program = artifact.program(args.cpu.as_deref())?;
        let of = |error: lapidary_runtime::Error| anyhow!("{}: {error}", path.display());
        if let Some(context) = args.context {
            program.limit_context(context as usize).map_err(of)?;
        }
        let text = Text::of(&artifact, program.plan.vocab)?;
        let threads = args.threads.map_or_else(threads::of_machine, |n| n as usize);
        let engine = Engine::new(Arc::new(program), artifact, threads).map_err(of)?;
        Ok(Served { name, engine, text: Box::new(text) })
    };
    let load = Box::new(move || load().map_err(|error| format!("{error:#}").into()));
    Ok(lapidary_server::serve(options, load)?)
}
