//! An allocator that refuses what would go beyond a limit, and one large allocation of many.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes from which an allocation is large: its size comes from the file.
const LARGE: usize = 50 << 10;

/// Refuses what would go beyond a limit, and one large allocation of many.
pub(crate) struct Limited;

static HELD: AtomicUsize = AtomicUsize::new(0);
pub(crate) static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Large allocations so far, and which of them is refused.
pub(crate) static SEEN: AtomicUsize = AtomicUsize::new(0);
pub(crate) static REFUSED: AtomicUsize = AtomicUsize::new(usize::MAX);

#[global_allocator]
static ALLOCATOR: Limited = Limited;

impl Limited {
    /// Whether so much more may be held; if so, it is.
    fn take(size: usize) -> bool {
        if size >= LARGE && SEEN.fetch_add(1, Ordering::Relaxed) == REFUSED.load(Ordering::Relaxed) {
            return false;
        }
        let before = HELD.fetch_add(size, Ordering::Relaxed);
        let fits = before.saturating_add(size) <= MOST.load(Ordering::Relaxed);
        if !fits {
            HELD.fetch_sub(size, Ordering::Relaxed);
        }
        fits
    }

    /// Lets so much more be held than is now.
    pub(crate) fn allow(bytes: usize) {
        MOST.store(HELD.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    }
}

// SAFETY: memory comes from and goes back to the system's allocator; refusing with null is allowed.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Limited::take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise on `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Limited::take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise on `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise: `at` came from `alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}
