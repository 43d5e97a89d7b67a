//! Writes an artifact.
//!
//! In: sections, in their order, and what the metadata say. Out: a file that has its name only once it is whole and on
//! the disk ([`whole`](crate::file::whole)). The bytes depend on nothing but the input.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::MmapOptions;
use serde_json::{Map, Value, json};

use super::program::Planned;
use super::section::FUNCTION;
use super::signature::{SIGNATURE, SIGNATURE_BYTES, SIGNED_BY};
use super::{
    ALIGN, CODE, CONSTANTS, FORMAT, HASH, Listing, PADDING, PAGE, PROGRAM, PrivateKey, VERSION, hash,
};
use crate::error::Error;
use crate::file::whole::Output;
use crate::program::{Image, Plan};
use crate::threads;

/// Bytes written at a time.
const PIECE: usize = 4 << 20;

/// A section to be written.
pub struct Part<'a> {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
    align: usize,
}

impl<'a> Part<'a> {
    /// A text, or anything else that is read as bytes.
    pub fn text(name: &str, bytes: impl Into<Cow<'a, [u8]>>) -> Part<'a> {
        Part::raw(name.into(), bytes.into(), ALIGN)
    }

    /// A tensor of the model, its elements named as safetensors does. The bytes must be as many as dtype and shape say.
    pub fn weight(name: &str, dtype: &'static str, shape: Vec<usize>, bytes: &'a [u8]) -> Part<'a> {
        Part { name: name.into(), dtype, shape, bytes: bytes.into(), align: PAGE }
    }

    /// The sections of one CPU's image: its program, its tables, its code.
    pub fn image<P: Planned>(cpu: &str, features: &[String], image: &'a Image<P>) -> [Part<'a>; 3] {
        let program = Listing::new(cpu, features, image).to_bytes();
        [
            Part::raw(format!("{PROGRAM}{cpu}"), program.into(), ALIGN),
            Part::raw(format!("{CONSTANTS}{cpu}"), Cow::from(&image.constants), ALIGN),
            Part::raw(format!("{CODE}{cpu}"), Cow::from(&image.code), PAGE),
        ]
    }

    /// The sections of several CPUs' images: code and tables that are the same bytes are there once, as the first
    /// one's.
    pub fn images<P: Planned>(variants: &[Variant<'a, P>]) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        for (at, Variant { cpu, features, tuning, image }) in variants.iter().enumerate() {
            let [_, constants, code] = Part::image(cpu, features, image);
            let first = |same: &dyn Fn(&Image<P>) -> bool| {
                variants[..at].iter().find(|v| same(v.image)).map_or(*cpu, |v| v.cpu)
            };
            let listing = Listing {
                tuning: tuning.map(str::to_string),
                code: first(&|other| other.code == image.code).into(),
                tables: first(&|other| other.constants == image.constants).into(),
                ..Listing::new(cpu, features, image)
            };
            parts.push(Part::raw(format!("{PROGRAM}{cpu}"), listing.to_bytes().into(), ALIGN));
            parts.extend((listing.tables == *cpu).then_some(constants));
            parts.extend((listing.code == *cpu).then_some(code));
        }
        parts
    }

    fn raw(name: String, bytes: Cow<'a, [u8]>, align: usize) -> Part<'a> {
        Part { name, dtype: "U8", shape: vec![bytes.len()], bytes, align }
    }
}

/// A CPU's image, to be written beside those of others.
pub struct Variant<'a, P = Plan> {
    /// The CPU, as `--cpu` names it.
    pub cpu: &'a str,
    /// What it must have, by the names of [`crate::cpu`].
    pub features: &'a [String],
    /// What it is tuned for, if that is not what most CPUs are.
    pub tuning: Option<&'a str>,
    /// Its code.
    pub image: &'a Image<P>,
}

/// What the metadata say besides hashes.
pub struct About<'a> {
    /// The target triple.
    pub target: &'a str,
    /// The CPUs that there is code for, each better than those before it.
    pub cpus: &'a [String],
    /// How the layers' matrices are held: `q4`.
    pub weights: &'a str,
    /// The function's name, if it is no model that is written.
    pub function: Option<&'a str>,
    /// The compiler's version.
    pub compiler: &'a str,
    /// What signs the file, if anything does.
    pub key: Option<&'a PrivateKey>,
}

