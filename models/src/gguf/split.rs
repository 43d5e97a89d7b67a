//! Models that are split over files `NAME-00001-of-00003.gguf`.
//!
//! In: the path of any of them. Out: all, in order. Invariants: each says the number that its name says, of as many;
//! together they hold as many tensors as they say, no name twice.

use std::collections::HashSet;
use std::path::Path;

use super::Part;
use crate::error::{Error, Result};

/// How many files there are.
const COUNT: &str = "split.count";
/// Which of them this is, from 0 on.
const NUMBER: &str = "split.no";
/// Tensors of all files.
const TENSORS: &str = "split.tensors.count";
/// Both are u16 in the format.
const MOST: u64 = u16::MAX as u64;

/// Maps the files of a model.
pub(super) fn open(path: &Path) -> Result<Vec<Part>> {
    let given = Part::open(path)?;
    let (number, count) = place(&given)?;
    if count <= 1 {
        return Ok(vec![given]);
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let end = |number: u64| format!("-{:05}-of-{count:05}.gguf", number + 1);
    let Some(stem) = name.strip_suffix(&end(number)) else {
        let expected = format!("a name that ends in {}, as {NUMBER} and {COUNT} say", end(number));
        return Err(Error::file(path, expected, "another name (was the file renamed?)"));
    };
    let mut given = Some(given);
    let mut parts = Vec::new();
    for i in 0..count {
        let other = path.with_file_name(format!("{stem}{}", end(i)));
        if i != number && !lapidary_runtime::file::exists(&other)? {
            let file = other.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let file = format!("{file}, a part of the model");
            return Err(Error::Missing {
                path: dir.into(),
                file,
                cause: " (is the download complete?)".into(),
            });
        }
        let part = match given.take_if(|_| i == number) {
            Some(given) => given,
            None => Part::open(&other)?,
        };
        let found = place(&part)?;
        if found != (i, count) {
            let found = format!("{} of {}", found.0 + 1, found.1);
            return Err(Error::file(
                &part.path,
                format!("part {} of {count}", i + 1),
                format!("part {found}"),
            ));
        }
        parts.push(part);
    }
    check(&parts)?;
    Ok(parts)
}

/// A file's number and of how many it is.
fn place(part: &Part) -> Result<(u64, u64)> {
    let keys = part.keys();
    let count = keys.integer(COUNT, 0, MOST)?.unwrap_or(1).max(1);
    Ok((keys.integer(NUMBER, 0, count - 1)?.unwrap_or(0), count))
}

/// Fails unless the files together are what the first says.
fn check(parts: &[Part]) -> Result<()> {
    let mut names = HashSet::new();
    for part in parts {
        if let Some(twice) = part.header.tensors.iter().find(|t| !names.insert(t.name.as_str())) {
            return Err(Error::tensor(&part.path, &twice.name, "it in one part", "it in two"));
        }
    }
    let keys = parts[0].keys();
    match keys.integer(TENSORS, 0, i32::MAX as u64)? {
        Some(n) if n != names.len() as u64 => {
            Err(keys.refuse(TENSORS, &format!("{}, as the parts hold", names.len()), n.to_string()))
        }
        _ => Ok(()),
    }
}
