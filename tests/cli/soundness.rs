//! `lapidary check-rules`: unsound rules are caught, each by a function that shows it, and sound ones are not accused.

use crate::command::{lapidary, lapidary_with};
use crate::lab::file;

/// Lines of a function that compute something.
fn nodes(ir: &str) -> usize {
    ir.lines().filter(|l| l.trim_start().starts_with('v') && l.contains(" = (")).count()
}

/// Each kind of unsound rule is caught, by a function of fewer than 10 nodes that `opt --run` reproduces.
#[test]
fn unsound_rules_are_caught() {
    let cases = [
        ("wrong-algebra", "double", "UNSOUND", "expected"),
        ("cap-after-mask", "cap-after-mask", "UNSOUND", "-inf"),
        ("wrong-axis", "wrong-axis", "UNSOUND", "expected"),
        ("dtype-lie", "no-cast", "ILL-TYPED", "merges f32[] with bf16[]"),
        ("lost-rounding", "cast-back", "UNSOUND", "expected"),
    ];
    for (file_name, rule, verdict, reason) in cases {
        let path = file(&format!("{file_name}.rules"));
        let checked = lapidary(&["check-rules", "--rules", &path, "--cases", "20"]);
        assert_eq!(checked.code, Some(1), "{}", checked.err);
        assert!(checked.out.contains(verdict) && checked.out.contains(reason), "{}", checked.out);
        assert!((1..10).contains(&nodes(&checked.out)), "{}", checked.out);
        let seed = checked.out.split("--seed ").nth(1).unwrap().split(' ').next().unwrap();
        let args = ["opt", "-", "--run", "--seed", seed, "--only", rule, "--rules", &path];
        let run = lapidary_with(&args, checked.out.as_bytes());
        assert_eq!(run.code, Some(1), "{}{}", checked.out, run.out);
        assert!(run.err.contains(reason), "{}", run.err);
        // Without the rule nothing is wrong.
        let args = ["opt", "-", "--run", "--seed", seed, "--disable", rule, "--rules", &path];
        let run = lapidary_with(&args, checked.out.as_bytes());
        assert_eq!(run.code, Some(0), "{}", run.err);
    }
}

#[test]
fn the_cost_law_holds() {
    // Dearer wherever it fires.
    let path = file("dearer.rules");
    let checked = lapidary(&["check-rules", "--rules", &path, "--cases", "20"]);
    assert_eq!(checked.code, Some(0), "{}", checked.err);
    assert!(checked.out.contains("  sound, does not pay\n"), "{}", checked.out);
    assert!(checked.out.contains("what it makes is dearer wherever it fires"), "{}", checked.out);
    assert!((1..10).contains(&nodes(&checked.out)), "{}", checked.out);
    let kept =
        lapidary_with(&["opt", "-", "--only", "distribute", "--rules", &path], checked.out.as_bytes()).ok();
    assert_eq!(kept.matches("(matmul ").count(), 1, "{kept}");
    // A fusion is worse where the fused value has other users: extraction keeps them apart.
    let fused = lapidary(&["check-rules", "--only", "last-row-softcap", "--cases", "20", "--json"]).json();
    assert!(fused[0]["price"]["least"].as_f64().unwrap() < 1.0, "{fused}");
    assert!(fused[0]["shared_price"]["least"].as_f64().unwrap() > 1.0, "{fused}");
    let shared =
        "function f(%x: f32[T,64] rows) { a = (softcap 30.0 %x) return all=a, last=(slice a 0 -1 1) }";
    let chosen = lapidary_with(&["opt", "-"], shared.as_bytes()).ok();
    assert!(chosen.contains("last-row-softcap x1") && chosen.matches("(softcap ").count() == 1, "{chosen}");
}

/// A fusion that computes again what others want anyway is named, with a function that shows it; extraction declines it
/// there.
#[test]
fn a_fusion_of_a_shared_value_is_named() {
    let path = file("worse-shared.rules");
    let checked = lapidary(&["check-rules", "--rules", &path, "--cases", "20"]).ok();
    assert!(checked.contains("does not pay where other users want an inner value"), "{checked}");
    assert!((1..10).contains(&nodes(&checked)), "{checked}");
    let args = ["opt", "-", "--rows", "1", "--only", "cut-first", "--rules", &path];
    let chosen = lapidary_with(&args, checked.as_bytes()).ok();
    assert!(chosen.contains("cut-first x1"), "{chosen}");
    assert_eq!(chosen.matches("(gelu_tanh ").count(), 1, "{chosen}");
    let json = lapidary(&["check-rules", "--rules", &path, "--cases", "20", "--json"]).json();
    let loss = &json[0]["loss"];
    assert!(loss["made_ns"].as_f64() > loss["written_ns"].as_f64() && json[0]["failure"].is_null(), "{json}");
}

