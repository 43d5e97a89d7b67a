//! Writes an artifact.
//!
//! In: sections, in their order, and what the metadata say. Out: a file that has its name only once it is whole and on the
//! disk. The bytes depend on nothing but the input. Where the system can, the file has no name at all until then, so that a
//! process that is killed leaves nothing; elsewhere it is `.NAME.PID.partial` meanwhile.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::{Map, Value, json};

use super::{ALIGN, CODE, CONSTANTS, FORMAT, HASH, Listing, PADDING, PAGE, PROGRAM, VERSION, hash};
use crate::error::Error;
use crate::program::Image;

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
    pub fn image(cpu: &str, features: &[String], image: &'a Image) -> [Part<'a>; 3] {
        let program = Listing::new(cpu, features, image).to_bytes();
        [
            Part::raw(format!("{PROGRAM}{cpu}"), program.into(), ALIGN),
            Part::raw(format!("{CONSTANTS}{cpu}"), Cow::from(&image.constants), ALIGN),
            Part::raw(format!("{CODE}{cpu}"), Cow::from(&image.code), PAGE),
        ]
    }

    /// The sections of several CPUs' images: code and tables that are the same bytes are there once, as the first one's.
    pub fn images(variants: &[Variant<'a>]) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        for (at, Variant { cpu, features, tuning, image }) in variants.iter().enumerate() {
            let [_, constants, code] = Part::image(cpu, features, image);
            let first = |same: &dyn Fn(&Image) -> bool| {
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
#[derive(Clone, Copy)]
pub struct Variant<'a> {
    /// The CPU, as `--cpu` names it.
    pub cpu: &'a str,
    /// What it must have, by the names of [`crate::cpu`].
    pub features: &'a [String],
    /// What it is tuned for, if that is not what most CPUs are.
    pub tuning: Option<&'a str>,
    /// Its code.
    pub image: &'a Image,
}

/// What the metadata say besides hashes.
pub struct About<'a> {
    /// The target triple.
    pub target: &'a str,
    /// The CPUs that there is code for, each better than those before it.
    pub cpus: &'a [String],
    /// How the layers' matrices are held: `q4`.
    pub weights: &'a str,
    /// The compiler's version.
    pub compiler: &'a str,
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
    refuse_others(path).map_err(failed)?;
    let mut file = Nameless::create(path).map_err(failed)?;
    let hashes = std::thread::scope(|scope| {
        let hashes = scope.spawn(|| hash_all(parts));
        let written = write_data(&mut file.file, &layout, parts, progress);
        let hashes = hashes.join().unwrap_or_default();
        written.map(|()| hashes)
    });
    let hashes = hashes.map_err(failed)?;
    let header = layout.header(about, parts, &hashes);
    let whole = file.file.seek(SeekFrom::Start(0)).and_then(|_| file.file.write_all(&header));
    whole.and_then(|()| file.file.sync_all()).and_then(|()| file.name(path)).map_err(failed)?;
    Ok(layout.bytes())
}

/// Fails if no file can be made at `path`, and leaves none: for a caller that has hours of work to do before it writes.
///
/// # Errors
/// The system's answer.
pub fn probe(path: &Path) -> io::Result<()> {
    refuse_others(path)?;
    Nameless::create(path).map(drop)
}

/// Whatever has the name must be a file.
fn refuse_others(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")),
        Ok(data) if !data.is_file() => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")),
        _ => Ok(()),
    }
}

/// Where everything lies.
struct Layout {
    /// Bytes before the data.
    start: usize,
    /// Offset of each part within the data.
    offsets: Vec<usize>,
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
        let mut layout = Layout { start: 0, offsets, end };
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
        for (part, hash) in parts.iter().zip(hashes) {
            metadata.insert(format!("{HASH}{}", part.name), hash.as_str().into());
        }
        let mut header = Map::new();
        header.insert("__metadata__".into(), Value::Object(metadata));
        let mut end = 0;
        let mut padding = 0;
        let entry = |dtype: &str, shape: &[usize], from: usize, to: usize| json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
        for (part, &at) in parts.iter().zip(&self.offsets) {
            if at > end {
                header.insert(format!("{PADDING}{padding}"), entry("U8", &[at - end], end, at));
                padding += 1;
            }
            end = at + part.bytes.len();
            header.insert(part.name.clone(), entry(part.dtype, &part.shape, at, end));
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
    file: &mut File,
    layout: &Layout,
    parts: &[Part<'_>],
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let mut at = 0;
    let fill = |file: &mut File, at: &mut usize, to: usize| {
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
    Ok(())
}

/// Each part's hash, on as many threads as there are CPUs.
fn hash_all(parts: &[Part<'_>]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(parts.len().max(1));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(part) = parts.get(index) else { return };
                    // The receiver outlives the threads.
                    let _ = sender.send((index, hash(&part.bytes)));
                }
            });
        }
    });
    drop(sender);
    let mut hashes = vec![String::new(); parts.len()];
    receiver.iter().for_each(|(index, hash)| hashes[index] = hash);
    hashes
}

/// A file that has no name yet, or one that is removed unless it gets another.
struct Nameless {
    file: File,
    /// Where it lies meanwhile, if it has a name.
    partial: PathBuf,
    named: bool,
}

impl Nameless {
    fn create(path: &Path) -> io::Result<Nameless> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match anonymous(dir) {
            Some(file) => Ok(Nameless { file, partial, named: false }),
            None => {
                // What is left of a process of this number that was killed.
                let _ = fs::remove_file(&partial);
                let file = File::create_new(&partial)?;
                Ok(Nameless { file, partial, named: true })
            }
        }
    }

    /// Gives the file its name, in the place of what has it.
    fn name(&mut self, path: &Path) -> io::Result<()> {
        if !self.named {
            let _ = fs::remove_file(&self.partial);
            link(&self.file, &self.partial)?;
            self.named = true;
        }
        fs::rename(&self.partial, path)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if self.named {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// A file of this directory without a name, where the file system knows such.
#[cfg(target_os = "linux")]
fn anonymous(dir: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).custom_flags(libc::O_TMPFILE).mode(0o666).open(dir).ok()
}

#[cfg(not(target_os = "linux"))]
fn anonymous(_dir: &Path) -> Option<File> {
    None
}

/// Gives a file of [`anonymous`] a name.
#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both paths end in NUL and live through the call.
    match unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn link(_file: &File, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
