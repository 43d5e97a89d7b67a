//! What is half written, for whoever ends the process in a hurry: a signal handler removes it.
//!
//! In: paths of files and folders that have no final name yet. Out: [`remove_all`], which calls nothing but what a
//! signal handler may. Invariants: a path is listed before anything lies there, and until it has its final name or is
//! removed; steps that no signal may cut in two (a name taken, a folder exchanged) lie within [`settle`]. Nodes of the
//! list live for ever, so that a handler never meets freed memory: a hundred bytes a file written.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder, removed if it is empty.
    Folder,
}

struct Node {
    path: CString,
    kind: Kind,
    live: AtomicBool,
    next: Option<&'static Node>,
}

/// The last one listed.
static HEAD: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());
/// Held by who lists a path.
static LISTING: Mutex<()> = Mutex::new(());
/// Threads within [`settle`].
static SETTLING: AtomicUsize = AtomicUsize::new(0);
/// The signal that ends the process, 0 for none.
static ENDING: AtomicI32 = AtomicI32::new(0);

/// A path that is listed until this drops.
pub struct Listed(&'static Node);

impl Drop for Listed {
    fn drop(&mut self) {
        self.0.live.store(false, Ordering::SeqCst);
    }
}

/// Lists a path.
///
/// # Errors
/// A path with a NUL in it, which no file has.
pub fn list(path: &Path, kind: Kind) -> io::Result<Listed> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let _listing = LISTING.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Box::leak(Box::new(Node { path, kind, live: AtomicBool::new(true), next: nodes().next() }));
    HEAD.store(node, Ordering::SeqCst);
    Ok(Listed(node))
}

/// All nodes, the last listed first.
fn nodes() -> impl Iterator<Item = &'static Node> {
    // SAFETY: nodes live for ever and do not change but for their atomics.
    let first = unsafe { HEAD.load(Ordering::SeqCst).as_ref() };
    std::iter::successors(first, |node| node.next)
}

/// Removes all that is listed, the last first: what lies in a folder before the folder. Safe in a signal handler.
pub fn remove_all() {
    for node in nodes().filter(|node| node.live.load(Ordering::SeqCst)) {
        // SAFETY: the path ends in NUL. That it may be gone already changes nothing.
        unsafe {
            match node.kind {
                Kind::File => libc::unlink(node.path.as_ptr()),
                Kind::Folder => libc::rmdir(node.path.as_ptr()),
            };
        }
    }
}

/// Does what no signal may cut in two: one that came meanwhile ends the process afterwards. Not to be nested.
pub fn settle<T>(step: impl FnOnce() -> T) -> T {
    SETTLING.fetch_add(1, Ordering::SeqCst);
    if ENDING.load(Ordering::SeqCst) != 0 {
        leave();
    }
    let result = step();
    SETTLING.fetch_sub(1, Ordering::SeqCst);
    if ENDING.load(Ordering::SeqCst) != 0 {
        leave();
    }
    result
}

/// Ends the process by a signal's exit code, 128 and its number, and removes what is half written: at once, or as soon
/// as nothing is being settled; then this returns. Safe in a signal handler.
pub fn end_by(signal: i32) {
    ENDING.store(signal, Ordering::SeqCst);
    // Either this sees who settles, or who begins to settle sees the signal.
    if SETTLING.load(Ordering::SeqCst) == 0 {
        leave();
    }
}

fn leave() -> ! {
    remove_all();
    // SAFETY: ends the process; nothing of it is run any more.
    unsafe { libc::_exit(128 + ENDING.load(Ordering::SeqCst)) }
}
