//! A model ready to run, and what is told of its times.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use lapidary_runtime::text::{Text, Tokenizer};
use lapidary_runtime::{Generation, Session};
use serde_json::{Value, json};

use crate::args::Args;
use crate::speculation;

/// An artifact ready to run.
pub(crate) struct Model {
    pub(crate) path: String,
    /// What its code is made for.
    code: String,
    pub(crate) text: Text,
    pub(crate) session: Session,
    pub(crate) vocab: usize,
    load: Duration,
    /// Resident memory after loading, in MB.
    resident: String,
}

impl Model {
    pub(crate) fn load(args: &Args, path: &Path) -> Result<Model> {
        let start = Instant::now();
        let (artifact, session) = args.artifact.session(path)?;
        let code = session.program().made_for.to_string();
        let vocab = session.program().plan.vocab;
        let text = Text::of(&artifact, vocab)?;
        let path = path.display().to_string();
        Ok(Model { code, path, text, session, vocab, load: start.elapsed(), resident: resident() })
    }

    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer> {
        self.text.tokenizer.as_ref().ok_or_else(|| anyhow!("{}: it has no tokenizer", self.path))
    }

    /// Fails if the logits after the last token are no numbers.
    pub(crate) fn check_numbers(&mut self) -> Result<()> {
        let broken = self.session.has_logits() && self.session.logits().iter().all(|x| x.is_nan());
        ensure!(!broken, "{}: the logits are NaN: its weights hold NaN or infinity", self.path);
        Ok(())
    }
}

/// Times and memory on a line.
pub(crate) fn stats_line(
    model: &Model,
    prompt: usize,
    prefill: Duration,
    tokens: usize,
    decode: Duration,
) -> String {
    let guessed = model.session.speculated().map(|told| format!("\nguessed {}", speculation::told(&told)));
    format!(
        "code for {}\nload {:.1} ms, {} MB resident after it, prefill {prompt} tokens in {:.1} ms, \
         decode {tokens} tokens in {:.1} ms{}",
        model.code,
        ms(model.load),
        model.resident,
        ms(prefill),
        ms(decode),
        guessed.unwrap_or_default()
    )
}

/// The same for programs, by the names of `lapidary run --json`.
pub(crate) fn stats_json(model: &Model, generation: &Generation) -> Value {
    let rate =
        |tokens: usize, time: Duration| if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64() };
    let mut object = json!({
        "load_ms": ms(model.load),
        "threads": model.session.threads(),
        "prompt_tokens": generation.prompt_tokens,
        "prefill_ms": ms(generation.prefill),
        "prefill_tokens_per_second": rate(generation.prompt_tokens, generation.prefill),
        "generated_tokens": generation.tokens.len(),
        "decode_ms": ms(generation.decode),
        "decode_tokens_per_second": rate(generation.tokens.len(), generation.decode),
    });
    if let Some(told) = model.session.speculated() {
        object["speculation"] = speculation::json(&told);
    }
    object
}

/// Milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Resident memory of the process in MB, mapped files included; `?` where the system does not say.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or("?".into(), |kib| format!("{:.1}", kib * 1024.0 / 1e6))
}
