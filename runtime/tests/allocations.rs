//! After warm-up, a token allocates nothing on any thread, whatever the mix of sequences that it is stepped in. One
//! test only: the counter counts every thread but the main one, on which the test harness waits, and allocates whenever
//! it comes to that.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use lapidary_runtime::{Engine, Phase, Rng, Sampler, SamplerOptions, Sequence, Want, Work};

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
    in_a_session();
    in_any_mix();
}

fn in_a_session() {
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

/// Sequences of the mixes.
const SEQUENCES: usize = 6;
/// Tokens of one's share in a step: more than a chunk.
const MOST: usize = CHUNK + 7;

fn in_any_mix() {
    let mut engine = Engine::new(Arc::new(program(CHUNK)), Arc::new(weights()), 3).unwrap();
    let mut sequences: [Sequence; SEQUENCES] = std::array::from_fn(|_| engine.sequence().unwrap());
    let (ids, mut rng) = (text(MOST), Rng::new(5));
    let mut below = |n: usize| (rng.unit() * n as f64) as usize;
    // As many logits and tokens as any step wants: room for more is made on first use.
    for want in [Want::AllLogits, Want::AllArgmax] {
        let all = |sequence| Work { sequence, tokens: &ids, phase: Phase::Prefill, want };
        engine.step(&mut sequences.each_mut().map(all)).unwrap();
    }
    let before = COUNT.load(Ordering::SeqCst);
    let mut seen = [[0; 5]; 2];
    for _ in 0..400 {
        for sequence in &mut sequences {
            let room = sequence.context() - sequence.position();
            if room < MOST || below(8) == 0 {
                sequence.truncate(below(CONTEXT - MOST));
            }
        }
        let among = 1 + below(SEQUENCES);
        let mut works = sequences.each_mut().map(|sequence| {
            let (phase, want) = (below(2), below(5));
            seen[phase][want] += 1;
            let phase = [Phase::Prefill, Phase::Decode][phase];
            let wants = [Want::Nothing, Want::Logits, Want::AllLogits, Want::Argmax, Want::AllArgmax];
            let want = wants[want];
            let from = if want == Want::Nothing { 0 } else { 1 };
            let most = [2, 9, MOST][below(3)].min(MOST - from + 1);
            let tokens = &ids[..from + below(most)];
            Work { sequence, tokens, phase, want }
        });
        if below(4) == 0 {
            engine
                .step_each(&mut works[..among], &mut |_, _, logits| assert!(logits.len() == VOCAB))
                .unwrap();
        } else {
            engine.step(&mut works[..among]).unwrap();
        }
    }
    assert_eq!(COUNT.load(Ordering::SeqCst) - before, 0);
    assert!(seen.iter().flatten().all(|&count| count > 100), "{seen:?}");
}
