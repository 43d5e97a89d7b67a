//! Outputs that have their name only once they are whole: every file and folder that is written here.
//!
//! In: a path, then bytes. Out: a file, or a folder of files. Invariants: until it is finished nothing under the final
//! name changes; unless it is finished nothing is left behind, on errors and on signals ([`half_written`]). Temporary
//! names are made by `tempfile`: hidden, beside their place, created anew, so that nothing planted is written through.
//! No output is an input ([`inputs`]). What the name leads to may be a link, which is replaced and not followed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use super::half_written::{self, Kind, Listed};
use super::inputs;

/// End of every temporary name.
pub const PARTIAL: &str = ".partial";
/// Start of the name of a folder that is being written, within its place.
const FOLDER: &str = ".lapidary-";
/// Bytes of the final name that the temporary one repeats.
const REPEATED: usize = 64;

/// A file being written under a name of its own, removed unless it is finished.
pub struct Output {
    file: NamedTempFile,
    path: PathBuf,
    listed: Listed,
}

impl Output {
    /// Creates the file beside `path`, which must be a regular file, or nothing yet.
    ///
    /// # Errors
    /// The system's answer, or what is wrong with the path.
    pub fn create(path: &Path) -> io::Result<Output> {
        let other = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_string());
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(other("it is a folder")),
            Ok(found) if !found.is_file() => return Err(other("it is not a regular file")),
            Ok(found) => inputs::note_output(path, &found)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let name = path.file_name().ok_or_else(|| other("it has no file name"))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        half_written::settle(|| {
            let open = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
            let prefix = hidden(&name.to_string_lossy());
            let file = Builder::new().prefix(&prefix).suffix(PARTIAL).make_in(dir, open)?;
            let listed = half_written::list(file.path(), Kind::File)?;
            Ok(Output { file, path: path.into(), listed })
        })
    }

    /// The file, to write at places, to read or to put on the disk.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Where it lies until it is finished.
    pub fn temporary(&self) -> &Path {
        self.file.path()
    }

    /// Gives the file its name, in the place of what has it.
    ///
    /// # Errors
    /// The system's answer; the path has become an input.
    pub fn finish(self) -> io::Result<File> {
        let Output { file, path, listed } = self;
        if let Ok(found) = fs::metadata(&path) {
            inputs::check_output(&found)?;
        }
        half_written::settle(|| {
            let file = file.persist(&path).map_err(|e| e.error)?;
            drop(listed);
            Ok(file)
        })
    }

    /// Gives several files their names, none or all.
    ///
    /// # Errors
    /// The system's answer, with the path that it is about.
    pub fn finish_all(files: Vec<Output>) -> Result<(), (PathBuf, io::Error)> {
        half_written::settle(|| {
            for Output { file, path, listed } in files {
                if let Err(e) = file.persist(&path) {
                    return Err((path, e.error));
                }
                drop(listed);
            }
            Ok(())
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

/// The start of a temporary name: hidden, and short enough whatever the final one.
fn hidden(name: &str) -> OsString {
    let cut = (0..=REPEATED.min(name.len())).rev().find(|&n| name.is_char_boundary(n)).unwrap_or(0);
    format!(".{}.", &name[..cut]).into()
}

/// A folder's files being written within it, in a hidden folder, removed unless they are finished.
///
/// Several processes may write one folder at once: each finishes alone, holding the folder's lock, and the last one's
/// files are there then, whole. The hidden folder lies within and not beside, so that the folder may be a mount, or a
/// link.
pub struct Folder {
    dir: PathBuf,
    replace: bool,
    contents: Contents,
    /// Names of the files, in the order in which they get them.
    names: Vec<String>,
    /// In this order removed: files, then the hidden folder, then the folder if it was made.
    files: Vec<Listed>,
    partial: PathBuf,
    _lock: File,
    _partial: Listed,
    made: Option<Listed>,
}

/// What such a folder consists of, by name.
#[derive(Clone, Copy)]
pub struct Contents {
    /// The files that show that there is such a folder already.
    pub shows: fn(&str) -> bool,
    /// All that belong to it: they give way to the new ones.
    pub belongs: fn(&str) -> bool,
}

/// Why a folder is not written.
#[derive(Debug)]
pub enum Refusal {
    /// The system's answer, about this path.
    System(PathBuf, io::Error),
    /// It holds this file already.
    Occupied(String),
}

impl Folder {
    /// Makes the folder if need be. Without `replace` it must hold none of what shows that there is one already; with
    /// it, what belongs to an earlier one is removed when this is finished, and other files stay.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing was changed.
    pub fn create(dir: &Path, contents: Contents, replace: bool) -> Result<Folder, Refusal> {
        let failed = |e: io::Error| Refusal::System(dir.into(), e);
        half_written::settle(|| {
            let made = make(dir).map_err(failed)?;
            // What follows a failure must take it away again.
            let made = match made {
                true => Some(half_written::list(dir, Kind::Folder).map_err(failed)?),
                false => None,
            };
            let begun = Folder::begin(dir, contents, replace);
            match begun {
                Ok((partial, _lock, _partial)) => Ok(Folder {
                    dir: dir.into(),
                    replace,
                    contents,
                    names: Vec::new(),
                    files: Vec::new(),
                    partial,
                    _lock,
                    _partial,
                    made,
                }),
                Err(refusal) => {
                    if made.is_some() {
                        // The refusal is what counts.
                        let _ = fs::remove_dir(dir);
                    }
                    Err(refusal)
                }
            }
        })
    }

    fn begin(dir: &Path, contents: Contents, replace: bool) -> Result<(PathBuf, File, Listed), Refusal> {
        let failed = |e: io::Error| Refusal::System(dir.into(), e);
        let found = fs::metadata(dir).map_err(failed)?;
        inputs::note_output(dir, &found).map_err(failed)?;
        // Whoever finishes looks for folders that nobody writes: not between the two steps.
        let _finishing = lock(dir).map_err(failed)?;
        let earlier = earlier(dir, contents, replace)?;
        for name in &earlier {
            let path = dir.join(name);
            if let Ok(found) = fs::metadata(&path) {
                inputs::check_output(&found).map_err(|e| Refusal::System(path, e))?;
            }
        }
        let make = |path: &Path| fs::create_dir(path);
        let partial = Builder::new().prefix(FOLDER).suffix(PARTIAL).make_in(dir, make).map_err(failed)?;
        // Only files are removed by their owner: a folder is by the one that this becomes.
        let partial = partial.into_temp_path().keep().map_err(|e| failed(e.error))?;
        let listed = half_written::list(&partial, Kind::Folder).map_err(failed)?;
        let lock = lock(&partial).map_err(failed)?;
        Ok((partial, lock, listed))
    }

    /// Makes a file, to write and to read.
    ///
    /// # Errors
    /// The system's answer.
    pub fn file(&mut self, name: &str) -> io::Result<File> {
        let path = self.partial.join(name);
        half_written::settle(|| {
            self.files.push(half_written::list(&path, Kind::File)?);
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            self.names.push(name.into());
            Ok(file)
        })
    }

    /// Where a file will be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Gives all files their names, in the order of their making, in the place of those of an earlier folder.
    ///
    /// # Errors
    /// [`Refusal`]: without `replace`, another folder was finished meanwhile.
    pub fn finish(mut self) -> Result<(), Refusal> {
        half_written::settle(|| {
            let failed = |e: io::Error| Refusal::System(self.dir.clone(), e);
            let _finishing = lock(&self.dir).map_err(failed)?;
            let mut earlier = earlier(&self.dir, self.contents, self.replace)?;
            // Without what makes it a folder of such files first, so that half of one is never taken for whole.
            earlier.sort_by_key(|name| self.names.last() != Some(name));
            for name in &earlier {
                let path = self.dir.join(name);
                fs::remove_file(&path).map_err(|e| Refusal::System(path, e))?;
            }
            for name in &self.names {
                let path = self.dir.join(name);
                fs::rename(self.partial.join(name), &path).map_err(|e| Refusal::System(path, e))?;
            }
            self.made = None;
            if self.replace {
                remove_abandoned(&self.dir, &self.partial);
            }
            Ok(())
        })
    }
}

impl Drop for Folder {
    /// Takes away what has no final name; that it may fail changes nothing.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.partial);
        if self.made.is_some() {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// Makes a folder; whether it was not there.
fn make(dir: &Path) -> io::Result<bool> {
    if dir.is_dir() {
        return Ok(false);
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits for a folder's lock, which whoever writes it holds; where the file system has none, there is no waiting.
fn lock(dir: &Path) -> io::Result<File> {
    let folder = File::open(dir)?;
    match folder.lock() {
        Err(e)
            if !matches!(e.kind(), io::ErrorKind::Unsupported) && e.raw_os_error() != Some(libc::ENOLCK) =>
        {
            Err(e)
        }
        _ => Ok(folder),
    }
}

/// Names of the files (or links) of an earlier folder, in order.
fn earlier(dir: &Path, contents: Contents, replace: bool) -> Result<Vec<String>, Refusal> {
    let failed = |e: io::Error| Refusal::System(dir.into(), e);
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if (contents.shows)(&name) && !replace {
            return Err(Refusal::Occupied(name));
        }
        if (contents.belongs)(&name) && replace && !entry.file_type().map_err(failed)?.is_dir() {
            all.push(name);
        }
    }
    all.sort();
    Ok(all)
}

/// Removes the hidden folders of writers that died: their locks can be had.
fn remove_abandoned(dir: &Path, own: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let is_partial = name.starts_with(FOLDER) && name.ends_with(PARTIAL);
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_partial && is_folder && path != own && File::open(&path).is_ok_and(|f| f.try_lock().is_ok()) {
            // Best effort: it is in nobody's way.
            let _ = fs::remove_dir_all(&path);
        }
    }
}
