//! Slots: where answers run, and what each held last, to be saved to a file and restored from one.

use std::path::PathBuf;
use std::time::Instant;

use lapidary_runtime::Engine;
use lapidary_runtime::snapshot::Notes;
use serde_json::{Value, json};
use tokio::sync::oneshot::Sender;

use super::prefixes::Prefixes;
use super::running::Running;
use crate::error::ApiError;

/// The longest name of a file.
const MOST_NAME: usize = 200;

/// What is done to a slot, and who waits for it.
pub(crate) enum SlotAction {
    /// Write what it held last.
    Save(String, Reply),
    /// Read what it holds from now on.
    Restore(String, Reply),
    /// Forget it.
    Erase(Reply),
}

/// Where an answer about a slot goes.
pub(crate) type Reply = Sender<Result<Value, ApiError>>;

/// What a slot does.
pub(crate) struct SlotState {
    pub(crate) busy: bool,
    /// Tokens of the prompt and of the answer, while it is busy.
    pub(crate) prompt: usize,
    pub(crate) generated: usize,
}

/// All of them.
pub(super) struct Slots {
    busy: Vec<bool>,
    /// What each held last, by what [`Prefixes`] knows it by.
    last: Vec<Option<u64>>,
    folder: Option<PathBuf>,
}

impl Slots {
    pub(super) fn new(count: usize, folder: Option<PathBuf>) -> Slots {
        Slots { busy: vec![false; count], last: vec![None; count], folder }
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.busy.iter().filter(|busy| !**busy).count()
    }

    /// Takes some that are free, the lowest first.
    pub(super) fn take(&mut self, count: usize) -> Vec<usize> {
        let free = (0..self.busy.len()).filter(|&slot| !self.busy[slot]);
        let taken: Vec<usize> = free.take(count).collect();
        taken.iter().for_each(|&slot| self.busy[slot] = true);
        taken
    }

    /// Gives one back, and what it held.
    pub(super) fn give_back(&mut self, slot: Option<usize>, kept: Option<u64>) {
        if let Some(slot) = slot {
            self.busy[slot] = false;
            self.last[slot] = kept.or(self.last[slot]);
        }
    }

    pub(super) fn states(&self, running: &[Running]) -> Vec<SlotState> {
        let state = |slot: usize| {
            let voices = running.iter().flat_map(|r| r.voices.iter().map(move |voice| (r, voice)));
            let here = voices.into_iter().find(|(_, voice)| voice.slot == Some(slot));
            let (prompt, generated) = here.map_or((0, 0), |(r, voice)| (r.job.prompt.len(), voice.tokens()));
            SlotState { busy: self.busy[slot], prompt, generated }
        };
        (0..self.busy.len()).map(state).collect()
    }

    pub(super) fn act(&mut self, slot: usize, action: SlotAction, engine: &Engine, prefixes: &mut Prefixes) {
        // Whoever asked may be gone.
        let _ = match action {
            SlotAction::Save(name, reply) => reply.send(self.save(slot, &name, engine, prefixes)),
            SlotAction::Restore(name, reply) => reply.send(self.restore(slot, &name, engine, prefixes)),
            SlotAction::Erase(reply) => reply.send(self.erase(slot, prefixes)),
        };
    }

    fn save(&self, slot: usize, name: &str, engine: &Engine, prefixes: &Prefixes) -> Result<Value, ApiError> {
        let path = self.path(slot, name)?;
        let Some((sequence, prefilled)) = self.last[slot].and_then(|id| prefixes.get(id)) else {
            return Err(ApiError::not_found(format!("slot {slot} holds no text, or no longer")));
        };
        let start = Instant::now();
        let conversation = Some(json!({ "prefilled": prefilled }).to_string());
        let notes = Notes { conversation, ..Notes::default() };
        engine.save(sequence, &path, &notes).map_err(|error| ApiError::internal(error.to_string()))?;
        let bytes = path.metadata().map_or(0, |found| found.len());
        Ok(json!({
            "id_slot": slot,
            "filename": name,
            "n_saved": sequence.position(),
            "n_written": bytes,
            "timings": { "save_ms": start.elapsed().as_secs_f64() * 1e3 },
        }))
    }

    fn restore(
        &mut self,
        slot: usize,
        name: &str,
        engine: &Engine,
        prefixes: &mut Prefixes,
    ) -> Result<Value, ApiError> {
        let path = self.path(slot, name)?;
        if !path.is_file() {
            return Err(ApiError::not_found(format!("there is no file `{name}`")));
        }
        let start = Instant::now();
        let loaded = engine.load(&path);
        let (sequence, notes) = loaded.map_err(|error| ApiError::field("filename", error.to_string()))?;
        let noted: Option<Value> = notes.conversation.and_then(|text| serde_json::from_str(&text).ok());
        let prefilled = noted.and_then(|noted| noted["prefilled"].as_u64()).unwrap_or(0) as usize;
        let tokens = sequence.position();
        let Some(id) = prefixes.keep(sequence, prefilled, false) else {
            return Err(ApiError::unavailable("there is no room to keep the text (--cache-memory)"));
        };
        self.last[slot] = Some(id);
        let bytes = path.metadata().map_or(0, |found| found.len());
        Ok(json!({
            "id_slot": slot,
            "filename": name,
            "n_restored": tokens,
            "n_read": bytes,
            "timings": { "restore_ms": start.elapsed().as_secs_f64() * 1e3 },
        }))
    }

    fn erase(&mut self, slot: usize, prefixes: &mut Prefixes) -> Result<Value, ApiError> {
        let Some(last) = self.last.get_mut(slot) else { return Err(self.unknown(slot)) };
        let id = last.take();
        let tokens = id.and_then(|id| prefixes.get(id)).map_or(0, |(sequence, _)| sequence.position());
        if let Some(id) = id {
            prefixes.forget(id);
        }
        Ok(json!({ "id_slot": slot, "n_erased": tokens }))
    }

    /// A file in the folder: no name leads out of it.
    fn path(&self, slot: usize, name: &str) -> Result<PathBuf, ApiError> {
        if slot >= self.last.len() {
            return Err(self.unknown(slot));
        }
        let Some(folder) = &self.folder else {
            return Err(ApiError::unsupported("the server saves no slots: start it with --slot-save-path"));
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > MOST_NAME || name.starts_with('.') || !name.chars().all(plain) {
            let expected = "expected a name of letters, digits, `.`, `_` and `-`, not beginning with `.`";
            return Err(ApiError::field("filename", format!("`filename`: {expected}")));
        }
        Ok(folder.join(name))
    }

    fn unknown(&self, slot: usize) -> ApiError {
        ApiError::not_found(format!("there is no slot {slot}: there are {}", self.last.len()))
    }
}
