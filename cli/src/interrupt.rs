//! Ctrl-C: asks the work under way to stop. Where there is no work it ends the program, as it would by itself.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Whether there is work that looks at [`flow`].
static WORKING: AtomicBool = AtomicBool::new(false);
/// Whether it was asked to stop.
static ASKED: AtomicBool = AtomicBool::new(false);

/// What a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
const EXIT_CODE: i32 = 130;

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
            std::process::exit(EXIT_CODE);
        }
    })
    .context("cannot take over Ctrl-C")
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
