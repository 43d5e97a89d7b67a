//! Jobs that run: how one begins, and what becomes of its memory.

use std::time::Instant;

use lapidary_runtime::Sequence;
use tokio::sync::mpsc::UnboundedSender;

use super::voice::Voice;
use super::{Event, Job, Logprobs, Scheduler};

/// A job that runs.
pub(super) struct Running {
    pub(super) job: Job,
    /// Bytes of KV put aside for it.
    pub(super) reserved: usize,
    /// Positions of each of its answers that they are for, the prompt's too.
    pub(super) room: usize,
    /// One while the prompt is prefilled, then one an answer; none of an answer that ended.
    pub(super) sequences: Vec<Option<Sequence>>,
    pub(super) voices: Vec<Voice>,
    /// Tokens from the start on that were prefilled, of each sequence.
    pub(super) prefilled: usize,
    /// Whether the prompt is done.
    pub(super) speaks: bool,
    /// Where the prompt is halted, and a copy is kept.
    pub(super) parting: Option<usize>,
    /// Whether a copy of the prompt is kept, which its answer puts out of reach.
    pub(super) shared: bool,
    /// Of the prompt's tokens, if they are wanted.
    pub(super) scores: Vec<Logprobs>,
    /// When the last tokens came, if any did.
    pub(super) last: Option<Instant>,
}

/// What a prompt begins with.
pub(super) struct Start {
    pub(super) sequence: Sequence,
    /// Tokens from the start on that were prefilled; what is appended is, too, unless it is less than there are.
    pub(super) prefilled: usize,
    /// See [`Running::parting`].
    pub(super) parting: Option<usize>,
}

impl Running {
    /// Answers that have not ended.
    pub(super) fn speaking(&self) -> usize {
        self.voices.iter().filter(|voice| voice.ended.is_none()).count()
    }

    /// Tokens of the longest of its texts.
    pub(super) fn longest(&self) -> usize {
        let texts = self.voices.iter().filter(|voice| voice.ended.is_none()).map(|voice| voice.held().len());
        texts.max().unwrap_or(0).max(self.job.prompt.len())
    }

    /// Answers that the next step goes on with.
    pub(super) fn stepped(&self) -> usize {
        let parts = self.voices.iter().zip(&self.sequences);
        let goes_on = |(voice, sequence): &(&Voice, &Option<Sequence>)| {
            let held = voice.held().len();
            voice.ended.is_none() && sequence.as_ref().is_some_and(|s| s.position() == held)
        };
        if self.speaks { parts.filter(goes_on).count() } else { 0 }
    }
}

impl Scheduler {
    /// Begins a job, with memory for so many positions of each answer, which there is.
    pub(super) fn begin(
        &mut self,
        job: Job,
        room: usize,
    ) -> Result<Running, (UnboundedSender<Event>, String)> {
        let events = job.events.clone();
        self.try_begin(job, room).map_err(|message| (events, message))
    }

    fn try_begin(&mut self, job: Job, room: usize) -> Result<Running, String> {
        let start = self.start_of(&job)?;
        let Start { sequence, prefilled, parting } = start;
        let cached = sequence.position();
        let reserved = self.bytes_of(&job, room).max(sequence.kv_bytes());
        self.prefixes.shrink(self.left().saturating_sub(reserved));
        let slots = self.slots.take(job.parameters.n);
        let voice =
            |(index, &slot): (usize, &usize)| Voice::new(&job, index, slot, &self.vocabulary, &self.guides);
        let voices: Result<Vec<Voice>, String> = slots.iter().enumerate().map(voice).collect();
        let voices =
            voices.inspect_err(|_| slots.iter().for_each(|&slot| self.slots.give_back(Some(slot), None)))?;
        let metrics = &self.metrics;
        metrics.prompt_tokens.add(job.prompt.len());
        metrics.cached_tokens.add(cached);
        metrics.cache_queries.add(1);
        metrics.cache_hits.add(usize::from(cached > 0));
        let _ = job.events.send(Event::Began { answer: job.first_answer, cached });
        Ok(Running {
            job,
            reserved,
            room,
            sequences: vec![Some(sequence)],
            voices,
            prefilled,
            speaks: false,
            parting,
            shared: false,
            scores: vec![],
            last: None,
        })
    }

    /// What a job's prompt begins with, of what is kept.
    pub(super) fn start_of(&mut self, job: &Job) -> Result<Start, String> {
        let said = |error: lapidary_runtime::Error| error.to_string();
        // Kept texts make room, as far as this prompt does not begin like one.
        let found = match job.scores_prompt {
            true => Default::default(),
            false => {
                let room = self.left().saturating_sub(self.prefixes.bytes());
                self.prefixes.find(&self.engine, &job.prompt, room).map_err(said)?
            }
        };
        let (sequence, prefilled) = match found.beginning {
            Some(beginning) => (beginning.sequence, beginning.prefilled),
            None => (self.engine.sequence().map_err(said)?, 0),
        };
        let cached = sequence.position();
        // One that was prefilled up to here goes on being so.
        let prefilled = if prefilled == cached { usize::MAX } else { prefilled };
        let parting = found.parting.filter(|&at| at > cached && at < job.prompt.len());
        Ok(Start { sequence, prefilled, parting })
    }

    /// Keeps what a job's sequences hold, and gives back its slots.
    pub(super) fn release(&mut self, mut gone: Running) {
        let prompt = gone.job.prompt.len();
        for (index, sequence) in gone.sequences.drain(..).enumerate() {
            let kept = sequence.and_then(|sequence| self.keep(sequence, gone.prefilled, prompt));
            let slot = gone.voices.get_mut(index).and_then(|voice| voice.slot.take());
            self.slots.give_back(slot, kept);
        }
        // Those of answers that had not begun.
        gone.voices.iter_mut().for_each(|voice| self.slots.give_back(voice.slot.take(), None));
    }

    /// Keeps a text of which `prefilled` tokens, or all of its prompt, were prefilled: its tokens.
    pub(super) fn keep(&mut self, sequence: Sequence, prefilled: usize, prompt: usize) -> Option<Vec<u32>> {
        let prefilled = prefilled.min(prompt).min(sequence.position());
        self.prefixes.keep(sequence, prefilled)
    }

    /// Keeps a copy of what others may go on from: a beginning that another text has, too, or a prompt that its answer
    /// is about to put out of reach, as windows wrap.
    pub(super) fn share(&mut self, running: &mut Running) {
        let prompt = running.job.prompt.len();
        let Some(sequence) = running.sequences.iter().flatten().next() else { return };
        let position = sequence.position();
        let parts = running.parting.take_if(|at| *at == position).is_some();
        let leaves = position >= prompt && !running.shared && {
            let next = sequence.smallest_after(self.engine.most_guessed());
            next > prompt && sequence.smallest() <= prompt
        };
        if !parts && !leaves {
            return;
        }
        running.shared |= leaves;
        let left = self.left().saturating_sub(running.reserved);
        if sequence.kv_bytes() <= left {
            self.prefixes.shrink(left - sequence.kv_bytes());
            let end = if parts { position } else { prompt };
            self.prefixes.share(sequence, end, running.prefilled.min(end));
        }
    }
}