/// Rules that are true by a law of exp, of roots or of tanh, or within their bound, are not accused; their false twins
/// are.
#[test]
fn sound_rules_are_not_accused() {
    let (honest, false_twins) = (file("honest.rules"), file("false-twins.rules"));
    for seed in ["0", "1", "7"] {
        let args = ["--seed", seed, "--json"];
        let json = lapidary(&[&["check-rules", "--rules", &honest], &args[..]].concat()).json();
        for rule in json.as_array().unwrap() {
            assert!(rule["failure"].is_null() && rule["cases"].as_u64() > Some(0), "seed {seed}: {rule}");
        }
        let checked = lapidary(&[&["check-rules", "--rules", &false_twins], &args[..]].concat());
        let json: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
        for rule in json.as_array().unwrap() {
            assert!(rule["failure"]["nodes"].as_u64().is_some_and(|n| n < 10), "seed {seed}: {rule}");
        }
    }
}

#[test]
fn built_in_rules_hold() {
    let all = lapidary(&["check-rules", "--cases", "12", "--json"]).json();
    for rule in all.as_array().unwrap() {
        assert_eq!(rule["verdict"], "sound", "{rule}");
        assert!(rule["cases"].as_u64() > Some(0) && rule["failure"].is_null(), "{rule}");
    }
    // The one that is a search, not a pattern.
    let merge = all.as_array().unwrap().iter().find(|r| r["rule"] == "linear-merge").unwrap();
    assert!(merge["price"]["most"].as_f64() < Some(1.0), "{merge}");
}

/// Verdicts of a file's rules, by name.
fn verdicts(file_name: &str, seed: &str) -> (Option<i32>, Vec<(String, String)>, serde_json::Value) {
    let path = file(file_name);
    let checked = lapidary(&["check-rules", "--rules", &path, "--seed", seed, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&checked.out).unwrap();
    let word = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let of = json.as_array().unwrap().iter().map(|r| (word(&r["rule"]), word(&r["verdict"]))).collect();
    (checked.code, of, json)
}

/// True rules in forms that no built-in rule has are sound, whether they pay or not: none fails.
#[test]
fn laws_are_not_accused() {
    for seed in ["0", "5"] {
        let (code, of, json) = verdicts("laws.rules", seed);
        assert_eq!(code, Some(0), "{json}");
        for (rule, verdict) in of {
            let never_pays = ["distribute", "exp-sum", "mean-by-sum"].contains(&rule.as_str());
            let expected =
                if never_pays { &["sound, does not pay"][..] } else { &["sound", "sound, does not pay"] };
            assert!(expected.contains(&verdict.as_str()), "seed {seed}: {rule}: {verdict}");
        }
    }
}

/// What overflows, what has no type and what was not tried have words of their own, and fail.
#[test]
fn other_failures_have_words_of_their_own() {
    for (file_name, word) in
        [("overflow", "OVERFLOWS"), ("ill-typed", "ILL-TYPED"), ("unchecked", "not checked")]
    {
        let (code, of, json) = verdicts(&format!("{file_name}.rules"), "0");
        assert_eq!(code, Some(1), "{json}");
        assert!(of.iter().all(|(_, verdict)| verdict == word), "{of:?}");
        for rule in json.as_array().unwrap() {
            let Some(failure) = rule["failure"].as_object() else {
                // What was in the way: a type that does not exist, a condition.
                let reason = rule["skipped"].as_str().unwrap();
                assert!(reason.contains("does not stretch") || reason.contains("its condition"), "{reason}");
                continue;
            };
            assert!(failure["nodes"].as_u64() < Some(10), "{rule}");
            let (name, seed) = (rule["rule"].as_str().unwrap(), failure["seed"].to_string());
            let path = file(&format!("{file_name}.rules"));
            let args = ["opt", "-", "--run", "--seed", &seed, "--only", name, "--rules", &path];
            let run = lapidary_with(&args, failure["function"].as_str().unwrap().as_bytes());
            assert_eq!(run.code, Some(1), "{rule}\n{}", run.out);
        }
    }
}
