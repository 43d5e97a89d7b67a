//! `lapidary-run`: continues a prompt, or holds a conversation, by an artifact. It holds no compiler.
//!
//! In: an artifact, and a prompt or lines. Out: text on stdout; notes, and with `--stats` times, on stderr. Exit code 0
//! is success, 1 a failure (one line, `error: ...`), 2 a mistake in the arguments. A reader that closes stdout early
//! ends it quietly.

mod chat;
#[path = "../../../cli/src/dialog.rs"]
mod dialog;
#[path = "../../../cli/src/flags.rs"]
mod flags;
#[path = "../../../cli/src/generation.rs"]
mod generation;
#[path = "../../../cli/src/sampling.rs"]
mod sampling;
#[path = "../../../cli/src/trust.rs"]
mod trust;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{CommandFactory, FromArgMatches, Parser};
use lapidary_runtime::memory::Allocator;
use lapidary_runtime::text::{AnswerEnd, AnswerText, Message, PromptForm, Text, Tokenizer, prompt};
use lapidary_runtime::{Generation, Sampler, Session, fault, file, generate, one_line, terminal};
use serde_json::{Value, json};

use generation::{GenerationArgs, TEXT_TOKENS, parse_ids};
use sampling::SamplingArgs;
use trust::TrustArgs;

/// Continue a text, or hold a conversation, by a compiled model: an artifact that `lapidary compile` wrote.
#[derive(Parser)]
#[command(
    name = "lapidary-run",
    version,
    override_usage = "lapidary-run [OPTIONS] FILE PROMPT\n       lapidary-run chat [OPTIONS] FILE",
    after_help = "Examples:\n  lapidary-run gemma-2-2b-it.lap --temp 0 \"Why is the sky blue?\"\n  \
    lapidary-run chat gemma-2-2b-it.lap --system \"Be brief.\"\n\nIn a conversation a line is a message; /help lists the commands."
)]
struct Args {
    /// Artifact and the text to continue; `-`, or nothing where stdin is no terminal, reads the text from stdin
    #[arg(value_name = "FILE PROMPT")]
    words: Vec<OsString>,
    /// Artifact
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The text to continue
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Token ids to continue, separated by commas, instead of a text; nothing is put before them
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "chat", "raw", "system"])]
    ids: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
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
    /// Give the prompt to the model as it is, without the chat template of an instruction-tuned one
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    raw: bool,
    /// Put the prompt into the chat template, of a model that is not instruction-tuned too; without a prompt: hold a
    /// conversation
    #[arg(long)]
    chat: bool,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    /// Print times, and memory before use, on stderr at the end
    #[arg(long)]
    stats: bool,
}

/// The exit code of a mistake in the arguments; clap's own.
const USAGE: u8 = 2;

