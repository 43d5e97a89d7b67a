//! Functions over rational numbers, exactly: where both sides of a rule are real algebra, equality at random points.
//!
//! Roots, exponentials, tanh, sine and cosine are not rational: they are taken as unknown functions, the same one on
//! both sides, by a number drawn from operator and argument. A rule that holds for every such function is sound
//! whatever they are; one that does not may yet hold by their own laws, exp(a) exp(b) = exp(a + b) for one, so a
//! difference convicts only where none is met ([`transcendental`]). Masks, whose minus infinity is no number, are
//! beyond this (`None`).

mod eval;

use std::collections::HashSet;

use egg::{Id, Language};
use lapidary_ir::{Extent, Function, Op};
use num_rational::BigRational;

use super::values::Random;
use eval::Call;

/// A tensor of rational numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Elements, the last axis fastest.
    pub data: Vec<BigRational>,
}

fn whole(n: i64) -> BigRational {
    BigRational::from_integer(n.into())
}

fn number(x: f64) -> Option<BigRational> {
    BigRational::from_float(x)
}

/// Small fractions for floats; positions and indices as they are.
pub fn inputs(function: &Function, extent: Extent, seed: u64) -> Vec<Exact> {
    let mut random = Random(seed);
    let ordinary = super::values::inputs(function, extent, seed);
    let all = function.inputs.iter().zip(ordinary).map(|(input, ordinary)| {
        let data = if input.ty.dtype.is_float() {
            let mut fraction = || {
                let denominator = whole([1, 2, 3, 5][random.below(4)]);
                whole(random.below(19) as i64 - 9) / denominator
            };
            (0..ordinary.data.len()).map(|_| fraction()).collect()
        } else {
            ordinary.data.iter().map(|&x| whole(x as i64)).collect()
        };
        Exact { shape: ordinary.shape, data }
    });
    all.collect()
}

/// The first element that differs by more than a share of what is expected: index, expected, found.
pub fn differ(expected: &Exact, found: &Exact, share: f64) -> Option<(usize, String, String)> {
    if expected.shape != found.shape {
        return Some((0, format!("{:?}", expected.shape), format!("{:?}", found.shape)));
    }
    let share = number(share)?;
    let zero = whole(0);
    expected.data.iter().zip(&found.data).enumerate().find_map(|(at, (e, f))| {
        let difference = if e > f { e - f } else { f - e };
        let size = if *e < zero { -e.clone() } else { e.clone() };
        let size = if size < whole(1) { whole(1) } else { size };
        (difference > size * &share).then(|| (at, e.to_string(), f.to_string()))
    })
}

/// Whether a node's value takes a function that is unknown over rational numbers.
pub fn transcendental(function: &Function, root: Id) -> bool {
    let body = &function.body;
    let mut seen = HashSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        let op = &body[id];
        // A power of -0.5 is a root, and scores may have a cap.
        let root = matches!(op, Op::Pow([_, p]) if body[*p].number().is_none_or(|n| n.fract() != 0.0));
        let capped = matches!(op, Op::Scores([_, _, _, cap]) if body[*cap] != Op::None);
        if root || capped || op.signature().class.is_irrational() {
            return true;
        }
        open.extend(op.children().iter().filter(|&&c| seen.insert(c)));
    }
    false
}

/// The value of a node; `None` where it is beyond rational numbers, or divides by zero.
pub fn evaluate(function: &Function, root: Id, inputs: &[Exact], extent: Extent) -> Option<Exact> {
    Call::new(function, inputs, extent)?.value(root)
}
