//! Models made of GGUFs: small random ones that the package gguf wrote (`make_models.py`), and the trained 270M
//! (`make_references.py`), against transformers in float32.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapidary::{Options, Selection, Session};
use lapidary_models::{Model, TensorFormat};
use lapidary_passes::rules;
use lapidary_tests::{exact, logits, session};
use serde_json::Value;

use crate::real;

/// How far logits of small models may be from the references.
const TOLERANCE: f32 = 1e-3;
/// How far those of the 270M may be.
const REAL_TOLERANCE: f32 = 2e-3;
/// Small models.
const SMALL: [&str; 6] = ["gemma", "gemma-mixed", "gemma2", "gemma2-mixed", "gemma3", "gemma3-mixed"];

fn small_file(name: &str, end: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf/models").join(format!("{name}.{end}"))
}

/// Ids, and logits (ids, vocabulary).
fn reference(name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(small_file(name, "safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let ids = words("ids").into_iter().map(u32::from_le_bytes).collect();
    (ids, words("logits").into_iter().map(f32::from_le_bytes).collect())
}

fn check(name: &str, options: Options, what: &str) {
    let model = Arc::new(Model::open(small_file(name, "gguf")).unwrap());
    let (ids, expected) = reference(name);
    let found = logits(&mut session(&model, options).unwrap(), &ids).unwrap();
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE && found.iter().all(|x| x.is_finite()), "{name}, {what}: off by {worst}");
}

#[test]
fn small_models_give_the_logits_of_transformers() {
    for name in SMALL {
        for chunk in [1, 3, 7, 512] {
            check(name, exact().chunk(chunk), &format!("chunk {chunk}"));
            let unfused = exact().chunk(chunk).rules(Selection::none());
            check(name, unfused, &format!("unfused, chunk {chunk}"));
        }
    }
}

#[test]
fn every_rule_disabled_in_turn() {
    for rule in rules::all() {
        for name in ["gemma", "gemma2-mixed", "gemma3-mixed"] {
            let selection = Selection::new("all", std::slice::from_ref(&rule.name)).unwrap();
            check(name, exact().chunk(7).rules(selection), &format!("without {}", rule.name));
        }
    }
}

/// What a file's keys say is what its configuration is; weights stay where they lie.
#[test]
fn keys_are_a_configuration() {
    let model = Model::open(small_file("gemma3", "gguf")).unwrap();
    let c = &model.config;
    assert_eq!((c.hidden_size, c.intermediate_size, c.vocab_size, c.num_hidden_layers), (64, 96, 160, 7));
    assert_eq!((c.num_attention_heads, c.num_key_value_heads, c.head_dim), (4, 2, 32));
    assert_eq!((c.rope_local.theta, c.rope_local.factor), (10_000.0, 1.0));
    assert_eq!((c.rope_global.theta, c.rope_global.factor), (1_000_000.0, 8.0));
    assert_eq!((c.sliding_window, c.bos_token_id, &model.stop_tokens[..]), (8, 2, &[1][..]));
    assert_eq!(c.embedding_scale(), 8.0);
    let file = std::fs::read(small_file("gemma3", "gguf")).unwrap();
    let embedding = model.checkpoint.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.format.name(), "q8_0");
    assert!(file.windows(embedding.bytes.len()).any(|w| w == embedding.bytes));
    let gemma2 = Model::open(small_file("gemma2", "gguf")).unwrap().config;
    assert_eq!((gemma2.attn_logit_softcapping, gemma2.final_logit_softcapping), (Some(5.0), Some(7.0)));
    assert_eq!(gemma2.rope_local, gemma2.rope_global);
}

/// A small model whose file has other bytes after the first place of `at`, as many, is refused in these words.
#[track_caller]
fn changed(at: &str, to: &str, words: &[&str]) {
    let mut bytes = std::fs::read(small_file("gemma2", "gguf")).unwrap();
    let place = bytes.windows(at.len()).position(|w| w == at.as_bytes()).unwrap();
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let error = Model::open(file.path()).err().expect("an error").to_string();
    for word in words {
        assert!(error.contains(word) && !error.contains('\n'), "{error:?} does not say {word:?}");
    }
}

