//! Files of a model, read and checked: small files whole, JSON objects field by field, headers of safetensors files.
//!
//! Small files have a limit, so that a wrong path cannot fill the memory. Nothing that is read is trusted.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

pub mod error;
pub mod fields;
pub mod safetensors;

pub use error::{Error, Result};

/// Bytes a JSON or template file may have: four times the largest published tokenizer.
pub const LIMIT: u64 = 128 << 20;

/// The bytes of a file of at most [`LIMIT`] bytes.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::file(path, format!("at most {LIMIT} bytes"), "more"));
    }
    Ok(bytes)
}

/// The bytes of a file, or nothing where there is no such file.
pub fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    if fs::exists(path).map_err(|source| Error::Read { path: path.into(), source })? {
        read(path).map(Some)
    } else {
        Ok(None)
    }
}
