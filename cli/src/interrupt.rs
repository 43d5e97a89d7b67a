//! Signals that ask the program to end: Ctrl-C (SIGINT), SIGTERM, SIGHUP. What is half written is removed before it
//! ends, by a signal's usual exit code, 128 and its number.
//!
//! Ctrl-C asks the work under way to stop first; where there is no work, or on a second one, it ends the program. The
//! others end it at once. A program started so that it ignores SIGHUP (`nohup`) goes on ignoring it. The handler takes
//! no thread and no memory: it works where the system refuses either.

use std::mem;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary_runtime::file::half_written;

/// Whether there is work that looks at [`Work::flow`].
static WORKING: AtomicBool = AtomicBool::new(false);
/// Whether it was asked to stop.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Whether a second Ctrl-C ends the program though there is work.
static AGAIN: AtomicBool = AtomicBool::new(true);
/// The terminal and its settings, to be put back: a line editor changes them. A descriptor of its own, for stdin is
/// lent to the editor.
static TERMINAL: OnceLock<(libc::c_int, libc::termios)> = OnceLock::new();

/// What a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// What a command that was interrupted ends with.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes the signals over, for the rest of the program.
pub(crate) fn install() {
    // SAFETY: all zeros is a value of these; the system fills in the terminal's settings or says that there are none.
    unsafe {
        let mut terminal: libc::termios = mem::zeroed();
        if libc::tcgetattr(libc::STDIN_FILENO, &mut terminal) == 0 {
            let own = libc::fcntl(libc::STDIN_FILENO, libc::F_DUPFD_CLOEXEC, 3);
            let _ = TERMINAL.set((own, terminal));
        }
    }
    fail_at_the_limit_of_files();
    let handler = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does only what a handler may; all zeros is a disposition.
        unsafe {
            let mut before: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut before);
            if signal == libc::SIGHUP && before.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            let mut ours: libc::sigaction = mem::zeroed();
            ours.sa_sigaction = handler;
            // Reads and writes under way go on: what is to end, ends by itself.
            ours.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(signal, &ours, ptr::null_mut());
        }
    }
}

/// Leaves Ctrl-C and SIGTERM to whoever asks for them next, and ends at them until then.
pub(crate) fn leave_to_others() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the system's own disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Makes a file that grows past the limit (`ulimit -f`) fail to be written, as on a full disk, where a signal would end
/// the program at once and leave the half of it.
fn fail_at_the_limit_of_files() {
    // SAFETY: ignoring a signal takes no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// From now on Ctrl-C never ends the program while there is work: it outlives its work.
pub(crate) fn outlive_work() {
    AGAIN.store(false, Ordering::SeqCst);
}

extern "C" fn on_signal(signal: libc::c_int) {
    if signal == libc::SIGINT && WORKING.load(Ordering::SeqCst) {
        let asked = ASKED.swap(true, Ordering::SeqCst);
        if !(asked && AGAIN.load(Ordering::SeqCst)) {
            return;
        }
    }
    if let Some((own, terminal)) = TERMINAL.get() {
        // SAFETY: settings that the system gave.
        unsafe { libc::tcsetattr(*own, libc::TCSANOW, terminal) };
    }
    half_written::end_by(signal);
}

/// Work that Ctrl-C stops, until it is dropped.
pub(crate) struct Work;

impl Work {
    /// Begins; nothing was asked yet.
    pub(crate) fn begin() -> Work {
        ASKED.store(false, Ordering::SeqCst);
        WORKING.store(true, Ordering::SeqCst);
        Work
    }

    /// Break once Ctrl-C was pressed.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if ASKED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        WORKING.store(false, Ordering::SeqCst);
    }
}
