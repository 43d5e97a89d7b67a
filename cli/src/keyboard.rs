//! The keys of a terminal, a line at a time, on their way to the editor of lines.
//!
//! The editor reads more than its line, forgets the rest when a line fails, and fails at the first byte that is not
//! UTF-8. So it gets a pseudo-terminal of its own for stdin, and a thread hands it what the terminal sends: up to the
//! end of one line (bracketed pastes whole), with U+FFFD for what is not UTF-8. Invariants: what is not handed on stays
//! for the next line; outside of [`Keyboard::line`] stdin is the terminal again, as it was.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// How long the end of a line waits for the editor to take it before more is handed on.
const PAUSE: i32 = 1000; // ms
/// What begins and ends a bracketed paste.
const PASTE: [[u8; 6]; 2] = [*b"\x1b[200~", *b"\x1b[201~"];

/// A terminal and what it sent that is not handed on yet.
pub(crate) struct Keyboard {
    /// The terminal.
    terminal: OwnedFd,
    /// Where keys are handed on.
    ours: OwnedFd,
    /// Where the editor reads them.
    theirs: OwnedFd,
    /// Readable once the line is read.
    done: OwnedFd,
    keys: Keys,
}

impl Keyboard {
    /// The keyboard of the terminal that stdin is.
    pub(crate) fn new() -> io::Result<Keyboard> {
        let settings = settings(0)?;
        let (mut ours, mut theirs) = (0, 0);
        // The editor's end is raw from the start, with the user's own control characters.
        let raw = raw(settings);
        // SAFETY: two places to write to, settings to read; no name and no size.
        let made =
            unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), &raw, std::ptr::null()) };
        check(made)?;
        // SAFETY: both were just opened, for nobody else.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        // SAFETY: the calls take numbers alone, and what they open is nobody else's.
        let (terminal, done) = unsafe {
            let terminal = OwnedFd::from_raw_fd(check(libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3))?);
            let done = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            (terminal, OwnedFd::from_raw_fd(check(done)?))
        };
        Ok(Keyboard { terminal, ours, theirs, done, keys: Keys::default() })
    }

    /// Runs `edit`, which reads a line from stdin. Without threads it reads the terminal itself.
    pub(crate) fn line<T>(&mut self, edit: impl FnOnce() -> T) -> io::Result<T> {
        let Keyboard { terminal, ours, theirs, done, keys } = self;
        let terminal = terminal.as_raw_fd();
        let _restored = Restored { terminal, settings: settings(terminal)? };
        set(terminal, &raw(_restored.settings))?;
        let raw = raw(_restored.settings);
        let (ours, done) = (ours.as_raw_fd(), done.as_raw_fd());
        std::thread::scope(|scope| {
            let hand = || keys.hand(terminal, ours, done, &raw);
            let Ok(thread) = std::thread::Builder::new().spawn_scoped(scope, hand) else {
                set(terminal, &_restored.settings)?;
                return Ok(edit());
            };
            replace_stdin(theirs.as_raw_fd())?;
            let edited = edit();
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight bytes of a counter, which takes them.
            unsafe { libc::write(done, one.as_ptr().cast(), one.len()) };
            // A panic of the thread is a bug, and printed; the line is read.
            let _ = thread.join();
            let mut count = [0; 8];
            // SAFETY: eight bytes to write to.
            unsafe { libc::read(done, count.as_mut_ptr().cast(), count.len()) };
            Ok(edited)
        })
    }

    /// Whether `line` has what was put for bytes that are not UTF-8.
    pub(crate) fn was_not_utf8(&mut self, line: &str) -> bool {
        let replaced = self.keys.replaced && line.contains(char::REPLACEMENT_CHARACTER);
        self.keys.replaced &= !replaced;
        replaced
    }
}

/// What the terminal sent.
#[derive(Default)]
struct Keys {
    /// Not handed on yet.
    waiting: Vec<u8>,
    /// The last bytes handed on.
    last: [u8; 6],
    /// Within a bracketed paste.
    pasting: bool,
    /// Something was not UTF-8, in a line that nobody asked about yet.
    replaced: bool,
}

