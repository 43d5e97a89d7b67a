//! A GGUF's keys, read by name and held to what is expected of them.
//!
//! In: a header and the file that it is of. Out: checked values, or an error that names file and key. A key that is
//! absent is nothing, never an error: who needs it says so.

use std::path::Path;

use lapidary_runtime::file::fields::is_positive;

use super::container::Header;
use super::value::{Kind, List, Value};
use crate::error::{Error, Result, quote};

/// Characters of a text that an error repeats are cut by [`quote`]; bytes of a text that is looked at for a name.
const MAX_WORD: usize = 256;

/// The keys of one file.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// What errors call the file.
    pub path: &'a Path,
    /// Its header.
    pub header: &'a Header,
    /// Its bytes.
    pub file: &'a [u8],
}

impl<'a> Keys<'a> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.keys.get(key)
    }

    /// The error for a key.
    pub fn refuse(&self, key: &str, expected: &str, found: impl Into<String>) -> Error {
        super::field(self.path, key, expected, found.into())
    }

    /// The error for a key that is absent.
    pub fn absent(&self, key: &str, expected: &str) -> Error {
        self.refuse(key, expected, "nothing")
    }

    /// A text in UTF-8.
    ///
    /// # Errors
    /// For another value.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let bytes = match self.get(key) {
            None => return Ok(None),
            Some(Value::Text(range)) => &self.file[range.clone()],
            Some(other) => return Err(self.refuse(key, "a text", other.describe())),
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.refuse(key, "a text in UTF-8", "other bytes")),
        }
    }

    /// A text that must be one of a few, by its key.
    ///
    /// # Errors
    /// For another value, or none.
    pub fn one_of(&self, key: &str, known: &[&'static str]) -> Result<&'static str> {
        let expected = || known.join(" or ");
        let Some(text) = self.text(key)? else { return Err(self.absent(key, &expected())) };
        let found = || quote(&text[..text.floor_char_boundary(MAX_WORD)]);
        known.iter().find(|k| **k == text).copied().ok_or_else(|| self.refuse(key, &expected(), found()))
    }

    /// An integer in a range.
    ///
    /// # Errors
    /// For another value.
    pub fn integer(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>> {
        let expected = || format!("an integer from {min} to {max}");
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if (min.into()..=max.into()).contains(n) => Ok(Some(*n as u64)),
            Some(other) => Err(self.refuse(key, &expected(), other.describe())),
        }
    }

    /// A finite number above zero, an integer or not.
    ///
    /// # Errors
    /// For another value.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Value::Number(x)) => *x,
            Some(Value::Integer(n)) => *n as f64,
            Some(Value::Bool(_) | Value::Text(_) | Value::List(_)) => f64::NAN,
        };
        match (is_positive(number), self.get(key)) {
            (false, Some(other)) => Err(self.refuse(key, "a finite number above 0", other.describe())),
            _ => Ok(Some(number)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// For another value.
    pub fn truth(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(other) => Err(self.refuse(key, "true or false", other.describe())),
        }
    }

    /// A list whose elements are of one of these kinds, in words.
    ///
    /// # Errors
    /// For another value.
    pub fn list(&self, key: &str, expected: &str, is: impl Fn(Kind) -> bool) -> Result<Option<&'a List>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(list)) if is(list.kind) => Ok(Some(list)),
            Some(other) => Err(self.refuse(key, expected, other.describe())),
        }
    }
}
