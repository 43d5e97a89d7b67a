//! A terminal, for tests of what a person sees and types: the other end of a pseudo-terminal that a command runs in.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::command::binary;

/// How long a test waits for what should come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command in a terminal of its own.
pub(crate) struct Terminal {
    child: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    /// Everything printed so far.
    pub(crate) seen: String,
    /// Bytes of `seen` that earlier waits have passed.
    passed: usize,
}

impl Terminal {
    /// Runs the binary there; `TERM` is `xterm` unless the environment says otherwise. An empty value removes a
    /// variable.
    pub(crate) fn run(args: &[&str], environment: &[(&str, &str)]) -> Terminal {
        let (mut ours, mut theirs) = (0, 0);
        // SAFETY: two places to write to; name, mode and size are left to the system.
        let made = unsafe {
            libc::openpty(
                &mut ours,
                &mut theirs,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(made, 0, "a pseudo-terminal");
        // SAFETY: the two were just opened, and are nobody else's.
        let (keys, end) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let mut command = binary();
        command.env("TERM", "xterm").args(args);
        for (name, value) in environment {
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        let stdio = || Stdio::from(end.try_clone().expect("a copy"));
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: between fork and exec, two system calls that allocate nothing.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("the binary runs");
        drop(command);
        drop(end);
        let (sender, screen) = channel();
        let mut reader = keys.try_clone().expect("a copy");
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error is the end: the command is gone.
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, keys, screen, seen: String::new(), passed: 0 }
    }

    /// Types.
    pub(crate) fn send(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("typed");
    }

    /// Waits until `text` is printed, after what was waited for before.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            if let Some(at) = self.seen[self.passed..].find(text) {
                self.passed += at + text.len();
                return;
            }
            match self.screen.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("`{text}` is not printed ({error}):\n{}", self.seen),
            }
        }
    }

    /// Waits for the end, with this exit code, and reads the rest.
    #[track_caller]
    pub(crate) fn ends(&mut self, code: i32) {
        let start = Instant::now();
        loop {
            match self.screen.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end:\n{}", self.seen),
            }
        }
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(code), "{}", self.seen);
        assert!(!self.seen.contains("panicked"), "{}", self.seen);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Of a test that fails: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
