//! KV rows of a stretch of a text, apart from any sequence: what several texts that begin alike hold once.
//!
//! In: the rows of some positions of a [`Sequence`]. Out: a new sequence, put together of blocks that follow one
//! another. A block lies as `(cache, head, position)`, and holds the rows of all caches, or only of those that keep the
//! whole context: a sliding window's are there for as long as its ring is.

use std::ops::Range;
use std::sync::Arc;

use memmap2::{MmapMut, UncheckedAdvice};

use crate::engine::Engine;
use crate::error::Error;
use crate::kv::{Ledger, PAGE};
use crate::layout::{Cache, Layout};
use crate::sequence::Sequence;

/// See the module's documentation.
pub struct KvBlock {
    layout: Arc<Layout>,
    ledger: Arc<Ledger>,
    /// None of a model without caches.
    map: Option<MmapMut>,
    positions: usize,
    windows: bool,
    /// What the ledger holds for it.
    charged: usize,
}

impl KvBlock {
    fn new(
        layout: &Arc<Layout>,
        ledger: &Arc<Ledger>,
        positions: usize,
        windows: bool,
    ) -> Result<KvBlock, Error> {
        let bytes =
            positions * held(layout, windows).map(|cache| cache.heads * cache.row_bytes).sum::<usize>();
        let charged = bytes.next_multiple_of(PAGE);
        let map = (bytes > 0).then(|| MmapMut::map_anon(bytes)).transpose();
        let map = map.map_err(|_| Error::Memory { what: "rows of caches".into(), bytes })?;
        ledger.take(charged)?;
        Ok(KvBlock { layout: layout.clone(), ledger: ledger.clone(), map, positions, windows, charged })
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.positions
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.positions == 0
    }

    /// Whether it holds the rows of sliding windows, too.
    pub fn has_windows(&self) -> bool {
        self.windows
    }

    /// Bytes that it takes, in whole pages.
    pub fn bytes(&self) -> usize {
        self.charged
    }

    /// Takes the positions from `at` on out of it.
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::KvLimit`]: then nothing changes.
    ///
    /// # Panics
    /// If it does not hold as many.
    pub fn split_off(&mut self, at: usize) -> Result<KvBlock, Error> {
        assert!(at <= self.positions, "position {at} of {}", self.positions);
        let mut rest = KvBlock::new(&self.layout, &self.ledger, self.positions - at, self.windows)?;
        let layout = self.layout.clone();
        if let Some(from) = &mut self.map {
            let (mut start, mut kept, mut moved) = (0, 0, 0);
            for cache in held(&layout, self.windows) {
                for _ in 0..cache.heads {
                    let (row, end) = (cache.row_bytes, start + self.positions * cache.row_bytes);
                    let cut = start + at * row;
                    if let Some(to) = &mut rest.map {
                        to[moved..moved + end - cut].copy_from_slice(&from[cut..end]);
                    }
                    moved += end - cut;
                    from.copy_within(start..cut, kept);
                    kept += cut - start;
                    start = end;
                }
            }
            let (first, end) = (kept.next_multiple_of(PAGE), start.next_multiple_of(PAGE));
            if first < end {
                // SAFETY: whole pages of this map, which nobody reads any more.
                let _ = unsafe { from.unchecked_advise_range(UncheckedAdvice::DontNeed, first, end - first) };
            }
            let back = self.charged - kept.next_multiple_of(PAGE).min(self.charged);
            self.charged -= back;
            self.ledger.give(back);
        }
        self.positions = at;
        Ok(rest)
    }
}

impl Drop for KvBlock {
    fn drop(&mut self) {
        self.ledger.give(self.charged);
    }
}

/// The caches that a block holds, in order.
fn held(layout: &Layout, windows: bool) -> impl Iterator<Item = &Cache> {
    layout.caches.iter().filter(move |cache| windows || cache.window.is_none())
}

/// The largest window of a layout's caches; 0 of none.
fn window(layout: &Layout) -> usize {
    layout.caches.iter().filter_map(|cache| cache.window).max().unwrap_or(0)
}

impl Sequence {
    /// The rows of some positions; with those of sliding `windows`, from [`Sequence::windows_from`] on.
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::KvLimit`].
    ///
    /// # Panics
    /// If the sequence does not hold them.
    pub fn block(&self, range: Range<usize>, windows: bool) -> Result<KvBlock, Error> {
        let windows = windows || window(self.layout()) == 0;
        assert!(
            range.end <= self.position() && (!windows || range.start >= self.windows_from()),
            "{range:?}"
        );
        let mut block = KvBlock::new(self.layout(), self.kv.ledger(), range.len(), windows)?;
        let Some(map) = &mut block.map else { return Ok(block) };
        let mut at = 0;
        for cache in held(self.layout(), windows) {
            for head in 0..cache.heads {
                for rows in runs(cache, range.clone()) {
                    let from = self.kv.rows(cache, head, rows);
                    map[at..at + from.len()].copy_from_slice(from);
                    at += from.len();
                }
            }
        }
        Ok(block)
    }
}

impl Engine {
    /// The largest window of its model's caches; none where all keep the whole context.
    pub fn window(&self) -> Option<usize> {
        Some(window(self.layout())).filter(|&window| window > 0)
    }

    /// A sequence of these tokens, by blocks that hold the rows of their positions from the first on, and maybe of
    /// more. What is appended comes out as after the texts that the blocks are of.
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::KvLimit`], [`Error::ContextExceeded`], [`Error::TokenRange`].
    ///
    /// # Panics
    /// If blocks are of another engine, hold too few positions, or not the windows that the next token reads.
    pub fn assemble(&self, tokens: &[u32], blocks: &[&KvBlock]) -> Result<Sequence, Error> {
        let mut sequence = self.sequence()?;
        self.check(&sequence, tokens)?;
        let (end, window) = (tokens.len(), window(self.layout()));
        let (mut start, mut from) = (0, 0);
        for block in blocks {
            assert!(Arc::ptr_eq(&block.layout, self.layout()), "a block of another engine");
            if !block.windows && start < end {
                from = (start + block.positions).min(end);
            }
            start += block.positions;
        }
        assert!(start >= end && (from == 0 || from + window <= end + 1), "{start} {from} of {end}");
        sequence.admit(end)?;
        let layout = self.layout().clone();
        let mut start = 0;
        for block in blocks.iter().filter(|block| block.positions > 0) {
            let Some(map) = &block.map else { break };
            let mut offset = 0;
            for cache in held(&layout, block.windows) {
                // Of a ring, the rows that stay in it.
                let first = if cache.window.is_some() { from.max(end.saturating_sub(cache.rows)) } else { 0 };
                let range = first.max(start)..(start + block.positions).min(end);
                for head in 0..cache.heads {
                    let mut at = offset + range.start.saturating_sub(start) * cache.row_bytes;
                    for rows in runs(cache, range.clone()) {
                        let to = sequence.kv.rows_mut(cache, head, rows);
                        to.copy_from_slice(&map[at..at + to.len()]);
                        at += to.len();
                    }
                    offset += block.positions * cache.row_bytes;
                }
            }
            start += block.positions;
        }
        sequence.append(tokens);
        sequence.restore(if from == 0 { 0 } else { from + window - 1 }, None);
        Ok(sequence)
    }
}

/// Where the rows of positions lie in a cache: stretches of rows, in the positions' order.
fn runs(cache: &Cache, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let rows = cache.rows;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let count = (rows - at % rows).min(range.end.saturating_sub(at));
        let run = at % rows..at % rows + count;
        at += count;
        (count > 0).then_some(run)
    })
}
