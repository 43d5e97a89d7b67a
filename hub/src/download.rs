//! One file: fetched into the cache, gone on with where it was broken off, counted and hashed.
//!
//! Bytes go to `blobs/ETAG.incomplete`, where Python's `huggingface_hub` puts them too, and get their name once they
//! are right. A lock, the same as its, keeps two programs from writing one file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::Progress;
use crate::cache::Repository;
use crate::client::{Client, Remote, unreachable};
use crate::error::{Error, Result, disk};
use crate::name::Name;

/// Times that a file is gone on with, without a byte gained, before that is an error.
const ATTEMPTS: u32 = 5;
/// Before the first of them; each further one waits twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;

/// A file's path in the snapshot of a commit; fetched if it is not there.
pub(crate) fn file(
    client: &Client,
    repository: &Repository,
    name: &Name,
    commit: &str,
    file: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let link = repository.snapshot(commit).join(file);
    if link.exists() {
        return Ok(link);
    }
    let remote = client.remote(name, commit, file)?;
    let blob = repository.blob(&remote.etag);
    let whole = |blob: &Path| blob.metadata().is_ok_and(|found| found.len() == remote.bytes);
    if !whole(&blob) {
        let _lock = repository.lock(&remote.etag)?;
        // Another program may have fetched it meanwhile.
        if !whole(&blob) {
            let mut part = Part::open(repository.part(&remote.etag), &remote)?;
            let mut resumed = part.bytes > 0;
            loop {
                part.fill(client, name, file, progress)?;
                match part.check(name, file) {
                    Ok(()) => break,
                    // What was there may have been another program's, or broken.
                    Err(_) if std::mem::take(&mut resumed) => part.clear()?,
                    Err(error) => {
                        fs::remove_file(&part.path).map_err(disk("remove", &part.path))?;
                        return Err(error);
                    }
                }
            }
            part.output.sync_all().map_err(disk("write", &part.path))?;
            fs::rename(&part.path, &blob).map_err(disk("write", &blob))?;
        }
    }
    repository.link(&link, &blob)?;
    Ok(link)
}

/// A file that is not whole yet.
struct Part<'a> {
    path: PathBuf,
    remote: &'a Remote,
    output: File,
    /// Of the bytes that are there.
    hash: Sha256,
    bytes: u64,
}

impl Part<'_> {
    /// Takes up what is there of it.
    fn open(path: PathBuf, remote: &Remote) -> Result<Part<'_>> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(disk("write", folder))?;
        }
        let mut options = File::options();
        let mut output =
            options.read(true).append(true).create(true).open(&path).map_err(disk("write", &path))?;
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
        loop {
            match output.read(&mut buffer).map_err(disk("read", &path))? {
                0 => break,
                n => {
                    hash.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        let mut part = Part { path, remote, output, hash, bytes };
        if part.bytes > remote.bytes {
            part.clear()?;
        }
        Ok(part)
    }

    fn clear(&mut self) -> Result<()> {
        self.output.set_len(0).map_err(disk("write", &self.path))?;
        (self.hash, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    /// Fetches what it lacks.
    fn fill(
        &mut self,
        client: &Client,
        name: &Name,
        file: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let (mut failed, mut most) = (0, self.bytes);
        progress(Progress { file, done: self.bytes, total: self.remote.bytes });
        while self.bytes < self.remote.bytes {
            let error = match self.go_on(client, name, file, progress) {
                Ok(()) => continue,
                Err(error @ Error::Unreachable { .. }) => error,
                Err(error) => return Err(error),
            };
            // A server that begins anew each time gains nothing.
            failed = if self.bytes > most { 0 } else { failed + 1 };
            most = most.max(self.bytes);
            if failed == ATTEMPTS {
                return Err(self.kept(error));
            }
            thread::sleep(PAUSE * 2u32.pow(failed));
        }
        Ok(())
    }

    /// Fetches until it is whole or the connection breaks off.
    fn go_on(
        &mut self,
        client: &Client,
        name: &Name,
        file: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let mut stream = client.bytes(name, self.remote, self.bytes)?;
        if stream.from != self.bytes {
            self.clear()?;
        }
        let mut buffer = vec![0; BUFFER];
        while self.bytes < self.remote.bytes {
            let n = match stream.body.read(&mut buffer) {
                Ok(0) => {
                    return Err(unreachable(&self.remote.url, "the connection was closed before the end"));
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(unreachable(&self.remote.url, e)),
            };
            if n as u64 > self.remote.bytes - self.bytes {
                let _ = fs::remove_file(&self.path);
                let (url, expected) =
                    (self.remote.url.clone(), format!("{} bytes, as the hub says", self.remote.bytes));
                return Err(Error::Answer { url, expected, found: "more".into() });
            }
            self.output.write_all(&buffer[..n]).map_err(disk("write", &self.path))?;
            self.hash.update(&buffer[..n]);
            self.bytes += n as u64;
            progress(Progress { file, done: self.bytes, total: self.remote.bytes });
        }
        Ok(())
    }

    /// Holds it against what the hub says.
    fn check(&mut self, name: &Name, file: &str) -> Result<()> {
        let Some(expected) = &self.remote.sha256 else { return Ok(()) };
        let found: String = self.hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect();
        if found == *expected {
            return Ok(());
        }
        let (name, expected) = (name.repository(), expected.clone());
        Err(Error::Hash { name, file: file.into(), expected, found })
    }

    /// Says what there is for the next time.
    fn kept(&self, error: Error) -> Error {
        match error {
            Error::Unreachable { url, cause, .. } if self.bytes > 0 => {
                let kept =
                    format!("; {} of {} bytes are kept for the next time", self.bytes, self.remote.bytes);
                Error::Unreachable { url, cause, kept }
            }
            error => error,
        }
    }
}
