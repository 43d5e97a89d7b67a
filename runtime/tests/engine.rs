//! Engines over a toy program: every sequence gets the bits that it gets alone, whoever else is stepped with it.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use lapidary_runtime::program::Program;
use lapidary_runtime::{Engine, Error, Phase, Rng, Sequence, Want, Work};

fn engine_of(program: Program, threads: usize) -> Engine {
    Engine::new(Arc::new(program), Arc::new(weights()), threads).unwrap()
}

fn engine(threads: usize) -> Engine {
    engine_of(program(CHUNK), threads)
}

/// The logits after the last of these tokens, of a session of its own.
fn alone(ids: &[u32]) -> Vec<u32> {
    let mut session = session(1, CHUNK);
    ids.iter().for_each(|&id| session.decode(id).unwrap());
    bits(session.logits())
}

fn best(logits: &[u32]) -> u32 {
    let value = |v: usize| f32::from_bits(logits[v]);
    (0..logits.len()).fold(0, |best, v| if value(v) > value(best) { v } else { best }) as u32
}

/// Random steps of random sequences: what each wants comes as it does alone.
fn random_steps(mut engine: Engine, seed: u64, steps: usize) {
    let mut random = Rng::new(seed);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let mut sequences: Vec<Sequence> = (0..1 + below(7)).map(|_| engine.sequence().unwrap()).collect();
    for _ in 0..steps {
        if below(4) == 0 {
            let (from, at) = (below(sequences.len()), below(sequences.len()));
            sequences[at] = sequences[from].fork().unwrap();
        }
        if below(3) == 0 {
            let at = below(sequences.len());
            let to = below(sequences[at].position() + 1);
            let (before, smallest) = (sequences[at].tokens().to_vec(), sequences[at].smallest());
            let reached = sequences[at].truncate(to);
            assert_eq!(reached, if to < before.len() && to < smallest { 0 } else { to });
            assert_eq!(sequences[at].tokens(), &before[..reached]);
        }
        let mut texts = vec![];
        for sequence in &mut sequences {
            if CONTEXT - sequence.position() < 60 {
                sequence.truncate(0);
            }
            let count = if below(2) == 0 { 1 } else { below(60) };
            let tokens: Vec<u32> = (0..count).map(|_| below(VOCAB) as u32).collect();
            let wants = [Want::Nothing, Want::Logits, Want::AllLogits, Want::Argmax, Want::AllArgmax];
            let want = if count == 0 { Want::Nothing } else { wants[below(5)] };
            let phase = if below(2) == 0 { Phase::Prefill } else { Phase::Decode };
            texts.push((tokens, phase, want, sequence.position()));
        }
        let works = sequences.iter_mut().zip(&texts);
        let mut works: Vec<Work<'_>> = works
            .filter(|_| below(5) > 0)
            .map(|(sequence, (tokens, phase, want, _))| Work { sequence, tokens, phase: *phase, want: *want })
            .collect();
        if below(3) == 0 {
            let mut seen = vec![];
            engine.step_each(&mut works, &mut |work, at, row| seen.push((work, at, bits(row)))).unwrap();
            for (work, at, row) in seen {
                let tokens = works[work].sequence.tokens();
                let before = tokens.len() - works[work].tokens.len();
                assert_eq!(row, alone(&tokens[..=before + at]));
            }
            continue;
        }
        let outputs = engine.step(&mut works).unwrap();
        for (index, work) in works.iter().enumerate() {
            let tokens = work.sequence.tokens();
            let before = tokens.len() - work.tokens.len();
            match work.want {
                Want::Nothing => assert!(outputs.logits(index).is_empty()),
                Want::Logits => assert_eq!(bits(outputs.logits(index)), alone(tokens)),
                Want::Argmax => assert_eq!(outputs.token(index), best(&alone(tokens))),
                Want::AllArgmax => {
                    let found = outputs.tokens(index);
                    assert_eq!(found.len(), work.tokens.len());
                    for (at, &token) in found.iter().enumerate() {
                        assert_eq!(token, best(&alone(&tokens[..=before + at])));
                    }
                }
                Want::AllLogits => {
                    let rows = outputs.logits(index);
                    assert_eq!(rows.len(), work.tokens.len() * VOCAB);
                    for (at, row) in rows.chunks(VOCAB).enumerate() {
                        assert_eq!(bits(row), alone(&tokens[..=before + at]));
                    }
                }
            }
        }
    }
}

#[test]
fn company_does_not_change_a_bit() {
    for seed in 0..12 {
        random_steps(engine(1 + seed as usize % 4), seed, 12);
    }
}

/// The same where a layer's steps hold what is one sequence's: its calls go one by one.
#[test]
fn functions_that_do_not_batch_are_called_one_by_one() {
    for seed in 0..6 {
        let mut program = program(CHUNK);
        program.functions[1 + seed as usize % 2].batches = false;
        random_steps(engine_of(program, 2), 100 + seed, 12);
    }
}

#[test]
fn a_forked_sequence_shares_nothing() {
    let mut engine = engine(2);
    let ids = text(90);
    let mut first = engine.sequence().unwrap();
    let step = |engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]| {
        let work = Work { sequence, tokens, phase: Phase::Prefill, want: Want::Logits };
        bits(engine.step(&mut [work]).unwrap().logits(0))
    };
    step(&mut engine, &mut first, &ids[..80]);
    let mut second = first.fork().unwrap();
    assert_eq!(bits(engine.logits(&second)), alone(&ids[..80]));
    let other: Vec<u32> = text(60).into_iter().rev().collect();
    step(&mut engine, &mut first, &other);
    drop(first);
    assert_eq!(step(&mut engine, &mut second, &ids[80..]), alone(&ids));
}

