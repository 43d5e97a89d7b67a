//! A JSON object that is taken apart field by field, so that what nobody took can be refused.
//!
//! In: the bytes of a file. Out: checked values, or an [`Error::Field`] naming the file and the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

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
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Fields { path: path.into(), prefix: String::new(), map }),
            Ok(other) => Err(Error::file(path, "a JSON object", error::json(&other))),
            Err(e) => Err(Error::file(path, "a JSON object", error::line(format!("malformed JSON: {e}")))),
        }
    }

    /// The object in field `name`, or nothing where it is absent or null.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{name}.", self.prefix);
                Ok(Some(Fields { path: self.path.clone(), prefix, map }))
            }
            Some(other) => Err(self.refuse(name, "an object", &other)),
        }
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

    /// A list of token ids: an integer or a list of integers, or nothing where it is absent.
    pub fn tokens(&mut self, name: &str, max: u64) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let one = |v: &Value| integer(v).filter(|n| *n <= max).and_then(|n| u32::try_from(n).ok());
        let all: Option<Vec<u32>> = match &value {
            Value::Array(list) => list.iter().map(one).collect(),
            single => one(single).map(|n| vec![n]),
        };
        match all.filter(|l| !l.is_empty()) {
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

    /// Refuses whatever is left, except the names in `ignored` and values that switch nothing on.
    pub fn finish(self, ignored: &[&str]) -> Result<()> {
        let off = |v: &Value| matches!(v, Value::Null | Value::Bool(false));
        let left = self.map.iter().find(|(name, v)| !off(v) && !ignored.contains(&name.as_str()));
        match left {
            None => Ok(()),
            Some((name, value)) => Err(self.refuse(name, "no such field (it is not known)", value)),
        }
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
        let field = error::line(format!("{}{}", self.prefix, name.escape_debug()));
        Error::Field { path: self.path.clone(), field, expected: expected.into(), found }
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
