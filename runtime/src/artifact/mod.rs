//! Artifacts: a compiled model as one file, `.lap`. `docs/artifact.md` describes it.
//!
//! In: a file. Out: an [`Artifact`]: its header checked, its bytes mapped; from it a
//! [`Program`](crate::program::Program) whose code lies in memory of its own, and weights in place. The container is a
//! safetensors file whose tensors are *sections*. Invariants of an open artifact: sections lie within the file, apart
//! from each other, each at a multiple of [`ALIGN`] bytes and with a hash in the metadata. Code and what describes it
//! are hashed before they are used, always; all else by [`Artifact::verify`]. Nothing guards against a file whose maker
//! meant harm: an artifact is a program. Whose it is, [`Artifact::signer`] proves.

pub mod code;
mod header;
mod load;
mod own;
mod program;
mod section;
mod shared;
pub mod signature;
pub mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

pub use program::{Listing, Planned};
pub use section::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, Section, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_TABLES,
    can_name_weight,
};
pub use shared::Shared;
pub use signature::{PrivateKey, PublicKey};

use crate::error::Error;
use crate::file::error::quote;
use crate::file::{self, Map, safetensors};
use crate::program::WeightSource;
use crate::threads;

pub(crate) use section::{CODE, CONSTANTS, PADDING, PROGRAM};

use self::header::{check_format, cpus};
use self::section::{FUNCTION, HASH};
use self::signature::{SIGNATURE, SIGNATURE_BYTES, SIGNED_BY};

/// What the metadata's `format` says.
pub const FORMAT: &str = "lapidary-artifact";
/// The version that is written and read: changes whenever a file of before would be misread.
pub const VERSION: u32 = 6;
/// Sections start at multiples of this, in bytes.
pub const ALIGN: usize = 64;
/// Code and weights start at multiples of this, in bytes: a page of every target.
pub const PAGE: usize = 4096;
/// The most bytes of header that are believed: many times what a model's takes (Gemma 2 2B: 78 KB).
const MAX_HEADER: u64 = 4 << 20;
/// The most bytes of a `program` section, many times what a model's takes: parsed, it takes several times as many.
const MAX_PROGRAM: usize = 4 << 20;
/// The most CPUs that a file may have code for: several times as many as there are names of CPUs.
const MAX_CPUS: usize = 256;
/// The most bytes of a configuration or a template: parsed, it takes up to 36 times as many.
pub(crate) const MAX_TEXT: usize = 1 << 20;

/// An artifact, mapped. The file must not change meanwhile.
pub struct Artifact {
    path: PathBuf,
    map: Arc<Map>,
    sections: Vec<Section>,
    by_name: HashMap<String, usize>,
    target: String,
    cpus: Vec<String>,
    weights: String,
    /// The function, if it holds no model.
    function: Option<String>,
    /// The key that the file says signed it, if it is signed.
    signed_by: Option<String>,
}

impl Artifact {
    /// Whether the file at `path` looks like an artifact: by the end of its name.
    pub fn is_named_so(path: &Path) -> bool {
        path.extension().is_some_and(|e| e == "lap")
    }

