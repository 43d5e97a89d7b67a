//! What the process reads and what it writes, so that no output is one of the inputs.
//!
//! In: every file that [`open`](super::open) opens, folders of models, and every output. Out: a refusal, whichever
//! comes first. Files are compared by device and inode: through links, and however a path is spelt. A command's process
//! keeps its books ([`watch`]); a library does not, for it outlives its files and their inodes are used again.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::quote;

/// A file or folder: device, inode.
type Identity = (u64, u64);

#[derive(Default)]
struct Books {
    watching: bool,
    inputs: Vec<(Identity, PathBuf)>,
    outputs: Vec<(Identity, PathBuf)>,
}

static BOOKS: Mutex<Books> = Mutex::new(Books { watching: false, inputs: Vec::new(), outputs: Vec::new() });

fn books() -> MutexGuard<'static, Books> {
    BOOKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on no output may be an input.
pub fn watch() {
    books().watching = true;
}

fn identity(found: &Metadata) -> Identity {
    (found.dev(), found.ino())
}

/// Notes a file or folder that is read.
///
/// # Errors
/// It is being replaced.
pub fn note_input(path: &Path, found: &Metadata) -> io::Result<()> {
    let mut books = books();
    let id = identity(found);
    if !books.watching || books.inputs.iter().any(|(other, _)| *other == id) {
        return Ok(());
    }
    if let Some((_, output)) = books.outputs.iter().find(|(other, _)| *other == id) {
        return Err(same(&format!(
            "it is both an input and the output {}",
            quote(&output.to_string_lossy())
        )));
    }
    books.inputs.push((id, path.into()));
    Ok(())
}

/// Notes a file or folder that is to be replaced.
///
/// # Errors
/// It was read.
pub fn note_output(path: &Path, found: &Metadata) -> io::Result<()> {
    check_output(found)?;
    let mut books = books();
    if books.watching {
        books.outputs.push((identity(found), path.into()));
    }
    Ok(())
}

/// Refuses to replace what was read.
///
/// # Errors
/// It was read.
pub fn check_output(found: &Metadata) -> io::Result<()> {
    let id = identity(found);
    match books().inputs.iter().find(|(other, _)| *other == id) {
        Some((_, input)) => {
            Err(same(&format!("it is both an output and the input {}", quote(&input.to_string_lossy()))))
        }
        None => Ok(()),
    }
}

fn same(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.to_string())
}
