//! Models by name: fetched from a hub on loopback, found again without it, listed and removed.

use std::fs;
use std::path::Path;

use lapidary_tests::hub::{Hub, Repo, Sent};
use serde_json::Value;

use super::command::{Outcome, binary, run_with};
use super::golden;

/// The built-in model's folder as a repository, and one of quants.
fn hub() -> Hub {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/data/tiny-gemma2");
    let names = ["config.json", "generation_config.json", "tokenizer_config.json"];
    let mut files: Vec<Sent> =
        names.iter().map(|n| Sent::small(n, &fs::read(data.join(n)).unwrap())).collect();
    files.extend(
        ["tokenizer.json", "model.safetensors"].map(|n| Sent::large(n, &fs::read(data.join(n)).unwrap())),
    );
    files.push(Sent::small("README.md", b"a tiny model"));
    let quants = Repo::new("owner/quants", vec![Sent::large("x-Q8_0.gguf", b"GGUF, cut short")]);
    let mut gated = Repo::new(
        "owner/gated",
        vec![Sent::small("config.json", b"{}"), Sent::large("model.safetensors", b"x")],
    );
    gated.gated = Some("hf_token".into());
    Hub::start(vec![Repo::new("owner/tiny", files), quants, gated])
}

struct Place {
    hub: Hub,
    home: tempfile::TempDir,
}

impl Place {
    fn run(&self, args: &[&str], offline: bool) -> Outcome {
        let mut command = binary();
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.hub.endpoint);
        command.env("HF_HUB_OFFLINE", if offline { "1" } else { "0" });
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        run_with(command, args, b"")
    }
}

#[test]
fn a_name_is_a_model() {
    let place = Place { hub: hub(), home: tempfile::tempdir().unwrap() };
    // Text takes no weights.
    let tokenize = ["tokenize", "-m", "owner/tiny", "hello"];
    let ids = place.run(&tokenize, false).ok();
    assert!(place.hub.log().iter().all(|line| !line.contains("model.safetensors")), "{:?}", place.hub.log());
    assert_eq!(place.run(&tokenize, true).ok(), ids);
    assert_eq!(ids, place.run(&["tokenize", "hello"], true).ok());
    assert!(place.run(&["list"], true).ok().contains("tokenizer alone"));
    place.run(&["rm", "owner/tiny", "--yes"], true).ok();
    place.run(&tokenize, false).ok();
    let generate = ["run", "-m", "owner/tiny", "--temp", "0", "-n", "16", "--json", super::PROMPT];
    place.run(&generate, true).fails(&["owner/tiny", "HF_HUB_OFFLINE", "nothing is at owner/tiny"]);
    let first = place.run(&generate, false);
    assert!(first.err.contains("note: fetching model.safetensors, "), "{}", first.err);
    let first: Value = first.json();
    // What was fetched is found without the hub, and is the built-in model.
    assert_eq!(place.run(&generate, true).json()["text"], first["text"]);
    let own = place.run(&["run", "--temp", "0", "-n", "16", "--json", super::PROMPT], true).json();
    assert_eq!(own["text"], first["text"]);
    assert!(place.hub.log().iter().all(|line| !line.contains("README")));
    for args in [
        &["inspect", "-m", "hf.co/owner/tiny"][..],
        &["tokenize", "-m", "https://huggingface.co/owner/tiny", "hello"],
        &["opt", "-m", "owner/tiny", "--fn", "head", "--rows", "1"],
        &["eval", "-m", "owner/tiny", "--text", golden("eval.txt").to_str().unwrap(), "--context", "64"],
    ] {
        place.run(args, true).ok();
    }
    // A file comes first.
    let listed = place.run(&["list"], true).ok();
    assert!(listed.starts_with("owner/tiny") && listed.contains("MiB  gemma2"), "{listed}");
    let asks = place.run(&["rm", "owner/tiny"], true);
    assert!(asks.code == Some(2) && asks.err.contains("--yes"), "{}", asks.err);
    place.run(&["rm", "owner/tiny", "--yes"], true).ok();
    place.run(&["rm", "owner/tiny", "--yes"], true).fails(&["owner/tiny is not in"]);
    assert_eq!(place.run(&["list", "--json"], true).json(), Value::Array(vec![]));
}

#[test]
fn what_is_pulled_is_where_it_says() {
    let place = Place { hub: hub(), home: tempfile::tempdir().unwrap() };
    let path = place.run(&["pull", "hf.co/owner/quants:q8_0"], false).ok();
    assert_eq!(fs::read(path.trim()).unwrap(), b"GGUF, cut short");
    place.run(&["run", "-m", "owner/quants:Q8_0", "x"], true).fails(&["x-Q8_0.gguf", "expected a GGUF"]);
    place
        .run(&["pull", "owner/quants"], false)
        .fails(&["owner/quants has no Q4_K_M", "expected a tag of Q8_0"]);
    place.run(&["pull", "owner/gated"], false).fails(&[
        "owner/gated is a gated model",
        "accept its terms at",
        "HF_TOKEN",
    ]);
    place.run(&["pull", "owner/none"], false).fails(&["the hub has no model of this name"]);
    for name in ["gemma2:2b", "gemma-2-2b"] {
        let none = place.run(&["pull", name], false);
        assert!(none.code == Some(2) && none.err.contains("OWNER/REPO:TAG"), "{}", none.err);
    }
    for name in ["gemma2:2b", "gemma-2-2b"] {
        place.run(&["run", "-m", name, "x"], false).fails(&["google/gemma-2-2b-it"]);
    }
}
