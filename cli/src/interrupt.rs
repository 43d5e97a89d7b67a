//! Ctrl-C: asks the work under way to stop. Where there is no work it ends the program, as it would by itself. A file that is
//! only half written when the program ends so is removed.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

/// Whether there is work that looks at [`Work::flow`].
static WORKING: AtomicBool = AtomicBool::new(false);
/// Whether it was asked to stop.
static ASKED: AtomicBool = AtomicBool::new(false);

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

/// What a second Ctrl-C does while the work is still under way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It ends the program.
    Exit,
    /// Nothing: the program outlives its work.
    Nothing,
}

/// Takes Ctrl-C over, for the rest of the program.
pub(crate) fn install(again: Again) -> Result<()> {
    ctrlc::set_handler(move || {
        let idle = !WORKING.load(Ordering::Relaxed);
        let asked = ASKED.swap(true, Ordering::Relaxed);
        if idle || (asked && again == Again::Exit) {
            let half = half_written();
            for path in half.iter() {
                // Best effort: the program ends here.
                let _ = std::fs::remove_file(path);
            }
            // The lock is held to the end: nobody gives the file its name meanwhile.
            std::process::exit(EXIT_CODE.into());
        }
    })
    .context("cannot take over Ctrl-C")
}

/// The files that are removed if Ctrl-C ends the program.
static HALF_WRITTEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn half_written() -> MutexGuard<'static, Vec<PathBuf>> {
    HALF_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a file with `create`; from then on Ctrl-C removes it.
pub(crate) fn begin_file<T>(path: &Path, create: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut half = half_written();
    let file = create()?;
    half.push(path.into());
    Ok(file)
}

/// Settles that file with `settle` (a new name, or its end); from then on Ctrl-C does not touch it.
pub(crate) fn end_file<T>(path: &Path, settle: impl FnOnce() -> T) -> T {
    let mut half = half_written();
    half.retain(|other| other != path);
    settle()
}

/// Work that Ctrl-C stops, until it is dropped.
pub(crate) struct Work;

impl Work {
    /// Begins; nothing was asked yet.
    pub(crate) fn begin() -> Work {
        ASKED.store(false, Ordering::Relaxed);
        WORKING.store(true, Ordering::Relaxed);
        Work
    }

    /// Break once Ctrl-C was pressed.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if ASKED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        WORKING.store(false, Ordering::Relaxed);
    }
}
