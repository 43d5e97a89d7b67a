//! Other people's clients, unchanged: the packages `openai` of Python and of npm, and schemathesis on the description.
//!
//! `tests/server/clients.sh target/tmp/clients` gets them, as `.ci/run` does.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Server;
use super::toolchain::{have, run};

/// A file that something else makes, if it is there.
pub(crate) fn made(name: &str, by: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        return Some(path);
    }
    let missing = format!("not found: {} ({by})", path.display());
    assert!(std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "{missing}");
    eprintln!("SKIPPED, nothing was tested: {missing}");
    None
}

/// A file of the clients' folder.
fn client(name: &str) -> Option<PathBuf> {
    made(&format!("clients/{name}"), "tests/server/clients.sh target/tmp/clients")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/server").join(name)
}

#[test]
fn openai_of_python() {
    let Some(python) = client("bin/python") else { return };
    let server = Server::start(&["--parallel", "2", "--queue", "1"]);
    let url = format!("http://{}/v1", server.address);
    assert_eq!(run(Command::new(python).arg(script("openai_client.py")).arg(url)), "ok\n");
    server.wait_for("lapidary_num_requests_running", 0.0);
}

#[test]
fn openai_of_npm() {
    let Some(package) = client("node_modules/openai") else { return };
    if !have(&["node"]) {
        return;
    }
    let server = Server::start(&[]);
    let url = format!("http://{}/v1", server.address);
    // Beside the package, where it is found.
    let here = package.join("../../openai_client.mjs");
    std::fs::copy(script("openai_client.mjs"), &here).unwrap();
    assert_eq!(run(Command::new("node").arg(here).arg(url)), "ok\n");
    server.wait_for("lapidary_num_requests_running", 0.0);
}

#[test]
fn schemathesis_finds_no_failure_of_the_server() {
    let Some(program) = client("bin/schemathesis") else { return };
    let slots = tempfile::tempdir().unwrap();
    let path = slots.path().to_str().unwrap();
    let server = Server::start(&["--context", "256", "--timeout", "20", "--slot-save-path", path]);
    let mut command = Command::new(program);
    command.arg("run").arg(format!("http://{}/openapi.json", server.address));
    command.args(["--checks", "not_a_server_error", "--max-examples", "15", "--seed", "1", "--no-color"]);
    command.args(["--request-timeout", "60", "--phases", "examples,coverage,fuzzing"]);
    let here = tempfile::tempdir().unwrap();
    run(command.current_dir(here.path()));
}
