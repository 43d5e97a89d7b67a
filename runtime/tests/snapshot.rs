//! Sequences in files: what is loaded goes on with the bits of what was saved; what does not fit is refused by name.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::*;
use lapidary_runtime::program::Program;
use lapidary_runtime::snapshot::Notes;
use lapidary_runtime::{Error, Sampler, SamplerOptions, Session, generate};

fn make(program: Program, weights: Weights, threads: usize) -> Session {
    Session::new(Arc::new(program), Arc::new(weights), threads).unwrap()
}

fn sampled() -> SamplerOptions {
    SamplerOptions {
        temperature: 0.9,
        top_p: 0.95,
        repetition_penalty: 1.2,
        seed: 11,
        ..SamplerOptions::default()
    }
}

fn answer(session: &mut Session, options: SamplerOptions, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(options, VOCAB).unwrap();
    let on = &mut |_| ControlFlow::Continue(());
    generate(session, &mut sampler, prompt, n, &[], on, &mut |_, _| ControlFlow::Continue(())).unwrap().tokens
}

#[test]
fn generation_goes_on_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let ids = text(3 * WINDOW + CHUNK + 20);
    for prompt in [1, WINDOW, RING - 1, RING, RING + 1, 3 * WINDOW + CHUNK + 20] {
        let mut whole = session(1, CHUNK);
        let all = answer(&mut whole, sampled(), &ids[..prompt], 40);

        let mut first = session(3, CHUNK);
        let begun = answer(&mut first, sampled(), &ids[..prompt], 15);
        let notes = Notes {
            pending: begun.last().copied(),
            sampler: Some(sampled()),
            conversation: Some("said".into()),
        };
        first.save(&path, &notes).unwrap();
        drop(first);

        // Another chunk: rings are as long, calls are not.
        let mut second = session(2, 7);
        assert_eq!(second.load(&path).unwrap(), notes);
        assert_eq!(second.position(), prompt + 14);
        assert_eq!(second.tokens(), &whole.tokens()[..prompt + 14]);
        second.decode(notes.pending.unwrap()).unwrap();
        let rest = answer(&mut second, notes.sampler.unwrap(), &[], 25);
        assert_eq!([begun, rest].concat(), all, "a prompt of {prompt}");
        second.prefill(&[1, 2, 3]).unwrap();
        whole.rollback(whole.position()).unwrap();
        whole.prefill(&[1, 2, 3]).unwrap();
        assert_eq!(bits(second.logits()), bits(whole.logits()));
    }
}

#[test]
fn what_is_loaded_predicts_and_rolls_back_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let ids = text(120);
    let mut saved = session(1, CHUNK);
    saved.prefill(&ids).unwrap();
    saved.save(&path, &Notes::default()).unwrap();
    let mut loaded = session(1, CHUNK);
    assert_eq!(loaded.load(&path).unwrap(), Notes::default());
    assert!(loaded.has_logits());
    assert_eq!(bits(loaded.logits()), bits(saved.logits()));
    // The last window is there and nothing before it.
    assert_eq!(loaded.smallest_rollback(), 119);
    assert!(matches!(loaded.rollback(118), Err(Error::RollbackTooFar { .. })));
    loaded.rollback(119).unwrap();
    saved.rollback(119).unwrap();
    for session in [&mut loaded, &mut saved] {
        session.prefill(&[5, 6]).unwrap();
    }
    assert_eq!(bits(loaded.logits()), bits(saved.logits()));
    // Saved again, it is no more than that.
    loaded.rollback(120).unwrap();
    assert!(!loaded.has_logits());
    loaded.save(&path, &Notes::default()).unwrap();
    let mut again = session(1, CHUNK);
    again.load(&path).unwrap();
    assert!(!again.has_logits());
    assert_eq!(again.smallest_rollback(), 119);
    again.reset();
    again.prefill(&ids[..30]).unwrap();
    again.rollback(10).unwrap();
}

/// Makes a file's sum right again, whatever else is wrong with it.
fn seal(bytes: &mut [u8]) {
    let (before, sum) = bytes.split_last_chunk_mut::<16>().unwrap();
    *sum = xxhash_rust::xxh3::xxh3_128(before).to_le_bytes();
}

