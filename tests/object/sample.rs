//! The header's sampling helper against the runtime's sampler: the same tokens from the same seed.

use std::process::Command;

use lapidary_runtime::{Rng, Sampler, SamplerOptions};

use crate::toolchain::{compile, have, link, run};

const ROWS: usize = 64;
const SEED: u64 = 7;
/// Of the built-in model.
const VOCAB: usize = 4096;

/// Rows as `sample.c` makes them.
fn rows() -> Vec<Vec<f32>> {
    let mut rng = Rng::new(1);
    let row = |row: usize, rng: &mut Rng| {
        let mut logits: Vec<f32> = (0..VOCAB)
            .map(|v| {
                let x = (rng.unit() * 300.0).floor() as f32 / 10.0 - 15.0;
                match (v % 97 == row, v % 2) {
                    (false, _) => x,
                    (true, 1) => f32::NAN,
                    (true, _) => f32::NEG_INFINITY,
                }
            })
            .collect();
        if row % 8 == 7 {
            logits[row] = f32::INFINITY;
        }
        logits
    };
    (0..ROWS).map(|r| row(r, &mut rng)).collect()
}

#[test]
fn the_helper_draws_what_the_runtime_draws() {
    if !have(&["gcc"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    compile(dir.path(), &[]);
    let source = env!("CARGO_MANIFEST_DIR").to_string() + "/../tests/object/sample.c";
    let program = link(dir.path(), "gcc", &["-ffp-contract=off"], &[source.into()]);
    let rows = rows();
    let mut distinct = 0;
    for (temperature, top_k, top_p) in [
        (0.0, 0, 1.0),
        (1.0, 0, 1.0),
        (0.8, 40, 1.0),
        (0.8, 40, 0.95),
        (1.2, 0, 0.9),
        (5.0, 0, 0.5),
        (1.0, 1, 0.5),
        (0.7, 0, 0.0),
        (3.0, 4095, 0.99),
        (1e-3, 5000, 1.0),
    ] {
        let options = SamplerOptions { temperature, top_k, top_p, seed: SEED, ..SamplerOptions::default() };
        let mut sampler = Sampler::new(options, VOCAB).expect("a sampler");
        let expected: Vec<i64> = (0..)
            .zip(&rows)
            .map(|(p, row)| i64::from(sampler.sample(row, &[], p).expect("a token")))
            .collect();
        let options = [
            ROWS.to_string(),
            SEED.to_string(),
            temperature.to_string(),
            top_k.to_string(),
            top_p.to_string(),
        ];
        let found = run(Command::new(&program).args(&options));
        let found: Vec<i64> = found.lines().map(|line| line.parse().expect("a token")).collect();
        assert_eq!(found[..ROWS], expected, "{options:?}");
        assert_eq!(found[ROWS..], [-1, -1], "no number, no row");
        let greedy = sampler.options().temperature == 0.0;
        distinct += usize::from(!greedy && found[0] != found[1]);
    }
    assert!(distinct > 3, "draws are all alike");
}
