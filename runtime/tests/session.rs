//! Sessions over a toy program: the same bits however the work is split, rollback, errors, generation.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::*;
use lapidary_runtime::layout::HEAD_ROWS;
use lapidary_runtime::program::SlotKind;
use lapidary_runtime::{Error, Sampler, SamplerOptions, Session, StopReason, generate};

fn after(session: &mut Session, ids: &[u32]) -> Vec<u32> {
    session.prefill(ids).unwrap();
    bits(session.logits())
}

/// The logits after each token, one decode at a time.
fn reference(ids: &[u32]) -> Vec<Vec<u32>> {
    let mut session = session(1, CHUNK);
    ids.iter()
        .map(|&id| {
            session.decode(id).unwrap();
            bits(session.logits())
        })
        .collect()
}

#[test]
fn threads_do_not_change_a_bit() {
    let ids = text(150);
    let expected = reference(&ids);
    for threads in 0..=4 {
        let mut session = session(threads, CHUNK);
        assert_eq!(session.threads(), threads.max(1));
        for _ in 0..5 {
            session.reset();
            assert_eq!(after(&mut session, &ids[..120]), expected[119], "{threads} threads");
            for p in 120..150 {
                session.decode(ids[p]).unwrap();
                assert_eq!(bits(session.logits()), expected[p], "{threads} threads, position {p}");
            }
        }
    }
}

#[test]
fn chunks_do_not_change_a_bit() {
    let ids = text(130);
    let expected = reference(&ids);
    for chunk in [1, 2, 7, 8, 9, 31, CHUNK] {
        assert_eq!(after(&mut session(2, chunk), &ids), expected[129], "chunk {chunk}");
    }
    for split in [1, 12, 13, 41, 100] {
        let mut session = session(2, CHUNK);
        for part in ids.chunks(split) {
            session.prefill(part).unwrap();
        }
        assert_eq!(bits(session.logits()), expected[129], "split at {split}");
    }
}

#[test]
fn score_gives_every_row() {
    let ids = text(130);
    let expected = reference(&ids);
    let mut session = session(3, CHUNK);
    session.prefill(&ids[..5]).unwrap();
    let before = session.memory().activations;
    let mut next = 0;
    session
        .score(&ids[5..], &mut |i, logits| {
            assert_eq!(i, next);
            assert_eq!(bits(logits), expected[5 + i], "row {i}");
            next += 1;
        })
        .unwrap();
    assert_eq!(next, 125);
    assert_eq!(session.position(), 130);
    assert_eq!(bits(session.logits()), expected[129]);
    assert_eq!(session.memory().activations, before + 31 * VOCAB * 4);
}

#[test]
fn argmax_agrees_with_the_logits() {
    let mut session = session(2, CHUNK);
    let mut greedy = Sampler::new(SamplerOptions::default(), VOCAB).unwrap();
    for id in text(50) {
        session.decode(id).unwrap();
        let token = session.argmax();
        assert_eq!(token, greedy.sample(session.logits(), &[], 0).unwrap());
        assert_eq!(token, session.argmax());
    }
}

#[test]
fn rollback_forgets() {
    let ids = text(150);
    let other: Vec<u32> = text(60).into_iter().rev().collect();
    let mut session = session(2, CHUNK);
    session.prefill(&ids).unwrap();
    // The ring holds positions 150 - 52 on, a query at n looks back to n - 11.
    let smallest = 150 - RING + WINDOW - 1;
    assert_eq!(session.smallest_rollback(), smallest);
    let error = session.rollback(smallest - 1).unwrap_err();
    assert!(matches!(error, Error::RollbackTooFar { to, smallest: s } if to + 1 == s && s == smallest));
    assert!(error.to_string().contains(&smallest.to_string()), "{error}");
    assert!(matches!(session.rollback(151), Err(Error::RollbackAhead { .. })));
    assert_eq!(session.position(), 150);

    session.rollback(150).unwrap();
    assert!(session.has_logits());
    session.rollback(smallest).unwrap();
    assert!(!session.has_logits());
    let mut expected: Vec<u32> = ids[..smallest].to_vec();
    expected.extend(&other[..3]);
    let logits = reference(&expected);
    assert_eq!(after(&mut session, &other[..3]), logits[smallest + 2]);

    // What the first text overwrote stays lost, though the position is lower now.
    assert_eq!(session.smallest_rollback(), smallest);
    assert!(session.rollback(smallest - 1).is_err());
    session.rollback(smallest).unwrap();
    session.prefill(&ids[smallest..]).unwrap();
    assert_eq!(bits(session.logits()), reference(&ids)[149]);

    // All the way back always works, and before the ring wraps so does every position.
    session.rollback(0).unwrap();
    assert_eq!(after(&mut session, &ids[..RING]), reference(&ids[..RING])[RING - 1]);
    session.rollback(1).unwrap();
    assert_eq!(after(&mut session, &ids[1..9]), reference(&ids[..9])[8]);
}

