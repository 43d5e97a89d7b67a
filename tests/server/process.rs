//! A server as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{self, Answer};

/// How long it may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server, which ends with the value.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// The binary with an environment of its own.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

impl Server {
    /// `lapidary serve` with these arguments, ready.
    #[track_caller]
    pub(crate) fn start(args: &[&str]) -> Server {
        let mut command = binary();
        command.args(["serve", "--port", "0", "--log-format", "json"]).args(args);
        Server::of(command)
    }

    /// Some command that serves, ready.
    #[track_caller]
    pub(crate) fn of(mut command: Command) -> Server {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        let listening: Value = serde_json::from_str(&first).unwrap_or_else(|_| {
            let mut rest = String::new();
            let _ = lines.read_to_string(&mut rest);
            panic!("{first}{rest}")
        });
        let address = listening["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_string();
        let log = Arc::new(Mutex::new(String::new()));
        let into = log.clone();
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                into.lock().unwrap().push_str(&std::mem::take(&mut line));
            }
        });
        let server = Server { child, address, log, reader: Some(reader) };
        let deadline = Instant::now() + PATIENCE;
        while server.get("/health").status != 200 {
            assert!(Instant::now() < deadline, "{}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// What it wrote to its log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        client::ask(&self.address, "GET", path, &[], b"")
    }

    /// Posts a JSON value.
    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        client::ask(&self.address, "POST", path, &[], body.to_string().as_bytes())
    }

    /// The JSON that a JSON value is answered with.
    #[track_caller]
    pub(crate) fn ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// A number of `/metrics`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }

    /// Waits until a number of `/metrics` is this.
    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name) != value {
            assert!(Instant::now() < deadline, "{name} is {}, not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end: its exit code.
    #[track_caller]
    pub(crate) fn end(mut self) -> Option<i32> {
        // SAFETY: a signal to a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) }, 0);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, bytes.
    pub(crate) fn resident(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.reader.take().map(JoinHandle::join);
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("{}", &log[log.len().saturating_sub(4000)..]);
        }
        assert!(std::thread::panicking() || !log.contains("panicked"), "{log}");
    }
}
