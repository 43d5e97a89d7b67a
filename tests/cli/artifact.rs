//! Artifacts from the command line: written, verified, shown and run, by `lapidary` and by `lapidary-run`, which holds
//! no compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::{Outcome, binary, lapidary, lapidary_with, name, run_with};

const PROMPT: &str = "It is a truth universally acknowledged";

/// `lapidary-run`, built beside `lapidary`.
pub(crate) fn lapidary_run() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built =
        Command::new(env!("CARGO")).current_dir(root).args(["build", "-q", "-p", "lapidary-run"]).status();
    assert!(built.unwrap().success());
    Path::new(binary().get_program()).with_file_name("lapidary-run")
}

#[test]
fn both_commands_print_what_the_compiler_in_memory_prints() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.lap");
    lapidary(&["compile", "-o", name(&file)]).ok();
    let sections = lapidary(&["verify", name(&file)]).ok();
    assert!(sections.contains("sections verified"), "{sections}");
    let options = ["--temp", "0", "-n", "32", PROMPT];
    let jit = lapidary(&[&["run"], &options[..]].concat()).ok();
    let stored = lapidary(&[&["run", "-m", name(&file), "--verify"], &options[..]].concat()).ok();
    assert_eq!(jit, stored);
    let alone = Command::new(lapidary_run()).arg(&file).args(options).output().unwrap();
    assert_eq!(jit, String::from_utf8(alone.stdout).unwrap());
    let shown = lapidary(&["inspect", "-m", name(&file), "--json"]).json();
    assert!(shown["cpus"][0]["kernels"][0]["code_bytes"].as_u64() > Some(0));
    assert!(shown["cpus"][0]["kv_bytes"].as_u64() > Some(0));
    lapidary(&["run", "-m", name(&file), "--chunk", "8", "hi"]).fails(&["--chunk", "compiled already"]);

    // What kernels read and compute is as known as from a folder.
    let short = ["--repeat", "1", "--prompt-tokens", "8", "--gen-tokens", "1", "--depth", "1"];
    let context = shown["cpus"][0]["context"].to_string();
    let same = ["--json", "--kernels", "--calibration", "none", "--context", &context];
    let options = [&same, &short[..]].concat();
    let folder = lapidary(&[&["bench"], &options[..]].concat()).json();
    let options = [&["--json", "--kernels", "-m", name(&file)], &short[..]].concat();
    let stored = lapidary(&[&["bench"], &options[..]].concat()).json();
    for (a, b) in folder["results"].as_array().unwrap().iter().zip(stored["results"].as_array().unwrap()) {
        for field in ["phase", "bytes_per_token", "flops_per_token"] {
            assert_eq!(a[field], b[field], "{field}");
        }
        assert!(b["bytes_per_token"].as_f64() > Some(0.0) && b["bandwidth_share"].as_f64() > Some(0.0));
        let names = |result: &serde_json::Value| {
            let kernels = result["kernels"].as_array().unwrap().iter();
            kernels.map(|k| k["kernel"].to_string()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(a), names(b));
    }
    let refused = lapidary(&["bench", "-m", name(&file), "--ablation"]);
    assert!(refused.code == Some(2) && refused.err.contains("--ablation"), "{}", refused.err);

    let again = dir.path().join("again.lap");
    lapidary(&["compile", "-o", name(&again)]).ok();
    let mut bytes = fs::read(&file).unwrap();
    assert!(bytes == fs::read(&again).unwrap(), "two compilations differ");

    // A weight's bit: it runs, unless hashes are asked for.
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
    fs::write(&again, &bytes).unwrap();
    lapidary(&["run", "-m", name(&again), "-n", "1", "hi"]).ok();
    lapidary(&["run", "-m", name(&again), "--verify", "-n", "1", "hi"]).fails(&["again.lap", "damaged"]);
    lapidary(&["verify", name(&again)]).fails(&["again.lap", "damaged"]);
}

