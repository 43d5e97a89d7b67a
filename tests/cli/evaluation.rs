//! `lapidary eval`: perplexities, those of the reference and those of rounded weights and activations.

use std::fs;

use crate::command::{lapidary, name};
use crate::{golden, numbers};

/// The figures of the built-in model's README: transformers, float32.
#[test]
fn perplexity_is_the_reference() {
    let text = golden("eval.txt");
    let eval = |args: &[&str]| {
        let all = ["eval", "--text", name(&text), "--context", "512", "--json"];
        let found = lapidary(&[&all, args].concat()).json();
        numbers(&found, &["tokens", "nll", "perplexity"]);
        assert_eq!(found["tokens"], 6599);
        let (nll, perplexity) = (found["nll"].as_f64().unwrap(), found["perplexity"].as_f64().unwrap());
        assert!((nll.exp() - perplexity).abs() < 1e-6);
        perplexity
    };
    let near =
        |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.005, "{found}, {expected}");
    let whole = eval(&[]);
    let half = eval(&["--sliding-window", "64"]);
    near(whole, 38.543);
    near(half, 38.841);
    // The change itself, nearer than the figures.
    let change = half - whole;
    assert!((change - 0.298).abs() < 0.03, "{change}");
}

#[test]
fn evaluation_with_an_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &fs::read(golden("eval.txt")).unwrap()[..1200]).unwrap();
    let eval = |args: &[&str]| {
        lapidary(&[&["eval", "--text", name(&text), "--context", "64", "--json"], args].concat()).json()
    };
    let (plain, same, overlap) = (eval(&[]), eval(&["--stride", "63"]), eval(&["--stride", "16"]));
    assert_eq!(plain, same);
    assert_eq!(plain["tokens"], overlap["tokens"]);
    assert!(overlap["nll"].as_f64() < plain["nll"].as_f64(), "more context predicts better");
    let people = lapidary(&["eval", "--text", name(&text), "--context", "64"]).ok();
    assert!(people.contains("perplexity") && people.lines().count() == 3, "{people}");
}

/// Quantised weights predict nearly as well, and `--against` says how nearly.
#[test]
fn quantised_weights_keep_the_perplexity() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &fs::read(golden("eval.txt")).unwrap()[..4000]).unwrap();
    for (weights, most, divergence) in [("q8", 0.003, 1e-3), ("q4", 0.04, 0.1)] {
        let args = ["eval", "--text", name(&text), "--context", "256", "--json", "--no-cache"];
        let found = lapidary(&[&args[..], &["--weights", weights, "--against", "bf16"]].concat()).json();
        let (ours, theirs) =
            (found["perplexity"].as_f64().unwrap(), found["against"]["perplexity"].as_f64().unwrap());
        assert!((ours / theirs - 1.0).abs() < most, "{weights}: {ours} against {theirs}");
        let kl = found["against"]["mean_kl"].as_f64().unwrap();
        assert!(kl > 0.0 && kl < divergence, "{weights}: KL {kl}");
        let same = found["against"]["top1_agreement"].as_f64().unwrap();
        assert!(same > 0.8 && same <= 1.0, "{weights}: top-1 agreement {same}");
    }
}

/// What `--activations auto` costs: bf16 or, of quantised weights, 8-bit blocks.
#[test]
fn rounded_activations_keep_the_distribution() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &fs::read(golden("eval.txt")).unwrap()[..2000]).unwrap();
    for (weights, most) in [("bf16", 1e-4), ("q8", 1e-3), ("q4", 1e-3)] {
        for chunk in ["512", "1"] {
            let args = ["eval", "--text", name(&text), "--context", "256", "--json", "--no-cache"];
            let how = ["--weights", weights, "--chunk", chunk, "--against-activations", "f32"];
            let found = lapidary(&[&args[..], &how].concat()).json();
            let kl = found["against"]["mean_kl"].as_f64().unwrap();
            assert!(kl > 0.0 && kl <= most, "{weights}, chunk {chunk}: KL {kl}");
        }
    }
}
