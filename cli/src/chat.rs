//! `lapidary chat`: a conversation, by the model's own chat template. Ctrl-C stops an answer, not the program.

use std::ops::ControlFlow;

use anyhow::Result;
use lapidary::{Answer, Conversation, Generate, Sampler, Session};

use crate::dialog::{self, Host, Line};
use crate::generation::{ANSWER_TOKENS, GenerationArgs};
use crate::interrupt::{self, Work};
use crate::lines::Lines;
use crate::model::Engine;
use crate::options::ModelArgs;
use crate::output;
use crate::sampling::SamplingArgs;
use crate::speculation::SpeculationArgs;
use crate::stats::Stats;

/// Talk with a model.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lapidary chat -m gemma-2-2b-it\n  lapidary chat -m gemma-2-2b-it --system \"Answer in \
    one sentence.\"\n\nIn the chat, /help lists the commands."
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    /// Keep the lines typed in memory only, not for the next time
    #[arg(long)]
    no_history: bool,
}

/// Reads lines and answers them until the end.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let mut engine = Engine::new(&args.model)?;
    engine.speculate(&args.speculation, &args.model)?;
    let model = engine.model.clone();
    let partner = model.partner(&Generate {
        max_tokens: args.generation.tokens(ANSWER_TOKENS),
        sampler: options,
        stop: args.generation.stop.clone(),
        stop_tokens: Some(args.generation.stop_tokens(model.stop_tokens())),
    })?;
    if !model.is_instruction_tuned() {
        output::note("note", &format!("{} is not instruction-tuned: do not expect answers", engine.name()));
    }
    let mut sampler = Sampler::new(options, model.config().vocab_size)?;
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
