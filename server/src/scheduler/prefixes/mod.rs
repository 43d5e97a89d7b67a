//! Texts whose KV caches are kept, for prompts that begin as they do.
//!
//! In: sequences that are done with, which are kept as they are for the text that goes on from them, and copies at
//! places where texts part, which a [`Tree`] holds. Out: for a prompt, a sequence that holds the longest beginning of
//! it that can be had. Where memory is short a sequence becomes a text of the tree, so that what it has in common with
//! others is there once; then leaves go. Invariants: the bytes of all are at most what was given; the one used longest
//! ago goes first; what is told to be prefilled was never decoded.

#[cfg(test)]
mod tests;
mod tree;

use std::ops::Range;

use lapidary_runtime::{Engine, Error, KvBlock, Sequence};

use tree::{Rows, Text, Tree, common};

/// Tokens that are worth a copy.
const LEAST: usize = 8;
/// Tokens in common that are worth a place of their own, and by which one must beat what there is.
const PARTING: usize = 64;

impl Rows for KvBlock {
    type Error = Error;

    fn split_off(&mut self, at: usize) -> Result<Self, Error> {
        KvBlock::split_off(self, at)
    }

    fn bytes(&self) -> usize {
        KvBlock::bytes(self)
    }
}

/// A sequence that is done with.
struct Live {
    sequence: Sequence,
    /// Tokens from the start on that were prefilled.
    prefilled: usize,
    /// When it was used last.
    used: u64,
}

/// Kept texts.
pub(super) struct Prefixes {
    live: Vec<Live>,
    tree: Tree<KvBlock>,
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
    /// None yet, of at most so many bytes; `strict`: only what was prefilled is used. `window`: that of the model's
    /// caches.
    pub(super) fn new(most: usize, strict: bool, window: Option<usize>) -> Prefixes {
        Prefixes { live: vec![], tree: Tree::new(window.unwrap_or(0)), most, strict, clock: 0 }
    }

    /// Bytes of KV that they take.
    pub(super) fn bytes(&self) -> usize {
        self.tree.bytes() + self.live.iter().map(|live| live.sequence.kv_bytes()).sum::<usize>()
    }

    /// How many stretches of text there are.
    pub(super) fn len(&self) -> usize {
        self.live.len() + self.tree.len()
    }

    /// What there is for a prompt, short of its last token, which is to be predicted from. A copy may take `room`
    /// bytes.
    pub(super) fn find(&mut self, engine: &Engine, prompt: &[u32], room: usize) -> Result<Found, Error> {
        let wanted = &prompt[..prompt.len().saturating_sub(1)];
        let shared = self.tree.reach(wanted);
        let (mut best, mut reached, mut same) = (None, shared.usable.max(LEAST - 1), shared.common);
        for (index, live) in self.live.iter().enumerate() {
            let sequence = &live.sequence;
            let here = common(sequence.tokens(), wanted);
            same = same.max(here);
            let (whole, reaches) = (here == sequence.position(), here >= sequence.smallest());
            if (whole || reaches) && (here > reached || whole && here == reached) {
                (best, reached) = (Some(index), here);
            }
        }
        self.clock += 1;
        let beginning = match best {
            Some(index) => Some(self.begin_with(index, reached, room)?),
            None if reached >= LEAST => self.assemble(engine, &wanted[..reached], room)?,
            None => None,
        };
        let had = beginning.as_ref().map_or(0, |beginning| beginning.sequence.position());
        Ok(Found { beginning, parting: Some(same).filter(|&same| same >= had + PARTING) })
    }

    /// The first tokens of a sequence: itself if it holds hardly others, which are soon computed again, else a copy if
    /// there is room.
    fn begin_with(&mut self, index: usize, reached: usize, room: usize) -> Result<Beginning, Error> {
        let live = &mut self.live[index];
        live.used = self.clock;
        let prefilled = live.prefilled.min(reached);
        if live.sequence.position() < reached + LEAST || live.sequence.kv_bytes() > room {
            let mut sequence = self.live.swap_remove(index).sequence;
            sequence.truncate(reached);
            return Ok(Beginning { sequence, prefilled });
        }
        let sequence = live.sequence.fork_at(reached)?;
        if reached >= PARTING {
            // Others will begin alike.
            self.share(&sequence, reached, prefilled);
        }
        Ok(Beginning { sequence, prefilled })
    }

    /// A sequence of tokens that the tree has, if there is or can be made room for it.
    fn assemble(&mut self, engine: &Engine, tokens: &[u32], room: usize) -> Result<Option<Beginning>, Error> {
        self.tree.touch(tokens, self.clock);
        let short = engine.kv_bytes_of(tokens.len()).saturating_sub(room);
        if short > 0 {
            self.shrink(self.bytes().saturating_sub(short));
            if self.tree.reach(tokens).usable < tokens.len() {
                return Ok(None);
            }
        }
        let (blocks, prefilled) = self.tree.rows(tokens);
        let prefilled = prefilled.min(tokens.len());
        Ok(Some(Beginning { sequence: engine.assemble(tokens, &blocks)?, prefilled }))
    }