impl Keys {
    /// The next bytes to hand on, and whether a line may end with them.
    fn next(&mut self) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        loop {
            let (valid, broken) = match std::str::from_utf8(&self.waiting) {
                Ok(text) => (text.len(), None),
                Err(e) => (e.valid_up_to(), e.error_len()),
            };
            let end = self.waiting[..valid].iter().position(|&key| {
                self.last.rotate_left(1);
                self.last[5] = key;
                self.pasting = self.last == PASTE[0] || (self.pasting && self.last != PASTE[1]);
                // Enter, Ctrl-C, Ctrl-D.
                !self.pasting && matches!(key, b'\r' | b'\n' | 3 | 4)
            });
            out.extend(self.waiting.drain(..end.map_or(valid, |at| at + 1)));
            match (end, broken) {
                (None, Some(bytes)) => {
                    self.waiting.drain(..bytes);
                    out.extend_from_slice(char::REPLACEMENT_CHARACTER.encode_utf8(&mut [0; 4]).as_bytes());
                    self.replaced = true;
                }
                // What is left is the start of a character, or another line's.
                (end, _) => return (out, end.is_some()),
            }
        }
    }

    /// Hands keys on from `terminal` to `ours` until `done` is readable.
    fn hand(&mut self, terminal: RawFd, ours: RawFd, done: RawFd, raw: &libc::termios) {
        // Signals are the other threads' business: the editor waits for some.
        // SAFETY: a set made full, then read.
        unsafe {
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
        }
        // What was typed before the terminal was raw went by the rules for lines: Ctrl-D is kept as NUL there.
        let mut by_lines = readable(terminal, None, 0);
        loop {
            let (keys, ends) = self.next();
            if !write_all(ours, &keys) {
                return;
            }
            if keys.contains(&raw.c_cc[libc::VSUSP]) {
                // The program is stopped meanwhile, and the shell sets the terminal as it likes it.
                std::thread::sleep(Duration::from_millis(200));
                let _ = set(terminal, raw);
            }
            if ends && readable(done, None, PAUSE) {
                return;
            }
            if ends && !self.waiting.is_empty() {
                continue;
            }
            if readable(done, Some(terminal), -1) {
                return;
            }
            let mut bytes = [0; 4096];
            // SAFETY: as many bytes as there is room for.
            let n = unsafe { libc::read(terminal, bytes.as_mut_ptr().cast(), bytes.len()) };
            match usize::try_from(n) {
                // Hung up: as Ctrl-D, which ends the editor's line.
                Ok(0) => {
                    write_all(ours, &[4]);
                    readable(done, None, -1);
                    return;
                }
                Ok(n) => {
                    let key = |&key: &u8| if by_lines && key == 0 { 4 } else { key };
                    self.waiting.extend(bytes[..n].iter().map(key));
                    by_lines = false;
                }
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    write_all(ours, &[4]);
                    readable(done, None, -1);
                    return;
                }
            }
        }
    }
}

/// Waits until `done` or `other` is readable, at most `ms` milliseconds (-1: ever); whether `done` is.
fn readable(done: RawFd, other: Option<RawFd>, ms: i32) -> bool {
    let wait = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative one is passed over.
    let mut both = [wait(done), wait(other.unwrap_or(-1))];
    // SAFETY: two descriptions, as said.
    unsafe { libc::poll(both.as_mut_ptr(), 2, ms) };
    both[0].revents != 0
}

/// Whether all of it could be written.
fn write_all(to: RawFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: the bytes are there.
        let n = unsafe { libc::write(to, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(n) {
            Ok(n) => bytes = &bytes[n..],
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// Makes stdin the terminal again, as it was.
struct Restored {
    terminal: RawFd,
    settings: libc::termios,
}

impl Drop for Restored {
    fn drop(&mut self) {
        // Best effort: a terminal that is gone needs nothing.
        let _ = replace_stdin(self.terminal);
        let _ = set(self.terminal, &self.settings);
    }
}

fn replace_stdin(by: RawFd) -> io::Result<()> {
    // SAFETY: numbers alone; who reads stdin goes on with what it is from here on.
    check(unsafe { libc::dup2(by, 0) }).map(|_| ())
}

fn settings(terminal: RawFd) -> io::Result<libc::termios> {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: a place to write to.
    check(unsafe { libc::tcgetattr(terminal, settings.as_mut_ptr()) })?;
    // SAFETY: written, for the call succeeded.
    Ok(unsafe { settings.assume_init() })
}

fn set(terminal: RawFd, settings: &libc::termios) -> io::Result<()> {
    // What was typed ahead stays.
    // SAFETY: settings to read.
    check(unsafe { libc::tcsetattr(terminal, libc::TCSADRAIN, settings) }).map(|_| ())
}

/// Every key as it comes; output as before.
fn raw(mut settings: libc::termios) -> libc::termios {
    settings.c_iflag &= !(libc::BRKINT | libc::ICRNL | libc::INPCK | libc::ISTRIP | libc::IXON);
    settings.c_cflag |= libc::CS8;
    settings.c_lflag &= !(libc::ECHO | libc::ICANON | libc::IEXTEN | libc::ISIG);
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    settings
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is handed on, a line each, however the bytes come in.
    fn lines(bytes: &[u8], at_once: usize) -> (Vec<String>, Keys) {
        let (mut keys, mut lines, mut line) = (Keys::default(), Vec::new(), Vec::new());
        for part in bytes.chunks(at_once) {
            keys.waiting.extend_from_slice(part);
            loop {
                let (out, ends) = keys.next();
                line.extend_from_slice(&out);
                if !ends {
                    break;
                }
                lines.push(String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned());
            }
        }
        lines.push(String::from_utf8_lossy(&line).into_owned());
        (lines, keys)
    }

    #[test]
    fn keys_are_handed_on_line_by_line() {
        let bytes = b"a\xc3\xa9\rb\xff\n\x1b[200~c\nd\x1b[201~e\r\x03f\xe9\rg";
        for at_once in 1..=bytes.len() {
            let (found, keys) = lines(bytes, at_once);
            let expected =
                ["a\u{e9}\r", "b\u{fffd}\n", "\x1b[200~c\nd\x1b[201~e\r", "\x03", "f\u{fffd}\r", "g"];
            assert_eq!(found, expected, "{at_once}");
            assert!(keys.replaced && keys.waiting.is_empty());
        }
        let (found, keys) = lines("ü".as_bytes().split_at(1).0, 1);
        assert_eq!((found, keys.waiting.len(), keys.replaced), (vec![String::new()], 1, false));
    }
}
