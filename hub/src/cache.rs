//! The cache that programs of the hub share, as Python's `huggingface_hub` lays it out.
//!
//! ```text
//! models--OWNER--REPO/blobs/ETAG              contents; ETAG.incomplete while they come
//! models--OWNER--REPO/snapshots/COMMIT/FILE   a link to its contents
//! models--OWNER--REPO/refs/main               the commit that the branch was at
//! .locks/models--OWNER--REPO/ETAG.lock        held by who fetches it
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result, disk};
use crate::name::Name;
use crate::select::{self, ADAPTER, CONFIG, Gguf, INDEX, TAG, TOKENIZER, WEIGHTS};

/// Folders of a snapshot that are looked into, one within the other.
const DEPTH: usize = 3;

/// All that is fetched.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its folder.
    pub root: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// By what `-m` takes it; of a GGUF with its tag.
    pub name: Name,
    /// Where it is.
    pub path: PathBuf,
    /// Of its files.
    pub bytes: u64,
    /// What it is.
    pub kind: Kind,
}

/// What is in the cache under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder, with the `model_type` of its configuration.
    Folder(String),
    /// One GGUF, or all its parts.
    Gguf,
    /// A LoRA adapter.
    Adapter,
    /// What turns text into ids, without weights.
    Text,
    /// Files of which some did not come to their end.
    BrokenOff,
}

/// Where a model is in the cache.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// With all its files.
    pub(crate) whole: Option<PathBuf>,
    /// With those that it cannot be without.
    pub(crate) usable: Option<PathBuf>,
}

impl Cache {
    pub(crate) fn repository(&self, name: &Name) -> Repository {
        let folder = name.folder();
        Repository { locks: self.root.join(".locks").join(&folder), root: self.root.join(folder) }
    }

    /// All models that it holds, by name.
    ///
    /// # Errors
    /// [`Error::Disk`] for a folder that cannot be read; none for one that is not there.
    pub fn models(&self) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for name in entries(&self.root)?.iter().filter_map(|folder| Name::of_folder(folder)) {
            held.append(&mut self.held(&name)?);
        }
        Ok(held)
    }

    /// What it holds of a repository, or of a tag of it.
    ///
    /// # Errors
    /// As [`Cache::models`].
    pub fn held(&self, name: &Name) -> Result<Vec<Held>> {
        let repository = self.repository(name);
        let mut held: Vec<Held> = Vec::new();
        for snapshot in repository.snapshots()? {
            let files = files(&snapshot)?;
            let bytes = |of: &[String]| {
                of.iter().filter_map(|f| snapshot.join(f).metadata().ok()).map(|m| m.len()).sum()
            };
            let mut add = |tag: Option<String>, path: PathBuf, files: &[String], kind| {
                let name = name.tagged(tag);
                // The newest of a name is what it means.
                if held.iter().all(|h| h.name != name) {
                    held.push(Held { name, path, bytes: bytes(files), kind });
                }
            };
            let folder: Vec<String> = files.iter().filter(|f| !f.ends_with(".gguf")).cloned().collect();
            if has_weights(&snapshot) {
                let config = fs::read(snapshot.join(CONFIG)).unwrap_or_default();
                let config: Value = serde_json::from_slice(&config).unwrap_or_default();
                let kind = Kind::Folder(config["model_type"].as_str().unwrap_or("unknown").into());
                add(None, snapshot.clone(), &folder, kind);
            } else if is_adapter(&snapshot) {
                add(None, snapshot.clone(), &folder, Kind::Adapter);
            }
            for model in select::models(&files).iter().filter(|m| m.is_whole()) {
                add(Some(model.tag().into()), snapshot.join(&model.files[0]), &model.files, Kind::Gguf);
            }
        }
        if held.is_empty() {
            let parts = repository.parts()?;
            if !parts.is_empty() {
                let bytes = parts.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
                let name = name.tagged(None);
                held.push(Held { name, path: repository.root, bytes, kind: Kind::BrokenOff });
            } else if let Some(path) = repository.text(&name.tagged(None))? {
                let sizes = files(&path)?.into_iter().filter_map(|file| path.join(file).metadata().ok());
                let bytes = sizes.map(|m| m.len()).sum();
                held.push(Held { name: name.tagged(None), path, bytes, kind: Kind::Text });
            }
        }
        let asked = |h: &Held| {
            name.tag.as_ref().is_none_or(|t| h.name.tag.as_ref().is_some_and(|u| u.eq_ignore_ascii_case(t)))
        };
        held.retain(asked);
        held.sort_by_key(|h| h.name.to_string());
        Ok(held)
    }

    /// Removes a repository, or of a tag what no other model shares.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn remove(&self, name: &Name) -> Result<()> {
        let repository = self.repository(name);
        let Some(tag) = &name.tag else { return repository.remove() };
        let (mut removed, mut left) = (BTreeSet::new(), BTreeSet::new());
        for snapshot in repository.snapshots()? {
            let files = files(&snapshot)?;
            let models = select::models(&files);
            let of_tag: BTreeSet<&String> =
                models.iter().filter(|m| m.has(tag)).flat_map(|m| &m.files).collect();
            for file in &files {
                let path = snapshot.join(file);
                let blob = path.canonicalize().map_err(disk("read", &path))?;
                if of_tag.contains(file) {
                    fs::remove_file(&path).map_err(disk("remove", &path))?;
                    removed.insert(blob);
                } else {
                    left.insert(blob);
                }
            }
        }
        if left.is_empty() {
            return repository.remove();
        }
        // Nothing is removed but the repository's own contents.
        let blobs = repository.root.join("blobs");
        let blobs = blobs.canonicalize().map_err(disk("read", &blobs))?;
        for blob in removed.difference(&left).filter(|blob| blob.parent() == Some(&blobs)) {
            fs::remove_file(blob).map_err(disk("remove", blob))?;
        }
        Ok(())
    }
}