/// A mistake in the arguments that the parser of arguments cannot see.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    fault::install();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    // As `lapidary chat` and `lapidary run`.
    match args.get(1).and_then(|word| word.to_str()) {
        Some("chat") => args[1] = "--chat".into(),
        Some("run") => drop(args.remove(1)),
        _ => {}
    }
    let command = flags::with_numbers_below_zero(Args::command());
    let result = match flags::translate(&command, args) {
        Ok(args) => {
            let parsed = Args::from_arg_matches(&command.get_matches_from(args));
            run(&parsed.unwrap_or_else(|e| e.exit()))
        }
        Err(line) => Err(Usage(line).into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note("error", &one_line(error.as_ref()));
            if error.is::<Usage>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// What is continued.
enum Source {
    Text(String),
    Ids(Vec<u32>),
    /// Lines, each a message.
    Lines,
}

impl Args {
    /// The artifact, and what is continued.
    fn source(&self) -> Result<(PathBuf, Source)> {
        let usage = |text: &str| anyhow::Error::from(Usage(text.into()));
        let (path, words) = match (&self.model, &self.words[..]) {
            (Some(path), words) => (path.clone(), words),
            (None, [path, words @ ..]) => (PathBuf::from(path), words),
            (None, []) => return Err(usage("expected FILE, an artifact of `lapidary compile`, and PROMPT")),
        };
        let source = match (&self.ids, &self.prompt, &self.file, words) {
            (_, _, _, [_, _, ..]) => return Err(usage("expected one PROMPT: put quotes around it")),
            (Some(_), _, _, [_]) | (None, Some(_), _, [_]) | (None, None, Some(_), [_]) => {
                return Err(usage("expected one prompt, found PROMPT and another by an option"));
            }
            (Some(list), ..) => {
                Source::Ids(parse_ids(list, "--ids").map_err(|e| usage(&one_line(e.as_ref())))?)
            }
            (None, Some(text), ..) => Source::Text(text.clone()),
            (None, None, Some(file), _) if file.as_os_str() != "-" => Source::Text(read(file)?),
            (None, None, Some(_), _) => Source::Text(stdin()?),
            (None, None, None, [word]) if word == "-" => Source::Text(stdin()?),
            (None, None, None, [word]) => {
                Source::Text(word.to_str().ok_or_else(|| usage("PROMPT: expected UTF-8 text"))?.to_string())
            }
            (None, None, None, []) if self.chat => Source::Lines,
            (None, None, None, []) if io::stdin().is_terminal() => {
                return Err(usage(NO_PROMPT));
            }
            (None, None, None, []) => Source::Text(stdin().map_err(|e| usage(&one_line(e.as_ref())))?),
        };
        Ok((path, source))
    }
}

/// What is missing where there is no prompt.
const NO_PROMPT: &str = "expected a PROMPT: lapidary-run FILE \"text\", -f FILE, or text on stdin; \
    `lapidary-run chat FILE` holds a conversation";

/// An artifact ready to run.
struct Model {
    path: String,
    /// What its code is made for.
    code: String,
    text: Text,
    session: Session,
    vocab: usize,
    load: Duration,
    /// Resident memory after loading, in MB.
    resident: String,
}

impl Model {
    fn load(args: &Args, path: &Path) -> Result<Model> {
        let start = Instant::now();
        let artifact = Arc::new(args.trust.open(path)?.0);
        if args.verify {
            artifact.verify()?;
        }
        let mut program = artifact.program(args.cpu.as_deref())?;
        let name = path.display().to_string();
        if let Some(context) = args.context {
            program.limit_context(context as usize).with_context(|| name.clone())?;
        }
        let code = program.made_for.to_string();
        let vocab = program.plan.vocab;
        let text = Text::of(&artifact, vocab)?;
        let threads = args
            .threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |n| n as usize);
        let session = Session::new(Arc::new(program), artifact, threads).with_context(|| name.clone())?;
        if session.threads() < threads {
            note("warning", &format!("the system gives {} of {threads} threads", session.threads()));
        }
        Ok(Model { code, path: name, text, session, vocab, load: start.elapsed(), resident: resident() })
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.text.tokenizer.as_ref().ok_or_else(|| anyhow!("{}: it has no tokenizer", self.path))
    }

    /// Fails if the logits after the last token are no numbers.
    fn check_numbers(&mut self) -> Result<()> {
        let broken = self.session.has_logits() && self.session.logits().iter().all(|x| x.is_nan());
        ensure!(!broken, "{}: the logits are NaN: its weights hold NaN or infinity", self.path);
        Ok(())
    }
}

fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let (path, source) = args.source()?;
    let mut model = Model::load(args, &path)?;
    let mut sampler = Sampler::new(options, model.vocab)?;
    let (ids, form) = match source {
        Source::Lines => return chat::hold(args, model, &mut sampler),
        Source::Ids(ids) => (ids, None),
        Source::Text(text) => encode(args, &model, text)?,
    };
    let context = model.session.context();
    ensure!(ids.len() <= context, "the prompt is {} tokens, the context is {context}", ids.len());
    if let Some(&token) = ids.iter().find(|&&id| id as usize >= model.vocab) {
        let vocab = model.vocab;
        bail!("--ids: {}", lapidary_runtime::Error::TokenRange { token, vocab });
    }
    if let Some(form) = form.filter(|_| io::stderr().is_terminal()) {
        note("note", form);
    }
    let most = args.generation.tokens(TEXT_TOKENS);
    let mut answer = AnswerText::new(model.tokenizer()?.detokenizer(), &args.generation.stop);
    let mut failed = None;
    let mut show = |text: &str| match print(if args.json { "" } else { text }) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    };
    let mut on_token = |id: u32| {
        let flow = show(answer.push(id));
        if answer.stopped() { ControlFlow::Break(()) } else { flow }
    };
    let generation = generate(
        &mut model.session,
        &mut sampler,
        &ids,
        most,
        &args.generation.stop_tokens(&model.text.stop_tokens),
        &mut on_token,
        &mut |_, _| ControlFlow::Continue(()),
    )
    .with_context(|| model.path.clone())?;
    // That it breaks is told by `failed`.
    let _ = show(answer.finish());
    if let Some(error) = failed {
        return Err(error);
    }
    let end = AnswerEnd::of(generation.stop, answer.stopped());
    if args.json {
        let object = json!({
            "text": answer.text(),
            "tokens": generation.tokens,
            "stop": end.name(),
            "seed": options.seed,
            "stats": stats_json(&model, &generation),
        });
        print(&terminal::json(&format!("{object:#}\n")))?;
    } else {
        print("\n")?;
    }
    if args.stats {
        let (prefill, decode) = (generation.prefill, generation.decode);
        say(&stats_line(&model, generation.prompt_tokens, prefill, generation.tokens.len(), decode));
    }
    model.check_numbers()?;
    match end {
        AnswerEnd::Length => note("note", &format!("ended after {most} tokens (-n takes more, -n -1 all)")),
        AnswerEnd::Context => {
            let more = if args.context.is_some() { " (--context takes more)" } else { "" };
            note("note", &format!("ended: the context of {context} tokens is full{more}"));
        }
        AnswerEnd::EndOfText | AnswerEnd::StopText | AnswerEnd::Interrupted => {}
    }
    Ok(())
}

