//! What a function that is no model's takes and gives: tensors by name, their lengths known but for `T` and `S`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Element type of a tensor, as kernels hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Truth value: an i32 that is 0 or -1; in files and in C a byte that is 0 or 1.
    Bool,
    /// Blocks of quants with their scales: so many bytes. Weights alone.
    Block {
        /// Elements of a block.
        elements: usize,
        /// Its bytes.
        bytes: usize,
    },
}

impl Element {
    /// Bytes of `n` elements, whole blocks where there are blocks.
    pub fn bytes(self, n: usize) -> usize {
        match self {
            Element::F32 | Element::I32 | Element::Bool => n.saturating_mul(4),
            Element::F16 | Element::BF16 => n.saturating_mul(2),
            Element::Block { elements, bytes } => (n / elements.max(1)).saturating_mul(bytes),
        }
    }

    /// Whether it is blocks.
    pub fn is_block(self) -> bool {
        match self {
            Element::Block { .. } => true,
            Element::F32 | Element::F16 | Element::BF16 | Element::I32 | Element::Bool => false,
        }
    }

    /// Its name in safetensors files.
    pub fn stored(self) -> &'static str {
        match self {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::BF16 => "BF16",
            Element::I32 => "I32",
            Element::Bool => "BOOL",
            Element::Block { .. } => "U8",
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::BF16 => "bf16",
            Element::I32 => "i32",
            Element::Bool => "bool",
            Element::Block { .. } => "blocks",
        })
    }
}

/// The length of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Length {
    /// Known.
    Fixed(usize),
    /// `T`, the call's rows.
    Rows,
    /// `S`, the call's keys.
    Keys,
}

impl Length {
    /// The length in a call.
    pub fn at(self, counts: Counts) -> usize {
        match self {
            Length::Fixed(n) => n,
            Length::Rows => counts.rows,
            Length::Keys => counts.keys,
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Length::Fixed(n) => write!(f, "{n}"),
            Length::Rows => f.write_str("T"),
            Length::Keys => f.write_str("S"),
        }
    }
}

/// `T` and `S`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// `T`.
    pub rows: usize,
    /// `S`.
    pub keys: usize,
}

/// What a tensor is to the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Read: the same in each call.
    Weight,
    /// Read: each call's own.
    Input,
    /// Read, appended to and returned.
    Cache,
    /// Returned.
    Output,
}

/// A tensor that a function takes or gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operand {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub element: Element,
    /// Lengths of its axes.
    pub shape: Vec<Length>,
    /// What it is.
    pub role: Role,
}

impl Operand {
    /// The shape in a call.
    pub fn shape_at(&self, counts: Counts) -> Vec<usize> {
        self.shape.iter().map(|length| length.at(counts)).collect()
    }

    /// Bytes in a call, or of as many rows and keys as there is room for.
    pub fn bytes(&self, counts: Counts) -> usize {
        let n = self.shape.iter().fold(1usize, |n, length| n.saturating_mul(length.at(counts)));
        self.element.bytes(n)
    }

    /// Whether the elements of a call of `counts` do not lie one after the other where they are held with room for
    /// `room`: an axis that is longer there than it is lies within another.
    pub fn is_spread(&self, counts: Counts, room: Counts) -> bool {
        let mut outer = 1usize;
        self.shape.iter().any(|length| {
            let spread = outer > 1 && length.at(counts) != length.at(room);
            outer = outer.saturating_mul(length.at(counts));
            spread
        })
    }

    /// Whether there are calls of which [`Operand::is_spread`] says so.
    pub fn may_spread(&self) -> bool {
        let few = Counts { rows: 2, keys: 2 };
        self.is_spread(few, Counts { rows: 3, keys: 3 })
    }
}

/// `f32[T,4]`.
impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<String> = self.shape.iter().map(Length::to_string).collect();
        write!(f, "{}[{}]", self.element, lengths.join(","))
    }
}

/// An operand whose elements something is read by: they are looked at before code, which does not look, runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// The operand, i32.
    pub ids: usize,
    /// What each must be less than.
    pub entries: Length,
    /// What reads by them, printed.
    pub by: String,
}

/// What a function that is no model's takes and gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The function's name.
    pub name: String,
    /// The most rows and keys of a call.
    pub most: Counts,
    /// What the function's slots point to, in their order: what it takes, then what it gives.
    pub operands: Vec<Operand>,
    /// The operands that it returns, in its order.
    pub returns: Vec<usize>,
    /// What is read by ids.
    pub lookups: Vec<Lookup>,
}

impl Signature {
    /// Whether anything of it has `T` elements along an axis.
    pub fn has_rows(&self) -> bool {
        self.operands.iter().any(|operand| operand.shape.contains(&Length::Rows))
    }

    /// Its weights, with their places among the operands.
    pub fn weights(&self) -> impl Iterator<Item = (usize, &Operand)> {
        self.operands.iter().enumerate().filter(|(_, operand)| operand.role == Role::Weight)
    }

    /// An id that something would be read out of bounds by, if there is one, of operands that lie dense in memory.
    pub fn stray_id<'a>(&self, counts: Counts, bytes: impl Fn(usize) -> &'a [u8]) -> Option<StrayId> {
        self.lookups.iter().find_map(|lookup| {
            let entries = lookup.entries.at(counts);
            let ids = bytes(lookup.ids).as_chunks::<4>().0.iter().map(|id| i32::from_le_bytes(*id));
            let id = ids.into_iter().find(|&id| id < 0 || id as usize >= entries)?;
            let (tensor, by) = (self.operands[lookup.ids].name.clone(), lookup.by.clone());
            Some(StrayId { tensor, entries, id, by })
        })
    }
}

/// An id that is out of bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrayId {
    /// The tensor that has it.
    pub tensor: String,
    /// What it must be less than.
    pub entries: usize,
    /// The id.
    pub id: i32,
    /// What reads by it.
    pub by: String,
}

impl fmt::Display for StrayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StrayId { tensor, entries, id, by } = self;
        let last = entries.saturating_sub(1);
        write!(f, "tensor `{tensor}`: expected ids of 0 to {last}, found {id}, by {by}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_of_rows_within_another_spreads() {
        let operand = |shape: &[Length]| Operand {
            name: "x".into(),
            element: Element::F32,
            shape: shape.to_vec(),
            role: Role::Input,
        };
        use Length::{Fixed, Rows};
        let (counts, room) = (Counts { rows: 3, keys: 3 }, Counts { rows: 4, keys: 4 });
        for (shape, spread) in [
            (&[Rows, Fixed(4)][..], false),
            (&[Fixed(1), Rows, Fixed(4)], false),
            (&[Fixed(2), Rows, Fixed(4)], true),
            (&[Rows, Rows], true),
            (&[Fixed(2), Fixed(4)], false),
        ] {
            let operand = operand(shape);
            assert_eq!(operand.is_spread(counts, room), spread, "{operand}");
            assert_eq!(operand.may_spread(), spread, "{operand}");
            assert!(!operand.is_spread(room, room));
        }
        assert_eq!(operand(&[Rows, Fixed(4)]).bytes(counts), 48);
    }
}
