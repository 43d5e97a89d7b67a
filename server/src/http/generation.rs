//! A request for answers, from its jobs to the objects of its response.
//!
//! In: prompts and parameters. Out: chunks as they come, or the whole. Invariant: dropping it, as happens when the
//! client goes away, ends its jobs before the engine's next step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::Shared;
use super::record::Record;
use super::stream;
use crate::error::ApiError;
use crate::log;
use crate::model::Vocabulary;
use crate::parameters::Parameters;
use crate::scheduler::{Command, Event, Job, Logprobs, Place};
use crate::tools::{Call, Heard, Tools};
use crate::wire::answer::{Envelope, Kind, Told, Usage};

/// How long a streamed response waits for its first event, whose failure is a status then.
const FIRST: std::time::Duration = std::time::Duration::from_secs(5);
/// Seconds after which a client that was turned away may try again, at most.
const MOST_RETRY: f64 = 60.0;

/// What is asked for.
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) parameters: Parameters,
    /// Whether answers begin with their prompts.
    pub(crate) echo: bool,
}

/// One answer so far.
#[derive(Default)]
struct Answer {
    /// Its text, if it is not streamed.
    text: String,
    told: Vec<Told>,
    /// What of it may be a call.
    heard: Heard,
    calls: Vec<Call>,
    /// Characters of its text, the prompt's too.
    length: usize,
    /// Why it ended, and its tokens.
    end: Option<(&'static str, usize)>,
}

/// See the module's documentation.
pub(crate) struct Generation {
    pub(crate) envelope: Envelope,
    vocabulary: Arc<Vocabulary>,
    events: UnboundedReceiver<Event>,
    prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    n: usize,
    echo: bool,
    answers: Vec<Answer>,
    cached: usize,
    with_logprobs: bool,
    /// What answers may call.
    tools: Option<Tools>,
    record: Arc<Record>,
}

/// What comes next.
pub(crate) enum Progress {
    /// Chunks of a stream.
    Chunks(Vec<Value>),
    /// Every answer has ended.
    Done,
    /// There will be no more.
    Failed(ApiError),
}

/// Answers a request, streamed or whole.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    vocabulary: Arc<Vocabulary>,
    asked: Asked,
    record: Arc<Record>,
) -> Result<Response, ApiError> {
    let streams = asked.parameters.stream;
    let mut generation = Generation::begin(shared, vocabulary, asked, record).await?;
    if streams {
        let first = timeout(FIRST, std::future::poll_fn(|context| generation.poll(context))).await;
        return match first {
            Ok(Progress::Failed(error)) => Err(error),
            Ok(progress) => Ok(stream::response(generation, Some(progress))),
            Err(_) => Ok(stream::response(generation, None)),
        };
    }
    loop {
        match std::future::poll_fn(|context| generation.poll(context)).await {
            Progress::Chunks(_) => {}
            Progress::Done => return Ok(Json(generation.whole()).into_response()),
            Progress::Failed(error) => return Err(error),
        }
    }
}

impl Generation {
    async fn begin(
        shared: &Arc<Shared>,
        vocabulary: Arc<Vocabulary>,
        asked: Asked,
        record: Arc<Record>,
    ) -> Result<Generation, ApiError> {
        let Asked { kind, prompts, parameters, echo } = asked;
        let n = parameters.n;
        if n > shared.options.parallel {
            let most = shared.options.parallel;
            return Err(ApiError::field("n", format!("`n` is {n}: expected at most {most} (--parallel)")));
        }
        let grammar = match parameters.grammar.clone() {
            None => None,
            Some(grammar) => {
                let (guides, vocabulary) = (shared.guides.clone(), vocabulary.clone());
                let compiled = super::blocking(move || guides.compile(&vocabulary, &grammar)).await??;
                Some(compiled)
            }
        };
        let places = Place::take(&shared.waiting, prompts.len(), shared.options.queue.max(prompts.len()));
        let places = places.ok_or_else(|| {
            shared.metrics.rejected.add(1);
            let mean = shared.metrics.request.mean().unwrap_or(1.0);
            let turns = shared.waiting.load(Ordering::Relaxed) as f64 / shared.options.parallel as f64;
            ApiError::queue_full((mean * turns).clamp(1.0, MOST_RETRY) as u32)
        })?;
        let scores_prompt = echo && parameters.logprobs.is_some();
        let envelope = Envelope {
            kind,
            id: id(kind),
            created: log::seconds() as u64,
            model: vocabulary.name.clone(),
            seed: parameters.sampler.seed,
            include_usage: parameters.include_usage,
        };
        let (sender, events) = unbounded_channel();
        let (with_logprobs, tools) = (parameters.logprobs.is_some(), parameters.tools.clone());
        let parameters = Arc::new(parameters);
        let (arrived, context) = (Instant::now(), vocabulary.context);
        let job = |(index, (prompt, place)): (usize, (&Vec<u32>, Place))| {
            // The last token of an answer need not be appended.
            let room = context + 1 - prompt.len();
            Job {
                prompt: prompt.clone(),
                most: parameters.max_tokens.unwrap_or(room).min(room),
                parameters: parameters.clone(),
                grammar: grammar.clone(),
                scores_prompt,
                first_answer: index * n,
                events: sender.clone(),
                arrived,
                deadline: arrived + shared.options.timeout,
                place: Some(place),
            }
        };
        let jobs: Vec<Job> = prompts.iter().zip(places).enumerate().map(job).collect();
        drop(sender);
        let gone = |_| ApiError::unavailable("the server is ending");
        shared.commands.send(Command::Jobs(jobs)).map_err(gone)?;
        record.begin(prompts.iter().map(Vec::len).sum());
        let answers = (0..prompts.len() * n).map(|_| Answer::default()).collect();
        Ok(Generation {
            envelope,
            vocabulary,
            events,
            prompts,
            n,
            echo,
            answers,
            cached: 0,
            with_logprobs,
            tools,
            record,
        })
    }