    /// Puts a copy of a sequence's first tokens into the tree, as far as memory lets it.
    pub(super) fn share(&mut self, sequence: &Sequence, end: usize, prefilled: usize) {
        let end = if self.strict { end.min(prefilled) } else { end };
        if end < LEAST {
            return;
        }
        self.clock += 1;
        let text =
            Text { tokens: &sequence.tokens()[..end], prefilled, windows_from: sequence.windows_from() };
        let block = |range: Range<usize>, windows| sequence.block(range, windows);
        // What memory there is not is prefilled again.
        let _ = self.tree.insert(&text, self.clock, block);
        self.shrink(self.most);
    }

    /// Keeps a text, if it fits and is worth it: its tokens.
    pub(super) fn keep(&mut self, mut sequence: Sequence, prefilled: usize) -> Option<Vec<u32>> {
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
        let tokens = sequence.tokens().to_vec();
        self.tree.touch(&tokens, self.clock);
        let prefilled = prefilled.min(sequence.position());
        let mut others = self.live.iter_mut();
        if let Some(live) = others.find(|live| live.prefilled >= prefilled && held(&live.sequence, &sequence))
        {
            live.used = self.clock;
            return Some(tokens);
        }
        self.live.retain(|live| live.prefilled > prefilled || !held(&sequence, &live.sequence));
        self.live.push(Live { sequence, prefilled, used: self.clock });
        self.shrink(self.most);
        Some(tokens)
    }

    /// Forgets until at most so many bytes are taken: first that several texts hold the same.
    pub(super) fn shrink(&mut self, bytes: usize) {
        while self.bytes() > bytes {
            let newest = self.live.iter().map(|live| live.used).max();
            let shares = |live: &Live| self.tree.reach(live.sequence.tokens()).common >= PARTING;
            let by_use = |&index: &usize| self.live[index].used;
            let others = (0..self.live.len()).filter(|&index| Some(self.live[index].used) != newest);
            let folded = others.filter(|&index| shares(&self.live[index])).min_by_key(by_use);
            let oldest = (0..self.live.len()).min_by_key(by_use);
            match (folded, oldest, self.tree.oldest()) {
                (Some(live), _, _) => self.fold(live),
                (None, None, None) => return,
                (None, Some(live), leaf) if leaf.is_none_or(|leaf| self.live[live].used <= leaf) => {
                    self.fold(live);
                }
                (None, _, _) => self.tree.forget_oldest(),
            }
        }
    }

    /// Makes a text of the tree of a sequence, if it has anything in common with others; else it is forgotten.
    fn fold(&mut self, index: usize) {
        let Live { sequence, prefilled, used } = self.live.swap_remove(index);
        if self.tree.reach(sequence.tokens()).common < PARTING {
            return;
        }
        let text = Text { tokens: sequence.tokens(), prefilled, windows_from: sequence.windows_from() };
        // What memory there is not is prefilled again.
        let _ = self.tree.insert(&text, used, |range, windows| sequence.block(range, windows));
    }

    /// Takes the sequence of a text, if it is kept as it was made: so many tokens prefilled, the others decoded.
    pub(super) fn take(&mut self, tokens: &[u32], prefilled: usize) -> Option<Sequence> {
        let own =
            |live: &Live| live.sequence.tokens() == tokens && live.prefilled == prefilled.min(tokens.len());
        let index = self.live.iter().position(own)?;
        Some(self.live.swap_remove(index).sequence)
    }

    /// A copy of a text that is kept, and how much of it was prefilled.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub(super) fn copy(&self, engine: &Engine, tokens: &[u32]) -> Result<Option<(Sequence, usize)>, Error> {
        let holds = |live: &&Live| {
            live.sequence.tokens().starts_with(tokens) && live.sequence.smallest() <= tokens.len()
        };
        if let Some(live) = self.live.iter().find(holds) {
            return Ok(Some((live.sequence.fork_at(tokens.len())?, live.prefilled.min(tokens.len()))));
        }
        if self.tree.reach(tokens).usable < tokens.len() {
            return Ok(None);
        }
        let (blocks, prefilled) = self.tree.rows(tokens);
        Ok(Some((engine.assemble(tokens, &blocks)?, prefilled)))
    }

    /// Forgets a text, unless others go on from it: whether there was anything.
    pub(super) fn forget(&mut self, tokens: &[u32]) -> bool {
        let before = self.live.len();
        self.live.retain(|live| live.sequence.tokens() != tokens);
        self.tree.forget(tokens) || self.live.len() < before
    }
}
