//! What is checked of a header before anything else of a file is believed.

use std::path::Path;

use crate::error::Error;
use crate::file::error::quote;
use crate::file::{self, cause, safetensors};

use super::{FORMAT, MAX_CPUS, MAX_HEADER, VERSION};

/// The header of a file that says it is an artifact of this version.
pub(super) fn check_format(path: &Path, bytes: &[u8]) -> Result<safetensors::Header, Error> {
    let expected = "a Lapidary artifact (a safetensors file)";
    let length = bytes.first_chunk().map(|n| u64::from_le_bytes(*n));
    match length {
        Some(length) if length <= MAX_HEADER && bytes.get(8) == Some(&b'{') => {}
        Some(_) => {
            let found = cause::of(&bytes[..bytes.len().min(1000)]).unwrap_or_else(|| {
                format!("a file that starts with {}", quote(&String::from_utf8_lossy(&bytes[..8])))
            });
            return Err(file::Error::file(path, expected, found).into());
        }
        None => return Err(file::Error::file(path, expected, format!("{} bytes", bytes.len())).into()),
    }
    let header = safetensors::header(path, bytes)?;
    let field = |name: &str| header.metadata.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
    if field("format") != Some(FORMAT) {
        let found = "a safetensors file whose metadata names no such format";
        return Err(file::Error::file(path, format!("a Lapidary artifact (format {FORMAT})"), found).into());
    }
    let version = field("version").unwrap_or_default();
    if version != VERSION.to_string() {
        let newer = version.parse::<u32>().is_ok_and(|v| v > VERSION);
        let hint = if newer { " (a newer lapidary wrote it)" } else { " (compile it again)" };
        let expected = format!("artifact version {VERSION}");
        return Err(file::Error::file(path, expected, format!("version {}{hint}", quote(version))).into());
    }
    Ok(header)
}

/// The names of CPUs in the metadata: few, plain and distinct.
pub(super) fn cpus(path: &Path, list: &str) -> Result<Vec<String>, Error> {
    let wrong = |expected: &str, found: String| {
        let (field, expected) = ("__metadata__.cpus".into(), expected.into());
        file::Error::Field { path: path.into(), field, expected, found }
    };
    let count = list.split(',').count();
    if count > MAX_CPUS {
        return Err(wrong(&format!("at most {MAX_CPUS} names"), format!("{count}")).into());
    }
    let mut names: Vec<String> = Vec::with_capacity(count);
    for name in list.split(',') {
        if name.is_empty() || name.len() > MAX_CPUS || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("plain names of CPUs", quote(name)).into());
        }
        if names.iter().any(|n| n == name) {
            return Err(wrong("each name once", format!("a second {}", quote(name))).into());
        }
        names.push(name.into());
    }
    Ok(names)
}
