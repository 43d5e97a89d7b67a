//! Continues several texts at once, a token of each in one call: `sequences PROMPT..`. Each has its own seed, and ends
//! on its own.

use std::process::ExitCode;

use lapidary::{Model, Options, Phase, Sampler, SamplerOptions, Sequence, Want, Work};

/// The most tokens of a text.
const MOST: usize = 24;

/// A text under way.
struct Text {
    sequence: Sequence,
    sampler: Sampler,
    /// Tokens that the sequence does not hold yet: the prompt's, then the one that was chosen last.
    next: Vec<u32>,
    phase: Phase,
    chosen: Vec<u32>,
}

impl Text {
    /// What the next step does for it.
    fn work(&mut self) -> Work<'_> {
        Work { sequence: &mut self.sequence, tokens: &self.next, phase: self.phase, want: Want::Logits }
    }
}

fn run(prompts: &[String]) -> lapidary::Result<()> {
    let model = Model::built_in(Options::new().context(256))?;
    let mut engine = model.engine()?;
    let vocab = model.config().vocab_size;
    let text = |(prompt, seed): (&String, u64)| -> lapidary::Result<Text> {
        let options = SamplerOptions { temperature: 0.7, seed, ..SamplerOptions::default() };
        Ok(Text {
            sequence: engine.sequence()?,
            sampler: Sampler::new(options, vocab)?,
            next: model.encode(prompt)?,
            phase: Phase::Prefill,
            chosen: Vec::new(),
        })
    };
    let mut texts = prompts.iter().zip(1..).map(text).collect::<lapidary::Result<Vec<_>>>()?;
    loop {
        // What has ended asks for nothing more.
        let mut open: Vec<&mut Text> = texts.iter_mut().filter(|text| !text.next.is_empty()).collect();
        if open.is_empty() {
            break;
        }
        let mut works: Vec<Work<'_>> = open.iter_mut().map(|text| text.work()).collect();
        let outputs = engine.step(&mut works)?;
        for (at, text) in open.into_iter().enumerate() {
            let Text { sequence, sampler, next, phase, chosen } = text;
            let token = sampler.sample(outputs.logits(at), sequence.tokens(), sequence.position())?;
            next.clear();
            *phase = Phase::Decode;
            if !model.stop_tokens().contains(&token) && chosen.len() < MOST {
                next.push(token);
                chosen.push(token);
            }
        }
    }
    for (prompt, text) in prompts.iter().zip(&texts) {
        println!("{prompt}{}", model.tokenizer()?.decode(&text.chosen));
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut prompts: Vec<String> = std::env::args().skip(1).collect();
    if prompts.is_empty() {
        prompts = ["It is a truth", "She was", "The house"].map(String::from).to_vec();
    }
    match run(&prompts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
