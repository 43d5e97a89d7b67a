//! A headless Chromium, driven by the DevTools protocol over pipes: no port, no library.
//!
//! Invariants: the browser has a profile of its own and ends with the value; a browser that does not answer fails the
//! test.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Names that Chromium goes by.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// What the page complained of: errors and warnings of the console, exceptions, failed requests.
    pub(crate) complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

/// The browser's command, if there is one.
pub(crate) fn find() -> Option<&'static str> {
    let works = |name: &&&str| {
        let version =
            Command::new(**name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|s| s.success())
    };
    NAMES.iter().find(works).copied()
}

impl Browser {
    /// Starts it with an empty page.
    pub(crate) fn start(name: &str) -> Browser {
        let profile = tempfile::tempdir().expect("a folder");
        // The protocol's pipes are descriptors 3 and 4 of the browser; ours are its stdin and stdout.
        let script = "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec \"$@\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", name])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = child.stdin.take().expect("piped");
        let output = child.stdout.take().expect("piped");
        let mut browser = Browser {
            child,
            input,
            messages: listen(output),
            session: None,
            next: 0,
            complaints: vec![],
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let id = &target["targetId"];
        let session = browser.call("Target.attachToTarget", json!({ "targetId": id, "flatten": true }));
        browser.session = Some(session["sessionId"].as_str().expect("a session").into());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({}));
        }
        browser
    }

    /// Sends a command and waits for its result.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut answer =
                self.messages.recv_timeout(left).unwrap_or_else(|e| panic!("{method}: no answer: {e}"));
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => params["exceptionDetails"].to_string(),
            Some("Runtime.consoleAPICalled")
                if ["error", "warning", "assert"].iter().any(|t| params["type"] == *t) =>
            {
                params["args"].to_string()
            }
            Some("Log.entryAdded") => params["entry"].to_string(),
            Some("Network.requestWillBeSent") => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                if ["file:", "data:", "blob:"].iter().any(|own| url.starts_with(own)) {
                    return;
                }
                format!("a request to {url}")
            }
            _ => return,
        };
        self.complaints.push(complaint);
    }

    /// The value of an expression of JavaScript, promises awaited.
    #[track_caller]
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut result = self.call("Runtime.evaluate", asked);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].take()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.value(expression) != true {
            assert!(Instant::now() < deadline, "{expression}: still false");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens a file.
    #[track_caller]
    pub(crate) fn open(&mut self, path: &Path) {
        self.call("Page.navigate", json!({ "url": format!("file://{}", path.display()) }));
        self.wait("document.readyState === 'complete'");
    }

    /// The size of the window, and whether dark is preferred.
    pub(crate) fn window(&mut self, width: u32, height: u32, phone: bool, dark: bool) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// Presses a key: `Tab`, `ArrowDown`, `Enter`, or a character.
    pub(crate) fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = if key.len() == 1 { json!(key) } else { Value::Null };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && text.is_string() {
                event["text"] = text.clone();
            }
            if kind == "keyDown" && key == "Enter" {
                event["text"] = json!("\r");
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Writes what is seen as a PNG into the folder that `LAPIDARY_SCREENSHOTS` names, if it is set.
    pub(crate) fn photograph(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("LAPIDARY_SCREENSHOTS") else { return };
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let bytes = base64::decode(shot["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages as they come, each ended by a zero byte.
fn listen(output: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = vec![];
        while output.read_until(0, &mut bytes).is_ok_and(|n| n > 0) {
            bytes.pop();
            let Ok(message) = serde_json::from_slice(&bytes) else { return };
            if sender.send(message).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}
