//! A file of a sequence as it is read: its fields, its tensors, and the sum of its bytes, taken as they are read.

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use xxhash_rust::xxh3::Xxh3;

use super::{SUM, SUM_BYTES};
use crate::error::Error;
use crate::file;
use crate::file::error::quote;
use crate::file::safetensors::{self, Entry, Header};

/// See the module's documentation. Errors name the file.
pub(super) struct Contents<'a> {
    path: &'a Path,
    file: &'a [u8],
    header: Header,
    /// Of the bytes before `summed`.
    sum: Xxh3,
    summed: usize,
}

impl<'a> Contents<'a> {
    pub(super) fn new(path: &'a Path, file: &'a [u8]) -> Result<Self, Error> {
        let header = safetensors::header(path, file)?;
        Ok(Self { path, file, header, sum: Xxh3::new(), summed: 0 })
    }

    /// What the metadata say of a field.
    pub(super) fn said(&self, field: &str) -> Result<&str, Error> {
        let found = self.header.metadata.iter().find(|(name, _)| name == field);
        found.map(|(_, text)| text.as_str()).ok_or_else(|| self.refuse(field, "a text", "none"))
    }

    /// Fails unless they say this; an error puts `which` after it.
    pub(super) fn expect(&self, field: &str, text: &str, which: &str) -> Result<(), Error> {
        match self.said(field)? {
            found if found == text => Ok(()),
            found => Err(self.refuse(field, &format!("{}{which}", quote(text)), quote(found))),
        }
    }

    /// A field's number, if it is one that can be.
    pub(super) fn number<T: FromStr>(
        &self,
        field: &str,
        expected: &str,
        can_be: impl FnOnce(&T) -> bool,
    ) -> Result<T, Error> {
        let text = self.said(field)?;
        text.parse().ok().filter(can_be).ok_or_else(|| self.refuse(field, expected, quote(text)))
    }

    /// The tensor of a name, of this dtype.
    pub(super) fn tensor(&self, name: &str, dtype: &str) -> Result<Entry, Error> {
        let entry = self.header.entries.iter().find(|e| e.name == name);
        let entry = entry.ok_or_else(|| self.wrong(name, "a tensor", "none"))?;
        if entry.dtype != dtype {
            return Err(self.wrong(name, dtype, &entry.dtype));
        }
        Ok(entry.clone())
    }

    /// Bytes of the file, which are about to be used: they are summed now, so that they come from memory once.
    pub(super) fn bytes(&mut self, range: Range<usize>) -> &'a [u8] {
        self.sum_to(range.end);
        &self.file[range]
    }

    fn sum_to(&mut self, end: usize) {
        if end > self.summed {
            self.sum.update(&self.file[self.summed..end]);
            self.summed = end;
        }
    }

    /// That the bytes are not those that were written, if so.
    ///
    /// # Errors
    /// If the file has no sum.
    pub(super) fn damage(&mut self) -> Result<Option<Error>, Error> {
        let place = self.tensor(SUM, "U8")?.bytes;
        let last =
            self.file.split_last_chunk::<SUM_BYTES>().filter(|(before, _)| place.start == before.len());
        let Some((before, sum)) = last else {
            let expected = format!("the file's last {SUM_BYTES} bytes");
            return Err(self.wrong(SUM, &expected, &format!("bytes {} to {}", place.start, place.end)));
        };
        self.sum_to(before.len());
        let (expected, found) = (u128::from_le_bytes(*sum), self.sum.digest128());
        Ok((expected != found).then(|| {
            self.wrong(SUM, &format!("{expected:032x}"), &format!("{found:032x} (the file is damaged)"))
        }))
    }

    /// A field of the metadata that is not what it should be.
    pub(super) fn refuse(&self, field: &str, expected: &str, found: impl Into<String>) -> Error {
        let (path, field) = (self.path.into(), format!("__metadata__.{field}"));
        file::Error::Field { path, field, expected: expected.into(), found: found.into() }.into()
    }

    /// A tensor that is not what it should be.
    pub(super) fn wrong(&self, name: &str, expected: &str, found: &str) -> Error {
        file::Error::tensor(self.path, name, expected, found).into()
    }
}