/// A file's text of one field of the metadata replaced by another of the same length, its sum right.
fn with_field(path: &Path, from: &str, to: &str) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    let mut changed = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
    seal(&mut changed);
    changed
}

#[test]
fn other_models_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let mut saved = session(1, CHUNK);
    saved.prefill(&text(60)).unwrap();
    saved.save(&path, &Notes::default()).unwrap();
    let refused = |session: &mut Session, field: &str| {
        let error = session.load(&path).unwrap_err().to_string();
        assert!(
            error.contains("saved") && error.contains(&format!("`__metadata__.{field}`")),
            "{field}: {error}"
        );
        assert_eq!(session.position(), 0);
    };
    let mut tuned = weights();
    tuned.0.get_mut("layers.1.w.weight").unwrap()[0] ^= 1;
    refused(&mut make(program(CHUNK), tuned, 1), "weights");
    let mut other = program(CHUNK);
    other.plan.kv = "bf16".into();
    refused(&mut make(other, weights(), 1), "kv_cache");
    let mut fewer = program(CHUNK);
    fewer.plan.layers.pop();
    refused(&mut make(fewer, weights(), 1), "model");
    let good = fs::read(&path).unwrap();
    for (from, to, field) in [
        ("\"version\":\"2\"", "\"version\":\"1\"", "version"),
        ("lapidary-sequence", "lapidary-sequenze", "format"),
        ("\"pending\":\"none\"", "\"pending\":\"9999\"", "pending"),
        ("\"predicts\":\"prefill\"", "\"predicts\":\"prefoll\"", "predicts"),
        ("\"sampler\":\"none\"", "\"sampler\":\"nine\"", "sampler"),
    ] {
        fs::write(&path, with_field(&path, from, to)).unwrap();
        refused(&mut session(1, CHUNK), field);
        fs::write(&path, &good).unwrap();
    }
    assert!(session(1, CHUNK).load(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
}

/// A file of 60 tokens, and a session that it is of.
fn saved(path: &Path) -> (Vec<u8>, Session) {
    let mut saved = session(1, CHUNK);
    saved.prefill(&text(60)).unwrap();
    saved.save(path, &Notes { pending: Some(3), sampler: Some(sampled()), conversation: None }).unwrap();
    (fs::read(path).unwrap(), session(1, CHUNK))
}

#[test]
fn a_flipped_bit_is_refused_by_the_name_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let (good, mut session) = saved(&path);
    let data = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let mut seen = (0, 0);
    // Every byte of the header and of the sum, and of what is between them as many as there is time for.
    for at in (0..data).chain((data..good.len() - 16).step_by(7)).chain(good.len() - 16..good.len()) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        let error = session.load(&path).unwrap_err().to_string();
        assert!(!error.contains('\n') && error.contains("saved"), "byte {at}: {error:?}");
        let damaged = error.contains("\"xxh3\"") && error.contains("(the file is damaged)");
        assert!(damaged || at < data, "byte {at}: {error}");
        seen = (seen.0 + usize::from(damaged), seen.1 + usize::from(!damaged));
        assert_eq!(session.position(), 0);
    }
    assert!(seen.0 > 900 && seen.1 > 100, "{seen:?}");
    fs::write(&path, &good).unwrap();
    session.load(&path).unwrap();
}

#[test]
fn files_made_wrong_are_refused_or_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved");
    let (good, mut session) = saved(&path);
    let mut refused = 0;
    for case in 0..600usize {
        let mut bytes = good.clone();
        let at = case * 7919 % bytes.len().min(3000);
        if case % 3 == 0 {
            bytes.truncate(case * 31 % good.len());
        } else {
            bytes[at] ^= 1 << (case % 8);
            seal(&mut bytes);
        }
        fs::write(&path, &bytes).unwrap();
        match session.load(&path) {
            Ok(_) => {
                let token = session.has_logits().then(|| session.argmax());
                assert!(token.is_none_or(|t| (t as usize) < VOCAB));
            }
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.contains("saved"), "case {case}: {text:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused}");
}
