//! A file that has its name only once it is whole.
//!
//! In: a path, then bytes. Out: the file. Invariants: until [`Pending::finish`] nothing under the final name changes; without
//! it nothing is left behind, on errors and on Ctrl-C.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::interrupt;

/// A file being written under a name of its own, removed unless it is finished.
pub(crate) struct Pending {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl Pending {
    /// Creates the file beside `path`, which must be a regular file, or nothing yet.
    pub(crate) fn create(path: &Path) -> io::Result<Pending> {
        let other = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_string());
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(other("it is a folder")),
            Ok(found) if !found.is_file() => return Err(other("it is not a regular file")),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let name = path.file_name().ok_or_else(|| other("it has no file name"))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = interrupt::begin_file(&temporary, || File::create(&temporary))?;
        Ok(Pending { file, temporary, path: path.into(), done: false })
    }

    /// Gives the file its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        interrupt::end_file(&self.temporary, || fs::rename(&self.temporary, &self.path))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: the error that led here is the one to report.
            let _ = interrupt::end_file(&self.temporary, || fs::remove_file(&self.temporary));
        }
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
