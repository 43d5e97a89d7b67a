//! The memory of a sequence's caches: address space for its context, pages as they are written, and who has how many.
//!
//! Invariant: what a [`Kv`] has put on its engine's [`Ledger`] is at least the bytes of the pages that its rows take,
//! and comes off when they are given back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{MmapMut, UncheckedAdvice};

use crate::error::Error;
use crate::layout::{Cache, Layout};

/// Bytes of a page, as memory is counted and given back: the smallest of any target.
pub(crate) const PAGE: usize = 4096;

/// What the caches of an engine's sequences take together, in bytes.
#[derive(Debug)]
pub(crate) struct Ledger {
    used: AtomicUsize,
    most: AtomicUsize,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { used: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    pub(crate) fn set_most(&self, bytes: usize) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Puts more bytes on it, if they may be taken.
    pub(crate) fn take(&self, more: usize) -> Result<(), Error> {
        let most = self.most();
        let take = |used: usize| used.checked_add(more).filter(|&used| used <= most);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|used| Error::KvLimit { more, used, most })
    }

    /// Takes bytes off it.
    pub(crate) fn give(&self, back: usize) {
        self.used.fetch_sub(back, Ordering::Relaxed);
    }
}

/// The caches of one sequence.
pub(crate) struct Kv {
    layout: Arc<Layout>,
    ledger: Arc<Ledger>,
    /// None of a model without caches.
    map: Option<MmapMut>,
    /// What the ledger holds for it.
    charged: usize,
}

impl Kv {
    /// Address space for every cache; no page of it is touched.
    pub(crate) fn new(layout: Arc<Layout>, ledger: Arc<Ledger>) -> Result<Self, Error> {
        let bytes = layout.kv_bytes;
        let map = (bytes > 0).then(|| MmapMut::map_anon(bytes)).transpose();
        let map = map.map_err(|_| Error::Memory { what: "the caches of a sequence".into(), bytes })?;
        Ok(Self { layout, ledger, map, charged: 0 })
    }

    /// The address that caches' offsets count from.
    pub(crate) fn address(&mut self) -> u64 {
        self.map.as_mut().map_or(0, |map| map.as_mut_ptr().expose_provenance() as u64)
    }

    /// How the caches lie in it.
    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Its engine's ledger.
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// What rows below `high` take.
    pub(crate) fn bytes(&self) -> usize {
        self.charged
    }

    /// Puts what rows below `high` take on the ledger.
    pub(crate) fn charge(&mut self, high: usize) -> Result<(), Error> {
        let bytes = touched(&self.layout, high);
        let more = bytes.saturating_sub(self.charged);
        if more == 0 {
            return Ok(());
        }
        self.ledger.take(more)?;
        self.charged = bytes;
        Ok(())
    }

    /// Takes off the ledger what rows below `high` do not take.
    pub(crate) fn discharge(&mut self, high: usize) {
        let back = self.charged.saturating_sub(touched(&self.layout, high));
        self.charged -= back;
        self.ledger.give(back);
    }

    /// Gives back the pages of rows from `from` on, of which those below `high` were written, where a cache has not
    /// wrapped.
    pub(crate) fn give_back(&mut self, from: usize, high: usize) {
        let layout = &*self.layout;
        if let Some(map) = &self.map {
            for cache in layout.caches.iter().filter(|c| high <= c.rows || from == 0) {
                for head in 0..cache.heads {
                    let start = row(cache, head, from);
                    let end = row(cache, head, high.min(cache.rows));
                    let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
                    if start < end {
                        // SAFETY: whole pages of this map, which nobody reads before they are written again; an
                        // anonymous map's pages come back as zeros.
                        let _ = unsafe {
                            map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
                        };
                    }
                }
            }
            if from == 0 {
                // SAFETY: as above, of the whole map.
                let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
            }
        }
        let kept = layout.caches.iter().map(|c| rows_touched(c, if high <= c.rows { from } else { high }));
        let kept = if from == 0 { 0 } else { kept.sum::<usize>() };
        let back = self.charged.saturating_sub(kept);
        self.charged -= back;
        self.ledger.give(back);
    }

    /// The bytes of a head's stored row.
    pub(crate) fn stored(&self, cache: &Cache, head: usize, index: usize) -> &[u8] {
        self.rows(cache, head, index..index + 1)
    }

    /// The same, to write.
    pub(crate) fn stored_mut(&mut self, cache: &Cache, head: usize, index: usize) -> &mut [u8] {
        self.rows_mut(cache, head, index..index + 1)
    }

    /// The bytes of a head's stored rows.
    pub(crate) fn rows(&self, cache: &Cache, head: usize, rows: Range<usize>) -> &[u8] {
        let bytes = row(cache, head, rows.start)..row(cache, head, rows.end);
        self.map.as_ref().map_or(&[], |map| &map[bytes])
    }

    /// The same, to write.
    pub(crate) fn rows_mut(&mut self, cache: &Cache, head: usize, rows: Range<usize>) -> &mut [u8] {
        let bytes = row(cache, head, rows.start)..row(cache, head, rows.end);
        self.map.as_mut().map_or(&mut [], |map| &mut map[bytes])
    }

    /// Copies what another one holds in rows below `high`.
    pub(crate) fn copy(&mut self, other: &Kv, high: usize) {
        let (Some(to), Some(from)) = (&mut self.map, &other.map) else { return };
        for cache in &self.layout.caches {
            for head in 0..cache.heads {
                let rows = row(cache, head, 0)..row(cache, head, high.min(cache.rows));
                to[rows.clone()].copy_from_slice(&from[rows]);
            }
        }
    }
}

impl Drop for Kv {
    fn drop(&mut self) {
        self.ledger.give(self.charged);
    }
}

/// Where a head's row starts.
fn row(cache: &Cache, head: usize, index: usize) -> usize {
    cache.offset + (head * cache.rows + index) * cache.row_bytes
}

/// Bytes of pages that a cache's rows below `high` take, at most.
fn rows_touched(cache: &Cache, high: usize) -> usize {
    if high == 0 {
        return 0;
    }
    let page = |head: usize, index: usize| row(cache, head, index);
    let pages = (0..cache.heads)
        .map(|h| page(h, high.min(cache.rows)).next_multiple_of(PAGE) - page(h, 0) / PAGE * PAGE);
    pages.sum()
}

/// Bytes of pages that rows below `high` take, at most.
pub(crate) fn touched(layout: &Layout, high: usize) -> usize {
    layout.caches.iter().map(|cache| rows_touched(cache, high)).sum()
}