#[test]
fn models_that_are_wrong() {
    changed("gemma2", "gemmaX", &["`general.architecture`", "gemma2 or gemma3", "\"gemmaX\""]);
    for key in
        ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"]
    {
        changed(&format!("gemma2.{key}"), "gemmaX", &[&format!("`gemma2.{key}`"), "found nothing"]);
    }
    // After a key come four bytes of its type, then the value's first.
    let size = |key: &str, value: char| format!("gemma2.{key}\u{4}\0\0\0{value}");
    let length = size("embedding_length", '\u{20}');
    changed(
        "gemma2.embedding_length",
        &length,
        &["tensor \"token_embd.weight\"", "shape [160, 32]", "shape [160, 64]"],
    );
    changed(
        "gemma2.block_count",
        &size("block_count", '\u{2}'),
        &["tensor \"blk.2.", "no tensor of this name"],
    );
    changed("gemma2.block_count", &size("block_count", '\u{4}'), &["tensor \"blk.3.", "no such tensor"]);
    let keys = size("attention.value_length", '\u{10}');
    changed("gemma2.attention.value_length", &keys, &["`gemma2.attention.value_length`", "32", "16"]);
    let heads = size("attention.head_count_kv", '\u{3}');
    changed("gemma2.attention.head_count_kv", &heads, &["`num_key_value_heads`"]);
    changed("blk.1.attn_q.weight", "blk.9", &["tensor \"blk.1.attn_q.weight\"", "no such tensor"]);
}

/// A folder made of a GGUF has its tokenizer, and gives the logits of the weights that it was made of.
#[test]
fn a_folder_is_made_of_a_gguf() {
    let model = Arc::new(Model::open(small_file("gemma3", "gguf")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let plain = TensorFormat::Float(lapidary_models::WeightDType::F32);
    let again = lapidary_tests::stored(&model, &folder.path().join("f32"), plain).unwrap();
    let (ids, expected) = reference("gemma3");
    let found = logits(&mut session(&again, exact()).unwrap(), &ids).unwrap();
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= TOLERANCE));
    let encode = |model: &Model| model.tokenizer.as_ref().unwrap().encode("t1t2\0!", true).unwrap();
    assert_eq!(encode(&again), encode(&model));
    assert_eq!(again.stop_tokens, model.stop_tokens);
    let kept = lapidary_models::FormatChoice::default();
    let kept = lapidary_models::export(&model, &folder.path().join("kept"), kept, 1, &mut |_, _| {
        std::ops::ControlFlow::Continue(())
    });
    assert!(kept.err().unwrap().to_string().contains("q8_0"));
}

/// References of the 270M.
fn references() -> Vec<Value> {
    serde_json::from_str(include_str!("gemma3-270m.json")).unwrap()
}

fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The logarithm of the sum of exponentials.
fn log_sum(row: &[f32]) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
    f64::from(most) + sum.ln()
}

/// The 270M, compiled as commands do.
fn real_session(rounded: bool) -> Option<(Arc<Model>, Session)> {
    let model = Arc::new(Model::open(real::file()?).unwrap());
    let options = if rounded { Options::new().context(1024) } else { exact() };
    let session = session(&model, options).unwrap();
    Some((model, session))
}

#[test]
fn the_270m_gives_the_logits_of_transformers() {
    let Some((model, mut session)) = real_session(false) else { return };
    let tokenizer = model.tokenizer.as_ref().unwrap();
    for reference in references() {
        let (name, ids) = (&reference["name"], ids_of(&reference["ids"]));
        assert_eq!(tokenizer.encode(reference["text"].as_str().unwrap(), true).unwrap(), ids, "{name}");
        let positions = reference["positions"].as_array().unwrap();
        let mut nll = 0.0;
        let mut worst = 0f64;
        session.reset();
        let mut check = |at: usize, row: &[f32]| {
            let sum = log_sum(row);
            if let Some(&next) = ids.get(at + 1) {
                nll += sum - f64::from(row[next as usize]);
            }
            let Some(expected) = positions.iter().find(|p| p["position"] == at) else { return };
            let mut off = |found: f64, expected: &Value| {
                let difference = (found - expected.as_f64().unwrap()).abs();
                worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
            };
            off(sum, &expected["logsumexp"]);
            for (id, logit) in
                ids_of(&expected["ids"]).into_iter().zip(expected["logits"].as_array().unwrap())
            {
                off(row[id as usize].into(), logit);
            }
        };
        session.score(&ids, &mut check).unwrap();
        assert!(worst <= REAL_TOLERANCE.into(), "{name}: off by {worst}");
        let mean = nll / (ids.len() - 1) as f64;
        let expected = reference["nll"].as_f64().unwrap();
        assert!((mean - expected).abs() <= 1e-3, "{name}: nll {mean}, and not {expected}");
        if !reference["greedy"].is_null() {
            session.reset();
            assert_eq!(greedy(&mut session, &ids, 24), ids_of(&reference["greedy"]), "{name}");
        }
    }
}

