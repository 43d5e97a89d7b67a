//! `lapidary chat`: a conversation, by the model's own chat template.
//!
//! The history is rendered anew each turn; what of it the session holds already (the longest common prefix) is kept, the
//! rest is appended. Ctrl-C stops an answer, not the program. When the history outgrows the context, its oldest turns are
//! left out.

use std::collections::VecDeque;
use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result, anyhow};
use lapidary_models::{ChatTemplate, Message};
use lapidary_runtime::{Sampler, StopReason, generate};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::interrupt::{self, Work};
use crate::model::{Engine, ModelArgs, Stats};
use crate::output;
use crate::sampling::SamplingArgs;

/// Talk with a model.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  lapidary chat -m gemma-2-2b-it\n\nIn the chat, /help lists the commands."
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 1024)]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const PROMPT: &str = "> ";

const HELP: &str = "/reset  forget the conversation\n/stats  times and sizes of the last answer\n/quit   leave (or Ctrl-D)\n\
    Ctrl-C  stop an answer\n";

/// Reads lines and answers them until the end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let engine = Engine::new(&args.model)?;
    engine.tokenizer()?;
    let model = engine.model.clone();
    let template = model.chat_template.as_ref().ok_or_else(|| {
        anyhow!("{}: no chat template: a model without one serves `lapidary run`", engine.name())
    })?;
    if !model.is_instruction_tuned() {
        output::note("note", &format!("{} is not instruction-tuned: do not expect answers", engine.name()));
    }
    let mut stop = model.stop_tokens.clone();
    stop.extend(model.tokenizer.as_ref().and_then(|t| t.end_of_turn_id()));
    let mut chat = Chat {
        sampler: Sampler::new(options, model.config.vocab_size)?,
        template,
        engine,
        stop,
        most: args.tokens,
        messages: VecDeque::new(),
        held: Vec::new(),
        stats: Stats::default(),
    };
    interrupt::outlive_work();
    let mut lines = Lines::new()?;
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/help" => output::print(HELP)?,
            "/stats" => output::print(&chat.stats.text(&chat.engine))?,
            "/reset" => chat.reset(),
            command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                output::note("error", &format!("unknown command `{command}`: /help lists them"));
            }
            text => chat.turn(text)?,
        }
    }
    Ok(())
}

/// A conversation under way.
struct Chat<'a> {
    engine: Engine,
    sampler: Sampler,
    template: &'a ChatTemplate,
    /// Tokens that end an answer.
    stop: Vec<u32>,
    /// Most tokens of an answer.
    most: usize,
    messages: VecDeque<Message>,
    /// The tokens that the session holds.
    held: Vec<u32>,
    stats: Stats,
}

impl Chat<'_> {
    /// Forgets everything said.
    fn reset(&mut self) {
        self.messages.clear();
        self.held.clear();
        self.engine.session.reset();
    }

    /// Answers. What is wrong with one message is told and forgotten; only a broken pipe or program ends the chat.
    fn turn(&mut self, text: &str) -> Result<()> {
        self.messages.push_back(Message::new("user", text));
        let ids = match self.render() {
            Ok(ids) => ids,
            Err(error) => {
                self.messages.pop_back();
                output::note("error", &output::one_line(&error));
                return Ok(());
            }
        };
        self.keep_prefix(&ids);
        let answer = self.answer(&ids)?;
        self.messages.push_back(Message::new("assistant", answer));
        Ok(())
    }

    /// The ids of the history, its oldest turns left out if it does not fit.
    fn render(&mut self) -> Result<Vec<u32>> {
        loop {
            let messages = self.messages.make_contiguous();
            let prompt = self.template.render(messages, true)?;
            let ids = self.engine.encode("the message", &prompt)?;
            // At least one token of answer.
            if ids.len() < self.engine.session.context() || self.messages.len() < 3 {
                self.engine.check_fits("the message", ids.len())?;
                return Ok(ids);
            }
            self.messages.drain(..2);
            output::note("note", "the conversation outgrew the context: its oldest turn is left out");
        }
    }

    /// Rolls the session back to what it has in common with `ids`, short of the last, which is to be predicted from.
    fn keep_prefix(&mut self, ids: &[u32]) {
        let most = ids.len().saturating_sub(1);
        let common = self.held.iter().zip(&ids[..most]).take_while(|(a, b)| a == b).count();
        if self.engine.session.rollback(common).is_err() {
            // A sliding-window cache no longer holds the window before that position.
            self.engine.session.reset();
        }
        self.held.truncate(self.engine.session.position());
    }

    /// Prints the answer as it comes.
    fn answer(&mut self, ids: &[u32]) -> Result<String> {
        let mut detokenizer = self.engine.detokenizer()?;
        let mut text = String::new();
        let mut failed = None;
        let work = Work::begin();
        let mut on_token = |id: u32| {
            let from = text.len();
            detokenizer.push_to(id, &mut text);
            if text.len() > from
                && let Err(error) = output::print_words(&text[from..])
            {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            work.flow()
        };
        let before = self.held.len();
        let generation = generate(
            &mut self.engine.session,
            &mut self.sampler,
            &ids[before..],
            self.most,
            &self.stop,
            &mut on_token,
            &mut |_, _| work.flow(),
        )?;
        drop(work);
        if let Some(error) = failed {
            return Err(error);
        }
        let rest = detokenizer.finish();
        output::print_words(&format!("{rest}\n"))?;
        text.push_str(&rest);
        self.held.extend_from_slice(&ids[before..before + generation.prompt_tokens]);
        self.held.extend_from_slice(&generation.tokens);
        self.held.truncate(self.engine.session.position());
        self.stats = Stats {
            prompt_tokens: generation.prompt_tokens,
            prefill: generation.prefill,
            generated_tokens: generation.tokens.len(),
            decode: generation.decode,
        };
        if let Err(error) = self.engine.check_numbers() {
            output::note("error", &output::one_line(&error));
        }
        match generation.stop {
            StopReason::EndOfText(_) => {}
            StopReason::Interrupted => output::note("note", "stopped"),
            StopReason::Length => {
                output::note("note", &format!("cut after {} tokens (-n takes more)", self.most))
            }
            StopReason::Context => output::note("note", "the context is full: /reset starts anew"),
        }
        Ok(text)
    }
}

/// Where lines come from.
enum Lines {
    /// A person.
    Terminal(Box<DefaultEditor>),
    /// A file or a pipe.
    Plain(io::Stdin),
}

impl Lines {
    fn new() -> Result<Lines> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Lines::Plain(stdin));
        }
        Ok(Lines::Terminal(Box::new(DefaultEditor::new().context("cannot read from the terminal")?)))
    }

    /// The next line; nothing at the end.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Terminal(editor) => loop {
                match editor.readline(PROMPT) {
                    Ok(line) => {
                        if !line.trim().is_empty() {
                            // Only memory is written to; a line that is not kept is no loss.
                            let _ = editor.add_history_entry(line.as_str());
                        }
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                }
            },
            Lines::Plain(stdin) => {
                io::stdout().flush()?;
                let mut line = String::new();
                let read = stdin.lock().read_line(&mut line).context("cannot read from stdin")?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}
