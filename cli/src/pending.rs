//! A file that gets its name once it is whole: a failure, or Ctrl-C, leaves what was there.

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
    /// A new file beside `path`; what is there stays until [`Pending::finish`].
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

    /// Gives it its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        interrupt::end_file(|| fs::rename(&self.temporary, &self.path))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: the error that led here is the one to report.
            let _ = interrupt::end_file(|| fs::remove_file(&self.temporary));
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
