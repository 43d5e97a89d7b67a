//! A conversation by an artifact: lines of stdin, whoever writes them, without an editor.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lapidary_runtime::text::{Answer, Conversation, Partner};
use lapidary_runtime::{Sampler, Session};

use crate::args::Args;
use crate::dialog::{self, Host, Line};
use crate::generation::ANSWER_TOKENS;
use crate::model::{Model, stats_line};
use crate::output;

/// Reads lines and answers them until the end.
pub(crate) fn hold(args: &Args, mut model: Model, sampler: &mut Sampler) -> Result<()> {
    model.tokenizer()?;
    if !model.text.is_instruction_tuned() {
        output::note("note", &format!("{} is not instruction-tuned: do not expect answers", model.path));
    }
    let (tokenizer, template) = match (model.text.tokenizer.take(), model.text.chat_template.take()) {
        (Some(tokenizer), Some(template)) => (tokenizer, template),
        _ => bail!("{}: no chat template: a model without one continues a PROMPT", model.path),
    };
    let partner = Partner {
        template: &template,
        tokenizer: &tokenizer,
        stop_tokens: args.generation.stop_tokens(&model.text.stop_tokens),
        stop_texts: args.generation.stop.clone(),
        max_new: args.generation.tokens(ANSWER_TOKENS),
    };
    let conversation = Conversation::new(args.generation.system.clone());
    dialog::hold(&mut Lines(model), &partner, sampler, conversation)
}

/// Lines of stdin to a model.
struct Lines(Model);

impl Host for Lines {
    type Work = ();

    fn line(&mut self, prompt: &str) -> Result<Option<Line>> {
        if io::stdin().is_terminal() {
            // A closed stderr is nobody's business.
            let mut err = io::stderr().lock();
            let _ = err.write_all(prompt.as_bytes()).and_then(|()| err.flush());
        }
        Line::read(&mut io::stdin().lock()).context("cannot read from stdin")
    }

    fn session(&mut self) -> &mut Session {
        &mut self.0.session
    }

    fn stats(&self, last: Option<&Answer>) -> String {
        let none = (0, Duration::ZERO, 0, Duration::ZERO);
        let (prompt, prefill, tokens, decode) =
            last.map_or(none, |a| (a.prompt_tokens, a.prefill, a.tokens.len(), a.decode));
        format!("{}\n", stats_line(&self.0, prompt, prefill, tokens, decode))
    }

    fn check_numbers(&mut self) -> Result<()> {
        self.0.check_numbers()
    }

    fn print(text: &str) -> Result<()> {
        output::print(text)
    }

    fn note(label: &str, text: &str) {
        output::note(label, text);
    }

    fn begin() {}

    fn flow((): &()) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
