//! Logits against Hugging Face transformers in float32, over chunkings, selections of rules, threads and CPUs.
//!
//! `golden/make_golden.py` says how the references were made. The tolerance leaves room for any order of summation in
//! f32 and none for a wrong formula.

use anyhow::Result;
use lapidary::{KvCache, Options, Selection};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_models::{QuantFormat, TensorFormat, WeightDType};
use lapidary_passes::rules;
use lapidary_runtime::threads;
use lapidary_tests::{Golden, exact, golden, golden_model, logits, session, stored, worst_difference};

const TOLERANCE: f32 = 1e-3;
const CASES: [&str; 10] = [
    "odd-27b",
    "gqa-4",
    "hot",
    "one-mqa",
    "one-mha",
    "three-text",
    "three-scaled",
    "three-nested",
    "tiny-short",
    "tiny-long",
];
/// Those that are random and small.
const SMALL: [&str; 8] =
    ["odd-27b", "gqa-4", "hot", "one-mqa", "one-mha", "three-text", "three-scaled", "three-nested"];

/// Token by token, by the kernels of decoding.
#[test]
fn decoding() -> Result<()> {
    for case in CASES {
        let model = golden_model(case)?;
        let Golden { ids, rows, logits } = golden(case)?;
        let mut session = session(&model, exact())?;
        let vocab = logits.len() / rows.len();
        for (at, &id) in ids.iter().enumerate() {
            session.decode(id)?;
            let Some(row) = rows.iter().position(|&row| row == at) else { continue };
            let mut pairs = session.logits().iter().zip(&logits[row * vocab..][..vocab]);
            let near = pairs.all(|(ours, theirs)| (ours - theirs).abs() <= TOLERANCE);
            assert!(near, "{case}, decoding token {at}");
        }
    }
    Ok(())
}

fn check(case: &str, options: Options, what: &str) -> Result<()> {
    let model = golden_model(case)?;
    let mut session = session(&model, options)?;
    let worst = worst_difference(&mut session, &golden(case)?)?;
    assert!(worst <= TOLERANCE, "{case}, {what}: off by {worst}");
    Ok(())
}

#[test]
fn every_chunking() -> Result<()> {
    for case in CASES {
        for chunk in [1, 3, 7, 64, 512] {
            check(case, exact().chunk(chunk), &format!("chunk {chunk}"))?;
        }
    }
    Ok(())
}

#[test]
fn unfused() -> Result<()> {
    for case in CASES {
        for chunk in [1, 7, 512] {
            check(case, exact().rules(Selection::none()).chunk(chunk), &format!("no passes, chunk {chunk}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_rule_disabled_in_turn() -> Result<()> {
    let without = |rule: &str| {
        for case in SMALL {
            for chunk in [7, 512] {
                let options = exact().rules(Selection::new("all", &[rule.to_string()])?).chunk(chunk);
                check(case, options, &format!("without {rule}, chunk {chunk}"))?;
            }
        }
        Ok(())
    };
    // It takes longest of all tests here.
    let rules = rules::all().map(|rule| rule.name.as_str()).collect();
    threads::map(threads::of_machine(), rules, without).into_iter().collect()
}

#[test]
fn every_group_alone() -> Result<()> {
    for group in rules::groups() {
        for case in SMALL {
            let selection = Selection::new(&group.name, &[])?;
            check(case, exact().rules(selection), &format!("{} alone", group.name))?;
        }
    }
    Ok(())
}

#[test]
fn an_older_cpu() -> Result<()> {
    for case in CASES {
        check(case, exact().cpu("x86-64-v2"), "x86-64-v2")?;
    }
    Ok(())
}

#[test]
fn threads_change_no_bit() -> Result<()> {
    let model = golden_model("tiny-short")?;
    let ids = golden("tiny-short")?.ids;
    let run = |threads| logits(&mut session(&model, exact().threads(threads))?, &ids);
    let one = run(1)?;
    for threads in [2, 3, 4] {
        let same = run(threads)?.iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{threads} threads");
    }
    Ok(())
}

/// Quantised weights compute what the same weights written out in f32 do, on every CPU whose code runs here.
#[test]
fn quantised_weights_against_dequantised() -> Result<()> {
    let runs_here =
        |cpu: &str| Target::new(cpu, Placement::Jit).is_ok_and(|target| target.lacking_here().is_none());
    let named = TARGETS.iter().map(|target| target.name).filter(|cpu| runs_here(cpu));
    let cpus: Vec<&str> = std::iter::once("native").chain(named).collect();
    for case in ["gqa-4", "tiny-short"] {
        let original = golden_model(case)?;
        for format in [QuantFormat::Q8, QuantFormat::Q4] {
            let folder = tempfile::tempdir()?;
            let quantised = stored(&original, &folder.path().join("quantised"), format.into())?;
            let plain = TensorFormat::Float(WeightDType::F32);
            let dequantised = stored(&quantised, &folder.path().join("dequantised"), plain)?;
            let Golden { ids, rows, .. } = golden(case)?;
            let unfused = || exact().rules(Selection::none());
            let all = logits(&mut session(&dequantised, unfused())?, &ids)?;
            let vocab = all.len() / ids.len();
            let kept = rows.iter().flat_map(|&row| &all[row * vocab..][..vocab]).copied().collect();
            let expected = Golden { ids, rows, logits: kept };
            let loss = worst_difference(&mut session(&original, unfused())?, &expected)?;
            assert!(loss > 10.0 * TOLERANCE, "{case}, {}: {loss}: was it quantised?", format.name());
            for cpu in &cpus {
                for chunk in [1, 3, 7, 512] {
                    let mut session = session(&quantised, exact().cpu(*cpu).chunk(chunk))?;
                    let worst = worst_difference(&mut session, &expected)?;
                    let what = format.name();
                    assert!(worst <= TOLERANCE, "{case}, {what}, {cpu}, chunk {chunk}: off by {worst}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_bf16_cache_stays_close() -> Result<()> {
    for case in CASES {
        let model = golden_model(case)?;
        let mut session = session(&model, exact().kv_cache(KvCache::Bf16))?;
        let worst = worst_difference(&mut session, &golden(case)?)?;
        // Its normed queries and keys make attention so sharp that a rounded key may hand a share to another.
        let most = if case == "three-nested" { 2.0 } else { 0.5 };
        assert!(worst <= most, "{case}: off by {worst}");
    }
    Ok(())
}

#[test]
fn an_int8_cache_stays_close() -> Result<()> {
    for case in CASES {
        let model = golden_model(case)?;
        if !model.config.head_dim.is_multiple_of(lapidary_ir::BLOCK) {
            continue;
        }
        for selection in [Selection::all(), Selection::none()] {
            let mut session = session(&model, exact().kv_cache(KvCache::Int8).rules(selection))?;
            let worst = worst_difference(&mut session, &golden(case)?)?;
            assert!(worst <= 0.5, "{case}: off by {worst}");
        }
    }
    Ok(())
}
