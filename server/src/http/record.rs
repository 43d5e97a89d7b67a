//! A line of the log for each request, written once its response is sent or its client gone.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;

use crate::log::Log;

/// A request under way.
pub(crate) struct Record {
    log: Log,
    /// Whether answers are written, too.
    texts: bool,
    method: String,
    path: String,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None while there is no response yet.
    status: Option<u16>,
    /// Whether the whole response was taken.
    sent: bool,
    tokens: Option<Tokens>,
    texts: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct Tokens {
    prompt: usize,
    cached: usize,
    completion: usize,
    /// Why the answer that ended last did.
    reason: Option<&'static str>,
    /// Milliseconds until the answer began.
    wait: Option<f64>,
}

impl Record {
    pub(crate) fn new(log: Log, texts: bool, method: &str, path: &str) -> Record {
        let path: String = path.chars().take(200).collect();
        let (method, start) = (method.to_string(), Instant::now());
        Record { log, texts, method, path, start, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self, status: u16) {
        self.state().status = Some(status);
    }

    pub(crate) fn sent(&self) {
        self.state().sent = true;
    }

    /// It asks for answers to so many tokens.
    pub(crate) fn begin(&self, prompt: usize) {
        self.state().tokens = Some(Tokens { prompt, ..Tokens::default() });
    }

    /// A prompt runs, of which so many tokens were there.
    pub(crate) fn cached(&self, cached: usize) {
        let wait = self.start.elapsed().as_secs_f64() * 1e3;
        if let Some(tokens) = &mut self.state().tokens {
            tokens.cached += cached;
            tokens.wait.get_or_insert(wait);
        }
    }

    /// An answer ended.
    pub(crate) fn ended(&self, reason: &'static str, completion: usize, text: &str) {
        let mut state = self.state();
        if let Some(tokens) = &mut state.tokens {
            tokens.completion += completion;
            tokens.reason = Some(reason);
        }
        if self.texts {
            state.texts.push(text.into());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let state = std::mem::take(&mut *self.state());
        let mut fields = vec![
            ("method", Value::from(self.method.as_str())),
            ("path", self.path.as_str().into()),
            ("status", state.status.map_or(Value::Null, Value::from)),
            ("ms", (self.start.elapsed().as_secs_f64() * 1e3).into()),
        ];
        if !state.sent {
            fields.push(("client_gone", true.into()));
        }
        if let Some(tokens) = state.tokens {
            fields.push(("prompt_tokens", tokens.prompt.into()));
            fields.push(("cached_tokens", tokens.cached.into()));
            fields.push(("completion_tokens", tokens.completion.into()));
            fields.push(("finish_reason", tokens.reason.map_or(Value::Null, Value::from)));
            fields.push(("wait_ms", tokens.wait.map_or(Value::Null, Value::from)));
        }
        if !state.texts.is_empty() {
            fields.push(("answers", state.texts.into()));
        }
        self.log.line("request", fields);
    }
}
