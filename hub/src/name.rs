//! Names of models on the hub: `OWNER/REPO`, `hf.co/OWNER/REPO`, with `:TAG` for one file of a repository of GGUFs.

use std::fmt;
use std::path::Path;

use lapidary_runtime::file::error::quote;

use crate::error::{Error, Result};

/// What may stand before a name: only a name of the hub begins so.
const HOSTS: [&str; 6] = [
    "https://huggingface.co/",
    "https://hf.co/",
    "http://huggingface.co/",
    "http://hf.co/",
    "huggingface.co/",
    "hf.co/",
];
/// Bytes of a part of a name; the hub's own limit.
const LONGEST: usize = 96;
/// Ends of names of files, which are paths unless a host stands before them.
const FILES: [&str; 5] = [".gguf", ".lap", ".safetensors", ".json", ".bin"];

/// A model's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    owner: String,
    repo: String,
    /// Which of a repository's GGUFs: `Q4_K_M`.
    pub tag: Option<String>,
}

impl Name {
    /// The name that was given in the place of a path: none where the path leads somewhere, or looks like one that
    /// should. A path comes first, so that a folder is never taken for something of the network's.
    pub fn of_path(path: &Path) -> Option<Result<Name>> {
        if path.symlink_metadata().is_ok() {
            return None;
        }
        let text = path.to_str()?;
        if let Some(rest) = HOSTS.iter().find_map(|host| text.strip_prefix(host)) {
            return Some(parts(rest).ok_or_else(|| no_name(text)));
        }
        let name = parts(text)?;
        let is_file = FILES.iter().any(|end| name.repo.to_lowercase().ends_with(end));
        // In a folder that is there, a path was meant.
        (!is_file && !Path::new(&name.owner).is_dir()).then_some(Ok(name))
    }

    /// A text that can only be a name.
    ///
    /// # Errors
    /// [`Error::Name`] for what is none.
    pub fn parse(text: &str) -> Result<Name> {
        let rest = HOSTS.iter().find_map(|host| text.strip_prefix(host)).unwrap_or(text);
        parts(rest).ok_or_else(|| no_name(text))
    }

    /// The repository: `OWNER/REPO`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.repo)
    }

    /// The same repository with another tag.
    pub(crate) fn tagged(&self, tag: Option<String>) -> Name {
        Name { tag, ..self.clone() }
    }

    /// Its folder in a cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.repo)
    }

    /// The name of a folder of a cache.
    pub(crate) fn of_folder(folder: &str) -> Option<Name> {
        let (owner, repo) = folder.strip_prefix("models--")?.split_once("--")?;
        parts(&format!("{owner}/{repo}"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.repo)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// `OWNER/REPO` or `OWNER/REPO:TAG`.
fn parts(text: &str) -> Option<Name> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (path, tag) = text.split_once(':').map_or((text, None), |(path, tag)| (path, Some(tag)));
    let (owner, repo) = path.split_once('/')?;
    let word = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        (1..=LONGEST).contains(&part.len()) && part.chars().all(plain)
    };
    // As the hub has them: no `..`, no `--`, which a cache puts between owner and repository.
    let name = |part: &str| {
        let edge = |c: char| matches!(c, '.' | '-');
        word(part)
            && !part.contains("..")
            && !part.contains("--")
            && !part.starts_with(edge)
            && !part.ends_with(edge)
    };
    // A tag may be a file's whole path.
    let fits = name(owner) && name(repo) && tag.is_none_or(|t| t.split('/').all(|p| word(p) && p != ".."));
    fits.then(|| Name { owner: owner.into(), repo: repo.into(), tag: tag.map(Into::into) })
}

fn no_name(text: &str) -> Error {
    Error::Name { text: quote(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        Name::of_path(Path::new(text)).and_then(|n| n.ok()).map(|n| n.to_string())
    }

    #[test]
    fn names_and_paths() {
        for (text, name) in [
            ("google/gemma-2-2b-it", "google/gemma-2-2b-it"),
            ("hf.co/bartowski/gemma-2-2b-it-GGUF:Q4_K_M", "bartowski/gemma-2-2b-it-GGUF:Q4_K_M"),
            ("https://huggingface.co/google/gemma-2b/", "google/gemma-2b"),
            ("hf.co/some/model.gguf", "some/model.gguf"),
            ("a/b:UD-Q4_K_XL", "a/b:UD-Q4_K_XL"),
        ] {
            assert_eq!(of(text).as_deref(), Some(name), "{text}");
        }
        // `src` is a folder, `Cargo.toml` a file.
        for path in [
            "src/gemma",
            "src",
            "Cargo.toml",
            "a",
            "./a/b",
            "/a/b",
            "~/b",
            "../a",
            "a/b/c",
            "a/b.gguf",
            "a/b.lap",
            "a/..",
            "gemma2:2b",
            "",
            "a/",
            "/b",
            "a/b:",
            "a b/c",
            "a/b--c",
            "hf.co/a",
            "hf.co/a/b/c",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_name_is_said() {
        for text in ["gemma2:2b", "gemma-2-2b", "hf.co/gemma", "a/b:../c", "https://example.org/a/b"] {
            let error = Name::parse(text).map(|n| n.to_string()).expect_err(text).to_string();
            assert!(error.contains("OWNER/REPO") && error.contains(text), "{error}");
        }
        // A host alone makes a name of what follows, which must be one.
        assert!(Name::of_path(Path::new("hf.co/gemma")).is_some_and(|n| n.is_err()));
    }

    #[test]
    fn folders_of_a_cache() {
        let name = Name::parse("google/gemma-2-2b").expect("a name");
        assert_eq!(name.folder(), "models--google--gemma-2-2b");
        assert_eq!(Name::of_folder(&name.folder()), Some(name));
        assert_eq!(Name::of_folder("datasets--a--b"), None);
        assert_eq!(Name::of_folder("models--gpt2"), None);
    }
}
