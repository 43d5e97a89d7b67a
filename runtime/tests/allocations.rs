//! After warm-up, a token allocates nothing on any thread. One test only: the counter counts every thread but the main
//! one, on which the test harness waits, and allocates whenever it comes to that.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use lapidary_runtime::{Sampler, SamplerOptions};

static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Counting;

impl Counting {
    fn count() {
        // SAFETY: two system calls without arguments.
        let main = unsafe { libc::gettid() == libc::getpid() };
        if !main {
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller vouches.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller vouches.
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_token_allocates_nothing() {
    let mut session = session(3, CHUNK);
    let full = SamplerOptions {
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.2,
        seed: 1,
        ..SamplerOptions::default()
    };
    let options = [
        SamplerOptions::default(),
        full,
        SamplerOptions { top_k: 0, ..full },
        SamplerOptions { temperature: 0.0, ..full },
    ];
    let mut samplers = options.map(|o| Sampler::new(o, VOCAB).unwrap());
    let ids = text(100);
    let mut round = || {
        session.reset();
        session.prefill(&ids).unwrap();
        for &id in &ids[..40] {
            session.decode(id).unwrap();
            let token = session.argmax();
            for sampler in &mut samplers {
                sampler.sample(session.logits(), &ids, ids.len()).unwrap();
            }
            session.decode(token).unwrap();
            let before = session.position();
            session.rollback(before - 1).unwrap();
        }
        session.score(&ids[..40], &mut |_, _| ()).unwrap();
    };
    round();
    let before = COUNT.load(Ordering::SeqCst);
    for _ in 0..3 {
        round();
    }
    assert_eq!(COUNT.load(Ordering::SeqCst) - before, 0);
}