/// A repository's folder in the cache.
pub(crate) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    pub(crate) fn part(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    /// Waits until no other program fetches the contents; they may be fetched until the file drops.
    pub(crate) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        fs::create_dir_all(&self.locks).map_err(disk("write", &self.locks))?;
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(disk("write", &path))?;
        file.lock().map_err(disk("lock", &path))?;
        Ok(file)
    }

    /// Gives contents a name in a snapshot.
    pub(crate) fn link(&self, link: &Path, blob: &Path) -> Result<()> {
        let folder = link.parent().unwrap_or(link);
        fs::create_dir_all(folder).map_err(disk("write", folder))?;
        let depth = folder.strip_prefix(&self.root).map_or(0, |rest| rest.components().count());
        let up: PathBuf = std::iter::repeat_n("..", depth).collect();
        let target = up.join(blob.strip_prefix(&self.root).unwrap_or(blob));
        match symlink(&target, link) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && link.exists() => Ok(()),
            // A link to what was removed.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(link).and_then(|()| symlink(&target, link)).map_err(disk("write", link))
            }
            result => result.map_err(disk("write", link)),
        }
    }

    /// Says which commit the main branch is at.
    pub(crate) fn set_main(&self, commit: &str) -> Result<()> {
        let path = self.root.join("refs/main");
        let folder = self.root.join("refs");
        fs::create_dir_all(&folder).map_err(disk("write", &folder))?;
        fs::write(&path, commit).map_err(disk("write", &path))
    }

    /// Where a model is, if it is here.
    pub(crate) fn held(&self, name: &Name) -> Result<Found> {
        let mut found = Found::default();
        for snapshot in self.snapshots()? {
            if name.tag.is_none() && is_adapter(&snapshot) {
                found.whole = Some(snapshot);
            } else if name.tag.is_none() && has_weights(&snapshot) {
                let whole = snapshot.join(TOKENIZER).exists();
                found.usable.get_or_insert_with(|| snapshot.clone());
                found.whole = whole.then_some(snapshot);
            } else {
                let models = select::models(&files(&snapshot)?);
                let tag = name.tag.as_deref().unwrap_or(TAG);
                let of_tag: Vec<&Gguf> = models.iter().filter(|m| m.has(tag)).collect();
                found.whole = match of_tag[..] {
                    [model] if model.is_whole() => Some(snapshot.join(&model.files[0])),
                    _ => None,
                };
            }
            if found.whole.is_some() {
                break;
            }
        }
        Ok(found)
    }

    /// A folder that has what turns text into ids, with weights or without; none of a tag, which is a GGUF's.
    pub(crate) fn text(&self, name: &Name) -> Result<Option<PathBuf>> {
        let has = |snapshot: &PathBuf| name.tag.is_none() && snapshot.join(TOKENIZER).exists();
        Ok(self.snapshots()?.into_iter().find(has))
    }

    /// Its snapshots: that of the main branch, then the newest first.
    fn snapshots(&self) -> Result<Vec<PathBuf>> {
        let root = self.root.join("snapshots");
        let main = fs::read_to_string(self.root.join("refs/main")).unwrap_or_default();
        let mut snapshots: Vec<PathBuf> = entries(&root)?.iter().map(|name| root.join(name)).collect();
        let changed = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
        snapshots.retain(|path| path.is_dir());
        snapshots.sort_by_key(|path| (path.ends_with(main.trim()), changed(path)));
        snapshots.reverse();
        Ok(snapshots)
    }

    /// Contents that did not come to their end.
    fn parts(&self) -> Result<Vec<PathBuf>> {
        let blobs = self.root.join("blobs");
        let names = entries(&blobs)?;
        Ok(names.iter().filter(|n| n.ends_with(".incomplete")).map(|n| blobs.join(n)).collect())
    }

    fn remove(&self) -> Result<()> {
        for folder in [&self.root, &self.locks] {
            match fs::remove_dir_all(folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(disk("remove", folder))?,
            }
        }
        Ok(())
    }
}

/// Whether a folder has a configuration, and weights with all their shards.
fn has_weights(snapshot: &Path) -> bool {
    let has = |file: &str| snapshot.join(file).exists();
    let shards =
        || select::shards_of(&snapshot.join(INDEX)).is_ok_and(|shards| shards.iter().all(|s| has(s)));
    has(CONFIG) && if has(INDEX) { shards() } else { has(WEIGHTS) }
}

fn is_adapter(snapshot: &Path) -> bool {
    ADAPTER.iter().all(|file| snapshot.join(file).exists())
}

/// The files of a snapshot that are here, by their paths in it, sorted.
fn files(snapshot: &Path) -> Result<Vec<String>> {
    fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) -> Result<()> {
        for name in entries(folder)? {
            let path = folder.join(&name);
            if path.is_file() {
                found.push(format!("{prefix}{name}"));
            } else if path.is_dir() && depth > 0 {
                walk(&path, &format!("{prefix}{name}/"), depth - 1, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(snapshot, "", DEPTH, &mut found)?;
    Ok(found)
}

/// Names in a folder, sorted; none of one that is not there.
fn entries(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(disk("read", folder)(e)),
    };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}
