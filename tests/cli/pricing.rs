//! What kernels are priced by: calibrations, `bench --predicted` and `bench --ablation`. No figure is held against the
//! clock.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::command::{binary, lapidary, name};

/// A calibration of made-up figures, all of them the same.
fn calibration(path: &Path, figure: f64) -> Value {
    let listed =
        lapidary(&["calibrate", "--threads", "1", "--repeat", "1", "-o", name(path), "--json"]).json();
    let mut all = listed.clone();
    for set in ["auto", "f32"] {
        for value in all[set].as_object_mut().unwrap().values_mut() {
            assert!(value.as_f64().is_some_and(|v| v >= 0.0), "{value}");
            *value = json!(figure);
        }
    }
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap(), listed);
    all
}

#[test]
fn a_calibration_is_used_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.json");
    let mut all = calibration(&path, 1.0);
    let mut fields: Vec<&String> = all.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["auto", "code", "cpu", "f32", "lapidary_calibration", "threads"]);
    fs::write(&path, all.to_string()).unwrap();
    let predicted = |calibration: &str| {
        let args = ["opt", "--fn", "layer_local", "--rows", "1", "--json", "--calibration", calibration];
        let found = lapidary(&args).json();
        (found[0]["predicted_ns"].as_f64().unwrap(), found)
    };
    let (own, first) = predicted(name(&path));
    assert_ne!(own, predicted("none").0);
    // The same constants, the same kernels; times of stages differ.
    assert_eq!(first[0]["kernels"], predicted(name(&path)).1[0]["kernels"]);

    // What is stored depends on none unless asked.
    let artifact = |args: &[&str]| {
        let path = dir.path().join("m.lap");
        lapidary(&[&["compile", "--cpu", "x86-64-v2", "-o", name(&path)], args].concat()).ok();
        fs::read(path).unwrap()
    };
    assert!(artifact(&[]) == artifact(&["--calibration", "none"]));
    assert!(artifact(&["--calibration", name(&path)]) == artifact(&["--calibration", name(&path)]));

    // Damaged: one line that names the file and the field.
    all["auto"]["launch"] = json!("soon");
    fs::write(&path, all.to_string()).unwrap();
    let damaged = lapidary(&["opt", "--fn", "embed", "--calibration", name(&path)]);
    damaged.fails(&["--calibration", "c.json", "`auto.launch`"]);
    fs::write(&path, "{\"a\": 1}").unwrap();
    lapidary(&["run", "--calibration", name(&path), "x"]).fails(&["c.json", "lapidary_calibration"]);
    lapidary(&["run", "--calibration", "nowhere.json", "x"]).fails(&["nowhere.json"]);
}