/// The built-in model, compiled; and `lapidary-run` on it.
fn compiled(dir: &Path) -> (PathBuf, impl Fn(&[&str], &[u8]) -> Outcome) {
    let file = dir.join("tiny.lap");
    lapidary(&["compile", "-o", name(&file)]).ok();
    let program = lapidary_run();
    (file, move |args: &[&str], stdin: &[u8]| run_with(Command::new(&program), args, stdin))
}

#[test]
fn the_small_command_takes_prompts_as_the_large_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let (file, small) = compiled(dir.path());
    let prompt = dir.path().join("prompt");
    fs::write(&prompt, PROMPT).unwrap();
    let text = lapidary(&["run", "--temp", "0", "-n", "24", PROMPT]).ok();
    let word = text.split(' ').nth(4).unwrap();
    for args in [
        &[PROMPT][..],
        &["-p", PROMPT],
        &["-f", name(&prompt)],
        &["--stop", word, PROMPT],
        &["--system", "Be brief.", PROMPT],
        &["--chat", PROMPT],
        &["--ids", "2,17,5"],
        &["-c", "20", "-t", "1", PROMPT],
        &["--json", PROMPT],
        &["--json", "--stop", word, PROMPT],
    ] {
        let all = [args, &["--temperature", "0", "-n", "24"]].concat();
        let large = lapidary(&[&["run", "-m", name(&file)], &all[..]].concat());
        for front in [&[name(&file)][..], &["-m", name(&file)], &["run", "-m", name(&file)]] {
            let found = small(&[front, &all].concat(), b"");
            assert_eq!(found.err, large.err, "{args:?}");
            if args[0] == "--json" {
                let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
                let (found, large) = (parse(&found.out), parse(&large.out));
                for field in ["text", "tokens", "stop", "seed"] {
                    assert_eq!(found[field], large[field], "{args:?}");
                }
                for (field, value) in found["stats"].as_object().unwrap() {
                    assert!(value.is_number() && large["stats"][field].is_number(), "{field}");
                }
            } else {
                assert_eq!((found.code, found.out), (Some(0), large.out.clone()), "{args:?}");
            }
        }
    }
    assert_eq!(small(&[name(&file), "--temp", "0", "-n", "24"], PROMPT.as_bytes()).ok(), text);
    assert_eq!(small(&[name(&file), "-", "--temp", "0", "-n", "24"], PROMPT.as_bytes()).ok(), text);
    for (args, code, named) in [
        (&[name(&file)][..], 2, "PROMPT"),
        (&[], 2, "FILE"),
        (&[name(&file), "a", "b"], 2, "quotes"),
        (&[name(&file), "a", "-p", "b"], 2, "one prompt"),
        (&[name(&file), "-ngl", "9", "a"], 2, "CPUs"),
        (&[name(&file), "--ids", "x"], 2, "`x`"),
        (&[name(&file), "-"], 1, "stdin is empty"),
        (&[name(&file), "--context", "2000", "a"], 1, "compiled for 1024"),
    ] {
        let found = small(args, b"");
        assert_eq!((found.code, found.err.lines().count()), (Some(code), 1), "{args:?}: {}", found.err);
        assert!(found.err.contains(named), "{args:?}: {}", found.err);
    }
}

#[test]
fn a_context_below_the_compiled_one_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (file, small) = compiled(dir.path());
    let args = ["-n", "-1", "--temp", "0", "--ignore-eos", "--json"];
    let folder = lapidary(&[&["run", "--context", "40"], &args[..], &[PROMPT]].concat()).json();
    assert_eq!(folder["stop"], "context");
    let large =
        lapidary(&[&["run", "-m", name(&file), "--context", "40"], &args[..], &[PROMPT]].concat()).json();
    let found = small(&[&[name(&file), "--context", "40"], &args[..], &[PROMPT]].concat(), b"").json();
    for field in ["stop", "tokens"] {
        assert_eq!((&large[field], &found[field]), (&folder[field], &folder[field]), "{field}");
    }
    let refused = ["run", "-m", name(&file), "--context", "2000", "x"];
    lapidary(&refused).fails(&["tiny.lap", "2000", "compiled for 1024"]);
    lapidary(&["run", "-m", name(&file), "--context", "8", &"long ".repeat(9)]).fails(&["context is 8"]);
}

