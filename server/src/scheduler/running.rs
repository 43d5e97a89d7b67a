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
    /// One while the prompt is prefilled, then one an answer; none of an answer that ended.
    pub(super) sequences: Vec<Option<Sequence>>,
    pub(super) voices: Vec<Voice>,
    /// Tokens from the start on that were prefilled, of each sequence.
    pub(super) prefilled: usize,
    /// Whether the prompt is done.
    pub(super) speaks: bool,
    /// Where the prompt is halted, and a copy is kept.
    pub(super) parting: Option<usize>,
    /// Of the prompt's tokens, if they are wanted.
    pub(super) scores: Vec<Logprobs>,
    /// When the last tokens came, if any did.
    pub(super) last: Option<Instant>,
}

impl Running {
    /// Answers that have not ended.
    pub(super) fn speaking(&self) -> usize {
        self.voices.iter().filter(|voice| voice.ended.is_none()).count()
    }
}

impl Scheduler {
    /// Begins a job that `need`s so much memory, which there is.
    pub(super) fn begin(
        &mut self,
        job: Job,
        need: usize,
        left: usize,
    ) -> Result<Running, (UnboundedSender<Event>, String)> {
        let events = job.events.clone();
        self.try_begin(job, need, left).map_err(|message| (events, message))
    }

    fn try_begin(&mut self, job: Job, need: usize, left: usize) -> Result<Running, String> {
        let said = |error: lapidary_runtime::Error| error.to_string();
        // Kept texts make room, as far as this prompt does not begin like one.
        let found = match job.scores_prompt {
            true => Default::default(),
            false => {
                self.prefixes.find(&job.prompt, left.saturating_sub(self.prefixes.bytes())).map_err(said)?
            }
        };
        let (sequence, prefilled) = match found.beginning {
            Some(beginning) => (beginning.sequence, beginning.prefilled),
            None => (self.engine.sequence().map_err(said)?, 0),
        };
        let cached = sequence.position();
        let reserved = need.max(sequence.kv_bytes());
        self.prefixes.shrink(left.saturating_sub(reserved));
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
        // One that was prefilled up to here goes on being so.
        let prefilled = if prefilled == cached { usize::MAX } else { prefilled };
        let parting = found.parting.filter(|&at| at > cached && at < job.prompt.len());
        Ok(Running {
            job,
            reserved,
            sequences: vec![Some(sequence)],
            voices,
            prefilled,
            speaks: false,
            parting,
            scores: vec![],
            last: None,
        })
    }

    /// Keeps what a job's sequences hold, and gives back its slots.
    pub(super) fn release(&mut self, mut gone: Running) {
        let prompt = gone.job.prompt.len();
        for (index, sequence) in gone.sequences.drain(..).enumerate() {
            let kept = sequence.and_then(|sequence| self.keep(sequence, gone.prefilled, prompt, false));
            let slot = gone.voices.get_mut(index).and_then(|voice| voice.slot.take());
            self.slots.give_back(slot, kept);
        }
        // Those of answers that had not begun.
        gone.voices.iter_mut().for_each(|voice| self.slots.give_back(voice.slot.take(), None));
    }

    /// Keeps a text of which `prefilled` tokens, or all of its prompt, were prefilled.
    pub(super) fn keep(
        &mut self,
        sequence: Sequence,
        prefilled: usize,
        prompt: usize,
        shared: bool,
    ) -> Option<u64> {
        let prefilled = prefilled.min(prompt).min(sequence.position());
        self.prefixes.keep(sequence, prefilled, shared)
    }
}