#[test]
fn a_damaged_calibration_of_this_machine_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = binary().env("XDG_CACHE_HOME", dir.path()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let predicted = |found: &str| serde_json::from_str::<Value>(found).unwrap()[0]["predicted_ns"].clone();
    let opt = ["opt", "--fn", "head", "--json"];
    let built_in = predicted(&run(&opt).0);
    run(&["calibrate", "--repeat", "1"]);
    let file = fs::read_dir(dir.path().join("lapidary")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap();
    let (found, said) = run(&opt);
    assert_eq!(said, "");
    assert_ne!(predicted(&found), built_in);
    // What runs a model goes by it only if asked: an artifact's bits are those of built-in constants.
    let mut skewed: Value = serde_json::from_str(&text).unwrap();
    skewed["auto"]["norm"] = json!(1e6);
    skewed["auto"]["launch"] = json!(1e-3);
    fs::write(&file, skewed.to_string()).unwrap();
    let compiled = |calibration: &[&str]| {
        let out = dir.path().join("m.lap");
        run(&[&["compile", "-o", name(&out)], calibration].concat());
        fs::read(out).unwrap()
    };
    let logits = |calibration: &[&str]| {
        let out = dir.path().join("l.safetensors");
        run(&[&["logits", "--ids", "2,651,576", "-o", name(&out)], calibration].concat());
        fs::read(out).unwrap()
    };
    assert!(compiled(&[]) == compiled(&["--calibration", "none"]));
    assert!(compiled(&[]) != compiled(&["--calibration", "auto"]));
    assert!(logits(&[]) == logits(&["--calibration", "none"]));
    for other in
        [text.replace("\"f32\"", "\"f64\""), text.replace("\"cpu\": \"", "\"cpu\": \"not "), String::new()]
    {
        fs::write(&file, other).unwrap();
        let (found, said) = run(&opt);
        assert_eq!(predicted(&found), built_in);
        assert!(said.starts_with("warning: ") && said.lines().count() == 1, "{said}");
        assert!(said.contains("calibration-") && said.contains("lapidary calibrate"), "{said}");
        assert_eq!(run(&[&opt[..], &["--calibration", "none"]].concat()).1, "");
    }
}

#[test]
fn predictions_stand_beside_what_was_measured() {
    let args = ["bench", "--prompt-tokens", "40", "--gen-tokens", "2", "--depth", "8", "--repeat", "1"];
    let found = lapidary(&[&args[..], &["--kernels", "--predicted", "--json"]].concat()).json();
    for result in found["results"].as_array().unwrap() {
        let kernels = result["kernels"].as_array().unwrap();
        for kernel in kernels {
            let (ns, predicted) = (kernel["ns"].as_f64().unwrap(), kernel["predicted_ns"].as_f64().unwrap());
            assert!(ns > 0.0 && predicted > 0.0, "{kernel}");
            let ratio = kernel["predicted_ratio"].as_f64().unwrap();
            assert!((ratio - predicted / ns).abs() < 1e-6 * ratio, "{kernel}");
            assert!(["f32", "bf16", "int8"].contains(&kernel["unit"].as_str().unwrap()), "{kernel}");
        }
        let p = &result["predicted"];
        assert_eq!(p["kernels"], kernels.len());
        assert!(p["kernels_within"].as_u64().unwrap() as usize <= kernels.len());
        assert!((0.0..=1.0 + 1e-9).contains(&p["share_within"].as_f64().unwrap()));
        assert!(p["ms"].as_f64().unwrap() > 0.0 && p["ratio"].as_f64().unwrap() > 0.0);
    }
    let units = found["machine"]["units_gflops"].as_object().unwrap();
    let unit = found["machine"]["matrix_unit"].as_str().unwrap();
    assert_eq!(units[unit], found["machine"]["matrix_gflops"]);
    assert!(units.contains_key("f32") && units.values().all(|v| v.as_f64().unwrap() > 0.0));
    let text = lapidary(&[&args[..], &["--kernels", "--predicted"]].concat()).ok();
    assert!(text.contains("predicted   ratio") && text.contains("within 0.67 to 1.5"), "{text}");
}

#[test]
fn an_ablation_lists_what_each_rule_buys() {
    let args = ["bench", "--prompt-tokens", "16", "--gen-tokens", "1", "--depth", "4", "--repeat", "1"];
    let found = lapidary(&[&args[..], &["--ablation", "--json"]].concat()).json();
    let rows = found["ablation"].as_array().unwrap();
    let of = |without: &str| rows.iter().find(|r| r["without"] == without);
    for row in rows {
        for field in ["decode_tokens_per_s", "decode_ratio", "prefill_tokens_per_s", "prefill_ratio"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{row}");
        }
    }
    for without in ["everything", "attention", "linear", "rope"] {
        assert!(of(without).is_some(), "{without}: {rows:?}");
    }
    assert!(found["without_effect"].is_array());
    assert_eq!(lapidary(&[&args[..], &["--ablation", "--kernels"]].concat()).code, Some(2));
    assert_eq!(lapidary(&["bench", "--predicted"]).code, Some(2));
}
