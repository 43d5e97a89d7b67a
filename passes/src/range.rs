//! Value ranges: intervals that hold every element of a tensor that is not NaN.
//!
//! They are what licenses rules that no pattern could: a softcap bounds the logits, so softmax needs no maximum.

use egg::Id;
use lapidary_ir::Op;

/// A closed interval, possibly infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub lo: f64,
    /// The greatest.
    pub hi: f64,
}

impl Range {
    /// Anything.
    pub const ALL: Range = Range { lo: f64::NEG_INFINITY, hi: f64::INFINITY };

    /// One value.
    pub fn point(value: f64) -> Range {
        if value.is_nan() { Range::ALL } else { Range { lo: value, hi: value } }
    }

    /// `[-bound, bound]`.
    pub fn within(bound: f64) -> Range {
        Range { lo: -bound.abs(), hi: bound.abs() }
    }

    /// Whether every value has at most this magnitude.
    pub fn is_within(self, bound: f64) -> bool {
        -bound <= self.lo && self.hi <= bound
    }

    /// Values in both; the first where they contradict each other (an empty class is no range).
    pub fn intersect(self, other: Range) -> Range {
        let both = Range { lo: self.lo.max(other.lo), hi: self.hi.min(other.hi) };
        if both.lo <= both.hi { both } else { self }
    }