    /// Maps an artifact and checks its header; no section is read.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read, is no artifact, is cut short, or is of a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Artifact, Error> {
        let path = path.as_ref();
        let (file, _) = file::open(path)?;
        let map = Map::new(path, &file).map_err(|source| file::Error::read(path, source))?;
        let header = check_format(path, &map)?;
        let mut hashes: HashMap<&str, &str> = HashMap::new();
        let mut metadata: HashMap<&str, &str> = HashMap::new();
        for (name, text) in &header.metadata {
            match name.strip_prefix(HASH) {
                Some(section) => hashes.insert(section, text),
                None => metadata.insert(name, text),
            };
        }
        let field = |name: &str| {
            metadata
                .get(name)
                .copied()
                .ok_or_else(|| missing(path, &format!("__metadata__.{name}"), "a text"))
        };
        let function = metadata.get(FUNCTION).map(|name| name.to_string());
        let (target, weights) = (field("target")?.to_string(), field("weights")?.to_string());
        let cpus = cpus(path, field("cpus")?)?;
        let mut sections = Vec::with_capacity(header.entries.len());
        let mut signed_by = None;
        for entry in header.entries {
            if entry.name.starts_with(PADDING) {
                continue;
            }
            if entry.name == SIGNATURE {
                let (start, end) = (entry.bytes.start, entry.bytes.end);
                if end != map.len() || end - start != SIGNATURE_BYTES {
                    let expected = format!("the file's last {SIGNATURE_BYTES} bytes");
                    return Err(refuse(path, SIGNATURE, &expected, format!("bytes {start} to {end}")));
                }
                signed_by = Some(field(SIGNED_BY)?.to_string());
                continue;
            }
            if !entry.bytes.start.is_multiple_of(ALIGN) {
                let found = format!("byte {}", entry.bytes.start);
                return Err(refuse(path, &entry.name, &format!("a start that {ALIGN} divides"), found));
            }
            let hash = hashes.get(entry.name.as_str()).filter(is_hash).ok_or_else(|| {
                missing(path, &format!("__metadata__.{HASH}{}", entry.name), "64 hexadecimal digits")
            })?;
            let hash = hash.to_string();
            let safetensors::Entry { name, dtype, shape, bytes } = entry;
            let section = Section { name, dtype, shape, bytes, hash };
            if section.bytes.len() > section.most() {
                let expected = format!("at most {} bytes", section.most());
                return Err(refuse(path, &section.name, &expected, format!("{}", section.bytes.len())));
            }
            sections.push(section);
        }
        let by_name = sections.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        Ok(Artifact {
            path: path.into(),
            map: Arc::new(map),
            sections,
            by_name,
            target,
            cpus,
            weights,
            function,
            signed_by,
        })
    }

    /// The function of the tensor language that it holds, if it holds no model.
    pub fn function_name(&self) -> Option<&str> {
        self.function.as_deref()
    }

    /// The key that the file says signed it, if it is signed: base64. Nothing has checked it; see [`Artifact::signer`].
    pub fn signed_by(&self) -> Option<&str> {
        self.signed_by.as_deref()
    }

    /// The key among these that signed the file, every byte of which is read. To be asked before anything else of an
    /// artifact is used.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is not signed, or by none of these keys, or changed since.
    pub fn signer<'k>(&self, keys: &'k [PublicKey]) -> Result<&'k PublicKey, Error> {
        let trusted = keys.iter().map(|key| quote(&key.to_string())).collect::<Vec<String>>().join(" or ");
        let wrong = |found: String| -> Error {
            file::Error::file(&self.path, format!("a signature by ed25519 key {trusted}"), found).into()
        };
        let Some(signed_by) = &self.signed_by else { return Err(wrong("no signature".into())) };
        let (bytes, signature) = self.map.split_at(self.map.len() - SIGNATURE_BYTES);
        signature::signer(bytes, signature, keys).ok_or_else(|| {
            wrong(match keys.iter().any(|key| key.to_string() == *signed_by) {
                true => "one that does not fit the file's bytes (it was changed after it was signed)".into(),
                false => format!("one by {}", quote(signed_by)),
            })
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The target triple of the code.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The CPUs that it has code for, each better than those before it.
    pub fn cpus(&self) -> &[String] {
        &self.cpus
    }

    /// How the layers' matrices are held: `q4`.
    pub fn weights(&self) -> &str {
        &self.weights
    }

    /// Its sections, in the order of their bytes.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The bytes of a section as they are: their hash is not looked at.
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        Some(&self.map[self.sections[*self.by_name.get(name)?].bytes.clone()])
    }

    /// The same, to keep: it holds the mapping.
    pub fn shared(&self, name: &str) -> Option<Shared> {
        Shared::new(self.map.clone(), self.sections[*self.by_name.get(name)?].bytes.clone())
    }

    /// Holds every section against its hash, on as many threads as there are CPUs; then the signature, if there is one,
    /// against the key that the file names.
    ///
    /// # Errors
    /// [`Error::File`] naming the first section, by place, that is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let threads = threads::of_machine().min(self.sections.len());
        let work = || {
            let mut bad = None;
            while let Some(section) = self.sections.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.check(section)
                    && bad.as_ref().is_none_or(|(at, _)| section.bytes.start < *at)
                {
                    bad = Some((section.bytes.start, error));
                }
            }
            bad
        };
        let found = threads::share(threads, work);
        let first = found.into_iter().flatten().min_by_key(|(at, _)| *at);
        first.map_or(Ok(()), |(_, error)| Err(error))?;
        // The key that the file itself names vouches for nothing, but damage shows.
        let Some(key) = &self.signed_by else { return Ok(()) };
        let known = PublicKey::parse(key).ok_or_else(|| {
            refuse(&self.path, &format!("__metadata__.{SIGNED_BY}"), "an ed25519 key in base64", quote(key))
        })?;
        self.signer(std::slice::from_ref(&known)).map(|_| ())
    }

    /// The bytes of a section that must be there, their hash checked.
    fn checked(&self, name: &str) -> Result<&[u8], Error> {
        let section = self.named(name)?;
        self.check(section)?;
        Ok(&self.map[section.bytes.clone()])
    }

    /// A section that must be there.
    fn named(&self, name: &str) -> Result<&Section, Error> {
        let section = self.by_name.get(name).map(|&index| &self.sections[index]);
        section.ok_or_else(|| refuse(&self.path, name, "a section of this name", "none".into()))
    }

    fn check(&self, section: &Section) -> Result<(), Error> {
        let found = hash(&self.map[section.bytes.clone()]);
        if found == section.hash {
            return Ok(());
        }
        let expected = format!("SHA-256 {}", section.hash);
        Err(refuse(&self.path, &section.name, &expected, format!("{found} (the file is damaged)")))
    }
}

// SAFETY: the bytes are mapped for reading, and stay so as long as the artifact lives.
unsafe impl WeightSource for Artifact {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.section(name)
    }
}

/// SHA-256 in hexadecimal.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_hash(text: &&&str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn missing(path: &Path, field: &str, expected: &str) -> Error {
    let (field, expected) = (field.escape_debug().to_string(), expected.to_string());
    file::Error::Field { path: path.into(), field, expected, found: "nothing".into() }.into()
}

fn refuse(path: &Path, section: &str, expected: &str, found: String) -> Error {
    let section = format!("section {}: {expected}", quote(section));
    file::Error::file(path, section, found).into()
}