#[test]
fn of_works_of_a_step_the_first_tokens_are_kept() {
    let mut engine = engine(2);
    let texts: Vec<Vec<u32>> = (0..3).map(|i| text(30 + 7 * i)).collect();
    let mut sequences: Vec<Sequence> = texts.iter().map(|_| engine.sequence().unwrap()).collect();
    let works = sequences.iter_mut().zip(&texts);
    let prefill = |(sequence, text): (_, &Vec<u32>)| (sequence, text[..20].to_vec());
    let all: Vec<_> = works.map(prefill).collect();
    for (sequence, tokens) in all {
        let work = Work { sequence, tokens: &tokens, phase: Phase::Prefill, want: Want::Nothing };
        engine.step(&mut [work]).unwrap();
    }
    // Three, one and four tokens, of which so many are right.
    let (counts, kept): ([usize; 3], _) = ([3, 1, 4], [2, 1, 4]);
    assert_eq!(engine.most_guessed(), counts.iter().sum::<usize>());
    let mut works: Vec<Work<'_>> = sequences
        .iter_mut()
        .zip(&texts)
        .zip(counts)
        .map(|((sequence, text), count)| {
            let (tokens, phase, want) = (&text[20..20 + count], Phase::Decode, Want::AllLogits);
            Work { sequence, tokens, phase, want }
        })
        .collect();
    engine.step(&mut works).unwrap();
    for index in [2, 0, 1] {
        engine.keep(index, works[index].sequence, counts[index], kept[index]);
    }
    for ((sequence, text), kept) in sequences.iter_mut().zip(&texts).zip(kept) {
        assert_eq!(sequence.tokens(), &text[..20 + kept]);
        assert_eq!(bits(engine.logits(sequence)), alone(&text[..20 + kept]));
        let tokens = &text[20 + kept..20 + kept + 3];
        let work = Work { sequence, tokens, phase: Phase::Decode, want: Want::Logits };
        assert_eq!(bits(engine.step(&mut [work]).unwrap().logits(0)), alone(&text[..20 + kept + 3]));
    }
}

#[test]
fn nothing_changes_after_an_error() {
    let (mut engine, mut other) = (engine(1), engine(1));
    let (mut a, mut b) = (engine.sequence().unwrap(), engine.sequence().unwrap());
    let mut foreign = other.sequence().unwrap();
    let ids = text(60);
    let mut step = |a: &mut Sequence, b: &mut Sequence, tokens: &[u32]| {
        let work = |sequence, tokens| Work { sequence, tokens, phase: Phase::Prefill, want: Want::Argmax };
        engine.step(&mut [work(a, &ids[..20]), work(b, tokens)]).map(|_| ())
    };
    assert!(matches!(step(&mut a, &mut b, &[1, VOCAB as u32]), Err(Error::TokenRange { .. })));
    assert!(matches!(step(&mut a, &mut b, &text(CONTEXT + 1)), Err(Error::ContextExceeded { .. })));
    assert!(matches!(step(&mut a, &mut b, &[]), Err(Error::EmptyPrompt)));
    assert!(matches!(step(&mut a, &mut foreign, &[1]), Err(Error::OtherEngine)));
    assert_eq!((a.position(), b.position(), foreign.position()), (0, 0, 0));
    step(&mut a, &mut b, &[1]).unwrap();
    assert_eq!((a.position(), b.position()), (20, 1));
    let work = Work { sequence: &mut foreign, tokens: &ids, phase: Phase::Decode, want: Want::Nothing };
    other.step(&mut [work]).unwrap();
    assert_eq!(bits(other.logits(&foreign)), alone(&ids));
}

#[test]
fn caches_are_counted_bounded_and_given_back() {
    let mut engine = engine(1);
    assert_eq!(engine.kv_bytes(), 0);
    let mut sequences: Vec<Sequence> = (0..3).map(|_| engine.sequence().unwrap()).collect();
    let ids = text(150);
    let fill = |engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]| {
        let work = Work { sequence, tokens, phase: Phase::Prefill, want: Want::Nothing };
        engine.step(&mut [work]).map(|_| ())
    };
    fill(&mut engine, &mut sequences[0], &ids).unwrap();
    let one = engine.kv_bytes();
    // Each cache has rows of 64 bytes, in pages of 4 KiB.
    let most = (2 * RING + CONTEXT) * HIDDEN * 4 + LAYERS * 2 * 4096;
    assert!((150 * HIDDEN * 4..=most).contains(&one), "{one}");
    assert_eq!(sequences[0].kv_bytes(), one);
    engine.limit_kv(2 * one);
    fill(&mut engine, &mut sequences[1], &ids).unwrap();
    let refused = fill(&mut engine, &mut sequences[2], &ids).unwrap_err();
    assert!(matches!(refused, Error::KvLimit { used, most, .. } if used == 2 * one && most == 2 * one));
    assert!(sequences[0].fork().is_err());
    assert_eq!((engine.kv_bytes(), sequences[2].position()), (2 * one, 0));
    sequences[1].truncate(0);
    assert_eq!(engine.kv_bytes(), one);
    fill(&mut engine, &mut sequences[2], &ids).unwrap();
    sequences.truncate(1);
    assert_eq!(engine.kv_bytes(), one);
    drop(sequences);
    assert_eq!(engine.kv_bytes(), 0);
}
