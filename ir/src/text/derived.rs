//! Derived operators: names that the text form knows and the language does not. The parser spells them in primitives.

use egg::Id;

use crate::function::Builder;
use crate::op::Op;

/// Spells an operator's value over its operands.
type Spell = fn(&mut Builder, &[Id]) -> Id;

/// A derived operator: its name, how many operands it takes, and what it stands for.
pub(super) const DERIVED: &[(&str, usize, Spell)] = &[
    ("relu", 1, |b, x| {
        let zero = b.num(0.0);
        b.add(Op::Maximum([x[0], zero]))
    }),
    ("sigmoid", 1, |b, x| sigmoid(b, x[0])),
    ("silu", 1, |b, x| {
        let gate = sigmoid(b, x[0]);
        b.add(Op::Mul([x[0], gate]))
    }),
    ("gt", 2, |b, x| b.add(Op::Lt([x[1], x[0]]))),
    ("ge", 2, |b, x| b.add(Op::Le([x[1], x[0]]))),
    ("ne", 2, |b, x| {
        let equal = b.add(Op::Eq([x[0], x[1]]));
        b.add(Op::Not(equal))
    }),
    ("where", 3, |b, x| b.add(Op::Select([x[0], x[1], x[2]]))),
];

/// 1 / (1 + exp(-x)).
fn sigmoid(b: &mut Builder, x: Id) -> Id {
    let one = b.num(1.0);
    let x = b.add(Op::Neg(x));
    let x = b.add(Op::Exp(x));
    let x = b.add(Op::Add([one, x]));
    b.add(Op::Recip(x))
}

/// The derived operators: the name of each, and how many operands it takes.
pub fn derived_operators() -> impl Iterator<Item = (&'static str, usize)> {
    DERIVED.iter().map(|d| (d.0, d.1))
}

/// The derived operator of this name.
pub(super) fn derived(name: &str) -> Option<(usize, Spell)> {
    DERIVED.iter().find(|d| d.0 == name).map(|d| (d.1, d.2))
}

/// A reduction over a list of axes: over one after the other, the last first. `None` if this is none such.
pub(super) fn over_axes(b: &mut Builder, name: &str, operands: &[Id]) -> Option<Id> {
    let [x, list] = *operands else { return None };
    let one: fn([Id; 2]) -> Op = match name {
        "sum" => Op::Sum,
        "mean" => Op::Mean,
        "max" => Op::Max,
        "min" => Op::Min,
        "prod" => Op::Prod,
        _ => return None,
    };
    let Op::Dims(axes) = &b.function().body[list] else { return None };
    let mut axes: Vec<usize> = axes.iter().map(|a| a.fixed()).collect::<Option<_>>()?;
    axes.sort_unstable();
    let distinct = axes.windows(2).all(|pair| pair[0] < pair[1]);
    (distinct && !axes.is_empty()).then(|| {
        axes.iter().rev().fold(x, |x, &axis| {
            let axis = b.int(axis as i64);
            b.add(one([x, axis]))
        })
    })
}
