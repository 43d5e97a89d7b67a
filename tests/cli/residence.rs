//! Where weights lie, as it is asked for: it changes no token, and `--stats` tells it.

use std::process::Command;

use super::artifact::lapidary_run;
use super::command::{lapidary, name};

#[test]
fn weights_lie_where_they_are_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, artifact) = (dir.path().join("q8"), dir.path().join("a.lap"));
    lapidary(&["quantize", "--weights", "q8", "-o", name(&folder)]).ok();
    lapidary(&["compile", "--context", "64", "-o", name(&artifact)]).ok();
    for model in [&folder, &artifact] {
        let run = |args: &[&str]| {
            let all =
                [&["run", "-m", name(model), "--temp", "0", "-n", "8", "--json", "It is"], args].concat();
            lapidary(&all).json()
        };
        let expected = run(&["--mmap"]);
        let bytes = expected["stats"]["weight_bytes"].as_u64().unwrap();
        assert!(bytes > 0);
        // Of two, the last counts, as with llama.cpp; so few bytes are not moved unless that is asked for.
        for (args, mapped) in [
            (&[][..], bytes),
            (&["--mmap"], bytes),
            (&["--no-mmap"], 0),
            (&["--no_mmap", "--mmap"], bytes),
            (&["--mmap", "--no-mmap"], 0),
        ] {
            let found = run(args);
            assert_eq!(found["tokens"], expected["tokens"], "{args:?}");
            assert_eq!(found["stats"]["weight_bytes_mapped"], mapped, "{args:?}");
        }
        for (args, told) in [("--mmap", "mapped"), ("--no-mmap", "in memory")] {
            let shown = lapidary(&["run", "-m", name(model), args, "-n", "2", "--stats", "It is"]);
            let line = shown.err.lines().find(|line| line.starts_with("weights")).unwrap();
            assert!(line.ends_with(&format!(", {told}")), "{line}");
        }
    }
    let run = |args: &[&str]| {
        let all = [&[name(&artifact), "--temp", "0", "-n", "8", "It is"], args].concat();
        let output = Command::new(lapidary_run()).args(all).output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    assert_eq!(run(&["--mmap"]), run(&["--no-mmap"]));
    let bench = ["bench", "-m", name(&folder), "--prompt-tokens", "2", "--gen-tokens", "2", "--repeat", "1"];
    lapidary(&[&bench[..], &["--no-mmap"]].concat()).ok();
    let refused = lapidary(&["bench", "x.ir", "--no-mmap"]);
    assert!(refused.code == Some(2) && refused.err.contains("--no-mmap"), "{}", refused.err);
}