#[test]
fn prefill_reports_and_stops() {
    let ids = text(100);
    let mut session = session(2, CHUNK);
    let mut seen = Vec::new();
    let mut all = |done, total| {
        seen.push((done, total));
        ControlFlow::Continue(())
    };
    assert!(session.prefill_with(&ids, &mut all).unwrap());
    assert_eq!(seen, [(40, 100), (80, 100), (100, 100)]);
    session.reset();
    assert!(!session.prefill_with(&ids, &mut |_, _| ControlFlow::Break(())).unwrap());
    assert_eq!(session.position(), 40);
    assert_eq!(after(&mut session, &ids[40..]), reference(&ids)[99]);
}

#[test]
fn errors_say_what_is_wrong() {
    let make = |weights| Session::new(Arc::new(program(CHUNK)), Arc::new(weights), 1).err().unwrap();
    let mut missing = weights();
    missing.0.remove("layers.1.w.weight");
    let error = make(missing).to_string();
    assert!(error.contains("`layers.1.w.weight`") && error.contains("64 bytes"), "{error}");
    let mut short = weights();
    short.0.insert("layers.2.w.weight".into(), vec![0; 60]);
    let error = make(short).to_string();
    assert!(error.contains("`layers.2.w.weight` is 60 bytes"), "{error}");
    assert!(error.contains("expects 64 bytes"), "{error}");

    let mut session = session(1, CHUNK);
    session.prefill(&text(150)).unwrap();
    let error = session.prefill(&text(51)).unwrap_err().to_string();
    for number in ["51", "200", "150", "50"] {
        assert!(error.contains(number), "{error}");
    }
    let error = session.prefill(&[1, 2, VOCAB as u32]).unwrap_err().to_string();
    assert!(error.contains("96"), "{error}");
    assert!(session.score(&[VOCAB as u32], &mut |_, _| ()).is_err());
    assert_eq!(session.position(), 150);
    session.prefill(&text(50)).unwrap();
    assert!(matches!(session.decode(0), Err(Error::ContextExceeded { adding: 1, .. })));
}

#[test]
fn malformed_programs_are_refused() {
    let refuse = |change: &dyn Fn(&mut lapidary_runtime::program::Program)| {
        let mut program = program(CHUNK);
        change(&mut program);
        let made = Session::new(Arc::new(program), Arc::new(weights()), 1);
        assert!(matches!(made, Err(Error::Program(_))));
    };
    refuse(&|p| p.plan.head = 9);
    refuse(&|p| p.plan.chunk = CHUNK + 1);
    refuse(&|p| p.plan.context = CONTEXT + 1);
    refuse(&|p| p.plan.hidden += 1);
    refuse(&|p| p.plan.head_argmax = p.plan.head);
    refuse(&|p| p.functions[1].slots[0].name = "z".into());
    refuse(&|p| p.functions[0].slots[2].kind = SlotKind::Input { bytes_per_row: HIDDEN * 4 });
}

#[test]
fn memory_is_accounted_for() {
    let memory = session(3, CHUNK).memory();
    assert_eq!(memory.weights, VOCAB * HIDDEN * 4 + LAYERS * HIDDEN * 4);
    assert_eq!(memory.kv_local, 2 * RING * HIDDEN * 4);
    assert_eq!(memory.kv_global, CONTEXT * HIDDEN * 4);
    assert_eq!(memory.arena, CHUNK * HIDDEN * 4);
    assert_eq!(memory.scratch, 3 * HIDDEN * 4);
    // The stream twice and rows picked from it; ids and positions; logits of one row; tokens.
    let rows = (2 * CHUNK + HEAD_ROWS) * HIDDEN * 4;
    assert_eq!(memory.activations, rows + 2 * CHUNK * 4 + VOCAB * 4 + HEAD_ROWS * 4);
}

