//! What a generation took, for `--stats`.

use std::time::Duration;

use lapidary::Memory;
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::program::MadeFor;
use serde_json::{Value, json};

use crate::model::Engine;
use crate::output;
use crate::speculation;

/// What a generation took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stats {
    /// Tokens of prompt appended.
    pub(crate) prompt_tokens: usize,
    /// Time to append them.
    pub(crate) prefill: Duration,
    /// Tokens emitted.
    pub(crate) generated_tokens: usize,
    /// Time to choose and append them.
    pub(crate) decode: Duration,
}

impl Stats {
    /// Lines for people.
    pub(crate) fn text(&self, engine: &Engine) -> String {
        let memory = engine.session.memory();
        let size = |n: usize| output::bytes(n as u64);
        let mut rows = vec![
            ("code", engine.session.program().made_for.to_string()),
            ("compile", format!("{:.1} ms", ms(engine.compile))),
            ("load", format!("{:.1} ms", ms(engine.load))),
            ("threads", format!("{} ({})", engine.session.threads(), Cores::here())),
            ("prompt", format!("{} tokens", self.prompt_tokens)),
            ("prefill", format!("{:.1} tok/s", rate(self.prompt_tokens, self.prefill))),
            ("generated", format!("{} tokens", self.generated_tokens)),
            ("decode", format!("{:.1} tok/s", rate(self.generated_tokens, self.decode))),
            ("weights", format!("{}, {}", size(memory.weights), lie(&memory))),
            ("kv local", size(memory.kv_local)),
            ("kv global", size(memory.kv_global)),
            ("arena", size(memory.arena)),
            ("scratch", size(memory.scratch)),
            ("activations", size(memory.activations)),
        ];
        if let Some(told) = engine.session.speculated() {
            rows.push(("guessed", speculation::told(&told)));
        }
        rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
    }

    /// The same for programs: times in ms, rates in tokens a second, sizes in bytes.
    pub(crate) fn json(&self, engine: &Engine) -> Value {
        let Memory { weights, weights_mapped, kv_local, kv_global, arena, scratch, activations } =
            engine.session.memory();
        let Cores { cpus, cores, fast, .. } = Cores::here();
        let MadeFor { cpu, step, features } = &engine.session.program().made_for;
        let mut object = json!({
            "cpu": cpu,
            "cpu_step": step,
            "cpu_features": features,
            "compile_ms": ms(engine.compile),
            "load_ms": ms(engine.load),
            "threads": engine.session.threads(),
            "cores": cores,
            "fast_cores": fast,
            "cpus": cpus,
            "prompt_tokens": self.prompt_tokens,
            "prefill_ms": ms(self.prefill),
            "prefill_tokens_per_second": rate(self.prompt_tokens, self.prefill),
            "generated_tokens": self.generated_tokens,
            "decode_ms": ms(self.decode),
            "decode_tokens_per_second": rate(self.generated_tokens, self.decode),
            "weight_bytes": weights,
            "weight_bytes_mapped": weights_mapped,
            "kv_local_bytes": kv_local,
            "kv_global_bytes": kv_global,
            "kv_bytes": kv_local + kv_global,
            "arena_bytes": arena,
            "scratch_bytes": scratch,
            "activation_bytes": activations,
        });
        if let Some(told) = engine.session.speculated() {
            object["speculation"] = speculation::json(&told);
        }
        object
    }
}

/// Where weights lie.
fn lie(memory: &Memory) -> String {
    match memory.weights_mapped {
        0 => "in memory".into(),
        mapped if mapped == memory.weights => "mapped".into(),
        mapped => format!("{} of them mapped", output::bytes(mapped as u64)),
    }
}

/// Milliseconds.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Tokens a second; 0 of none.
fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}
