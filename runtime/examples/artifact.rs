//! An artifact run by the runtime alone: `cargo run -p lapidary-runtime --features text --example artifact -- model.lap
//! PROMPT`.
//!
//! In: an artifact and a prompt. Out: the most likely continuation, 32 tokens at most.

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;

use lapidary_runtime::text::Text;
use lapidary_runtime::{Artifact, Sampler, SamplerOptions, Session, generate};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(file), Some(prompt)) = (args.next(), args.next()) else {
        return Err("expected an artifact and a prompt".into());
    };
    let artifact = Arc::new(Artifact::open(&file)?);
    let program = Arc::new(artifact.program(None)?);
    let vocab = program.plan.vocab;
    let text = Text::of(&artifact, vocab)?;
    let tokenizer = text.tokenizer.as_ref().ok_or("the artifact has no tokenizer")?;
    let mut session = Session::new(program, artifact, 2)?;
    let mut sampler = Sampler::new(SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }, vocab)?;
    let mut detokenizer = tokenizer.detokenizer();
    generate(
        &mut session,
        &mut sampler,
        &tokenizer.encode(&prompt, true)?,
        32,
        &text.stop_tokens,
        &mut |id| {
            print!("{}", detokenizer.push(id));
            ControlFlow::Continue(())
        },
        &mut |_, _| ControlFlow::Continue(()),
    )?;
    println!("{}", detokenizer.finish());
    Ok(())
}
