//! What slots held, to files and back: read and written by a thread of its own, one file at a time, while the engine
//! steps.
//!
//! In: a [`SlotAction`]. Out: what came of it, to whoever asked. A text is copied before it is written; one that was
//! read is handed to the engine's thread as [`Command::Read`].

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use lapidary_runtime::Sequence;
use lapidary_runtime::snapshot::{Archive, Notes};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Command, Scheduler};
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
pub(crate) type Reply = oneshot::Sender<Result<Value, ApiError>>;

/// A text that was read, for a slot.
pub(crate) struct Read {
    slot: usize,
    sequence: Sequence,
    prefilled: usize,
    /// What is told of it.
    told: Value,
    reply: Reply,
}

/// Where files are, and what is done with them.
pub(super) struct Files {
    folder: Option<PathBuf>,
    /// Made when the first file is asked for.
    archive: Option<Arc<Archive>>,
    /// Whether the thread has a file.
    busy: bool,
    waiting: VecDeque<(usize, SlotAction)>,
    commands: Sender<Command>,
}

impl Files {
    pub(super) fn new(folder: Option<PathBuf>, commands: Sender<Command>) -> Files {
        Files { folder, archive: None, busy: false, waiting: VecDeque::new(), commands }
    }

    /// Whether a file is being read or written.
    pub(super) fn busy(&self) -> bool {
        self.busy
    }

    /// A file in the folder: no name leads out of it.
    fn path(&self, name: &str) -> Result<PathBuf, ApiError> {
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

    /// Does something on the thread, and then what waits.
    fn work(&mut self, work: impl FnOnce(&Sender<Command>) + Send + 'static) {
        self.busy = true;
        let commands = self.commands.clone();
        let all = move || {
            work(&commands);
            // The scheduler may be gone.
            let _ = commands.send(Command::FileDone);
        };
        // Where the system gives no thread what waits for an answer is told so by the channel that is dropped.
        let spawned = thread::Builder::new().name("files".into()).spawn(all);
        self.busy = spawned.is_ok();
    }
}

impl Scheduler {
    /// Does something to a slot, or lets it wait for the files before.
    pub(super) fn act(&mut self, slot: usize, action: SlotAction) {
        if self.files.busy && !matches!(action, SlotAction::Erase(_)) {
            self.files.waiting.push_back((slot, action));
            return;
        }
        // Whoever asked may be gone.
        let _ = match action {
            SlotAction::Save(name, reply) => match self.to_save(slot, &name) {
                Ok((path, sequence, prefilled)) => {
                    return self.save(slot, name, path, sequence, prefilled, reply);
                }
                Err(error) => reply.send(Err(error)),
            },
            SlotAction::Restore(name, reply) => match self.to_restore(slot, &name) {
                Ok(path) => return self.restore(slot, name, path, reply),
                Err(error) => reply.send(Err(error)),
            },
            SlotAction::Erase(reply) => reply.send(self.erase(slot)),
        };
    }

    /// The thread is done with a file: the next one.
    pub(super) fn file_done(&mut self) {
        self.files.busy = false;
        while let Some((slot, action)) = self.files.waiting.pop_front() {
            self.act(slot, action);
            if self.files.busy {
                return;
            }
        }
    }

    /// A text was read.
    pub(super) fn read(&mut self, read: Read) {
        let Read { slot, sequence, prefilled, told, reply } = read;
        let result = match self.prefixes.keep(sequence, prefilled) {
            Some(text) => {
                self.slots.hold(slot, Some(text));
                Ok(told)
            }
            None => Err(ApiError::unavailable("there is no room to keep the text (--cache-memory)")),
        };
        self.prefixes.shrink(self.left());
        // Whoever asked may be gone.
        let _ = reply.send(result);
    }

    fn known(&self, slot: usize) -> Result<(), ApiError> {
        let count = self.slots.count();
        match slot < count {
            true => Ok(()),
            false => Err(ApiError::not_found(format!("there is no slot {slot}: there are {count}"))),
        }
    }

    /// Where to, and a copy of what a slot held last.
    fn to_save(&self, slot: usize, name: &str) -> Result<(PathBuf, Sequence, usize), ApiError> {
        self.known(slot)?;
        let path = self.files.path(name)?;
        let copy = self.slots.last(slot).map(|text| self.prefixes.copy(&self.engine, text)).transpose();
        let copy = copy.map_err(|error| ApiError::unavailable(error.to_string()))?.flatten();
        let Some((sequence, prefilled)) = copy else {
            return Err(ApiError::not_found(format!("slot {slot} holds no text, or no longer")));
        };
        Ok((path, sequence, prefilled))
    }

    fn to_restore(&self, slot: usize, name: &str) -> Result<PathBuf, ApiError> {
        self.known(slot)?;
        let path = self.files.path(name)?;
        match path.is_file() {
            true => Ok(path),
            false => Err(ApiError::not_found(format!("there is no file `{name}`"))),
        }
    }

    fn archive(&mut self) -> Arc<Archive> {
        self.files.archive.get_or_insert_with(|| Arc::new(self.engine.archive())).clone()
    }

    fn save(
        &mut self,
        slot: usize,
        name: String,
        path: PathBuf,
        sequence: Sequence,
        prefilled: usize,
        reply: Reply,
    ) {
        let (archive, start) = (self.archive(), Instant::now());
        self.files.work(move |_| {
            let conversation = Some(json!({ "prefilled": prefilled }).to_string());
            let notes = Notes { conversation, ..Notes::default() };
            let saved = archive.save(&sequence, &path, &notes);
            let saved = saved.map_err(|error| ApiError::internal(error.to_string())).map(|()| {
                json!({
                    "id_slot": slot,
                    "filename": name,
                    "n_saved": sequence.position(),
                    "n_written": length(&path),
                    "timings": { "save_ms": start.elapsed().as_secs_f64() * 1e3 },
                })
            });
            drop(sequence);
            let _ = reply.send(saved);
        });
    }

    fn restore(&mut self, slot: usize, name: String, path: PathBuf, reply: Reply) {
        let (archive, start) = (self.archive(), Instant::now());
        self.files.work(move |commands| match archive.load(&path) {
            Ok((sequence, notes)) => {
                let noted: Option<Value> =
                    notes.conversation.and_then(|text| serde_json::from_str(&text).ok());
                let prefilled = noted.and_then(|noted| noted["prefilled"].as_u64()).unwrap_or(0) as usize;
                let told = json!({
                    "id_slot": slot,
                    "filename": name,
                    "n_restored": sequence.position(),
                    "n_read": length(&path),
                    "timings": { "restore_ms": start.elapsed().as_secs_f64() * 1e3 },
                });
                let _ = commands.send(Command::Read(Read { slot, sequence, prefilled, told, reply }));
            }
            Err(error) => {
                let _ = reply.send(Err(ApiError::field("filename", error.to_string())));
            }
        });
    }

    fn erase(&mut self, slot: usize) -> Result<Value, ApiError> {
        self.known(slot)?;
        let text = self.slots.forget(slot).filter(|text| self.prefixes.forget(text));
        Ok(json!({ "id_slot": slot, "n_erased": text.map_or(0, |text| text.len()) }))
    }
}

/// The bytes of a file.
fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |found| found.len())
}
