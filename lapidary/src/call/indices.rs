//! Ids that machine code, which does not look, reads by: they are looked at before.

use lapidary_ir::{Extent, Function, Id, Op, Type, text};

use crate::error::{Error, Result};

/// Ids of an input, and what they count.
pub(super) struct Indices {
    /// The input's index.
    pub(super) input: usize,
    name: String,
    most: usize,
    /// What reads by them.
    node: String,
}

impl Indices {
    /// Fails for ids that are out of bounds.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<()> {
        let Indices { input: _, name, most, node } = self;
        let out = bytes.as_chunks::<4>().0.iter().find_map(|b| {
            let id = i32::from_le_bytes(*b);
            (id < 0 || id as usize >= *most).then_some(id)
        });
        match out {
            Some(id) => Err(Error::Graph(format!(
                "tensor `{name}`: expected ids of 0 to {}, found {id}, by {node}",
                most - 1
            ))),
            None => Ok(()),
        }
    }
}

/// The inputs of a function that are ids.
///
/// # Errors
/// [`Error::Graph`] for ids that are computed, which nobody can look at.
pub(super) fn indices(function: &Function, extent: Extent) -> Result<Vec<Indices>> {
    let types = function.types().map_err(|e| Error::Graph(e.to_string()))?;
    let length = |id: Id, axis: usize| match &types[usize::from(id)] {
        Type::Tensor(t) => t.shape[axis].at(extent),
        _ => 0,
    };
    let mut found = Vec::new();
    for (at, op) in function.body.as_ref().iter().enumerate() {
        let (ids, most) = match *op {
            Op::Gather([table, ids]) | Op::Embedding([table, ids, _]) => (ids, length(table, 0)),
            Op::Take([x, ids, axis]) => match function.body[axis] {
                Op::Int(axis) => (ids, length(x, axis as usize)),
                _ => continue,
            },
            _ => continue,
        };
        let node = text::statement(function, at.into());
        match function.body[ids] {
            Op::Input(input) => {
                let input = input.0 as usize;
                found.push(Indices { input, name: function.inputs[input].name.clone(), most, node });
            }
            Op::Iota(_) if length(ids, 0) <= most => {}
            _ => {
                return Err(Error::Graph(format!(
                    "function `{}`: {node}: expected ids that are an input, which can be checked, found computed ones",
                    function.name,
                )));
            }
        }
    }
    Ok(found)
}
