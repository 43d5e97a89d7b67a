//! The pool: every tile once, whatever the threads; parked workers wake; shutdown is clean.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapidary_runtime::Pool;
use lapidary_runtime::demand::Demand;
use lapidary_runtime::program::{FRAME_SLOTS, Step, Tiles};

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

fn launch(pool: &mut Pool, fixed: u32, rows: u32, call_rows: usize, tile_ns: u32) {
    let tiles = Tiles { fixed, rows };
    let counters: Vec<AtomicU32> = (0..tiles.count(call_rows)).map(|_| AtomicU32::new(0)).collect();
    let mut frame = [0; FRAME_SLOTS + 1];
    frame[FRAME_SLOTS] = counters.as_ptr().expose_provenance() as u64;
    let step: Step = Step {
        name: "count".into(),
        kernel: count,
        tiles,
        tile_ns,
        resumes: false,
        demand: Demand::default(),
    };
    // SAFETY: the frame is what `count` reads, and lives until the launch returns.
    unsafe { pool.launch(&step, frame.as_ptr(), call_rows) };
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
