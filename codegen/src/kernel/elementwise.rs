//! The elementwise operators that kernels have, and the nodes that they stand for.

use lapidary_ir::{Id, Op};

/// One elementwise operator: reads element `i` of each input, writes element `i` of the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// The input itself: a copy, converted to the output's dtype (floats among each other, i32 to f32).
    Copy,
    /// f32 (x).
    Neg,
    /// f32 (x).
    Recip,
    /// f32 (x).
    Sqrt,
    /// f32 (x).
    Rsqrt,
    /// f32 (x).
    Exp,
    /// f32 (x).
    Tanh,
    /// f32 (x).
    Cos,
    /// f32 (x).
    Sin,
    /// f32 (x).
    Abs,
    /// f32 (x).
    Floor,
    /// f32 (x).
    Log,
    /// f32 or i32 (a, b).
    Add,
    /// f32 or i32 (a, b).
    Sub,
    /// f32 or i32 (a, b).
    Mul,
    /// f32 (a, b).
    Div,
    /// f32 (a, b).
    Pow,
    /// f32 or i32 (a, b); NaN where either is.
    Maximum,
    /// f32 or i32 (a, b); NaN where either is.
    Minimum,
    /// f32 or i32 (a, b) to bool.
    Lt,
    /// f32 or i32 (a, b) to bool.
    Le,
    /// f32 or i32 (a, b) to bool.
    Eq,
    /// bool (a, b).
    And,
    /// bool (a, b).
    Or,
    /// bool (x).
    Not,
    /// bool (c), f32 or i32 (a, b).
    Select,
    /// f32 (x), cap tanh(x / cap).
    Softcap(f32),
    /// f32 (x).
    GeluTanh,
    /// f32 (gate, up).
    GatedGelu,
    /// The index along the last axis, i32 or f32; no inputs.
    Iota,
}

impl Elementwise {
    /// The operator of a node, if it is elementwise; `number` gives a constant operand. Its tensor operands are the
    /// node's last ones, but for a cast, whose only one is its first.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is not elementwise has a kernel of another kind"
    )]
    pub fn of(op: &Op, number: impl Fn(Id) -> f32) -> Option<Elementwise> {
        Some(match op {
            Op::Cast(_) => Elementwise::Copy,
            Op::Neg(_) => Elementwise::Neg,
            Op::Recip(_) => Elementwise::Recip,
            Op::Sqrt(_) => Elementwise::Sqrt,
            Op::Rsqrt(_) => Elementwise::Rsqrt,
            Op::Exp(_) => Elementwise::Exp,
            Op::Tanh(_) => Elementwise::Tanh,
            Op::Cos(_) => Elementwise::Cos,
            Op::Sin(_) => Elementwise::Sin,
            Op::Abs(_) => Elementwise::Abs,
            Op::Floor(_) => Elementwise::Floor,
            Op::Log(_) => Elementwise::Log,
            Op::Add(_) => Elementwise::Add,
            Op::Sub(_) => Elementwise::Sub,
            Op::Mul(_) => Elementwise::Mul,
            Op::Div(_) => Elementwise::Div,
            Op::Pow(_) => Elementwise::Pow,
            Op::Maximum(_) => Elementwise::Maximum,
            Op::Minimum(_) => Elementwise::Minimum,
            Op::Lt(_) => Elementwise::Lt,
            Op::Le(_) => Elementwise::Le,
            Op::Eq(_) => Elementwise::Eq,
            Op::And(_) => Elementwise::And,
            Op::Or(_) => Elementwise::Or,
            Op::Not(_) => Elementwise::Not,
            Op::Select(_) => Elementwise::Select,
            Op::Softcap([cap, _]) => Elementwise::Softcap(number(*cap)),
            Op::GeluTanh(_) => Elementwise::GeluTanh,
            Op::GatedGelu(_) => Elementwise::GatedGelu,
            _ => return None,
        })
    }
}
