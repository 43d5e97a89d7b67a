//! The pool under loom, which runs it in every order in which its threads may go (within a bound) and with every value
//! that a load may then see: tiles run once, what they write is seen after the launch, workers that park or wake late
//! do no harm, shutdown ends. It is the pool's own source, with loom's atomics in the place of the standard library's.
//!
//! Loom takes sequentially consistent operations for acquiring and releasing ones. So it also runs what cannot happen:
//! a launch that sees no parked worker, which then sees no launch. That costs the launch a thread, and must not hang
//! it.
#![allow(clippy::unwrap_used)]

mod error {
    pub(crate) use lapidary_runtime::Error;
}

mod program {
    pub(crate) use lapidary_runtime::program::{Aligned, RESUMED, Segment, Step};
}

mod sync {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use loom::thread::{self, JoinHandle};

    /// Signals are none of loom's business.
    pub(crate) struct SignalStack;

    impl SignalStack {
        pub(crate) fn new() -> Self {
            Self
        }
    }

    /// None: that a worker parks at once is the harder case.
    pub(crate) struct Patience;

    impl Patience {
        pub(crate) fn new() -> Self {
            Patience
        }

        pub(crate) fn spin(&mut self) -> bool {
            false
        }
    }
}

#[allow(dead_code, unreachable_pub)]
#[path = "../src/pool.rs"]
mod pool;

use lapidary_runtime::demand::Demand;
use lapidary_runtime::program::{FRAME_SLOTS, Step, Tiles};
use loom::cell::UnsafeCell;
use pool::Pool;

/// How often a tile ran: loom sees who reads and writes it at the same time.
type Cell = UnsafeCell<u32>;

extern "C" fn count<const FIRST: usize>(frame: *const u64, begin: u64, end: u64, scratch: *mut u8) {
    // SAFETY: the slot is an array of cells, one a tile, the first of this step's at FIRST; the scratch is 8 bytes of
    // this thread alone.
    unsafe {
        scratch.cast::<u64>().write(begin);
        let cells = (frame.add(FRAME_SLOTS).read() as *const Cell).add(FIRST);
        for tile in begin as usize..end as usize {
            (*cells.add(tile)).with_mut(|count| *count += 1);
        }
        assert_eq!(scratch.cast::<u64>().read(), begin);
    }
}

fn step<const FIRST: usize>(tiles: u32, joins: bool) -> Step {
    let (kernel, tiles) = (count::<FIRST>, Tiles { fixed: tiles, rows: 0 });
    let (name, demand) = ("count".into(), Demand::default());
    Step { name, kernel, tiles, by_segment: false, tile_ns: 10_000, resumes: false, joins, demand }
}

/// Launches steps of so many tiles together, and looks at what they did.
fn launch(pool: &mut Pool, steps: &[Step], tiles: usize) {
    let cells: Vec<Cell> = (0..tiles).map(|_| Cell::new(0)).collect();
    let mut frame = [0; FRAME_SLOTS + 1];
    frame[FRAME_SLOTS] = cells.as_ptr().expose_provenance() as u64;
    // SAFETY: the frame is what `count` reads, and lives until the launch returns.
    unsafe { pool.launch(steps, frame.as_ptr(), 1, &[]) };
    // SAFETY: the launch has ended, which loom checks.
    assert!(cells.iter().all(|cell| cell.with(|count| unsafe { *count } == 1)));
}

/// Runs a pool in every order with up to so many switches of a thread that could have gone on.
fn explore(switches: Option<usize>, threads: usize, run: impl Fn(&mut Pool) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = switches;
    builder.check(move || {
        let mut pool = Pool::new(threads, 64).unwrap();
        assert_eq!(pool.threads(), threads);
        run(&mut pool);
    });
}

#[test]
fn a_pool_shuts_down_unused() {
    explore(None, 2, |_| ());
    explore(Some(2), 3, |_| ());
}

#[test]
fn launches_follow_each_other() {
    explore(Some(3), 2, |pool| {
        launch(pool, &[step::<0>(2, false)], 2);
        launch(pool, &[step::<0>(3, false)], 3);
    });
}

#[test]
fn steps_share_a_launch() {
    explore(Some(3), 2, |pool| launch(pool, &[step::<0>(1, false), step::<1>(2, true)], 3));
}

#[test]
fn three_threads_share_a_launch() {
    explore(Some(2), 3, |pool| launch(pool, &[step::<0>(3, false)], 3));
}
