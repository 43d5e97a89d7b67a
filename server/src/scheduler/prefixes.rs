//! Texts whose KV caches are kept, for prompts that begin as they do.
//!
//! In: sequences that are done with, or copies at places where texts part. Out: for a prompt, a sequence that holds the
//! longest beginning of it that can be had. Invariants: their bytes are at most what was given; the one used longest
//! ago goes first; what is told to be prefilled was never decoded.

use lapidary_runtime::{Error, Sequence};

/// Tokens that are worth a copy.
const LEAST: usize = 8;
/// Tokens by which a copy at a place where texts part must beat what there is.
const PARTING: usize = 64;

/// A kept text.
struct Kept {
    id: u64,
    sequence: Sequence,
    /// Tokens from the start on that were prefilled.
    prefilled: usize,
    /// Whether several texts may go on from it.
    shared: bool,
    /// When it was used last.
    used: u64,
}

/// Kept texts.
pub(super) struct Prefixes {
    kept: Vec<Kept>,
    most: usize,
    strict: bool,
    clock: u64,
}

/// A beginning of a prompt.
pub(super) struct Beginning {
    pub(super) sequence: Sequence,
    /// Tokens of it, from the start on, that were prefilled.
    pub(super) prefilled: usize,
}

/// What there is for a prompt.
#[derive(Default)]
pub(super) struct Found {
    pub(super) beginning: Option<Beginning>,
    /// A place further on up to where a kept text is the same, though it cannot be had: a copy there serves the next.
    pub(super) parting: Option<usize>,
}

impl Prefixes {
    /// None yet, of at most so many bytes; `strict`: only what was prefilled is used.
    pub(super) fn new(most: usize, strict: bool) -> Prefixes {
        Prefixes { kept: vec![], most, strict, clock: 0 }
    }

    /// Bytes of KV that they take.
    pub(super) fn bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.sequence.kv_bytes()).sum()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// What there is for a prompt, short of its last token, which is to be predicted from. A copy may take `room`
    /// bytes.
    pub(super) fn find(&mut self, prompt: &[u32], room: usize) -> Result<Found, Error> {
        let most = prompt.len().saturating_sub(1);
        let (mut best, mut reached, mut common) = (None, LEAST - 1, 0);
        for (index, kept) in self.kept.iter().enumerate() {
            let tokens = kept.sequence.tokens();
            let same = tokens.iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
            let same = if self.strict { same.min(kept.prefilled) } else { same };
            common = common.max(same);
            let reaches = same == tokens.len() || same >= kept.sequence.smallest();
            if reaches && same > reached {
                (best, reached) = (Some(index), same);
            }
        }
        let had = if best.is_some() { reached } else { 0 };
        let parting = Some(common).filter(|&common| common >= had + PARTING);
        let Some(index) = best else { return Ok(Found { beginning: None, parting }) };
        self.clock += 1;
        let kept = &mut self.kept[index];
        kept.used = self.clock;
        let prefilled = kept.prefilled.min(reached);
        let whole = kept.sequence.position() == reached;
        let sequence = if whole && !kept.shared {
            self.kept.swap_remove(index).sequence
        } else if kept.sequence.kv_bytes() <= room {
            kept.sequence.fork_at(reached)?
        } else if kept.shared {
            return Ok(Found { beginning: None, parting: None });
        } else {
            // There is no room for a copy: the text itself, then.
            let mut sequence = self.kept.swap_remove(index).sequence;
            sequence.truncate(reached);
            sequence
        };
        Ok(Found { beginning: Some(Beginning { sequence, prefilled }), parting })
    }

    /// Keeps a text, if it fits and is worth it: what it is known by.
    pub(super) fn keep(&mut self, mut sequence: Sequence, prefilled: usize, shared: bool) -> Option<u64> {
        if self.strict && prefilled < sequence.position() {
            sequence.truncate(prefilled);
        }
        if sequence.position() < LEAST || sequence.kv_bytes() > self.most {
            return None;
        }
        // One that a longer text can be cut to is not needed beside it.
        let held = |long: &Sequence, short: &Sequence| {
            long.tokens().starts_with(short.tokens()) && long.smallest() <= short.position()
        };
        self.clock += 1;
        let prefilled = prefilled.min(sequence.position());
        if let Some(kept) =
            self.kept.iter_mut().find(|kept| kept.prefilled >= prefilled && held(&kept.sequence, &sequence))
        {
            kept.used = self.clock;
            kept.shared |= shared;
            return Some(kept.id);
        }
        self.kept.retain(|kept| kept.prefilled > prefilled || !held(&sequence, &kept.sequence));
        let (id, used) = (self.clock, self.clock);
        self.kept.push(Kept { id, sequence, prefilled, shared, used });
        self.shrink(self.most);
        Some(id)
    }

    /// Forgets until at most so many bytes are taken.
    pub(super) fn shrink(&mut self, bytes: usize) {
        while self.bytes() > bytes {
            let Some(oldest) = (0..self.kept.len()).min_by_key(|&i| self.kept[i].used) else { return };
            self.kept.swap_remove(oldest);
        }
    }

    /// A kept text, and how much of it was prefilled.
    pub(super) fn get(&self, id: u64) -> Option<(&Sequence, usize)> {
        self.kept.iter().find(|kept| kept.id == id).map(|kept| (&kept.sequence, kept.prefilled))
    }

    /// Forgets a text.
    pub(super) fn forget(&mut self, id: u64) {
        self.kept.retain(|kept| kept.id != id);
    }
}
