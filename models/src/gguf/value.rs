//! The value of a GGUF's key: a number, a truth, a text, or a list of such, which stays where it lies in the file.
//!
//! Invariants: ranges lie within the file that the value was read from; of a list, every element does.

use std::ops::Range;

/// What a value is, or what a list's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned, of so many bytes.
    Unsigned(usize),
    /// Signed, of so many bytes.
    Signed(usize),
    /// binary32.
    F32,
    /// binary64.
    F64,
    /// A byte, 0 or 1.
    Bool,
    /// A length of 8 bytes, then as many bytes.
    Text,
}

impl Kind {
    /// Every kind by its number in a file; 9, a list, is none.
    pub const ALL: [(u32, Kind); 12] = [
        (0, Kind::Unsigned(1)),
        (1, Kind::Signed(1)),
        (2, Kind::Unsigned(2)),
        (3, Kind::Signed(2)),
        (4, Kind::Unsigned(4)),
        (5, Kind::Signed(4)),
        (6, Kind::F32),
        (7, Kind::Bool),
        (8, Kind::Text),
        (10, Kind::Unsigned(8)),
        (11, Kind::Signed(8)),
        (12, Kind::F64),
    ];

    /// The kind of a number in a file.
    pub fn of(id: u32) -> Option<Kind> {
        Kind::ALL.iter().find(|(n, _)| *n == id).map(|(_, kind)| *kind)
    }

    /// Bytes of a value; nothing for a text, which says so itself.
    pub const fn bytes(self) -> Option<usize> {
        match self {
            Kind::Unsigned(n) | Kind::Signed(n) => Some(n),
            Kind::F32 => Some(4),
            Kind::F64 => Some(8),
            Kind::Bool => Some(1),
            Kind::Text => None,
        }
    }

    /// In words, for errors.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Unsigned(_) | Kind::Signed(_) => "integer",
            Kind::F32 | Kind::F64 => "number",
            Kind::Bool => "truth",
            Kind::Text => "text",
        }
    }
}

/// A list, where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// What its elements are.
    pub kind: Kind,
    /// How many.
    pub count: usize,
    /// Their bytes in the file.
    pub bytes: Range<usize>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of any width, signed or not.
    Integer(i128),
    /// Of any width.
    Number(f64),
    /// True or false.
    Bool(bool),
    /// Its bytes in the file; no encoding is promised.
    Text(Range<usize>),
    /// A list.
    List(List),
}

impl Value {
    /// The value in words, for errors; a text is not repeated.
    pub fn describe(&self) -> String {
        match self {
            Value::Integer(n) => n.to_string(),
            Value::Number(x) => x.to_string(),
            Value::Bool(truth) => truth.to_string(),
            Value::Text(range) => format!("a text of {} bytes", range.len()),
            Value::List(list) => format!("a list of {} {}s", list.count, list.kind.name()),
        }
    }

    /// A scalar from its bytes; nothing for a byte that is no truth.
    pub(super) fn scalar(kind: Kind, bytes: &[u8]) -> Option<Value> {
        let unsigned = || bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        Some(match kind {
            Kind::Unsigned(_) => Value::Integer(unsigned().into()),
            Kind::Signed(n) => {
                let unused = 64 - 8 * n as u32;
                Value::Integer((((unsigned() << unused) as i64) >> unused).into())
            }
            Kind::F32 => Value::Number(f32::from_bits(unsigned() as u32).into()),
            Kind::F64 => Value::Number(f64::from_bits(unsigned())),
            Kind::Bool => Value::Bool(match unsigned() {
                0 => false,
                1 => true,
                _ => return None,
            }),
            Kind::Text => return None,
        })
    }
}

impl List {
    /// Its elements, of the file that it was read from; texts as bytes are [`List::texts`].
    pub fn values<'a>(&'a self, file: &'a [u8]) -> impl Iterator<Item = Option<Value>> + 'a {
        let size = self.kind.bytes().unwrap_or(usize::MAX);
        let bytes = file.get(self.bytes.clone()).unwrap_or_default();
        bytes.chunks_exact(size).map(|bytes| Value::scalar(self.kind, bytes))
    }

    /// Its texts, of the file that it was read from.
    pub fn texts<'a>(&'a self, file: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let bytes = file.get(self.bytes.clone()).filter(|_| self.kind == Kind::Text);
        let mut rest = bytes.unwrap_or_default();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (text, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            rest = after;
            Some(text)
        })
    }
}
