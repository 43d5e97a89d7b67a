//! The directory of cache files: where it is, who may write to it, how full it is.
//!
//! Invariants: only files with the names of cache files are ever removed from it; one that others may write to is not
//! used, and a file of another's neither, for whoever writes the weights decides what a model says.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use lapidary_runtime::file::whole::PARTIAL;

use crate::error::{Error, Result};

/// End of the name of a cache file, after 32 hexadecimal digits.
pub(super) const SUFFIX: &str = ".safetensors";
/// A file still partial that nobody wrote to for so long was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Permissions to write, of the group and of all others.
const OTHERS_WRITE: u32 = 0o022;

/// A directory of cache files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The directory; made if need be. Only files with the names of cache files are ever removed from it.
    pub dir: PathBuf,
    /// The most bytes of all its files; those not used for longest make room.
    pub limit: u64,
}

impl Cache {
    /// The limit unless one is given: 32 GiB.
    pub const LIMIT: u64 = 32 << 30;

    /// The user's: `$XDG_CACHE_HOME/lapidary`, or `$HOME/.cache/lapidary`; none if neither variable is an absolute
    /// path.
    pub fn of_user() -> Option<Cache> {
        Cache::of_variables(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))
    }

    /// [`Cache::of_user`] with these values of `XDG_CACHE_HOME` and `HOME`.
    pub fn of_variables(xdg: Option<OsString>, home: Option<OsString>) -> Option<Cache> {
        let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|p| p.is_absolute());
        let base = xdg.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
        Some(Cache { dir: base.join("lapidary"), limit: Cache::LIMIT })
    }

    /// Makes the directory if need be, for the user alone, to write `needed` bytes to.
    ///
    /// # Errors
    /// The system's answer; [`Error::File`] for a directory that others may write to.
    pub fn make(&self, needed: u64) -> Result<()> {
        let failed = |source| Error::Write { path: self.dir.clone(), needed, source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        self.check()
    }

    /// Refuses a directory that others may write to. One that is not there yet is nobody's.
    ///
    /// # Errors
    /// [`Error::File`], or the system's answer.
    pub fn check(&self) -> Result<()> {
        match fs::metadata(&self.dir) {
            Ok(found) => check_owner(&self.dir, &found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::read(&self.dir, e)),
        }
    }

    /// The path of a whole file.
    pub(super) fn path(&self, key: u128) -> PathBuf {
        self.dir.join(format!("{key:032x}{SUFFIX}"))
    }

    /// The whole files whose keys have these upper 64 bits.
    pub(super) fn like(&self, key: u128) -> Vec<PathBuf> {
        let start = format!("{:016x}", key >> 64);
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let named =
            entries.filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&start) && is_whole(n)));
        let mut all: Vec<PathBuf> = named.map(|e| e.path()).collect();
        all.sort();
        all
    }

    /// Removes what was not used for longest until all is within the limit, and what was abandoned; `own`, of `needed`
    /// bytes, is being written and stays, and so does what others write, which counts as if it were whole. A file that
    /// cannot be removed stays.
    ///
    /// # Errors
    /// What must stay is above the limit.
    pub(super) fn make_room(&self, own: &Path, needed: u64) -> Result<()> {
        let above = |others: u64| {
            let expected = format!("room for {needed} bytes");
            let beside =
                if others > 0 { format!(", {others} bytes being written beside") } else { String::new() };
            Error::file(&self.dir, expected, format!("a limit of {} bytes{beside}", self.limit))
        };
        if needed > self.limit {
            return Err(above(0));
        }
        let (mut files, mut others) = (Vec::new(), 0u64);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let (Some(name), Ok(data)) = (name.to_str(), entry.metadata()) else { continue };
            let modified = data.modified().unwrap_or(UNIX_EPOCH);
            if path == own {
                continue;
            } else if is_partial(name) && modified.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(&path);
            } else if is_partial(name) {
                others += data.len();
            } else if is_whole(name) {
                // Where the system keeps no time of access, a file counts as used when it was made.
                let used = data.accessed().map_or(modified, |accessed| accessed.max(modified));
                files.push((used, path, data.len()));
            }
        }
        let staying = others.saturating_add(needed);
        if staying > self.limit {
            return Err(above(others));
        }
        files.sort();
        let mut total = files.iter().map(|(_, _, length)| length).sum::<u64>() + staying;
        for (_, path, length) in files {
            if total <= self.limit {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= length;
            }
        }
        Ok(())
    }
}

/// Refuses what another owns or may write to.
#[allow(unsafe_code)]
pub(super) fn check_owner(path: &Path, found: &Metadata) -> Result<()> {
    // SAFETY: asks the system for a number.
    let user = unsafe { libc::geteuid() };
    let expected = "what this user alone may write to";
    if found.uid() != user {
        return Err(Error::file(path, expected, format!("it owned by user {}", found.uid())));
    }
    if found.mode() & OTHERS_WRITE != 0 {
        let found = format!("mode {:o} (`chmod go-w` takes that away)", found.mode() & 0o7777);
        return Err(Error::file(path, expected, found));
    }
    Ok(())
}

fn is_whole(name: &str) -> bool {
    name.strip_suffix(SUFFIX).is_some_and(is_key)
}

/// `.{key}.{...}.partial`
fn is_partial(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|n| n.strip_suffix(PARTIAL));
    inner.and_then(|n| n.split_once('.')).is_some_and(|(key, _)| is_key(key))
}

fn is_key(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