    /// Values in either.
    pub fn union(self, other: Range) -> Range {
        Range { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }

    /// The image under an increasing function.
    fn map(self, f: impl Fn(f64) -> f64) -> Range {
        Range::checked(f(self.lo), f(self.hi))
    }

    fn checked(lo: f64, hi: f64) -> Range {
        if lo <= hi { Range { lo, hi } } else { Range::ALL }
    }

    fn product(self, other: Range) -> Range {
        // 0 times infinity: an infinite end stands for values as large as one likes, and 0 times those is 0.
        let times = |a: f64, b: f64| if a == 0.0 || b == 0.0 { 0.0 } else { a * b };
        let ends = [
            times(self.lo, other.lo),
            times(self.lo, other.hi),
            times(self.hi, other.lo),
            times(self.hi, other.hi),
        ];
        Range::checked(
            ends.into_iter().fold(f64::INFINITY, f64::min),
            ends.into_iter().fold(f64::NEG_INFINITY, f64::max),
        )
    }

    /// The range of a node from its operands'. Rounding is allowed for where it could leave the interval.
    pub fn of(op: &Op, range: impl Fn(Id) -> Range, leaf: impl Fn(Id) -> Option<Op>) -> Range {
        let number = |id: Id| match leaf(id) {
            Some(Op::Num(n)) => Some(f64::from(n.value())),
            _ => None,
        };
        let exact = match op {
            Op::Num(n) => return Range::point(n.value().into()),
            Op::Int(n) => return Range::point(*n as f64),
            Op::Reshape([x, _]) | Op::Transpose([x, _]) | Op::Broadcast([x, _]) | Op::Slice([x, ..]) => {
                return range(*x);
            }
            Op::Max([x, _]) | Op::Min([x, _]) | Op::Gather([x, _]) | Op::Take([x, ..]) => return range(*x),
            Op::Neg(x) => return Range { lo: -range(*x).hi, hi: -range(*x).lo },
            Op::Select([_, a, b]) | Op::Concat([a, b, _]) | Op::Pad([a, _, _, _, b]) => {
                return range(*a).union(range(*b));
            }
            Op::WindowMask([x, ..]) => return Range { lo: f64::NEG_INFINITY, ..range(*x) },
            Op::Abs(x) => {
                let x = range(*x);
                let least = if x.lo <= 0.0 && x.hi >= 0.0 { 0.0 } else { x.lo.abs().min(x.hi.abs()) };
                return Range { lo: least, hi: x.lo.abs().max(x.hi.abs()) };
            }
            Op::Floor(x) => return range(*x).map(f64::floor),
            Op::Maximum([a, b]) => {
                let (a, b) = (range(*a), range(*b));
                return Range { lo: a.lo.max(b.lo), hi: a.hi.max(b.hi) };
            }
            Op::Minimum([a, b]) => {
                let (a, b) = (range(*a), range(*b));
                return Range { lo: a.lo.min(b.lo), hi: a.hi.min(b.hi) };
            }
            Op::Lt(_) | Op::Le(_) | Op::Eq(_) | Op::And(_) | Op::Or(_) | Op::Not(_) => {
                return Range { lo: 0.0, hi: 1.0 };
            }
            Op::Iota(_) | Op::Argmax(_) => return Range { lo: 0.0, hi: f64::INFINITY },
            Op::Tanh(x) => return range(*x).map(f64::tanh).intersect(Range::within(1.0)),
            Op::Cos(_) | Op::Sin(_) => Range::within(1.0),
            Op::Exp(x) => range(*x).map(f64::exp),
            Op::Sqrt(x) => range(*x).map(|v| v.max(0.0).sqrt()),
            Op::Rsqrt(_) => Range { lo: 0.0, hi: f64::INFINITY },
            Op::Add([a, b]) => Range::checked(range(*a).lo + range(*b).lo, range(*a).hi + range(*b).hi),
            Op::Sub([a, b]) => Range::checked(range(*a).lo - range(*b).hi, range(*a).hi - range(*b).lo),
            Op::Mul([a, b]) if a == b => {
                let square = range(*a).product(range(*a));
                Range { lo: square.lo.max(0.0), ..square }
            }
            Op::Mul([a, b]) => range(*a).product(range(*b)),
            Op::Div([a, b]) => match number(*b) {
                Some(d) if d != 0.0 => range(*a).product(Range::point(1.0 / d)),
                _ => Range::ALL,
            },
            Op::Mean([x, _]) | Op::Cast([x, _]) => range(*x),
            Op::Softcap([cap, _]) | Op::Cap(cap) => number(*cap).map_or(Range::ALL, Range::within),
            Op::Linear([_, _, epilogue]) => match leaf(*epilogue) {
                Some(Op::Cap(cap)) => number(cap).map_or(Range::ALL, Range::within),
                _ => Range::ALL,
            },
            Op::Scores([_, _, _, cap]) => number(*cap).map_or(Range::ALL, Range::within),
            Op::Softmax(_) => Range { lo: 0.0, hi: 1.0 },
            Op::Recip(_)
            | Op::Pow(_)
            | Op::Log(_)
            | Op::Prod(_)
            | Op::Sum(_)
            | Op::Matmul(_)
            | Op::Append(_)
            | Op::RmsNorm(_)
            | Op::AddRmsNorm(_)
            | Op::NormPrologue(_)
            | Op::Weights(_)
            | Op::Output(_)
            | Op::Store
            | Op::Gate
            | Op::GeluTanh(_)
            | Op::GatedGelu(_)
            | Op::Map(_)
            | Op::Then(_)
            | Op::Program(_)
            | Op::Embedding(_)
            | Op::Rope(_)
            | Op::Attention(_)
            | Op::Online
            | Op::Bounded
            | Op::None
            | Op::DType(_)
            | Op::Dims(_)
            | Op::Input(_) => return Range::ALL,
        };
        // Results of rounded arithmetic may lie a little outside of the real image.
        let slack = |v: f64| if v.is_finite() { v.abs() * 1e-5 } else { 0.0 };
        Range { lo: exact.lo - slack(exact.lo), hi: exact.hi + slack(exact.hi) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_infinities() {
        assert_eq!(Range::ALL.product(Range::point(0.0)), Range::point(0.0));
        assert_eq!(Range::ALL.product(Range::point(-2.0)), Range::ALL);
        assert_eq!(
            Range { lo: -1.0, hi: 2.0 }.product(Range { lo: -3.0, hi: 4.0 }),
            Range { lo: -6.0, hi: 8.0 }
        );
    }

    #[test]
    fn tanh_bounds_anything() {
        assert!(Range::ALL.map(f64::tanh).intersect(Range::within(1.0)).is_within(1.0));
    }
}