    /// What comes next.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Progress> {
        if self.answers.iter().all(|answer| answer.end.is_some()) {
            return Poll::Ready(Progress::Done);
        }
        match self.events.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                Poll::Ready(Progress::Failed(ApiError::internal("the engine ended; see the server's log")))
            }
            Poll::Ready(Some(Event::Failed(error))) => Poll::Ready(Progress::Failed(error)),
            Poll::Ready(Some(event)) => Poll::Ready(Progress::Chunks(self.take(event))),
        }
    }

    /// Chunks of an event.
    fn take(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Failed(_) => unreachable!("told by the caller"),
            Event::Began { answer, cached } => {
                self.cached += cached;
                self.record.cached(cached);
                let all = answer..answer + self.n;
                let mut chunks: Vec<Value> =
                    all.clone().filter_map(|index| self.envelope.first(index)).collect();
                if self.echo && !self.with_logprobs {
                    let text = self.prompt_text(answer);
                    chunks.extend(all.filter_map(|index| self.piece(index, &text, vec![])));
                }
                chunks
            }
            Event::Prompt { answer, infos } => {
                let prompt = &self.prompts[answer / self.n];
                let first = std::iter::once((prompt[0], None));
                let rest = prompt[1..].iter().copied().zip(infos.into_iter().map(Some));
                let tokens: Vec<(u32, Option<Logprobs>)> = first.chain(rest).collect();
                let text = self.prompt_text(answer);
                let all = answer..answer + self.n;
                all.filter_map(|index| self.piece(index, &text, tokens.clone())).collect()
            }
            Event::Piece { answer, text, infos, end } => {
                let tokens = infos.into_iter().map(|info| (info.id, Some(info))).collect();
                let (text, calls) = self.heard(answer, text, end.is_some());
                let mut chunks = Vec::from_iter(self.piece(answer, &text, tokens));
                if let Some((reason, tokens)) = end {
                    let reason = if calls.is_empty() { reason.name() } else { "tool_calls" };
                    chunks.extend(self.envelope.calls(answer, &calls));
                    self.answers[answer].calls = calls;
                    self.end(answer, reason, tokens);
                    chunks.push(self.envelope.last(answer, reason));
                }
                chunks
            }
        }
    }

    /// What of more of an answer's text is said, and at its end what it calls.
    fn heard(&mut self, index: usize, text: String, ends: bool) -> (String, Vec<Call>) {
        let Some(tools) = &self.tools else { return (text, vec![]) };
        let heard = &mut self.answers[index].heard;
        let mut said = heard.take(&text);
        let (rest, calls) = if ends { heard.end(tools) } else { Default::default() };
        said.push_str(&rest);
        (said, calls)
    }

    fn prompt_text(&self, answer: usize) -> String {
        let prompt = &self.prompts[answer / self.n];
        self.vocabulary.text.tokenizer().map(|t| t.decode(prompt)).unwrap_or_default()
    }

    /// More of an answer: its chunk, if there is anything in it.
    fn piece(&mut self, index: usize, text: &str, tokens: Vec<(u32, Option<Logprobs>)>) -> Option<Value> {
        if text.is_empty() && tokens.is_empty() {
            return None;
        }
        let mut offset = self.answers[index].length;
        let told = |(id, logprobs): (u32, Option<Logprobs>)| {
            let told = Told { id, logprobs, offset };
            offset += String::from_utf8_lossy(&self.vocabulary.bytes(id)).chars().count();
            told
        };
        let told: Vec<Told> = tokens.into_iter().map(told).collect();
        let logprobs = match self.with_logprobs {
            true => self.envelope.logprobs(&self.vocabulary, &told),
            false => Value::Null,
        };
        let answer = &mut self.answers[index];
        answer.length += text.chars().count();
        answer.text.push_str(text);
        answer.told.extend(told);
        Some(self.envelope.piece(index, text, logprobs))
    }

    fn end(&mut self, index: usize, reason: &'static str, tokens: usize) {
        self.answers[index].end = Some((reason, tokens));
        self.record.ended(reason, tokens, &self.answers[index].text);
    }

    /// The tokens that it came to.
    pub(crate) fn usage(&self) -> Usage {
        let prompt = self.prompts.iter().map(Vec::len).sum();
        let completion = self.answers.iter().filter_map(|a| a.end).map(|(_, tokens)| tokens).sum();
        Usage { prompt, cached: self.cached, completion }
    }

    /// The whole answer.
    fn whole(&self) -> Value {
        let choice = |(index, answer): (usize, &Answer)| {
            let logprobs = match self.with_logprobs {
                true => self.envelope.logprobs(&self.vocabulary, &answer.told),
                false => Value::Null,
            };
            let reason = answer.end.map_or("stop", |(reason, _)| reason);
            self.envelope.choice(index, &answer.text, &answer.calls, logprobs, reason)
        };
        self.envelope.whole(self.answers.iter().enumerate().map(choice).collect(), self.usage())
    }
}

/// A name that no other request has.
fn id(kind: Kind) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let prefix = match kind {
        Kind::Chat => "chatcmpl",
        Kind::Completion => "cmpl",
    };
    let micros = (log::seconds() * 1e6) as u64;
    format!("{prefix}-{micros:x}{:04x}", NEXT.fetch_add(1, Ordering::Relaxed))
}
