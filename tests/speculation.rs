//! Guessing changes no token: whatever guesses, however often it is right, and wherever a text ends, what is chosen and
//! what the session then holds is what plain decoding leaves.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use lapidary::{Activations, KvCache, Model, Options, SamplerOptions};
use lapidary_models::{Model as Files, QuantFormat};
use lapidary_runtime::snapshot::Notes;
use lapidary_runtime::{Generation, Rng, Sampler, Session, Speculation, generate};
use lapidary_tests::{golden_model, stored};

/// Rings of 128 + 24 rows wrap.
const CONTEXT: usize = 230;
const CHUNK: usize = 24;

fn options() -> Options {
    Options::new().chunk(CHUNK).context(CONTEXT).threads(2)
}

/// Generates until a token of `stop`, `most` tokens, or the `broken`th, where the caller breaks off.
fn continued(
    session: &mut Session,
    sampler: SamplerOptions,
    prompt: &[u32],
    (most, stop, broken): (usize, &[u32], usize),
) -> Generation {
    let mut sampler = Sampler::new(sampler, session.program().plan.vocab).unwrap();
    let mut emitted = 0;
    let mut on_token = |_| {
        emitted += 1;
        if emitted == broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let all = &mut |_, _| ControlFlow::Continue(());
    generate(session, &mut sampler, prompt, most, stop, &mut on_token, all).unwrap()
}

/// Texts that copy themselves, and others.
fn prompts(vocab: usize) -> Vec<Vec<u32>> {
    let mut random = Rng::new(5);
    let mut draw = |n: usize| (0..n).map(|_| (random.next_u64() % vocab as u64) as u32).collect::<Vec<u32>>();
    let phrase = draw(7);
    let copy = [draw(3), phrase.clone(), draw(2), phrase.clone(), phrase[..3].to_vec()].concat();
    vec![draw(1), copy, [phrase.repeat(10), draw(60)].concat()]
}

fn samplers() -> [SamplerOptions; 3] {
    let sampled = SamplerOptions { temperature: 0.9, top_k: 30, seed: 11, ..SamplerOptions::default() };
    let penalised = SamplerOptions { repetition_penalty: 1.3, ..sampled };
    [SamplerOptions::default(), sampled, penalised]
}

fn bits(session: &mut Session) -> Vec<u32> {
    session.logits().iter().map(|x| x.to_bits()).collect()
}

/// A session that guesses against one that does not, wherever texts end, and as they go on: tokens guessed, and right.
fn check(model: &Model, speculation: Speculation) -> (usize, usize) {
    let (mut plain, mut guessing) = (model.session().unwrap(), model.session().unwrap());
    assert!(guessing.speculate(Some(speculation)).unwrap().is_none());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    for sampler in samplers() {
        for prompt in prompts(model.config().vocab_size) {
            plain.reset();
            let whole = continued(&mut plain, sampler, &prompt, (usize::MAX, &[], usize::MAX)).tokens;
            let stop = [whole[whole.len() / 2]];
            let ends = [
                (usize::MAX, &[][..], usize::MAX),
                (usize::MAX, &stop, usize::MAX),
                (33, &[], usize::MAX),
                (99, &[], 21),
            ];
            for (most, stop, broken) in ends {
                let what = format!("{sampler:?}, prompt of {}: {most}, {stop:?}, {broken}", prompt.len());
                plain.reset();
                guessing.reset();
                let expected = continued(&mut plain, sampler, &prompt, (most, stop, broken));
                let made = continued(&mut guessing, sampler, &prompt, (most, stop, broken));
                assert_eq!((&made.tokens, made.stop), (&expected.tokens, expected.stop), "{what}");
                assert_eq!(guessing.tokens(), plain.tokens(), "{what}");
                assert_eq!(bits(&mut guessing), bits(&mut plain), "{what}");
                guessing.save(&path, &Notes::default()).unwrap();
                guessing.reset();
                guessing.load(&path).unwrap();
                assert_eq!(bits(&mut guessing), bits(&mut plain), "{what}: loaded");
                if plain.position() + 20 > CONTEXT {
                    continue;
                }
                let expected = continued(&mut plain, sampler, &[9, 8, 7], (9, &[], usize::MAX));
                let made = continued(&mut guessing, sampler, &[9, 8, 7], (9, &[], usize::MAX));
                assert_eq!(made.tokens, expected.tokens, "{what}: going on");
            }
        }
    }
    let told = guessing.speculated().unwrap();
    assert!(told.tokens >= told.steps && told.guessed >= told.right, "{told:?}");
    (told.guessed, told.right)
}

/// The built-in model, or a copy of it in another format.
fn tiny(format: Option<QuantFormat>, folder: &Path) -> Arc<Files> {
    let files = golden_model("tiny-long").unwrap();
    match format {
        None => files,
        Some(format) => stored(&files, folder, format.into()).unwrap(),
    }
}

#[test]
fn lookup_changes_no_token() {
    for (format, options, most) in [
        (None, options(), 31),
        (None, options().activations(Activations::F32), 1),
        (Some(QuantFormat::Q8), options().kv_cache(KvCache::Int8), 5),
        (Some(QuantFormat::Q4), options(), 7),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::of(tiny(format, &folder.path().join("model")), options).unwrap();
        let (guessed, right) = check(&model, Speculation::lookup(most).always());
        // Texts that copy are among them.
        assert!(right > 50 && guessed > right, "{guessed} guessed, {right} right");
        check(&model, Speculation::lookup(most));
    }
}

#[test]
fn drafts_change_no_token() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::of(tiny(None, folder.path()), options()).unwrap();
    // The same model is right as long as the most likely token is taken, one rounded to q4 mostly; one with a short
    // context guesses at first.
    let (guessed, right) = check(&model, Speculation::draft(model.session().unwrap(), 4).always());
    assert!(right * 5 > guessed, "{guessed} guessed, {right} right");
    let rounded = Model::of(tiny(Some(QuantFormat::Q4), &folder.path().join("q4")), options()).unwrap();
    let (guessed, right) = check(&model, Speculation::draft(rounded.session().unwrap(), 7).always());
    assert!(0 < right && right < guessed, "{guessed} guessed, {right} right");
    let short = Model::of(tiny(None, folder.path()), options().context(60)).unwrap();
    check(&model, Speculation::draft(short.session().unwrap(), 5));
}

#[test]
fn a_draft_has_the_same_tokens() {
    let model = Model::of(tiny(None, Path::new("")), options()).unwrap();
    let other = Model::of(golden_model("three-text").unwrap(), options()).unwrap();
    assert_ne!(model.config().vocab_size, other.config().vocab_size);
    let error = model.session().unwrap().speculate(Some(Speculation::draft(other.session().unwrap(), 3)));
    let error = error.err().unwrap().to_string();
    assert!(error.starts_with("the draft model has "), "{error}");
    let error = other.check_same_tokens(&model).err().unwrap().to_string();
    assert!(error.contains("the model that it guesses for"), "{error}");
    model.check_same_tokens(&model).unwrap();
}
