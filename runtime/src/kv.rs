//! The memory of key-value caches: zeroed by the system, so that rows never written cost no physical memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::Error;
use crate::program::SlotKind;

/// Alignment of a cache's first row.
const ALIGN: usize = 64;

/// One cache: `(heads, rows, row_bytes)`.
pub(crate) struct Cache {
    name: String,
    allocation: NonNull<u8>,
    layout: Layout,
    address: u64,
    bytes: usize,
    rows: usize,
    window: Option<usize>,
}

// SAFETY: a cache owns its allocation, nothing about it is tied to a thread.
unsafe impl Send for Cache {}
// SAFETY: a shared cache gives out only numbers; the bytes are touched by kernels alone, within a `&mut Session`.
unsafe impl Sync for Cache {}

impl Cache {
    /// A zeroed cache for a slot of kind [`SlotKind::Cache`]; none for another kind.
    pub(crate) fn new(name: &str, kind: SlotKind) -> Result<Option<Self>, Error> {
        let SlotKind::Cache { heads, rows, row_bytes, window } = kind else { return Ok(None) };
        let out_of_memory = |bytes| Error::Memory { what: format!("cache `{name}`"), bytes };
        let bytes = heads.checked_mul(rows).and_then(|n| n.checked_mul(row_bytes));
        let bytes = bytes.ok_or_else(|| out_of_memory(usize::MAX))?;
        // Word-aligned with room to align by hand: for higher alignments the system allocator zeroes by writing,
        // which would make every page of the context resident.
        let layout = bytes.checked_add(ALIGN).and_then(|n| Layout::from_size_align(n, 8).ok());
        let layout = layout.ok_or_else(|| out_of_memory(bytes))?;
        // SAFETY: the layout's size is ALIGN or more, not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) });
        let allocation = allocation.ok_or_else(|| out_of_memory(bytes))?;
        let address = allocation.as_ptr().expose_provenance().next_multiple_of(ALIGN) as u64;
        Ok(Some(Self { name: name.to_owned(), allocation, layout, address, bytes, rows, window }))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Address of its first row.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether old rows are overwritten.
    pub(crate) fn is_ring(&self) -> bool {
        self.window.is_some()
    }

    /// The smallest position, other than 0, that a session may be rolled back to when position `high - 1` was the
    /// highest ever written since it was empty.
    ///
    /// The next query is at position `n` and reads positions `n - window + 1 .. n`; the ring holds those from
    /// `high - rows` on.
    pub(crate) fn smallest_rollback(&self, high: usize) -> usize {
        match self.window {
            Some(window) if high > self.rows => (high - self.rows + window).saturating_sub(1),
            _ => 0,
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, freed nowhere else.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ring(rows: usize, window: Option<usize>) -> Cache {
        let kind = SlotKind::Cache { heads: 2, rows, row_bytes: 12, window };
        Cache::new("k_cache", kind).unwrap().unwrap()
    }

    #[test]
    fn caches_are_aligned() {
        let cache = ring(7, None);
        assert_eq!(cache.address() % ALIGN as u64, 0);
        assert_eq!(cache.bytes(), 2 * 7 * 12);
    }

    #[test]
    fn rings_bound_the_rollback() {
        let cache = ring(12, Some(8));
        assert_eq!(cache.smallest_rollback(12), 0);
        // Position 0 is gone, 1.. are held: a query at 8 reads 1..=8.
        assert_eq!(cache.smallest_rollback(13), 8);
        assert_eq!(ring(12, None).smallest_rollback(13), 0);
    }
}