#[test]
fn both_commands_hold_the_same_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let (file, small) = compiled(dir.path());
    let input = b"hello\n/system Be brief.\nand you?\n\xff\n\
        \"\"\"\n/quit\n\"\"\"\n/nothing\n/reset\nhello\n/quit\nnever\n";
    let options = ["--context", "90", "-n", "20", "--temp", "0"];
    let large = lapidary_with(&[&["chat", "-m", name(&file)], &options[..]].concat(), input);
    assert!(large.err.contains("left out") && large.err.contains("not UTF-8"), "{}", large.err);
    let expected = large.err.clone();
    let text = large.ok();
    for front in [&["chat", name(&file)][..], &["chat", "-m", name(&file)], &["-m", name(&file), "--chat"]] {
        let found = small(&[front, &options].concat(), input);
        assert_eq!(found.err, expected, "{front:?}");
        assert_eq!(found.ok(), text, "{front:?}");
    }
    let told = small(&["chat", name(&file), "-n", "3"], b"hello\n/stats\n");
    assert!(told.out.contains("decode 3 tokens"), "{}", told.out);
}

#[test]
fn inspect_opens_with_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.lap");
    lapidary(&["compile", "-o", name(&file), "--context", "900", "--chunk", "64"]).ok();
    let inspect = |args: &[&str]| lapidary(&[&["inspect", "-m", name(&file)], args].concat());
    let summary = inspect(&[]).ok();
    let lines: Vec<&str> = summary.lines().collect();
    assert!(lines.len() < 20 && lines[0] == name(&file), "{summary}");
    for line in ["target ", "file ", "model ", "weights ", "text ", "CPUs "] {
        assert!(lines[1..8].iter().any(|l| l.starts_with(line)), "{line}: {summary}");
    }
    assert!(summary.contains("6,162,336 parameters, 3 local, 2 global: LGLGL"), "{summary}");
    assert!(summary.contains("text      tokenizer, chat template, stop tokens\n"), "{summary}");
    assert!(summary.contains("of at most 64 tokens, 900 positions\n"), "{summary}");
    // Kernels and hashes are there for who asks.
    let verbose = inspect(&["--verbose"]).ok();
    let json = inspect(&["--json"]).json();
    let kernels = json["cpus"][0]["kernels"].as_array().unwrap();
    let hashes = json["sections"].as_array().unwrap().iter().map(|s| s["sha256"].as_str().unwrap());
    let names = kernels.iter().map(|k| k["name"].as_str().unwrap());
    for text in names.chain(hashes) {
        assert!(verbose.contains(text) && !summary.contains(text), "{text}");
    }

    // Two global layers hold each position, three local ones their window and the chunk; 2 heads of 64, 2 bytes.
    let row = 2 * 2 * 64 * 2;
    let kv = |args: &[&str]| {
        let cpu = &inspect(&[args, &["--json"]].concat()).json()["cpus"][0];
        assert_eq!(cpu["context"], 900);
        ["kv_context", "kv_local_bytes", "kv_global_bytes", "kv_bytes"].map(|n| cpu[n].as_u64().unwrap())
    };
    assert_eq!(kv(&[]), [900, 3 * 192 * row, 2 * 900 * row, (3 * 192 + 2 * 900) * row]);
    assert_eq!(kv(&["--context", "600"]), [600, 3 * 192 * row, 2 * 600 * row, (3 * 192 + 2 * 600) * row]);
    assert_eq!(kv(&["--context", "100"]), [100, 3 * 100 * row, 2 * 100 * row, 5 * 100 * row]);
    assert!(inspect(&["--context", "600"]).ok().contains("of a context of 600: "));
    inspect(&["--context", "901"]).fails(&["--context 901", "tiny.lap", "900"]);
    for option in [&["--vocab", "7"][..], &["--chunk", "7"], &["--kv-cache", "f32"]] {
        let refused = inspect(option);
        assert!(refused.code == Some(2) && refused.err.contains(option[0]), "{}", refused.err);
    }
}