/// The ids to continue, and what is told of their form.
fn encode(args: &Args, model: &Model, text: String) -> Result<(Vec<u32>, Option<&'static str>)> {
    let (tokenizer, context) = (model.tokenizer()?, model.session.context());
    let encode = |text: &str| tokenizer.encode_within(text, true, context).context("the prompt is too long");
    let system = args.generation.system.as_deref();
    match PromptForm::choose(args.raw, args.chat || system.is_some(), model.text.is_instruction_tuned()) {
        PromptForm::Plain => {
            Ok((encode(&text)?, Some("the prompt is plain text, which the model continues")))
        }
        PromptForm::Chat => {
            let Some(template) = &model.text.chat_template else {
                let option = if args.chat { "--chat" } else { "--system" };
                bail!("{}: no chat template, which {option} needs", model.path);
            };
            let prompt = prompt::render(template, system, &[Message::new("user", text)])?;
            let form = "the prompt is in the model's chat template (--raw gives it as it is)";
            Ok((encode(&prompt)?, Some(form)))
        }
    }
}

/// Times and memory on a line.
fn stats_line(model: &Model, prompt: usize, prefill: Duration, tokens: usize, decode: Duration) -> String {
    format!(
        "code for {}\nload {:.1} ms, {} MB resident after it, prefill {prompt} tokens in {:.1} ms, decode {tokens} tokens in {:.1} ms",
        model.code,
        ms(model.load),
        model.resident,
        ms(prefill),
        ms(decode)
    )
}

/// The same for programs, by the names of `lapidary run --json`.
fn stats_json(model: &Model, generation: &Generation) -> Value {
    let rate =
        |tokens: usize, time: Duration| if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64() };
    json!({
        "load_ms": ms(model.load),
        "threads": model.session.threads(),
        "prompt_tokens": generation.prompt_tokens,
        "prefill_ms": ms(generation.prefill),
        "prefill_tokens_per_second": rate(generation.prompt_tokens, generation.prefill),
        "generated_tokens": generation.tokens.len(),
        "decode_ms": ms(generation.decode),
        "decode_tokens_per_second": rate(generation.tokens.len(), generation.decode),
    })
}

/// Milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
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

/// Writes `label: text` to stderr; a closed stderr is nobody's business.
fn note(label: &str, text: &str) {
    say(&format!("{label}: {}", terminal::line(text)));
}

/// Writes a line to stderr.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn read(path: &Path) -> Result<String> {
    Ok(file::text(path, file::read(path)?)?)
}

fn stdin() -> Result<String> {
    let name = Path::new("stdin");
    let text = file::text(name, file::limited(name, io::stdin().lock())?)?;
    ensure!(!text.trim().is_empty(), "stdin is empty: {NO_PROMPT}");
    Ok(text)
}

/// Whether an error is that stdout's reader went away.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}
