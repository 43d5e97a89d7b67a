//! `lapidary-run`: continues a prompt, holds a conversation, or calls a function, by an artifact. It holds no compiler.
//!
//! In: an artifact, and a prompt or lines. Out: text on stdout; notes, and with `--stats` times, on stderr. Exit code 0
//! is success, 1 a failure (one line, `error: ...`), 2 a mistake in the arguments. A reader that closes stdout early
//! ends it quietly.

mod args;
mod artifact;
mod call;
mod chat;
#[path = "../../../cli/src/dialog.rs"]
mod dialog;
#[path = "../../../cli/src/flags.rs"]
mod flags;
#[path = "../../../cli/src/generation.rs"]
mod generation;
mod model;
mod output;
#[path = "../../../cli/src/residence.rs"]
mod residence;
#[path = "../../../cli/src/sampling.rs"]
mod sampling;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
#[path = "../../../cli/src/serving.rs"]
mod serving;
#[path = "../../../cli/src/speculation.rs"]
mod speculation;
#[path = "../../../cli/src/state.rs"]
mod state;
#[path = "../../../cli/src/trust.rs"]
mod trust;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{CommandFactory, FromArgMatches};
use lapidary_runtime::memory::Allocator;
use lapidary_runtime::text::{AnswerEnd, AnswerText, Message, PromptForm, prompt};
use lapidary_runtime::{Sampler, fault, generate, one_line, terminal};
use serde_json::json;

use args::{Args, Source, Usage};
use generation::TEXT_TOKENS;
use model::{Model, stats_json, stats_line};
use output::{note, print, say};

/// The exit code of a mistake in the arguments; clap's own.
const USAGE: u8 = 2;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    fault::install();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "serve") {
        return ended(serve(args));
    }
    if args.get(1).is_some_and(|word| word == "call") {
        args.remove(1);
        return ended(call::run(args));
    }
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
    ended(result)
}

/// What a result ends with.
fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note("error", &one_line(error.as_ref()));
            if error.is::<Usage>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// `lapidary-run serve FILE`: see `lapidary serve`.
#[cfg(feature = "serve")]
fn serve(mut args: Vec<OsString>) -> Result<()> {
    args.remove(1);
    serve::run(args)
}

#[cfg(not(feature = "serve"))]
fn serve(_: Vec<OsString>) -> Result<()> {
    Err(Usage("this lapidary-run holds no server: build it with --features serve".into()).into())
}

fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let (path, source) = args.source()?;
    let mut model = Model::load(args, &path)?;
    args.speculation.begin(&mut model.session, |path| Ok(args.artifact.session(path)?.1))?;
    let options = args.state.load(&mut model.session, options)?;
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
    let before = model.session.position();
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
    args.state.save(&model.session, before + generation.prompt_tokens, &generation.tokens, options)?;
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
            let more = if args.artifact.context.is_some() { " (--context takes more)" } else { "" };
            note("note", &format!("ended: the context of {context} tokens is full{more}"));
        }
        AnswerEnd::EndOfText | AnswerEnd::StopText | AnswerEnd::Interrupted => {}
    }
    Ok(())
}

/// The ids to continue, and what is told of their form.
fn encode(args: &Args, model: &Model, text: String) -> Result<(Vec<u32>, Option<&'static str>)> {
    let (tokenizer, context) = (model.tokenizer()?, model.session.context());
    let goes_on = args.state.load.is_some();
    let encode =
        |text: &str| tokenizer.encode_within(text, !goes_on, context).context("the prompt is too long");
    if goes_on {
        return Ok((encode(&text)?, Some("the prompt goes on with the text that was loaded")));
    }
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

/// Whether an error is that stdout's reader went away.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}
