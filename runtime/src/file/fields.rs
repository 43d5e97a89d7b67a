//! A JSON object that is taken apart field by field, so that what nobody took is known.
//!
//! In: the bytes of a file. Out: checked values, or an [`Error::Field`] naming the file and the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::file::cause;
use crate::file::error::{self, Error, Result};

/// What is left of an object.
pub struct Fields {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object in `bytes`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Fields> {
        match json(path, bytes)? {
            Value::Object(map) => Ok(Fields { path: path.into(), prefix: String::new(), map }),
            other => Err(Error::file(path, "a JSON object", error::json(&other))),
        }
    }

    /// The file, as errors call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a field is there, as null.
    pub fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// An object that was the value of field `name`.
    pub fn inner(&self, name: &str, map: Map<String, Value>) -> Fields {
        Fields { path: self.path.clone(), prefix: format!("{}{name}.", self.prefix), map }
    }

    /// The object in field `name`, or nothing where it is absent or null.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.inner(name, map))),
            Some(other) => Err(self.refuse(name, "an object", &other)),
        }
    }

    /// The names of what is left.
    pub fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// Takes a field; null counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// Takes a field; null is a value.
    pub fn take_nullable(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name)
    }

    /// An integer in `range`, or nothing where it is absent.
    pub fn optional_integer(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match integer(&value).filter(|n| (min..=max).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.refuse(name, &format!("an integer from {min} to {max}"), &value)),
        }
    }

    /// An integer in `range`.
    pub fn integer(&mut self, name: &str, min: u64, max: u64) -> Result<u64> {
        let found = self.optional_integer(name, min, max)?;
        found.ok_or_else(|| self.absent(name, &format!("an integer from {min} to {max}")))
    }

    /// A finite number above zero, or nothing where it is absent.
    pub fn optional_positive(&mut self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|x| is_positive(*x)) {
            Some(x) => Ok(Some(x)),
            None => Err(self.refuse(name, POSITIVE, &value)),
        }
    }

    /// A finite number above zero.
    pub fn positive(&mut self, name: &str) -> Result<f64> {
        let found = self.optional_positive(name)?;
        found.ok_or_else(|| self.absent(name, POSITIVE))
    }

    /// A list of token ids: an integer or a list of integers, or nothing where it is absent. -1 stands for no token.
    pub fn tokens(&mut self, name: &str, max: u64) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let one = |v: &Value| integer(v).filter(|n| *n <= max).and_then(|n| u32::try_from(n).ok());
        let some = |v: &&Value| v.as_f64() != Some(-1.0);
        let all: Option<Vec<u32>> = match &value {
            Value::Array(list) => list.iter().filter(some).map(one).collect(),
            single => Some(single).filter(some).map(one).into_iter().collect(),
        };
        match all {
            Some(list) => Ok(Some(list)),
            None => Err(self.refuse(name, &format!("token ids from 0 to {max}"), &value)),
        }
    }

    /// Takes a field that may only be absent, null or `only`.
    pub fn only(&mut self, name: &str, only: Value) -> Result<()> {
        match self.take(name) {
            Some(value) if value != only => Err(self.refuse(name, &only.to_string(), &value)),
            _ => Ok(()),
        }
    }

    /// What nobody took, in the file's order: whole names, dots between levels.
    pub fn rest(self) -> impl Iterator<Item = (String, Value)> {
        self.map.into_iter().map(move |(name, value)| (format!("{}{name}", self.prefix), value))
    }

    /// The error for a value.
    pub fn refuse(&self, name: &str, expected: &str, found: &Value) -> Error {
        self.error(name, expected, error::json(found))
    }

    /// The error for an absent field.
    pub fn absent(&self, name: &str, expected: &str) -> Error {
        self.error(name, expected, "nothing".into())
    }

    fn error(&self, name: &str, expected: &str, found: String) -> Error {
        let field = format!("{}{name}", self.prefix);
        refused(&self.path, &field, expected, found)
    }
}

/// The error for a field by its whole name.
pub fn refused(path: &Path, field: &str, expected: &str, found: String) -> Error {
    let field = error::line(field.escape_debug());
    Error::Field { path: path.into(), field, expected: expected.into(), found }
}

/// The JSON in `bytes`, a byte order mark before it or not.
pub fn json(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(cause::without_bom(bytes)).map_err(|e| malformed(path, bytes, &e))
}

/// The error for bytes that are no JSON: what they are by their look, or what is wrong with them.
pub fn malformed(path: &Path, bytes: &[u8], e: &serde_json::Error) -> Error {
    let cut = if e.is_eof() { " (the file is cut short)" } else { "" };
    let found = cause::of(bytes).unwrap_or_else(|| error::line(format!("malformed JSON: {e}{cut}")));
    Error::file(path, "a JSON object", found)
}

/// Whether a value is false in Python, where most configurations are written: it switches nothing on.
pub fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

const POSITIVE: &str = "a finite number above 0";

/// Whether x is above zero, finite, and stays so as f32, in which the graph states it.
pub fn is_positive(x: f64) -> bool {
    x > 0.0 && (x as f32) > 0.0 && (x as f32).is_finite()
}

/// A JSON number that is a whole number, written either way (`8` or `8.0`).
fn integer(value: &Value) -> Option<u64> {
    /// 2^53: above it an f64 does not hold every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=EXACT).contains(x)).map(|x| x as u64)
    })
}
