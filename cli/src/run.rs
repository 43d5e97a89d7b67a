//! `lapidary run`: continues a prompt, as a stream of text.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lapidary_models::Message;
use lapidary_runtime::text::{AnswerEnd, AnswerText, PromptForm, prompt};
use lapidary_runtime::{Sampler, generate};
use serde_json::json;

use crate::generation::{GenerationArgs, TEXT_TOKENS, parse_ids};
use crate::hints;
use crate::interrupt::{Interrupted, Work};
use crate::model::{Engine, ModelArgs, Stats, read_stdin, read_text};
use crate::output::{self, Unit, Usage};
use crate::sampling::SamplingArgs;
use crate::state::StateArgs;

/// Continue a text; without -m with the built-in tiny model.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary run \"It is a truth universally acknowledged\"\n  \
    lapidary run -m gemma-2-2b-it --temp 0 --stats \"Why is the sky blue?\"\n  \
    lapidary run -n 64 -f prompt.txt\n  \
    lapidary run -- \"--help, he said\"\n\n\
    Flags of llama.cpp's users are taken, too: docs/cli.md has a table.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print times and sizes on stderr at the end
    #[arg(long)]
    stats: bool,
    /// Give the prompt to the model as it is, without the chat template of an instruction-tuned one
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    raw: bool,
    /// Put the prompt into the chat template, of a model that is not instruction-tuned too
    #[arg(long)]
    chat: bool,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    /// The text to continue; `-`, or nothing where stdin is no terminal, reads it from stdin
    #[arg(value_name = "PROMPT")]
    words: Vec<String>,
    /// The text to continue
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "words")]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["words", "prompt"])]
    file: Option<PathBuf>,
    /// Token ids to continue, separated by commas, instead of a text; nothing is put before them
    #[arg(long, value_name = "IDS", conflicts_with_all = ["words", "prompt", "file", "chat", "raw", "system"])]
    ids: Option<String>,
    #[command(flatten)]
    state: StateArgs,
}

/// What is continued.
enum Source {
    Text(String),
    Ids(Vec<u32>),
}

impl Args {
    fn source(&self) -> Result<Source> {
        if let Some(list) = &self.ids {
            return Ok(Source::Ids(parse_ids(list, "--ids").map_err(Usage::new)?));
        }
        if self.state.load.is_some() && self.prompt.is_none() && self.file.is_none() && self.words.is_empty()
        {
            return Ok(Source::Ids(vec![]));
        }
        let given = self.model.model.is_some();
        let text = match (&self.prompt, &self.file, &self.words[..]) {
            (Some(text), _, _) => text.clone(),
            (None, Some(path), _) if path.as_os_str() == "-" => stdin()?,
            (None, Some(path), _) => read_text(path)?,
            (None, None, []) if std::io::stdin().is_terminal() => {
                return Err(Usage::new(anyhow!("{NO_PROMPT}; `lapidary chat` holds a conversation")).into());
            }
            (None, None, []) => stdin().map_err(Usage::new)?,
            (None, None, [word]) if word == "-" => stdin()?,
            (None, None, [word]) => {
                if let Some(hint) = hints::of_prompt(word, given) {
                    output::note("hint", &hint);
                }
                word.clone()
            }
            (None, None, [first, rest @ ..]) => {
                let quoted = "expected one PROMPT: put quotes around it";
                let model = "a model is given by `-m`: lapidary run -m MODEL PROMPT";
                // `run NAME "a prompt"`: who put quotes around the prompt meant a model by the word before.
                let is_prompt = rest.len() == 1 && rest[0].contains(char::is_whitespace);
                let is_word = !first.contains(char::is_whitespace);
                let meant = !given && (hints::is_model(first) || is_word && is_prompt);
                let hint = match (meant, given) {
                    (true, _) => model.to_owned(),
                    (false, true) => quoted.to_owned(),
                    (false, false) => format!("{quoted}, or give a model by `-m`"),
                };
                return Err(Usage::new(anyhow!("unexpected argument {:?}: {hint}", self.words[1])).into());
            }
        };
        Ok(Source::Text(text))
    }
}