/// A file with other metadata, its data in the same places of their pages.
fn with_metadata(good: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let (length, rest) = good.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut json: serde_json::Value = serde_json::from_slice(header).unwrap();
    change(&mut json["__metadata__"]);
    let mut text = json.to_string();
    let whole = (8 + text.len()).next_multiple_of(4096) + (8 + header.len()) % 4096;
    text.push_str(&" ".repeat(whole - 8 - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat()
}

#[test]
fn hostile_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.lap");
    lapidary(&["compile", "-o", name(&file)]).ok();
    let good = fs::read(&file).unwrap();
    let write = |change: &dyn Fn(&mut serde_json::Value)| {
        fs::write(&file, with_metadata(&good, change)).unwrap();
    };
    write(&|_| ());
    lapidary(&["verify", name(&file)]).ok();

    // Many CPUs, and many times the same: neither takes longer nor says more than one line.
    let distinct: Vec<String> = (0..100_000).map(|i| format!("cpu{i}")).collect();
    for (cpus, expected) in [
        (distinct.join(","), "at most 256 names, found 100000"),
        (["native"; 100_000].join(","), "at most 256 names, found 100000"),
        (["native"; 2].join(","), "each name once"),
        ("\u{1b}[2J".into(), r#""\u{1b}[2J""#),
        (String::new(), "plain names"),
    ] {
        write(&|m| m["cpus"] = cpus.clone().into());
        let start = std::time::Instant::now();
        for command in [
            &["inspect", "-m"][..],
            &["inspect", "--verbose", "-m"],
            &["inspect", "--json", "-m"],
            &["verify"],
            &["run", "hi", "-m"],
        ] {
            lapidary(&[command, &[name(&file)]].concat()).fails(&["tiny.lap", "cpus", expected]);
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    // Control characters do not reach a terminal as they are.
    write(&|m| {
        m["target"] = "x\u{1b}[2J\u{9b}1m\u{202e}".into();
        m["weights"] = "q4\u{7f}\u{85}".into();
    });
    for args in [&[][..], &["--verbose"], &["--json"]] {
        let shown = lapidary(&[&["inspect", "-m", name(&file)], args].concat()).ok();
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    }
}

#[test]
fn targets_and_places_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.lap");
    let other = if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86_64" };
    for other in [other, "riscv64"] {
        lapidary(&["compile", "--target", &format!("{other}-unknown-linux-gnu"), "-o", name(&file)]).ok();
        lapidary(&["run", "-m", name(&file), "hi"]).fails(&["other.lap", other]);
    }
    for (cpu, needs) in [
        ("neoverse-n1", "neon, lse, fp16, dotprod"),
        ("cortex-a53", "neon"),
        ("rv64gcv", "zca, zcd, v, zvl32b, zvl64b, zvl128b"),
    ] {
        lapidary(&["compile", "--cpu", cpu, "-o", name(&file)]).ok();
        let shown = lapidary(&["inspect", "-m", name(&file)]).ok();
        assert!(shown.contains(&format!("\n{cpu}: needs {needs}\n")), "{shown}");
    }
    lapidary(&["compile", "-o", name(dir.path())]).fails(&["expected a file"]);
    let nowhere = dir.path().join("no/such/folder.lap");
    lapidary(&["compile", "-o", name(&nowhere)]).fails(&["folder.lap", "No such file"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
}

/// What is made for this machine runs on it, and says what it is made for; a file for every step says which it took.
#[test]
fn the_code_that_was_taken_has_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("here.lap");
    let run = |args: &[&str]| {
        let outcome = lapidary(&[&["run", "-n", "2", "--temp", "0", "--stats"], args, &[PROMPT]].concat());
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.err);
        let code = outcome.err.lines().find_map(|line| line.strip_prefix("code")).unwrap_or_default();
        (code.trim().to_string(), outcome.out)
    };
    let (code, text) = run(&[]);
    assert!(code.starts_with("native, here ") && code.contains('('), "{code}");
    lapidary(&["compile", "-o", name(&file)]).ok();
    let (stored, same) = run(&["-m", name(&file)]);
    assert!(stored.starts_with("native (") && same == text, "{stored}");

    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    lapidary(&["compile", "--target", &target, "-o", name(&file)]).ok();
    let shown = lapidary(&["inspect", "-m", name(&file), "--json"]).json();
    let cpus = shown["cpus"].as_array().unwrap();
    let (taken, _) = run(&["-m", name(&file)]);
    let (cpu, features) = taken.split_once(" (").unwrap();
    assert!(code.contains(&format!("here {cpu} (")), "{taken}: {code}");
    let row = cpus.iter().find(|row| row["cpu"] == cpu).unwrap();
    let listed: Vec<&str> = row["features"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
    assert_eq!(features.trim_end_matches(')'), listed.join(", "));
    let alone =
        Command::new(lapidary_run()).arg(&file).args(["-n", "1", "--stats", PROMPT]).output().unwrap();
    let told = String::from_utf8(alone.stderr).unwrap();
    assert!(told.contains(&format!("code for {taken}")), "{told}");
    let json = lapidary(&["run", "-m", name(&file), "-n", "1", "--json", PROMPT]).json();
    assert_eq!(json["stats"]["cpu"], cpu);
    assert_eq!(json["stats"]["cpu_features"], row["features"]);
    if cfg!(target_arch = "x86_64") {
        let names: Vec<&str> = cpus.iter().filter_map(|row| row["cpu"].as_str()).collect();
        let steps = ["v2", "v3", "v3-vnni", "v4", "v4-vnni", "v4-bf16", "v4-amx"];
        assert_eq!(names, steps.map(|step| format!("x86-64-{step}")));
        // Weights of bf16 have no use for products of 8-bit integers.
        assert_eq!(cpus[2]["code_of"], "x86-64-v3");
        assert!(lapidary(&["inspect", "-m", name(&file)]).ok().contains(", the same as for x86-64-v3\n"));
    }
}

/// The real look at a CPU, on CPUs that are not here: what they have is found, and what they lack is named.
#[test]
#[cfg(target_arch = "x86_64")]
fn other_cpus_under_qemu_take_what_they_can() {
    if Command::new("qemu-x86_64").arg("--version").output().is_err() {
        let missing = "not found: qemu-x86_64";
        assert!(std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "{missing}");
        eprintln!("SKIPPED, nothing was tested: {missing}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("steps.lap");
    let cpus = "x86-64-v2,ivybridge,x86-64-v3,x86-64-v4-vnni";
    lapidary(&["compile", "--cpu", cpus, "-o", name(&file)]).ok();
    let run = |cpu: &str| {
        let mut command = Command::new("qemu-x86_64");
        command.args(["-cpu", cpu]).arg(lapidary_run()).arg(&file);
        let output = command.args(["-n", "1", "--stats", "--threads", "1", "It is"]).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for (cpu, step) in [("Nehalem", "x86-64-v2"), ("IvyBridge", "ivybridge"), ("Haswell", "x86-64-v3")] {
        let told = run(cpu);
        assert!(told.contains(&format!("code for {step} (")), "{cpu}: {told}");
    }
    let told = run("core2duo");
    assert!(told.contains("needs SSE4.1 (sse4.1), SSE4.2 (sse4.2), POPCNT (popcnt), which"), "{told}");
}

#[test]
fn lapidary_run_holds_no_compiler() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let args = ["tree", "--offline", "-p", "lapidary-run", "-e", "normal", "--prefix", "none"];
    let tree = Command::new(env!("CARGO")).current_dir(root).args(args).output().unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("lapidary-runtime"), "{tree}");
    for compiler in ["lapidary-ir", "lapidary-passes", "lapidary-codegen", "cranelift", "egg", "iced-x86"] {
        assert!(!tree.lines().any(|line| line.starts_with(compiler)), "{compiler}: {tree}");
    }
}
