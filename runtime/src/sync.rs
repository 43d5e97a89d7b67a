//! What the thread pool synchronises by, as the standard library has it. `tests/interleavings.rs` puts loom's in its
//! place, which tries the orders in which threads may go.

use std::time::{Duration, Instant};

pub(crate) use crate::fault::SignalStack;
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::thread::{self, JoinHandle};

/// How long a worker without work spins before it parks: longer than a step's kernels that run on one thread.
const SPIN: Duration = Duration::from_micros(100);

/// What several threads read and write, as their own words say when.
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Gives the address to read from.
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Gives the address to write to.
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Spins for [`SPIN`], looking at the clock now and then.
pub(crate) struct Patience {
    since: Option<Instant>,
    spins: u32,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { since: None, spins: 0 }
    }

    /// Spins once; false when time is up.
    pub(crate) fn spin(&mut self) -> bool {
        std::hint::spin_loop();
        self.spins = self.spins.wrapping_add(1);
        if !self.spins.is_multiple_of(32) {
            return true;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}
