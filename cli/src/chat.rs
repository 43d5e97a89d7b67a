//! `lapidary chat`: a conversation, by the model's own chat template. Ctrl-C stops an answer, not the program.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow};
use lapidary_runtime::text::{Answer, Conversation, Partner};
use lapidary_runtime::{Sampler, Session};

use crate::dialog::{self, Host, Line};
use crate::generation::{ANSWER_TOKENS, GenerationArgs};
use crate::interrupt::{self, Work};
use crate::lines::Lines;
use crate::model::{Engine, ModelArgs, Stats};
use crate::output;
use crate::sampling::SamplingArgs;

/// Talk with a model.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary chat -m gemma-2-2b-it\n  lapidary chat -m gemma-2-2b-it --system \"Answer in one \
    sentence.\"\n\nIn the chat, /help lists the commands."
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Keep the lines typed in memory only, not for the next time
    #[arg(long)]
    no_history: bool,
}

/// Reads lines and answers them until the end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let engine = Engine::new(&args.model)?;
    let model = engine.model.clone();
    engine.tokenizer()?;
    let Some(tokenizer) = &model.tokenizer else { unreachable!("the engine has it from the model") };
    let template = model.chat_template.as_ref().ok_or_else(|| {
        anyhow!("{}: no chat template: a model without one serves `lapidary run`", engine.name())
    })?;
    if !model.is_instruction_tuned() {
        output::note("note", &format!("{} is not instruction-tuned: do not expect answers", engine.name()));
    }
    let partner = Partner {
        template,
        tokenizer,
        stop_tokens: args.generation.stop_tokens(&model.stop_tokens),
        stop_texts: args.generation.stop.clone(),
        max_new: args.generation.tokens(ANSWER_TOKENS),
    };
    let mut sampler = Sampler::new(options, model.config.vocab_size)?;
    interrupt::outlive_work();
    let mut chat = Chat { engine, lines: Lines::new(!args.no_history)? };
    let conversation = Conversation::new(args.generation.system.clone());
    dialog::hold(&mut chat, &partner, &mut sampler, conversation)
}

/// Who holds the conversation.
struct Chat {
    engine: Engine,
    lines: Lines,
}

impl Host for Chat {
    type Work = Work;

    fn line(&mut self, prompt: &str) -> Result<Option<Line>> {
        self.lines.next(prompt)
    }

    fn session(&mut self) -> &mut Session {
        &mut self.engine.session
    }

    fn stats(&self, last: Option<&Answer>) -> String {
        let stats = last.map_or(Stats::default(), |answer| Stats {
            prompt_tokens: answer.prompt_tokens,
            prefill: answer.prefill,
            generated_tokens: answer.tokens.len(),
            decode: answer.decode,
        });
        stats.text(&self.engine)
    }

    fn check_numbers(&mut self) -> Result<()> {
        self.engine.check_numbers()
    }

    fn print(text: &str) -> Result<()> {
        output::print_words(text)
    }

    fn note(label: &str, text: &str) {
        output::note(label, text);
    }

    fn begin() -> Work {
        Work::begin()
    }

    fn flow(work: &Work) -> ControlFlow<()> {
        work.flow()
    }
}