/// Generates.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let source = args.source()?;
    let mut engine = Engine::new(&args.model)?;
    let model = engine.model.clone();
    let options = args.state.load(&mut engine.session, options)?;
    let most = args.generation.tokens(TEXT_TOKENS);
    let (ids, form) = encode(args, &engine, source)?;
    engine.check_fits("the prompt", ids.len())?;
    let vocab = model.config.vocab_size;
    if let Some(&token) = ids.iter().find(|&&id| id as usize >= vocab) {
        bail!("--ids: {}", lapidary_runtime::Error::TokenRange { token, vocab });
    }
    let mut sampler = Sampler::new(options, vocab)?;
    let work = Work::begin();
    if args.model.model.is_none() {
        output::note("note", "the built-in tiny model continues the text: -m takes another");
    }
    if let Some(form) = form {
        output::remark(form);
    }

    let mut answer = AnswerText::new(engine.detokenizer()?, &args.generation.stop);
    let mut failed = None;
    let mut show = |text: &str| {
        if !args.json
            && !text.is_empty()
            && let Err(error) = output::print_words(text)
        {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let bar = output::bar(ids.len() as u64, "reading", Unit::Tokens);
    let chunk = engine.session.program().plan.chunk;
    let mut on_prefill = |done: usize, total: usize| {
        if total > chunk {
            bar.set_position(done as u64);
        }
        if done == total {
            bar.finish_and_clear();
        }
        work.flow()
    };
    let mut on_token = |id: u32| {
        if show(answer.push(id)).is_break() || answer.stopped() {
            ControlFlow::Break(())
        } else {
            work.flow()
        }
    };
    let before = engine.session.position();
    let generation = generate(
        &mut engine.session,
        &mut sampler,
        &ids,
        most,
        &args.generation.stop_tokens(&model.stop_tokens),
        &mut on_token,
        &mut on_prefill,
    )
    .with_context(|| model.path.display().to_string())?;
    bar.finish_and_clear();
    // That it breaks is told by `failed`.
    let _ = show(answer.finish());
    if let Some(error) = failed {
        return Err(error);
    }
    args.state.save(&engine.session, before, &generation, options)?;
    let end = AnswerEnd::of(generation.stop, answer.stopped());
    let stats = Stats {
        prompt_tokens: generation.prompt_tokens,
        prefill: generation.prefill,
        generated_tokens: generation.tokens.len(),
        decode: generation.decode,
    };
    if args.json {
        output::print_json(&json!({
            "text": answer.text(),
            "tokens": generation.tokens,
            "stop": end.name(),
            "seed": options.seed,
            "stats": stats.json(&engine),
        }))?;
    } else {
        output::print("\n")?;
    }
    if args.stats {
        output::say(stats.text(&engine).trim_end());
    }
    if end == AnswerEnd::Interrupted {
        return Err(Interrupted.into());
    }
    engine.check_numbers()?;
    match end {
        AnswerEnd::Length => {
            output::note("note", &format!("ended after {most} tokens (-n takes more, -n -1 all)"))
        }
        AnswerEnd::Context => {
            let more = if args.model.compile.context.is_some() { " (--context takes more)" } else { "" };
            let context = engine.session.context();
            output::note("note", &format!("ended: the context of {context} tokens is full{more}"));
        }
        AnswerEnd::EndOfText | AnswerEnd::StopText | AnswerEnd::Interrupted => {}
    }
    Ok(())
}

/// The ids to continue, and what is told of their form.
fn encode(args: &Args, engine: &Engine, source: Source) -> Result<(Vec<u32>, Option<&'static str>)> {
    let text = match source {
        Source::Ids(ids) => return Ok((ids, None)),
        Source::Text(text) => text,
    };
    let model = &engine.model;
    let system = args.generation.system.as_deref();
    if args.state.load.is_some() {
        let ids = engine.encode_more("the prompt", &text)?;
        return Ok((ids, Some("the prompt goes on with the text that was loaded")));
    }
    match PromptForm::choose(args.raw, args.chat || system.is_some(), model.is_instruction_tuned()) {
        PromptForm::Plain => Ok((
            engine.encode("the prompt", &text)?,
            Some("the prompt is plain text, which the model continues"),
        )),
        PromptForm::Chat => {
            let Some(template) = &model.chat_template else {
                let option = if args.chat { "--chat" } else { "--system" };
                bail!("{}: no chat template, which {option} needs", engine.name());
            };
            let prompt = prompt::render(template, system, &[Message::new("user", text)])?;
            let form = "the prompt is in the model's chat template (--raw gives it as it is)";
            Ok((engine.encode("the prompt", &prompt)?, Some(form)))
        }
    }
}

/// What is missing where there is no prompt.
const NO_PROMPT: &str = "expected a PROMPT: lapidary run \"text\", -f FILE, or text on stdin";

fn stdin() -> Result<String> {
    let text = read_stdin()?;
    ensure!(!text.trim().is_empty(), "stdin is empty: {NO_PROMPT}");
    Ok(text)
}
