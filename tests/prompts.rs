//! Tokenizers and chat templates: the real ones against the packages `tokenizers` and `transformers`, and hostile ones.
//!
//! This program's allocator counts what each thread holds, so that a bound of memory is a test.
#![allow(clippy::unwrap_used)]

#[path = "prompts/hostile_templates.rs"]
mod hostile_templates;
#[path = "prompts/hostile_tokenizers.rs"]
mod hostile_tokenizers;
#[path = "prompts/references.rs"]
mod references;
#[path = "prompts/templates.rs"]
mod templates;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread took and did not give back, and the most of them.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends has none of it any more.
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + bytes;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: memory comes from and goes back to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise on `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise: `at` came from `alloc` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The most bytes that a call holds beyond what was held before it.
fn peak<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get().0;
    HELD.set((before, before));
    let value = call();
    (value, (HELD.get().1 - before) as usize)
}
