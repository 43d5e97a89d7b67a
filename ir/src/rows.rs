//! Which nodes treat rows alike: row t of the result depends on row t of each operand, on operands without rows, and on
//! nothing else: not on other rows, on where a row stands, or on keys.
//!
//! In: a typed function. Out: the answer for each node, by its own operator: an operand counts as given. What several
//! sequences may share a launch for follows from it, so that nobody writes it down.

use egg::Language;

use crate::function::Function;
use crate::op::Op;
use crate::types::{Dim, Type};

/// For each node, whether it treats rows alike. Attributes do.
pub fn row_wise(function: &Function, types: &[Type]) -> Vec<bool> {
    let nodes = function.body.as_ref();
    nodes.iter().enumerate().map(|(at, op)| treats_rows_alike(op, &types[at], types)).collect()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "leaves and elementwise operators are told by the table before"
)]
fn treats_rows_alike(op: &Op, result: &Type, types: &[Type]) -> bool {
    let operands: Vec<&Type> = op.children().iter().map(|&c| &types[usize::from(c)]).collect();
    // Keys are one sequence's, and rows of rows are of two.
    if operands.iter().copied().chain([result]).any(|t| counts(t).is_none_or(|rows| rows > 1)) {
        return false;
    }
    let has_rows = |t: &Type| counts(t) == Some(1);
    // A result without rows is made of several.
    if operands.iter().any(|t| has_rows(t)) && !has_rows(result) {
        return false;
    }
    let last_is_rows = |t: &Type| shape(t).is_some_and(|dims| dims.last() == Some(&Dim::Rows));
    if op.is_leaf() || op.signature().class.is_elementwise() {
        return true;
    }
    match op {
        // Numbers count from the call's first row.
        Op::Iota(_) => !has_rows(result),
        // These put elements along the last axis together.
        Op::RmsNorm(_)
        | Op::AddRmsNorm(_)
        | Op::NormPrologue(_)
        | Op::Softmax(_)
        | Op::Rope(_)
        | Op::Linear(_) => !last_is_rows(operands[0]),
        // So may a program.
        Op::Map(_) => !operands.iter().any(|t| last_is_rows(t)),
        // Any row of the table may be asked for.
        Op::Take([table, ..]) | Op::Gather([table, _]) | Op::Embedding([table, ..]) => {
            !has_rows(&types[usize::from(*table)])
        }
        // A row stays a row if as many elements lie before it.
        Op::Reshape([x, _]) => before_rows(&types[usize::from(*x)]) == before_rows(result),
        Op::Append(_) | Op::Scores(_) | Op::WindowMask(_) | Op::Attention(_) => false,
        Op::Cast(_)
        | Op::Select(_)
        | Op::Sum(_)
        | Op::Mean(_)
        | Op::Max(_)
        | Op::Min(_)
        | Op::Prod(_)
        | Op::Pad(_)
        | Op::Argmax(_)
        | Op::Matmul(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Weights(_)
        | Op::Cap(_)
        | Op::Then(_)
        | Op::Output(_)
        | Op::Softcap(_)
        | Op::GatedGelu(_) => true,
        // `every_operator_has_an_answer` walks the table.
        known => unreachable!("{known} is a leaf or elementwise"),
    }
}

/// The axes of rows of a type, the most of its parts; none if it has keys.
fn counts(ty: &Type) -> Option<usize> {
    match ty {
        Type::Tensor(t) | Type::Prologue(t) => count(&t.shape),
        Type::Tuple(parts) | Type::Weights(parts) => {
            parts.iter().map(|t| count(&t.shape)).try_fold(0, |most, n| Some(most.max(n?)))
        }
        Type::Epilogue | Type::Attribute => Some(0),
    }
}

fn count(dims: &[Dim]) -> Option<usize> {
    (!dims.contains(&Dim::Keys)).then(|| dims.iter().filter(|&&d| d == Dim::Rows).count())
}

fn shape(ty: &Type) -> Option<&[Dim]> {
    match ty {
        Type::Tensor(t) | Type::Prologue(t) => Some(&t.shape),
        Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => None,
    }
}

/// Elements before a tensor's axis of rows, or all of them without one.
fn before_rows(ty: &Type) -> usize {
    let dims = shape(ty).unwrap_or(&[]);
    dims.iter().take_while(|&&d| d != Dim::Rows).filter_map(|d| d.fixed()).product()
}

#[cfg(test)]
mod tests {
    use egg::{FromOp, Id};

    use super::*;
    use crate::op::OPERATORS;
    use crate::types::{DType, TensorType};

    #[test]
    fn every_operator_has_an_answer() {
        let types = [Type::Tensor(TensorType::new(DType::F32, vec![Dim::Rows, Dim::Fixed(4)]))];
        let mut alike = vec![];
        for name in OPERATORS {
            let made = (1..=8).find_map(|n| Op::from_op(name, vec![Id::from(0); n]).ok());
            let op = made.expect("it takes some number of operands");
            if treats_rows_alike(&op, &types[0], &types) {
                alike.push(*name);
            }
        }
        for (name, expected) in [("add", true), ("select", true), ("attention", false), ("append", false)] {
            assert_eq!(alike.contains(&name), expected, "{name}");
        }
    }
}
