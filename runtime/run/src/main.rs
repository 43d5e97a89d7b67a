//! `lapidary-run`: continues a prompt by an artifact, as a stream of text. It holds no compiler.
//!
//! In: an artifact and a prompt. Out: text on stdout; with `--stats` times on stderr. Exit code 0 is success, 1 a failure (one
//! line, `error: ...`), 2 a mistake in the arguments. A reader that closes stdout early ends it quietly.

#[path = "../../../cli/src/sampling.rs"]
mod sampling;
#[path = "../../../cli/src/trust.rs"]
mod trust;

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use lapidary_runtime::memory::Allocator;
use lapidary_runtime::text::{Message, Text};
use lapidary_runtime::{Sampler, Session, fault, file, generate, one_line, terminal};

use sampling::SamplingArgs;
use trust::TrustArgs;

/// Continue a text by a compiled model, an artifact that `lapidary compile` wrote.
#[derive(Parser)]
#[command(
    name = "lapidary-run",
    version,
    after_help = "Example:\n  lapidary-run gemma-2-2b-it.lap --temp 0 \"Why is the sky blue?\""
)]
struct Args {
    /// Artifact
    #[arg(value_name = "FILE")]
    artifact: PathBuf,
    /// The text to continue; `-` reads it from stdin
    #[arg(value_name = "PROMPT")]
    prompt: String,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// CPU whose code is run [default: the best that the file has for this machine]
    #[arg(long, value_name = "NAME")]
    cpu: Option<String>,
    /// Threads [default: one a CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Hold every section of the file against its hash first
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    trust: TrustArgs,
    /// Give the prompt to the model as it is, without the chat template of an instruction-tuned one
    #[arg(long)]
    raw: bool,
    /// Print times, and memory before use, on stderr at the end
    #[arg(long)]
    stats: bool,
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    fault::install();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "error: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let options = args.sampling.options();
    options.validate()?;
    let prompt = if args.prompt == "-" { stdin()? } else { args.prompt.clone() };
    let artifact = Arc::new(args.trust.open(&args.artifact)?.0);
    if args.verify {
        artifact.verify()?;
    }
    let program = Arc::new(artifact.program(args.cpu.as_deref())?);
    let code = program.made_for.to_string();
    let vocab = program.plan.vocab;
    let text = Text::of(&artifact, vocab)?;
    let path = args.artifact.display();
    let tokenizer = text.tokenizer.as_ref().ok_or_else(|| anyhow!("{path}: it has no tokenizer"))?;
    let threads = args
        .threads
        .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |n| n as usize);
    let mut session = Session::new(program, artifact, threads).with_context(|| path.to_string())?;
    if session.threads() < threads {
        let given = session.threads();
        let _ = writeln!(io::stderr().lock(), "warning: the system gives {given} of {threads} threads");
    }
    let (load, resident) = (start.elapsed(), resident());

    let context = session.context();
    let encode = |text: &str| tokenizer.encode_within(text, true, context).context("the prompt is too long");
    let template = text.chat_template.as_ref().filter(|_| !args.raw && text.is_instruction_tuned());
    let ids = match template {
        Some(template) => encode(&template.render(&[Message::new("user", prompt)], true)?)?,
        None => encode(&prompt)?,
    };
    ensure!(ids.len() <= context, "the prompt is {} tokens, the context is {context}", ids.len());
    let mut sampler = Sampler::new(options, vocab)?;
    let mut detokenizer = tokenizer.detokenizer();
    let mut failed = None;
    let mut on_token = |id: u32| match print(&detokenizer.push(id)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    };
    let generation = generate(
        &mut session,
        &mut sampler,
        &ids,
        args.tokens,
        &text.stop_tokens,
        &mut on_token,
        &mut |_, _| ControlFlow::Continue(()),
    )
    .with_context(|| path.to_string())?;
    if let Some(error) = failed {
        return Err(error);
    }
    print(&format!("{}\n", detokenizer.finish()))?;
    if args.stats {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let tokens = generation.tokens.len();
        let (prefill, decode) = (ms(generation.prefill), ms(generation.decode));
        let line = format!(
            "load {:.1} ms, {resident} MB resident after it, prefill {} tokens in {prefill:.1} ms, \
            decode {tokens} tokens in {decode:.1} ms",
            ms(load),
            generation.prompt_tokens
        );
        let _ = writeln!(io::stderr().lock(), "code for {code}\n{line}");
    }
    let broken = session.has_logits() && session.logits().iter().all(|x| x.is_nan());
    ensure!(!broken, "{path}: the logits are NaN: its weights hold NaN or infinity");
    Ok(())
}

/// Resident memory of the process in MB, mapped files included; `?` where the system does not say.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or("?".into(), |kib| format!("{:.1}", kib * 1024.0 / 1e6))
}

/// Writes a model's words to stdout at once; what could steer a terminal is written out on one.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { terminal::escape(text) } else { text.into() };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
}

fn stdin() -> Result<String> {
    let name = Path::new("stdin");
    Ok(file::text(name, file::limited(name, io::stdin().lock())?)?)
}

/// Whether an error is that stdout's reader went away.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}
