//! Files, read and written: small ones whole, JSON objects field by field, headers of safetensors files, maps, outputs.
//!
//! Nothing that is read is trusted. Only regular files are opened: a pipe, a device, or one of the system's own files
//! that have no end (`/proc`, `/sys`) is refused before it is opened. Small files have a limit, so that a wrong path
//! cannot fill the memory.

use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

pub mod cause;
pub mod error;
pub mod fields;
pub mod half_written;
pub mod inputs;
pub mod map;
pub mod residence;
pub mod safetensors;
pub mod whole;

pub use error::{Error, Result};
pub use map::Map;
pub use residence::Residence;

/// Bytes a JSON or template file, or a text, may have: four times the largest published tokenizer.
pub const LIMIT: u64 = 128 << 20;

/// Opens a regular file to read; it is an input from then on ([`inputs`]).
///
/// # Errors
/// [`Error::Read`], [`Error::File`] for what is no regular file.
pub fn open(path: &Path) -> Result<(File, Metadata)> {
    let (file, found) = open_unnoted(path)?;
    inputs::note_input(path, &found).map_err(|e| Error::read(path, e))?;
    Ok((file, found))
}

/// The same for a file that the program keeps itself, and replaces.
///
/// # Errors
/// As [`open`].
pub fn open_unnoted(path: &Path) -> Result<(File, Metadata)> {
    let failed = |e| Error::read(path, e);
    // Opening alone can hang (a pipe), or change something (a tape).
    check_kind(path, &fs::metadata(path).map_err(failed)?)?;
    check_system(path)?;
    // What lies there may have been exchanged since: then it does not hang, and is looked at again.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    check_kind(path, &found)?;
    Ok((file, found))
}

/// Refuses what is no regular file.
fn check_kind(path: &Path, found: &Metadata) -> Result<()> {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(Error::file(path, "a file", what))
}

/// Refuses files that the system makes up as they are read: they have no length, and some no end.
fn check_system(path: &Path) -> Result<()> {
    const MADE_UP: [u32; 5] = [
        libc::PROC_SUPER_MAGIC as u32,
        libc::SYSFS_MAGIC as u32,
        libc::DEBUGFS_MAGIC as u32,
        libc::TRACEFS_MAGIC as u32,
        libc::CGROUP2_SUPER_MAGIC as u32,
    ];
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| Error::read(path, e.into()))?;
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in NUL; the system fills in what it is given.
    if unsafe { libc::statfs(name.as_ptr(), system.as_mut_ptr()) } != 0 {
        return Err(Error::read(path, io::Error::last_os_error()));
    }
    // SAFETY: filled in.
    match MADE_UP.contains(&(unsafe { system.assume_init() }.f_type as u32)) {
        true => Err(Error::file(path, "a file", "one that the system makes up")),
        false => Ok(()),
    }
}

/// The bytes of a file of at most [`LIMIT`] bytes.
///
/// # Errors
/// As [`open`]; [`Error::File`] for a larger one.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let (file, found) = open(path)?;
    whole(path, file, &found)
}

/// The same for a file that the program keeps itself, and replaces.
///
/// # Errors
/// As [`read`].
pub fn read_unnoted(path: &Path) -> Result<Vec<u8>> {
    let (file, found) = open_unnoted(path)?;
    whole(path, file, &found)
}

fn whole(path: &Path, file: File, found: &Metadata) -> Result<Vec<u8>> {
    if found.len() > LIMIT {
        return Err(Error::file(path, format!("at most {LIMIT} bytes"), format!("{}", found.len())));
    }
    // It may grow meanwhile.
    limited(path, file)
}

/// All of a stream, stdin, of at most [`LIMIT`] bytes; errors call it `path`.
///
/// # Errors
/// [`Error::Read`], [`Error::File`] for more.
pub fn limited(path: &Path, stream: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| Error::read(path, e))?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::file(path, format!("at most {LIMIT} bytes"), "more"));
    }
    as_text(path, bytes)
}

/// Refuses what can be no text, and takes the byte order mark off JSON. (A template keeps it, as in Python.)
fn as_text(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let is_json = path.extension().is_some_and(|e| e == "json");
    match cause::foreign(&bytes) {
        Some(found) => Err(Error::file(path, if is_json { "JSON" } else { "text" }, found)),
        None if is_json => Ok(cause::without_bom(&bytes).to_vec()),
        None => Ok(bytes),
    }
}

/// Whether there is a file (or a folder).
///
/// # Errors
/// [`Error::File`] for a link that leads to nothing, [`Error::Read`] if the system does not say.
pub fn exists(path: &Path) -> Result<bool> {
    if fs::exists(path).map_err(|source| Error::read(path, source))? {
        return Ok(true);
    }
    match fs::read_link(path) {
        Ok(target) => {
            let target = error::quote(&target.to_string_lossy());
            let found =
                format!("a link to {target}, where nothing is (an interrupted download, or a moved folder)");
            Err(Error::file(path, "a file", found))
        }
        Err(_) => Ok(false),
    }
}

/// Bytes as text; errors call them `path`.
///
/// # Errors
/// [`Error::File`] for bytes that are no UTF-8.
pub fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::file(path, "UTF-8 text", "other bytes"))
}

/// The bytes of a file, or nothing where there is no such file.
///
/// # Errors
/// As [`read`].
pub fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    if exists(path)? { read(path).map(Some) } else { Ok(None) }
}