#[test]
fn sessions_can_move_and_share_a_program() {
    let ids = text(60);
    let expected = reference(&ids);
    let (program, weights) = (Arc::new(program(CHUNK)), Arc::new(weights()));
    let ids = &ids;
    let all: Vec<_> = std::thread::scope(|scope| {
        let run = |_| {
            let mut session = Session::new(program.clone(), weights.clone(), 2).unwrap();
            scope.spawn(move || after(&mut session, ids))
        };
        let running: Vec<_> = (0..3).map(run).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert!(all.iter().all(|logits| *logits == expected[59]));
}

fn run(
    session: &mut Session,
    options: SamplerOptions,
    prompt: &[u32],
    max_new: usize,
    stop: &[u32],
    most: usize,
) -> Result<lapidary_runtime::Generation, Error> {
    let mut sampler = Sampler::new(options, VOCAB).unwrap();
    let mut shown = Vec::new();
    let mut on_token = |token| {
        shown.push(token);
        if shown.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let made = generate(session, &mut sampler, prompt, max_new, stop, &mut on_token, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    assert_eq!(made.tokens, shown);
    Ok(made)
}

#[test]
fn generation_ends_for_each_reason() {
    let greedy = SamplerOptions::default();
    let prompt = text(45);
    let mut session = session(2, CHUNK);
    let long = run(&mut session, greedy, &prompt, 20, &[], 99).unwrap();
    assert_eq!((long.stop, long.tokens.len()), (StopReason::Length, 20));
    assert_eq!(long.prompt_tokens, 45);
    // The last token emitted is not in the session.
    assert_eq!(session.position(), 45 + 19);

    session.reset();
    let cut = run(&mut session, greedy, &prompt, 20, &[], 3).unwrap();
    assert_eq!((cut.stop, cut.tokens.as_slice()), (StopReason::Interrupted, &long.tokens[..3]));

    session.reset();
    let stop = long.tokens[4];
    let at = long.tokens.iter().position(|&t| t == stop).unwrap();
    let ended = run(&mut session, greedy, &prompt, 20, &[stop], 99).unwrap();
    assert_eq!(ended.stop, StopReason::EndOfText(stop));
    assert_eq!(ended.tokens, long.tokens[..at]);
    assert_eq!(session.position(), 45 + at);

    session.reset();
    let full = run(&mut session, greedy, &prompt, 1_000, &[], 9_999).unwrap();
    assert_eq!((full.stop, full.tokens.len()), (StopReason::Context, CONTEXT - 45 + 1));

    session.reset();
    assert!(matches!(run(&mut session, greedy, &[], 1, &[], 9), Err(Error::EmptyPrompt)));
    let none = run(&mut session, greedy, &prompt, 0, &[], 9).unwrap();
    assert_eq!((none.stop, none.tokens.len()), (StopReason::Length, 0));
    // Goes on from there.
    let on = run(&mut session, greedy, &[], 20, &[], 99).unwrap();
    assert_eq!(on.tokens, long.tokens);

    session.reset();
    let mut sampler = Sampler::new(greedy, VOCAB).unwrap();
    let stopped = generate(&mut session, &mut sampler, &prompt, 9, &[], &mut |_| panic!(), &mut |_, _| {
        ControlFlow::Break(())
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.stop, stopped.prompt_tokens), (StopReason::Interrupted, 40));
}

#[test]
fn sampled_generation_repeats_with_its_seed() {
    let options = SamplerOptions { temperature: 0.8, top_k: 20, top_p: 0.9, seed: 5, ..Default::default() };
    let make = |threads, seed| {
        let options = SamplerOptions { seed, repetition_penalty: 1.1, ..options };
        run(&mut session(threads, CHUNK), options, &text(10), 40, &[], 99).unwrap().tokens
    };
    assert_eq!(make(1, 5), make(3, 5));
    assert_ne!(make(1, 5), make(1, 6));
}