/// So many tokens after a prompt, each the most likely.
fn greedy(session: &mut Session, ids: &[u32], count: usize) -> Vec<u32> {
    session.prefill(ids).unwrap();
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(session.argmax());
        session.decode(all[all.len() - 1]).unwrap();
    }
    all
}

/// Kullback and Leibler's divergence of the distribution of logits `q` from that of `p`, in nats.
fn divergence_of(p: &[f32], q: &[f32]) -> f64 {
    let (sum, other) = (log_sum(p), log_sum(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - sum, f64::from(q) - other);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

/// Rounded activations and a KV cache in bf16 cost little.
#[test]
fn rounding_moves_the_270m_by_little() {
    let Some((_, mut exact)) = real_session(false) else { return };
    let (_, mut rounded) = real_session(true).unwrap();
    for reference in references() {
        let ids = ids_of(&reference["ids"]);
        let bound = if ids.len() > 500 { 4e-3 } else { 8e-3 };
        exact.reset();
        rounded.reset();
        let mut divergence = 0.0;
        // A row has a megabyte.
        for piece in ids.chunks(32) {
            let [expected, found] = [&mut exact, &mut rounded].map(|s| logits(s, piece).unwrap());
            let rows = |all: &[f32]| all.len() / piece.len();
            let pairs = expected.chunks(rows(&expected)).zip(found.chunks(rows(&found)));
            divergence += pairs.map(|(p, q)| divergence_of(p, q)).sum::<f64>();
        }
        let mean = divergence / ids.len() as f64;
        assert!(mean <= bound, "{}: a divergence of {mean}", reference["name"]);
    }
}

/// What it was trained on is still there, through its own tokenizer and every format of its file.
#[test]
fn the_270m_knows_capitals() {
    for rounded in [false, true] {
        let Some((model, mut session)) = real_session(rounded) else { return };
        let tokenizer = model.tokenizer.as_ref().unwrap();
        let mut say = |prompt: &str| {
            session.reset();
            let ids = tokenizer.encode(prompt, true).unwrap();
            tokenizer.decode(&greedy(&mut session, &ids, 2))
        };
        for (country, capital) in [("France", "Paris"), ("Germany", "Berlin"), ("Portugal", "Lisbon")] {
            let said = say(&format!("Italy: Rome\nSpain: Madrid\nAustria: Vienna\n{country}:"));
            assert!(said.starts_with(&format!(" {capital}")), "{country}: {said:?}");
        }
        assert!(say("Paris is the capital of").starts_with(" France"));
    }
}

/// The formats of its file, as they are stored.
#[test]
fn the_270m_is_used_as_it_is_stored() {
    let Some(file) = real::file() else { return };
    let model = Model::open(file).unwrap();
    let mut formats = std::collections::BTreeMap::new();
    for name in model.checkpoint.names() {
        *formats.entry(model.checkpoint.format_of(name).map_or("", TensorFormat::name)).or_insert(0) += 1;
    }
    let expected = [("F32", 109), ("q4_k", 27), ("q5_0", 81), ("q6_k", 9), ("q8_0", 10)];
    assert_eq!(formats.into_iter().collect::<Vec<_>>(), expected);
    assert!(model.warnings.is_empty() && model.chat_template.is_none());
    assert_eq!(model.stop_tokens, [1, 106]);
    assert_eq!((model.config.sliding_window, model.config.rms_norm_eps as f32), (512, 1e-6));
}
