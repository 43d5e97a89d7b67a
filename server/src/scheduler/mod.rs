//! The scheduler: one thread with the engine, which steps everything that runs.
//!
//! In: [`Job`]s, from a bounded queue. Out: [`Event`]s, a channel a request. Each turn is one step of the engine: a
//! token of every answer, and a bounded chunk of prompts; without prompts answers have some guessed. Invariants: jobs
//! begin in the order that they came in; one begins only when there is memory for its prompt and some of its answer,
//! and what it needs beyond is taken from those that came after it; one whose client is gone, or whose time is up, is
//! dropped before the next step, and nobody else's with it. What a step holds changes no bit of an answer: prompts are
//! prefilled and answers are decoded, whoever else is there.

mod admission;
mod files;
mod guessed;
mod logprobs;
mod pace;
mod prefixes;
mod running;
mod slots;
mod turn;
mod voice;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use lapidary_runtime::{Engine, Speculation, Together};
use tokio::sync::mpsc::UnboundedSender;

use crate::error::ApiError;
use crate::guide::{Compiled, Guides};
use crate::metrics::Metrics;
use crate::model::Vocabulary;
use crate::options::Options;
use crate::parameters::Parameters;

pub(crate) use files::{Read, SlotAction};
pub(crate) use logprobs::Logprobs;
pub(crate) use slots::SlotState;

use files::Files;
use pace::Pace;
use prefixes::Prefixes;
use running::Running;
use slots::Slots;

/// A prompt, and the answers that are wanted to it.
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    /// Most tokens of an answer; prompt and answer fit the context.
    pub(crate) most: usize,
    pub(crate) parameters: Arc<Parameters>,
    pub(crate) grammar: Option<Compiled>,
    /// Whether the log-probabilities of the prompt's tokens are wanted.
    pub(crate) scores_prompt: bool,
    /// The index of its first answer within the request.
    pub(crate) first_answer: usize,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    /// Held while it waits.
    pub(crate) place: Option<Place>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model or a stop text ended it.
    Stop,
    /// As many tokens as were asked for, or as fit.
    Length,
}

impl Reason {
    /// Its name on the wire.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::Length => "length",
        }
    }
}

/// What becomes of a job.
#[derive(Debug)]
pub(crate) enum Event {
    /// It runs: so many tokens of the prompt were there already.
    Began { answer: usize, cached: usize },
    /// Of the prompt's tokens from the second on.
    Prompt { answer: usize, infos: Vec<Logprobs> },
    /// More of an answer; with its end, why it ended and how many tokens it has.
    Piece { answer: usize, text: String, infos: Vec<Logprobs>, end: Option<(Reason, usize)> },
    /// There will be no more.
    Failed(ApiError),
}

