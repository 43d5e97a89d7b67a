//! Arguments: their help, mistakes in them, names of CPUs.

use crate::command::lapidary;

#[test]
fn help_has_examples() {
    let commands =
        ["run", "chat", "logits", "eval", "inspect", "synth", "opt", "rules", "check-rules", "bisect"];
    let overview = lapidary(&["--help"]).ok();
    for command in commands {
        assert!(overview.contains(&format!("  {command} ")), "{overview}");
        let help = lapidary(&[command, "--help"]).ok();
        assert!(help.contains("Example") && help.contains(&format!("  lapidary {command}")), "{help}");
    }
}

#[test]
fn mistakes_in_arguments() {
    let cases: [(&[&str], &str); 25] = [
        (&[], "Usage"),
        (&["walk"], "walk"),
        (&["run"], "PROMPT"),
        (&["run", "--temp", "-1", "x"], "--temp"),
        (&["run", "--temp", "nan", "x"], "--temp"),
        (&["run", "--top-p", "2", "x"], "--top-p"),
        (&["run", "--repeat-penalty", "0", "x"], "--repeat-penalty"),
        (&["run", "--threads", "0", "x"], "--threads"),
        (&["run", "--context", "0", "x"], "--context"),
        (&["run", "--bogus", "x"], "--bogus"),
        (&["run", "--cpu", "z80", "x"], "z80"),
        (&["run", "--weights", "q9", "x"], "--weights"),
        (&["bench", "--prompt-tokens", "0"], "--prompt-tokens"),
        (&["bench", "--depth", "5000000000"], "positions"),
        (&["run", "--disable", "nothing", "x"], "`nothing`"),
        (&["run", "--passes", "nothing", "x"], "`nothing`"),
        (&["logits", "--ids", "2,x", "-o", "/nowhere/out"], "`x`"),
        (&["logits", "--ids", "2"], "--output"),
        (&["logits", "--ids", "2", "--activations", "f16", "-o", "/nowhere/out"], "f16"),
        (&["eval"], "--text"),
        (&["eval", "--text", "x", "--stride", "0"], "--stride"),
        (&["inspect", "--preset", "3b"], "3b"),
        (&["synth", "--preset", "2b", "--layers", "99999999999", "-o", "/nowhere"], "--layers"),
        (&["opt", "--emit", "wasm"], "wasm"),
        (&["rules", "--show", "nothing"], "`nothing`"),
    ];
    for (args, named) in cases {
        let outcome = lapidary(args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {}", outcome.err);
        assert!(outcome.err.contains(named), "{args:?}: {}", outcome.err);
        assert_eq!(outcome.out, "", "{args:?}");
    }
}

#[test]
fn cpus_have_names_and_those_of_the_target_are_told() {
    let help = lapidary(&["compile", "--cpu", "help", "-o", "/nowhere.lap"]).ok();
    assert_eq!(lapidary(&["run", "--cpu", "help"]).code, Some(0));
    for name in
        ["native", "x86-64-v4-vnni", "icelake-server", "cortex-a76", "neoverse-v2", "apple-m1", "spacemit-k1"]
    {
        assert!(help.lines().any(|line| line.split_whitespace().next() == Some(name)), "{name}: {help}");
    }
    let refused = |args: &[&str]| {
        let outcome = lapidary(&[args, &["-o", "/nowhere.lap"]].concat());
        assert_eq!((outcome.code, outcome.err.lines().count()), (Some(2), 1), "{args:?}: {}", outcome.err);
        outcome.err
    };
    let arm = ["compile", "--target", "aarch64-unknown-linux-gnu", "--cpu"];
    for more in [&[][..], &["--emit", "object"]] {
        let text = refused(&[&arm[..], &["cortex-a67"], more].concat());
        assert!(text.contains("did you mean `cortex-a") && text.contains("neoverse-v1"), "{text}");
        assert!(!text.contains("x86-64-v3") && !text.contains("rv64gcv"), "{text}");
        let text = refused(&[&arm[..], &["znver4"], more].concat());
        assert!(text.contains("one of x86_64-unknown-linux-gnu") && text.contains("apple-m4"), "{text}");
    }
    let text = refused(&["compile", "--cpu", "znver9000"]);
    assert!(text.contains("did you mean `znver"), "{text}");
    assert_eq!(text.contains("cortex-a76"), cfg!(target_arch = "aarch64"), "{text}");
}

#[test]
fn code_for_another_cpu_does_not_run_here() {
    let other = if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86-64-v3" };
    lapidary(&["run", "--cpu", other, "x"]).fails(&["--cpu", other]);
    lapidary(&["opt", "--cpu", other, "--fn", "head", "--emit", "asm"]).ok();
}
