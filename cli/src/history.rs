//! The lines typed in `lapidary chat`, kept for the next time.
//!
//! In `$XDG_STATE_HOME/lapidary/chat_history`, else `~/.local/state/lapidary/chat_history`: mode 0600, the newest
//! [`LINES`]. Written line by line, so that nothing is lost when the terminal goes. Where there is no home, or the file
//! cannot be had as a plain file of the user's own, lines are kept in memory only.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The most lines that are kept.
pub(crate) const LINES: usize = 1000;

/// Where the lines are kept; nothing where there is no home.
pub(crate) fn path() -> Option<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("lapidary/chat_history"))
}

/// Makes sure of the file: there, plain, the user's own, readable by nobody else.
pub(crate) fn prepare(path: &Path) -> io::Result<()> {
    let other = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_string());
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(other("it is not a regular file"));
    }
    // SAFETY: it takes nothing and cannot fail.
    if found.uid() != unsafe { libc::geteuid() } {
        return Err(other("it is another user's"));
    }
    file.set_permissions(Permissions::from_mode(0o600))
}
