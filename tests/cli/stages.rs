//! `lapidary opt` and `lapidary rules`: every stage of the compiler, printed and read again.

use std::fs;

use crate::command::{lapidary, lapidary_with, name};

#[test]
fn stages() {
    for stage in ["ir", "fused", "kernels", "clif", "asm", "plan"] {
        let text = lapidary(&["opt", "--fn", "layer_local", "--rows", "1", "--emit", stage]).ok();
        assert!(text.lines().count() > 5 && text.contains("layer_local"), "{stage}: {text}");
    }
    let fused = lapidary(&["opt", "--rows", "1"]).ok();
    for op in ["(attention ", "(rope ", "(norm_prologue ", "(cap 30.0)", "(add_rms_norm ", " gate)"] {
        assert!(fused.contains(op), "{op} is not there: {fused}");
    }
    let figures = lapidary(&["opt", "--json", "--fn", "head"]).json();
    assert_eq!((&figures[0]["function"], &figures[0]["stop"]), (&"head".into(), &"saturated".into()));
    assert!(figures[0]["kernels"][0]["code_bytes"].as_u64() > Some(0));
    lapidary(&["opt", "--fn", "x"]).fails(&["`x`", "layer_local"]);
    lapidary(&["opt", "--rows", "600"]).fails(&["--rows is 600"]);
}

/// A function without its comments.
fn code(text: &str) -> String {
    let lines = text.lines().map(|l| l.split(';').next().unwrap_or("").trim_end());
    lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn stages_compose() {
    let written = lapidary(&["opt", "--emit", "ir"]).ok();
    let fused = lapidary(&["opt"]).ok();
    let again = lapidary_with(&["opt", "-", "--emit", "fused", "--context", "1024"], written.as_bytes()).ok();
    assert_eq!(code(&again), code(&fused));
    // What was fused parses, from a file, and is as cheap as it gets.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fused.ir");
    fs::write(&file, &fused).unwrap();
    assert_eq!(code(&lapidary(&["opt", name(&file), "--emit", "ir"]).ok()), code(&fused));
    // Without passes, what comes out is what was written; without one rule, its op is not.
    let unfused = lapidary(&["opt", "--fn", "head", "--passes", "none"]).ok();
    assert_eq!(code(&unfused), code(&lapidary(&["opt", "--fn", "head", "--emit", "ir"]).ok()));
    let one = lapidary(&["opt", "--fn", "layer_global", "--disable", "attention"]).ok();
    assert!(!one.contains("(attention "), "{one}");
}

#[test]
fn rules() {
    let all = lapidary(&["rules", "--json"]).json();
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"softcap") && names.contains(&"attention"), "{names:?}");
    assert_eq!(lapidary(&["rules"]).ok().lines().count(), names.len());
    // Each can be left out; without all of them nothing changes.
    let disable: Vec<&str> = names.iter().flat_map(|n| ["--disable", n]).collect();
    let none = lapidary(&[&["opt", "--fn", "head"], &disable[..]].concat()).ok();
    assert_eq!(code(&none), code(&lapidary(&["opt", "--fn", "head", "--emit", "ir"]).ok()));
    let one = lapidary(&["rules", "--show", "softcap", "--json"]).json();
    assert!(one["rhs"].as_str().unwrap().contains("softcap"), "{one}");
    assert!(lapidary(&["rules", "--show", "softcap"]).ok().contains("=>"));
}
