//! The pool: every tile once, whatever the threads; parked workers wake; shutdown is clean.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapidary_runtime::Pool;
use lapidary_runtime::demand::Demand;
use lapidary_runtime::program::{FRAME_SLOTS, KernelFn, RESUMED, Step, Tiles};

extern "C" fn count(frame: *const u64, begin: u64, end: u64, scratch: *mut u8) {
    assert!(begin < end);
    // SAFETY: the slot is an array of counters, one a tile; the scratch is 64 bytes of this thread alone.
    unsafe {
        scratch.cast::<u64>().write(begin);
        let counters = frame.add(FRAME_SLOTS).read() as *const AtomicU32;
        for tile in begin as usize..end as usize {
            (*counters.add(tile)).fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(scratch.cast::<u64>().read(), begin);
    }
}

fn step(kernel: KernelFn, tiles: Tiles, tile_ns: u32, resumes: bool) -> Step {
    Step {
        name: "step".into(),
        kernel,
        tiles,
        by_segment: false,
        tile_ns,
        resumes,
        joins: false,
        demand: Demand::default(),
    }
}

fn launch(pool: &mut Pool, fixed: u32, rows: u32, call_rows: usize, tile_ns: u32) {
    let tiles = Tiles { fixed, rows };
    let counters: Vec<AtomicU32> = (0..tiles.count(call_rows)).map(|_| AtomicU32::new(0)).collect();
    let mut frame = [0; FRAME_SLOTS + 1];
    frame[FRAME_SLOTS] = counters.as_ptr().expose_provenance() as u64;
    let step = step(count, tiles, tile_ns, false);
    // SAFETY: the frame is what `count` reads, and lives until the launch returns.
    unsafe { pool.launch(&[step], frame.as_ptr(), call_rows, &[]) };
    assert!(counters.iter().all(|c| c.load(Ordering::Relaxed) == 1));
}

#[test]
fn every_tile_runs_once() {
    for threads in [1, 2, 3, 4, 9] {
        let mut pool = Pool::new(threads, 64).unwrap();
        assert_eq!(pool.threads(), threads);
        assert_eq!(pool.scratch_bytes(), threads * 64);
        for round in 0..300u32 {
            launch(&mut pool, 1 + round % 70, 1 + round % 3, 1 + round as usize % 17, 10_000);
            launch(&mut pool, 3, 0, 1, 1);
            launch(&mut pool, 0, 0, 1, 10_000);
        }
    }
}

/// Counts its tiles in the `N`th array, and says in scratch whose they were: a thread that resumes must find that.
extern "C" fn resume<const N: usize>(frame: *const u64, begin: u64, end: u64, scratch: *mut u8) {
    let (resumed, begin) = (begin & RESUMED != 0, begin & !RESUMED);
    assert!(begin < end);
    // SAFETY: the slots are arrays of counters, one a tile, and one that counts what resumed; the scratch is this
    // thread's.
    unsafe {
        let slot = |n: usize| frame.add(FRAME_SLOTS + n).read() as *const AtomicU32;
        if resumed {
            assert_eq!(scratch.cast::<usize>().read(), N + 1, "scratch is another step's");
            (*slot(3)).fetch_add(1, Ordering::Relaxed);
        }
        scratch.cast::<usize>().write(N + 1);
        for tile in begin as usize..end as usize {
            (*slot(N).add(tile)).fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn steps_share_a_launch() {
    let resumed = AtomicU32::new(0);
    for threads in [1, 2, 4] {
        let mut pool = Pool::new(threads, 64).unwrap();
        for round in 0..300u32 {
            let call_rows = 1 + round as usize % 17;
            let spaces = [
                Tiles { fixed: 1 + round % 70, rows: 1 + round % 3 },
                Tiles { fixed: round % 4, rows: 0 },
                Tiles { fixed: 40, rows: 0 },
            ];
            let counters = spaces.map(|t| Vec::from_iter((0..t.count(call_rows)).map(|_| AtomicU32::new(0))));
            let mut frame = [0; FRAME_SLOTS + 4];
            for (slot, counters) in frame[FRAME_SLOTS..].iter_mut().zip(&counters) {
                *slot = counters.as_ptr().expose_provenance() as u64;
            }
            frame[FRAME_SLOTS + 3] = (&raw const resumed).expose_provenance() as u64;
            let steps = [
                step(resume::<0>, spaces[0], 10_000, true),
                step(resume::<1>, spaces[1], 1, false),
                step(resume::<2>, spaces[2], 5_000 * (round % 2), true),
            ];
            // SAFETY: the frame is what the steps read, and lives until the launch returns; each step has its own
            // counters.
            unsafe { pool.launch(&steps, frame.as_ptr(), call_rows, &[]) };
            assert!(counters.iter().flatten().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }
    assert!(resumed.load(Ordering::Relaxed) > 0, "no thread resumed");
}

#[test]
fn parked_workers_wake() {
    let mut pool = Pool::new(3, 64).unwrap();
    for pause in [0, 10, 20, 25, 30, 50, 100, 1_000, 5_000] {
        for _ in 0..20 {
            launch(&mut pool, 100, 0, 1, 10_000);
            std::thread::sleep(Duration::from_micros(pause));
        }
    }
}

#[test]
fn shutdown_is_clean() {
    for round in 0..100 {
        let mut pool = Pool::new(4, 0).unwrap();
        if round % 2 == 0 {
            continue;
        }
        let mut pool2 = Pool::new(2, 64).unwrap();
        launch(&mut pool2, 8, 0, 1, 10_000);
        launch(&mut pool, 0, 0, 1, 10_000);
    }
}
