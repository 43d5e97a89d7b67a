//! Memory that the system refuses, and how much it would give.
//!
//! Where the amount is a file's or a user's to decide, memory is asked for within `fallible`, and a refusal is an
//! error that says what it was for. All other refusals end a command whose allocator is [`Allocator`] with one line and
//! exit code 1, instead of an abort.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

use crate::fault;

thread_local! {
    /// Whether this thread deals with a refusal itself.
    static FALLIBLE: Cell<bool> = const { Cell::new(false) };
}

/// Asks for memory and deals with a refusal: `ask` allocates what it returns and nothing else.
pub(crate) fn fallible<T>(ask: impl FnOnce() -> T) -> T {
    let before = FALLIBLE.replace(true);
    let given = ask();
    FALLIBLE.set(before);
    given
}

/// Bytes that the system would give without swapping, mapped files given up: of the machine's, and of what is left of a
/// control group's limit (version 2), as containers have. None where neither is known.
pub fn available() -> Option<usize> {
    let machine = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    };
    let told = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |name: &str| told(name)?.trim().parse::<usize>().ok();
    let files = || {
        let text = told("memory.stat").unwrap_or_default();
        let of = |line: &str| {
            line.strip_prefix("active_file ").or(line.strip_prefix("inactive_file "))?.parse::<usize>().ok()
        };
        text.lines().filter_map(of).sum::<usize>()
    };
    let left = || {
        let most = number("memory.max")?;
        Some(most.saturating_sub(number("memory.current")?).saturating_add(files()).min(most))
    };
    [machine(), left()].into_iter().flatten().min()
}

/// The system's allocator; a refusal that nobody deals with ends the process.
pub struct Allocator;

impl Allocator {
    fn check(given: *mut u8, layout: Layout) -> *mut u8 {
        // A thread that is ending has no say any more.
        if given.is_null() && !FALLIBLE.try_with(Cell::get).unwrap_or(false) {
            fault::out_of_memory(layout.size());
        }
        given
    }
}

// SAFETY: the system's allocator, its answers passed on.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        Allocator::check(unsafe { System.alloc(layout) }, layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        Allocator::check(unsafe { System.alloc_zeroed(layout) }, layout)
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let given = unsafe { System.realloc(memory, layout, size) };
        // SAFETY: the caller promises that the new size makes a layout.
        Allocator::check(given, unsafe { Layout::from_size_align_unchecked(size, layout.align()) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}
