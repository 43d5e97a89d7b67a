//! Who has memory: jobs begin with as much as their prompts and some of their answers take, and get more as they grow.
//!
//! Invariants: what is put aside is at most what there is, or all of it one job's; whoever came first goes first: what
//! an older job needs is taken from the youngest, which pauses and computes its text again when there is room. Its
//! prompt is prefilled again and its answer decoded again, so that it goes on as if nothing had been.

use lapidary_runtime::Sequence;

use super::running::Running;
use super::{Event, Job, Scheduler};
use crate::error::ApiError;

/// Positions of an answer that memory is put aside for at a time.
const QUANTUM: usize = 256;

impl Scheduler {
    /// Bytes that so many positions of each of a job's answers take.
    pub(super) fn bytes_of(&self, job: &Job, positions: usize) -> usize {
        job.parameters.n.saturating_mul(self.engine.kv_bytes_of(positions))
    }

    /// Goes on with jobs that had to wait for memory, and begins others, the oldest first, while there are slots and
    /// memory for them.
    pub(super) fn admit(&mut self) {
        while let Some(paused) = self.paused.front() {
            let room = positions(&paused.job, paused.longest());
            let need = paused.speaking().saturating_mul(self.engine.kv_bytes_of(room));
            if need > self.left() && !self.running.is_empty() {
                return;
            }
            let Some(mut paused) = self.paused.pop_front() else { return };
            (paused.room, paused.reserved) = (room, need);
            match self.resume(&mut paused) {
                Ok(()) => self.running.push(paused),
                Err(message) => {
                    let _ = paused.job.events.send(Event::Failed(ApiError::internal(message)));
                    self.release(paused);
                }
            }
        }
        while let Some(job) = self.waiting.front() {
            if self.slots.free() < job.parameters.n {
                return;
            }
            let whole = self.bytes_of(job, job.prompt.len() + job.most);
            let room = positions(job, job.prompt.len());
            if whole <= self.kv_bytes && self.bytes_of(job, room) > self.left() {
                return;
            }
            let Some(mut job) = self.waiting.pop_front() else { return };
            job.place = None;
            if whole > self.kv_bytes {
                let (most, n) = (self.kv_bytes >> 20, whole >> 20);
                let message =
                    format!("the request may need {n} MiB of KV cache, there are {most} (--kv-memory)");
                self.metrics.rejected.add(1);
                let _ = job.events.send(Event::Failed(ApiError::invalid(message)));
                continue;
            }
            match self.begin(job, room) {
                Ok(running) => self.running.push(running),
                Err((events, message)) => {
                    let _ = events.send(Event::Failed(ApiError::internal(message)));
                }
            }
        }
    }

    /// Puts memory aside for what the next step appends.
    pub(super) fn grow(&mut self) {
        let step = self.engine.most_guessed();
        let mut index = 0;
        while let Some(running) = self.running.get(index) {
            let (most, longest) = (running.job.prompt.len() + running.job.most, running.longest());
            if longest + step <= running.room || running.room >= most || !running.speaks {
                index += 1;
                continue;
            }
            let room = positions(&running.job, longest + step);
            let each = self.engine.kv_bytes_of(room) - self.engine.kv_bytes_of(running.room);
            let more = each.saturating_mul(running.speaking());
            if more <= self.left() || self.running.len() == 1 {
                let running = &mut self.running[index];
                (running.room, running.reserved) = (room, running.reserved + more);
                self.prefixes.shrink(self.left());
                index += 1;
            } else if let Some(youngest) = self.running.pop() {
                self.pause(youngest);
            }
        }
    }

    /// Takes a job's memory, as far as it is not kept.
    fn pause(&mut self, mut running: Running) {
        self.metrics.paused.add(1);
        running.reserved = 0;
        let prompt = running.job.prompt.len();
        for sequence in running.sequences.iter_mut().filter_map(Option::take) {
            self.keep(sequence, running.prefilled, prompt);
        }
        self.prefixes.shrink(self.left());
        self.paused.push_front(running);
    }

    /// Gives its answers sequences again, which hold what is kept of their texts.
    fn resume(&mut self, paused: &mut Running) -> Result<(), String> {
        self.prefixes.shrink(self.left().saturating_sub(paused.reserved));
        if !paused.speaks {
            let start = self.start_of(&paused.job)?;
            (paused.prefilled, paused.parting) = (start.prefilled, start.parting);
            paused.sequences = vec![Some(start.sequence)];
            paused.scores.clear();
            return Ok(());
        }
        let mut sequences: Vec<Option<Sequence>> = vec![];
        for voice in &paused.voices {
            let prompt = paused.job.prompt.len();
            sequences.push(match voice.ended {
                Some(_) => None,
                None => match self.prefixes.take(voice.held(), paused.prefilled.min(prompt)) {
                    Some(sequence) => Some(sequence),
                    None => {
                        let mut start = self.start_of(&paused.job)?;
                        if paused.prefilled == usize::MAX {
                            // No more of it than what was prefilled.
                            start.sequence.truncate(start.prefilled);
                        }
                        Some(start.sequence)
                    }
                },
            });
        }
        paused.sequences = sequences;
        Ok(())
    }
}

/// Positions that memory is put aside for, of a job whose texts have so many: some more, and no more than there may be.
fn positions(job: &Job, longest: usize) -> usize {
    (longest + QUANTUM).min(job.prompt.len() + job.most)
}
