//! A trained model as people have it: Gemma 3 270M in Q4_K_M, from the registry of Python's packages, by its client,
//! into a folder under `target`. Without client or network a test says that it was skipped, or fails where
//! `LAPIDARY_REQUIRE_TOOLS` is set, as `.ci/run` does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The model's file; nothing where it cannot be fetched and need not be.
pub(crate) fn file() -> Option<&'static Path> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| match fetch() {
        Ok(path) => Some(path),
        Err(reason) => {
            assert!(std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "the 270M: {reason}");
            eprintln!("SKIPPED, nothing was tested: the 270M: {reason}");
            None
        }
    });
    file.as_deref()
}

fn fetch() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf");
    let path = folder.join("gemma-3-270m-q4_k_m.gguf");
    if path.exists() {
        return Ok(path);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf/fetch.py");
    let output =
        Command::new("python3").arg(script).arg(&folder).output().map_err(|e| format!("python3: {e}"))?;
    if output.status.success() {
        return Ok(path);
    }
    Err(format!("fetch.py: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}
