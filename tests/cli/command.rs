//! Runs the binary and reads what it says.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a command came to.
pub(crate) struct Outcome {
    /// Exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// stdout.
    pub(crate) out: String,
    /// stderr.
    pub(crate) err: String,
}

impl Outcome {
    fn new(output: Output) -> Outcome {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let outcome =
            Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!outcome.err.contains("panicked"), "{}", outcome.err);
        outcome
    }

    /// Its stdout, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self.out
    }

    /// Its stdout as JSON, if it succeeded.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON")
    }

    /// Checks that it failed with one line that names all of `named`.
    #[track_caller]
    pub(crate) fn fails(&self, named: &[&str]) {
        assert_eq!(self.code, Some(1), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        let line = self.err.strip_suffix('\n').expect("a line end");
        assert!(line.starts_with("error: ") && !line.contains('\n'), "expected one line:\n{line}");
        for name in named {
            assert!(line.contains(name), "`{name}` is not named: {line}");
        }
    }
}

/// The binary, to be given arguments.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    // Neither this machine's calibration nor what a user's cache holds.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    command.env("XDG_CACHE_HOME", &cache).env("HF_HOME", cache.join("huggingface"));
    // And nothing that the network has.
    command.env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it with arguments.
pub(crate) fn lapidary<S: AsRef<OsStr>>(args: &[S]) -> Outcome {
    Outcome::new(binary().args(args).output().expect("the binary runs"))
}

/// Runs it with arguments and an input.
pub(crate) fn lapidary_with<S: AsRef<OsStr>>(args: &[S], stdin: &[u8]) -> Outcome {
    run_with(binary(), args, stdin)
}

/// Runs a command with arguments and an input.
pub(crate) fn run_with<S: AsRef<OsStr>>(mut command: Command, args: &[S], stdin: &[u8]) -> Outcome {
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // A command that fails first does not read.
    let _ = child.stdin.take().expect("piped").write_all(stdin);
    Outcome::new(child.wait_with_output().expect("it ends"))
}

/// Logits of `ids`: rows, columns, values.
pub(crate) fn logits(ids: &str, args: &[&str]) -> (usize, usize, Vec<f32>) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("out.safetensors");
    let all = ["logits", "--ids", ids, "-o", name(&path)];
    lapidary(&[&all, args].concat()).ok();
    let bytes = std::fs::read(&path).expect("the file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor("logits").expect("logits");
    assert_eq!((file.len(), tensor.dtype()), (1, safetensors::Dtype::F32));
    let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let [rows, columns] = tensor.shape() else { panic!("{:?}", tensor.shape()) };
    (*rows, *columns, values)
}

/// The largest difference of two lists of one length.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// A path as an argument.
pub(crate) fn name(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
