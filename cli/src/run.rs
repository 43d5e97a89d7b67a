//! `lapidary run`: continues a prompt, as a stream of text.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lapidary::{AnswerEnd, Generate, Message};
use lapidary_runtime::text::{PromptForm, prompt};
use serde_json::json;

use crate::generation::{GenerationArgs, TEXT_TOKENS, parse_ids};
use crate::hints;
use crate::interrupt::{Interrupted, Work};
use crate::model::{Engine, read_stdin, read_text};
use crate::options::ModelArgs;
use crate::output::{self, Unit, Usage};
use crate::sampling::SamplingArgs;
use crate::speculation::SpeculationArgs;
use crate::state::StateArgs;
use crate::stats::Stats;

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
    #[command(flatten)]
    speculation: SpeculationArgs,
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
                if let Some(error) = hints::model_as_prompt(word).filter(|_| !given) {
                    return Err(Usage::new(anyhow!(error)).into());
                }
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
    engine.speculate(&args.speculation, &args.model)?;
    let model = engine.model.clone();
    let options = args.state.load(&mut engine.session, options)?;
    let most = args.generation.tokens(TEXT_TOKENS);
    let (ids, form) = encode(args, &engine, source)?;
    engine.check_fits("the prompt", ids.len())?;
    let vocab = model.config().vocab_size;
    if let Some(&token) = ids.iter().find(|&&id| id as usize >= vocab) {
        bail!("--ids: {}", lapidary_runtime::Error::TokenRange { token, vocab });
    }
    let how = Generate {
        max_tokens: most,
        sampler: options,
        stop: args.generation.stop.clone(),
        stop_tokens: Some(args.generation.stop_tokens(model.stop_tokens())),
    };
    let work = Work::begin();
    if args.model.model.is_none() {
        output::note("note", "the built-in tiny model continues the text: -m takes another");
    }
    if let Some(form) = form {
        output::remark(form);
    }

    let show = |text: &str| if args.json || text.is_empty() { Ok(()) } else { output::print_words(text) };
    let bar = output::bar(ids.len() as u64, "reading", Unit::Tokens);
    let chunk = engine.session.program().plan.chunk;
    let mut on_prefill = |done: usize, total: usize| {
        if total > chunk {
            bar.set_position(done as u64);
        }
        work.flow()
    };
    let before = engine.session.position();
    let named = || model.path().display().to_string();
    let start = Instant::now();
    let mut goes_on = engine.session.prefill_with(&ids, &mut on_prefill).with_context(named)?;
    bar.finish_and_clear();
    let (prefill, prompt_tokens) = (start.elapsed(), engine.session.position() - before);
    let start = Instant::now();
    let mut generation = model.generate(&mut engine.session, &[], &how).with_context(named)?;
    while goes_on && let Some(piece) = generation.next() {
        show(&piece.with_context(named)?)?;
        goes_on = work.flow().is_continue();
    }
    show(&generation.finish())?;
    let decode = start.elapsed();
    let Some(end) = generation.end() else { unreachable!("it is finished") };
    let (text, tokens) = (generation.text().to_string(), generation.tokens().to_vec());
    drop(generation);
    args.state.save(&engine.session, before + prompt_tokens, &tokens, options)?;
    let stats = Stats { prompt_tokens, prefill, generated_tokens: tokens.len(), decode };
    if args.json {
        output::print_json(&json!({
            "text": text,
            "tokens": tokens,
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
            let Ok(template) = model.chat_template() else {
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
