//! Answers a prompt, or continues it where the model was not tuned to take turns: `generate PROMPT [MODEL]`, where
//! MODEL is a Hugging Face folder or an artifact.

use std::io::Write;
use std::process::ExitCode;

use lapidary::{Generate, Message, Model, Options, SamplerOptions};

fn run(prompt: &str, model: Option<&str>) -> lapidary::Result<()> {
    let model = match model {
        Some(path) => Model::open(path, Options::new())?,
        None => Model::built_in(Options::new())?,
    };
    let ids = match model.is_instruction_tuned() {
        true => model.encode_chat(Some("Be brief."), &[Message::new("user", prompt)])?,
        false => model.encode(prompt)?,
    };
    let sampler = SamplerOptions { temperature: 0.8, top_p: 0.95, seed: 7, ..SamplerOptions::default() };
    let how = Generate { max_tokens: 60, sampler, ..Generate::default() };
    let mut session = model.session()?;
    let mut generation = model.generate(&mut session, &ids, &how)?;
    for piece in &mut generation {
        print!("{}", piece?);
        // What is not shown now is shown with the next piece.
        let _ = std::io::stdout().flush();
    }
    println!();
    if let Some(end) = generation.end() {
        eprintln!("{} tokens, ended by {}", generation.tokens().len(), end.name());
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match &args[..] {
        [prompt] => run(prompt, None),
        [prompt, model] => run(prompt, Some(model)),
        _ => {
            eprintln!("usage: generate PROMPT [MODEL]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
