//! Slots: where answers run, and what each held last.

use super::running::Running;

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
    /// The text that each held last.
    last: Vec<Option<Vec<u32>>>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Slots {
        Slots { busy: vec![false; count], last: vec![None; count] }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.busy.len()
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
    pub(super) fn give_back(&mut self, slot: Option<usize>, kept: Option<Vec<u32>>) {
        if let Some(slot) = slot {
            self.busy[slot] = false;
            self.hold(slot, kept);
        }
    }

    /// Says what one held last.
    pub(super) fn hold(&mut self, slot: usize, text: Option<Vec<u32>>) {
        if text.is_some() {
            self.last[slot] = text;
        }
    }

    /// The text that one held last.
    pub(super) fn last(&self, slot: usize) -> Option<&[u32]> {
        self.last.get(slot)?.as_deref()
    }

    /// The same, which it does not hold any more.
    pub(super) fn forget(&mut self, slot: usize) -> Option<Vec<u32>> {
        self.last.get_mut(slot)?.take()
    }

    pub(super) fn states<'a>(&self, jobs: impl Iterator<Item = &'a Running>) -> Vec<SlotState> {
        let voices: Vec<_> = jobs.flat_map(|r| r.voices.iter().map(move |voice| (r, voice))).collect();
        let state = |slot: usize| {
            let here = voices.iter().find(|(_, voice)| voice.slot == Some(slot));
            let (prompt, generated) = here.map_or((0, 0), |(r, voice)| (r.job.prompt.len(), voice.tokens()));
            SlotState { busy: self.busy[slot], prompt, generated }
        };
        (0..self.busy.len()).map(state).collect()
    }
}
