//! What is counted and timed, in Prometheus' text form.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that rises.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets of times, in seconds.
const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

/// Times.
#[derive(Default)]
pub(crate) struct Histogram {
    /// Within each bound and none of those before, then above all.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// Microseconds.
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// The mean in seconds, if there is any.
    pub(crate) fn mean(&self) -> Option<f64> {
        let count: u64 = self.counts.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        (count > 0).then(|| self.sum.load(Ordering::Relaxed) as f64 / 1e6 / count as f64)
    }

    fn write(&self, out: &mut String, name: &str) {
        let mut count = 0;
        for (index, n) in self.counts.iter().enumerate() {
            count += n.load(Ordering::Relaxed);
            let bound = BOUNDS.get(index).map_or("+Inf".into(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) running: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) kv_used: Gauge,
    pub(crate) kv_most: Gauge,
    pub(crate) cache_bytes: Gauge,
    pub(crate) cache_entries: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) guessed_tokens: Counter,
    pub(crate) guessed_right: Counter,
    pub(crate) cache_queries: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) finished: Counter,
    pub(crate) rejected: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) paused: Counter,
    pub(crate) steps: Counter,
    pub(crate) first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) request: Histogram,
}

impl Metrics {
    /// What `/metrics` shows.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let most = self.kv_most.get().max(1) as f64;
        let gauges = [
            ("num_requests_running", "Answers that are being made.", self.running.get() as f64),
            ("num_requests_waiting", "Prompts that wait.", self.waiting.get() as f64),
            ("kv_cache_bytes", "Bytes of KV caches, kept prefixes too.", self.kv_used.get() as f64),
            ("kv_cache_limit_bytes", "Bytes that they may take.", self.kv_most.get() as f64),
            ("kv_cache_usage_perc", "Share of them, from 0 to 1.", self.kv_used.get() as f64 / most),
            ("prefix_cache_bytes", "Bytes of kept prefixes.", self.cache_bytes.get() as f64),
            ("prefix_cache_entries", "Kept prefixes.", self.cache_entries.get() as f64),
            ("connections", "Connections.", self.connections.get() as f64),
        ];
        for (name, help, value) in gauges {
            let _ = writeln!(
                out,
                "# HELP lapidary_{name} {help}\n# TYPE lapidary_{name} gauge\nlapidary_{name} {value}"
            );
        }
        let counters = [
            ("prompt_tokens", "Tokens of prompts.", &self.prompt_tokens),
            ("prompt_tokens_cached", "Of them, tokens that were kept.", &self.cached_tokens),
            ("generation_tokens", "Tokens chosen.", &self.generated_tokens),
            ("guessed_tokens", "Tokens that were guessed and stepped.", &self.guessed_tokens),
            ("guessed_tokens_right", "Of them, tokens that were right.", &self.guessed_right),
            ("prefix_cache_queries", "Prompts that were looked up.", &self.cache_queries),
            ("prefix_cache_hits", "Of them, prompts with a kept beginning.", &self.cache_hits),
            ("requests_finished", "Prompts answered.", &self.finished),
            ("requests_rejected", "Requests turned away.", &self.rejected),
            ("requests_cancelled", "Prompts whose client went away.", &self.cancelled),
            ("requests_paused", "Times that one had to wait for memory to go on.", &self.paused),
            ("engine_steps", "Steps of the engine.", &self.steps),
        ];
        for (name, help, counter) in counters {
            let (name, value) = (format!("lapidary_{name}_total"), counter.get());
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        let histograms = [
            ("time_to_first_token_seconds", "From arrival to the first token.", &self.first_token),
            ("inter_token_latency_seconds", "From token to token of an answer.", &self.inter_token),
            ("e2e_request_latency_seconds", "From arrival to the end.", &self.request),
        ];
        for (name, help, histogram) in histograms {
            let name = format!("lapidary_{name}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            histogram.write(&mut out, &name);
        }
        out
    }
}