/// Writes the file; `progress` is told the bytes so far and those of the whole.
///
/// # Errors
/// [`Error::Write`] naming the file and the bytes it needs.
pub fn write(
    path: &Path,
    about: &About<'_>,
    parts: &[Part<'_>],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, Error> {
    let layout = Layout::new(about, parts);
    let failed = |source| Error::Write { path: path.into(), needed: layout.bytes(), source };
    let mut file = Output::create(path).map_err(failed)?;
    let hashes = std::thread::scope(|scope| {
        let hashes = threads::spawn(scope, || hash_all(parts));
        let written = write_data(&mut file, &layout, parts, progress);
        // Without a thread beside, one after the other.
        let hashes = hashes.map_or_else(|_| hash_all(parts), threads::join);
        written.map(|()| hashes)
    });
    let hashes = hashes.map_err(failed)?;
    let header = layout.header(about, parts, &hashes);
    let whole = file.file().write_all_at(&header, 0);
    let whole = whole.and_then(|()| about.key.map_or(Ok(()), |key| sign(file.file(), key, layout.bytes())));
    whole.and_then(|()| file.file().sync_all()).and_then(|()| file.finish()).map_err(failed)?;
    Ok(layout.bytes())
}

/// Appends the signature of what is written to a file that is to have so many bytes with it.
fn sign(file: &File, key: &PrivateKey, bytes: u64) -> io::Result<()> {
    let signed = bytes as usize - SIGNATURE_BYTES;
    // SAFETY: the file is this process' own, under a name of its own.
    let map = unsafe { MmapOptions::new().len(signed).map(file) }?;
    file.write_all_at(&key.sign(&map), signed as u64)
}

/// Fails if no file can be made at `path`, and leaves none: for a caller that has hours of work to do before it writes.
///
/// # Errors
/// The system's answer.
pub fn probe(path: &Path) -> io::Result<()> {
    Output::create(path).map(drop)
}

/// Where everything lies.
struct Layout {
    /// Bytes before the data.
    start: usize,
    /// Offset of each part within the data.
    offsets: Vec<usize>,
    /// Offset of the signature, if there is one: the data's last bytes.
    signature: Option<usize>,
    /// Bytes of the data.
    end: usize,
}

impl Layout {
    fn new(about: &About<'_>, parts: &[Part<'_>]) -> Layout {
        let mut end = 0usize;
        let mut offsets = Vec::with_capacity(parts.len());
        for part in parts {
            end = end.next_multiple_of(part.align);
            offsets.push(end);
            end += part.bytes.len();
        }
        let signature = about.key.map(|_| end.next_multiple_of(ALIGN));
        end = signature.map_or(end, |at| at + SIGNATURE_BYTES);
        let mut layout = Layout { start: 0, offsets, signature, end };
        // Hashes have one length, so that the header's is known before they are.
        let none = vec![hash(&[]); parts.len()];
        layout.start = (8 + layout.text(about, parts, &none).len()).next_multiple_of(PAGE);
        layout
    }

    fn bytes(&self) -> u64 {
        (self.start + self.end) as u64
    }

    fn text(&self, about: &About<'_>, parts: &[Part<'_>], hashes: &[String]) -> String {
        let mut metadata = Map::new();
        let version = VERSION.to_string();
        let cpus = about.cpus.join(",");
        for (name, text) in [
            ("format", FORMAT),
            ("version", &version),
            ("compiler", about.compiler),
            ("target", about.target),
            ("cpus", &cpus),
            ("weights", about.weights),
        ] {
            metadata.insert(name.into(), text.into());
        }
        if let Some(name) = about.function {
            metadata.insert(FUNCTION.into(), name.into());
        }
        if let Some(key) = about.key {
            metadata.insert(SIGNED_BY.into(), key.public().to_string().into());
        }
        for (part, hash) in parts.iter().zip(hashes) {
            metadata.insert(format!("{HASH}{}", part.name), hash.as_str().into());
        }
        let mut header = Map::new();
        header.insert("__metadata__".into(), Value::Object(metadata));
        let mut end = 0;
        let mut padding = 0;
        let entry = |dtype: &str, shape: &[usize], from: usize, to: usize| {
            json!({
                "dtype": dtype, "shape": shape, "data_offsets": [from, to],
            })
        };
        for (part, &at) in parts.iter().zip(&self.offsets) {
            if at > end {
                header.insert(format!("{PADDING}{padding}"), entry("U8", &[at - end], end, at));
                padding += 1;
            }
            end = at + part.bytes.len();
            header.insert(part.name.clone(), entry(part.dtype, &part.shape, at, end));
        }
        if let Some(at) = self.signature {
            if at > end {
                header.insert(format!("{PADDING}{padding}"), entry("U8", &[at - end], end, at));
            }
            header.insert(SIGNATURE.into(), entry("U8", &[SIGNATURE_BYTES], at, self.end));
        }
        Value::Object(header).to_string()
    }

    /// Everything before the data: the header, filled up with spaces as the container allows.
    fn header(&self, about: &About<'_>, parts: &[Part<'_>], hashes: &[String]) -> Vec<u8> {
        let mut bytes = ((self.start - 8) as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(self.text(about, parts, hashes).as_bytes());
        bytes.resize(self.start, b' ');
        bytes
    }
}

/// Writes all parts at their places.
fn write_data(
    file: &mut Output,
    layout: &Layout,
    parts: &[Part<'_>],
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let mut at = 0;
    let fill = |file: &mut Output, at: &mut usize, to: usize| {
        let zeros = [0; PAGE];
        while *at < to {
            let n = PAGE.min(to - *at);
            file.write_all(&zeros[..n])?;
            *at += n;
        }
        io::Result::Ok(())
    };
    fill(file, &mut at, layout.start)?;
    for (part, &offset) in parts.iter().zip(&layout.offsets) {
        fill(file, &mut at, layout.start + offset)?;
        for piece in part.bytes.chunks(PIECE) {
            file.write_all(piece)?;
            at += piece.len();
            progress(at as u64, layout.bytes());
        }
    }
    // The signature itself comes last of all.
    layout.signature.map_or(Ok(()), |offset| fill(file, &mut at, layout.start + offset))
}

/// Each part's hash, on as many threads as there are CPUs.
fn hash_all(parts: &[Part<'_>]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let threads = threads::of_machine().min(parts.len());
    let work = || {
        let mut own = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(index) else { return own };
            own.push((index, hash(&part.bytes)));
        }
    };
    let mut all = threads::share(threads, work).concat();
    all.sort_unstable();
    all.into_iter().map(|(_, hash)| hash).collect()
}