/// A place in the queue; one gives it up by dropping it.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    /// Some places, if at most `most` are taken then.
    pub(crate) fn take(waiting: &Arc<AtomicUsize>, count: usize, most: usize) -> Option<Vec<Place>> {
        let more = |taken: usize| taken.checked_add(count).filter(|&all| all <= most);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some((0..count).map(|_| Place(waiting.clone())).collect())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is told to the scheduler.
pub(crate) enum Command {
    /// Answer these.
    Jobs(Vec<Job>),
    /// Something about a slot.
    Slot(usize, SlotAction),
    /// A text for a slot was read from its file.
    Read(Read),
    /// A slot's file was read or written.
    FileDone,
    /// Tell what the slots do.
    Slots(tokio::sync::oneshot::Sender<Vec<SlotState>>),
    /// Take no more, and end what runs by then.
    End(Instant),
}

/// See the module's documentation.
pub(crate) struct Scheduler {
    engine: Engine,
    vocabulary: Arc<Vocabulary>,
    guides: Arc<Guides>,
    metrics: Arc<Metrics>,
    commands: Receiver<Command>,
    waiting: VecDeque<Job>,
    /// The oldest first.
    running: Vec<Running>,
    /// Jobs that wait for memory to go on; all came after those that run. The oldest first.
    paused: VecDeque<Running>,
    prefixes: Prefixes,
    slots: Slots,
    files: Files,
    pace: Pace,
    /// Guesses how answers go on, by their own texts.
    together: Option<Together>,
    /// Guesses how an answer goes on that is made alone, by a smaller model.
    speculation: Option<Speculation>,
    /// Bytes that KV caches may take.
    kv_bytes: usize,
    /// When what runs is cut, once the end was asked for.
    end: Option<Instant>,
}

impl Scheduler {
    pub(crate) fn new(
        engine: Engine,
        vocabulary: Arc<Vocabulary>,
        guides: Arc<Guides>,
        metrics: Arc<Metrics>,
        (sender, commands): (Sender<Command>, Receiver<Command>),
        options: &Options,
        kv_bytes: usize,
    ) -> Scheduler {
        let cache = options.cache_bytes.unwrap_or(kv_bytes / 2).min(kv_bytes);
        Scheduler {
            pace: Pace::new(engine.program().plan.chunk, options.prefill_budget),
            prefixes: Prefixes::new(cache, options.strict_replay, engine.window()),
            engine,
            together: None,
            speculation: None,
            vocabulary,
            guides,
            metrics,
            commands,
            waiting: VecDeque::new(),
            running: vec![],
            paused: VecDeque::new(),
            slots: Slots::new(options.parallel),
            files: Files::new(options.slot_save_path.clone(), sender),
            kv_bytes,
            end: None,
        }
    }

    /// Guesses how answers go on.
    pub(crate) fn speculate(self, speculation: Option<Speculation>) -> Scheduler {
        match speculation.map(Speculation::together) {
            None => self,
            Some(Ok(together)) => Scheduler { together: Some(together), ..self },
            Some(Err(draft)) => Scheduler { speculation: Some(*draft), ..self },
        }
    }

    /// Works until the end is asked for, or nobody can ask any more.
    pub(crate) fn run(mut self) {
        loop {
            if !self.listen() {
                return;
            }
            self.drop_gone();
            self.admit();
            self.grow();
            self.turn();
            self.measure();
        }
    }

    /// Takes what was told meanwhile, and waits where there is nothing to do: whether to go on.
    fn listen(&mut self) -> bool {
        loop {
            let idle = self.running.is_empty() && self.paused.is_empty() && self.waiting.is_empty();
            if idle && self.end.is_some() && !self.files.busy() {
                return false;
            }
            let told = match idle {
                false => self.commands.try_recv(),
                true => self.commands.recv_timeout(Duration::from_secs(3600)).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                }),
            };
            match told {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) if idle => {}
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !idle,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Jobs(jobs) if self.end.is_some() => {
                for job in jobs {
                    let _ = job.events.send(Event::Failed(ApiError::unavailable("the server is ending")));
                }
            }
            Command::Jobs(jobs) => self.waiting.extend(jobs),
            Command::Slot(index, action) => self.act(index, action),
            Command::Read(read) => self.read(read),
            Command::FileDone => self.file_done(),
            Command::Slots(reply) => {
                let _ = reply.send(self.slots.states(self.running.iter().chain(&self.paused)));
            }
            Command::End(at) => self.end = Some(self.end.map_or(at, |end| end.min(at))),
        }
    }

    /// Drops jobs whose clients are gone, or whose time is up.
    fn drop_gone(&mut self) {
        let now = Instant::now();
        let (metrics, end) = (self.metrics.clone(), self.end);
        let stays = |job: &Job| {
            if job.events.is_closed() {
                metrics.cancelled.add(1);
                return false;
            }
            if now >= job.deadline {
                metrics.rejected.add(1);
                let seconds = job.deadline.duration_since(job.arrived).as_secs();
                let _ = job.events.send(Event::Failed(ApiError::deadline(seconds)));
                return false;
            }
            if end.is_some_and(|end| now >= end) {
                let _ = job.events.send(Event::Failed(ApiError::unavailable("the server is ending")));
                return false;
            }
            true
        };
        self.waiting.retain(&stays);
        let mut at = 0;
        while at < self.paused.len() {
            match self.paused.get(at) {
                Some(paused) if !stays(&paused.job) => {
                    self.paused.remove(at).into_iter().for_each(|gone| self.release(gone));
                }
                _ => at += 1,
            }
        }
        let mut at = 0;
        while at < self.running.len() {
            if stays(&self.running[at].job) {
                at += 1;
            } else {
                let gone = self.running.remove(at);
                self.release(gone);
            }
        }
    }

    /// Bytes of KV put aside for what runs.
    fn reserved(&self) -> usize {
        self.running.iter().map(|running| running.reserved).sum()
    }

    /// Bytes of KV that are not put aside; kept texts may have them.
    fn left(&self) -> usize {
        self.kv_bytes.saturating_sub(self.reserved())
    }

    /// Tells the metrics how things are.
    fn measure(&self) {
        let metrics = &self.metrics;
        metrics.running.set(self.running.iter().map(Running::speaking).sum());
        metrics.waiting.set(self.waiting.len() + self.paused.len());
        metrics.kv_used.set(self.engine.kv_bytes());
        metrics.cache_bytes.set(self.prefixes.bytes());
        metrics.cache_entries.set(self.prefixes.len());
    }
}
