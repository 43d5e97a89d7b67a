//! Blocks of KV rows over a toy program: texts go on from them as from a sequence that holds them, to the bit.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use lapidary_runtime::{Engine, Error, KvBlock, Phase, Rng, Sequence, Want, Work};

fn engine() -> Engine {
    Engine::new(Arc::new(program(CHUNK)), Arc::new(weights()), 2).unwrap()
}

/// Appends tokens of a text up to a position.
fn append(engine: &mut Engine, sequence: &mut Sequence, ids: &[u32], end: usize) -> Vec<u32> {
    let tokens = &ids[sequence.position()..end];
    let work = Work { sequence, tokens, phase: Phase::Prefill, want: Want::Logits };
    bits(engine.step(&mut [work]).unwrap().logits(0))
}

#[test]
fn a_text_goes_on_from_blocks_of_others() {
    let mut engine = engine();
    assert_eq!(engine.window(), Some(WINDOW));
    for seed in 0..40 {
        let mut random = Rng::new(seed);
        let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
        let ids = text(CONTEXT - 1);
        // Blocks of sequences at several positions: what a ring lost by the next is still there.
        let (mut sequence, mut blocks) = (engine.sequence().unwrap(), Vec::<KvBlock>::new());
        let mut held = 0;
        while sequence.position() + 40 < ids.len() && (blocks.len() < 3 || below(4) > 0) {
            let end = sequence.position() + 1 + below(38);
            append(&mut engine, &mut sequence, &ids, end);
            if below(3) == 0 {
                continue;
            }
            let windows = sequence.windows_from();
            if held < windows {
                blocks.push(sequence.block(held..windows, false).unwrap());
            }
            blocks.push(sequence.block(held.max(windows)..end, below(5) > 0).unwrap());
            held = end;
            if below(3) == 0 {
                let last = blocks.last_mut().unwrap();
                let (before, at) = (last.bytes(), below(last.len() + 1));
                let rest = last.split_off(at).unwrap();
                assert!(last.bytes() <= before && last.len() == at);
                blocks.push(rest);
            }
        }
        // Where a next token finds all that it reads.
        let (mut hole, mut start, mut places) = (0, 0, vec![]);
        for block in &blocks {
            for end in start + 1..=start + block.len() {
                hole = if block.has_windows() { hole } else { end };
                places.extend(Some(end).filter(|_| hole == 0 || hole + WINDOW <= end + 1));
            }
            start += block.len();
        }
        drop(sequence);
        for _ in 0..places.len().min(4) {
            let place = places[below(places.len())];
            let lent: Vec<&KvBlock> = blocks.iter().collect();
            let mut sequence = engine.assemble(&ids[..place], &lent).unwrap();
            assert_eq!(sequence.tokens(), &ids[..place]);
            let back = sequence.smallest() + below(place + 1 - sequence.smallest());
            if below(2) == 0 && back > 0 {
                assert_eq!(sequence.truncate(back), back);
            }
            let (end, windows) = (sequence.position() + 1 + below(20), sequence.windows_from());
            let found = append(&mut engine, &mut sequence, &ids, end.min(CONTEXT - 1));
            let mut session = session(1, CHUNK);
            sequence.tokens().iter().for_each(|&id| session.decode(id).unwrap());
            assert_eq!(found, bits(session.logits()), "{seed}: {place} {back} {windows}");
        }
        drop(blocks);
        assert_eq!(engine.kv_bytes(), 0, "{seed}");
    }
}

#[test]
fn blocks_are_counted_and_may_be_refused() {
    let mut engine = engine();
    let mut sequence = engine.sequence().unwrap();
    append(&mut engine, &mut sequence, &text(30), 30);
    let before = engine.kv_bytes();
    let block = sequence.block(0..30, true).unwrap();
    assert_eq!(engine.kv_bytes(), before + block.bytes());
    engine.limit_kv(engine.kv_bytes());
    assert!(matches!(sequence.block(0..30, true), Err(Error::KvLimit { .. })));
    assert!(matches!(engine.assemble(&text(30), &[&block]), Err(Error::KvLimit { .. })));
    assert_eq!(engine.kv_bytes(), before + block.bytes());
}
