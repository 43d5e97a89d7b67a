//! `lapidary run`: continues a prompt, as a stream of text.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use lapidary_models::Message;
use lapidary_runtime::{Sampler, StopReason, generate};
use serde_json::json;

use crate::interrupt::{Interrupted, Work};
use crate::model::{Engine, ModelArgs, Stats, read_stdin};
use crate::output::{self, Unit};
use crate::sampling::SamplingArgs;

/// Continue a text; without -m with the built-in tiny model.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary run \"It is a truth universally acknowledged\"\n  \
    lapidary run -m gemma-2-2b-it --temp 0 --stats \"Why is the sky blue?\"\n  \
    lapidary run -n 64 - < prompt.txt\n  \
    lapidary run -- \"--help, he said\"")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 128)]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print times and sizes on stderr at the end
    #[arg(long)]
    stats: bool,
    /// Give the prompt to the model as it is, without the chat template of an instruction-tuned one
    #[arg(long)]
    raw: bool,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    /// The text to continue; `-` reads it from stdin
    #[arg(value_name = "PROMPT")]
    prompt: String,
}

/// Generates.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.sampling.options();
    options.validate()?;
    let prompt = if args.prompt == "-" { read_stdin()? } else { args.prompt.clone() };
    let mut engine = Engine::new(&args.model)?;
    let model = engine.model.clone();
    let template = model.chat_template.as_ref().filter(|_| !args.raw && model.is_instruction_tuned());
    let ids = match template {
        Some(template) => {
            engine.encode("the prompt", &template.render(&[Message::new("user", prompt)], true)?)?
        }
        None => engine.encode("the prompt", &prompt)?,
    };
    engine.check_fits("the prompt", ids.len())?;
    let mut sampler = Sampler::new(options, model.config.vocab_size)?;
    let work = Work::begin();

    let mut detokenizer = engine.detokenizer()?;
    let mut text = String::new();
    let mut failed = None;
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
        let from = text.len();
        detokenizer.push_to(id, &mut text);
        if !args.json
            && text.len() > from
            && let Err(error) = output::print_words(&text[from..])
        {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        work.flow()
    };
    let generation = generate(
        &mut engine.session,
        &mut sampler,
        &ids,
        args.tokens,
        &model.stop_tokens,
        &mut on_token,
        &mut on_prefill,
    )
    .with_context(|| model.path.display().to_string())?;
    bar.finish_and_clear();
    if let Some(error) = failed {
        return Err(error);
    }
    let rest = detokenizer.finish();
    let stats = Stats {
        prompt_tokens: generation.prompt_tokens,
        prefill: generation.prefill,
        generated_tokens: generation.tokens.len(),
        decode: generation.decode,
    };
    if args.json {
        text.push_str(&rest);
        output::print_json(&json!({
            "text": text,
            "tokens": generation.tokens,
            "stop": stop_name(generation.stop),
            "stats": stats.json(&engine),
        }))?;
    } else {
        output::print_words(&format!("{rest}\n"))?;
    }
    if args.stats {
        output::say(stats.text(&engine).trim_end());
    }
    if generation.stop == StopReason::Interrupted {
        return Err(Interrupted.into());
    }
    engine.check_numbers()
}

fn stop_name(stop: StopReason) -> &'static str {
    match stop {
        StopReason::EndOfText(_) => "end_of_text",
        StopReason::Length => "length",
        StopReason::Context => "context",
        StopReason::Interrupted => "interrupted",
    }
}
