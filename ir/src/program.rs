//! Programs: what a fused kernel computes of each element, or of each row, as a small term over its operands.
//!
//! A program is an attribute of `map` and of `then`: elementwise operators and reductions along the last axis, over
//! operands `$0`, `$1`, ... and numbers. Its text has no spaces: `fn[mul[$0,tanh[$1]]]`. It means what the same
//! operators mean one by one; only that no value between them is in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use egg::{FromOp, Id, Language};

use crate::function::{Function, Input, InputKind};
use crate::infer;
use crate::op::{Expr, InputId, Op};
use crate::types::{DType, TensorType, Type};

/// The most operators that a program's text may have: shared terms are written out.
const MOST: usize = 256;
/// How deep a program's text may be nested.
const MOST_NESTING: usize = 64;

/// A small term; the last node is its value. Operands come before what uses them, equal nodes are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program(Arc<[Op]>);

impl Program {
    /// A program of these nodes, in which [`Op::Input`] stands for an operand; `None` if an operator has no place in
    /// one, an operand does not come first, an operand's number is left out, or it is too large.
    pub fn new(nodes: Vec<Op>) -> Option<Program> {
        let mut sizes: Vec<usize> = Vec::with_capacity(nodes.len());
        let mut depths: Vec<usize> = Vec::with_capacity(nodes.len());
        let mut operands = vec![];
        for op in &nodes {
            let at = sizes.len();
            if !Program::admits(op) || op.children().iter().any(|&c| usize::from(c) >= at) {
                return None;
            }
            if let Op::Input(id) = op {
                operands.push(id.0 as usize);
            }
            let sum = |of: &[usize]| op.children().iter().map(|&c| of[usize::from(c)]).sum::<usize>();
            sizes.push(1usize.saturating_add(sum(&sizes)).min(MOST + 1));
            depths.push(1 + op.children().iter().map(|&c| depths[usize::from(c)]).max().unwrap_or(0));
        }
        operands.sort_unstable();
        let all = operands.iter().enumerate().all(|(at, &operand)| at == operand);
        let fits = *sizes.last()? <= MOST && *depths.last()? <= MOST_NESTING;
        (all && fits).then(|| Program(nodes.into()))
    }

    /// Whether an operator may stand in a program.
    pub fn admits(op: &Op) -> bool {
        matches!(op, Op::Num(_) | Op::Int(_) | Op::Input(_) | Op::DType(_))
            || matches!(op, Op::Cast(_) | Op::Select(_) | Op::Softcap(_) | Op::GatedGelu(_))
            || op.signature().class.is_elementwise()
            || Program::reduces(op)
    }

    /// Whether an operator puts the elements of a row together.
    pub fn reduces(op: &Op) -> bool {
        matches!(op, Op::Sum(_) | Op::Mean(_) | Op::Max(_) | Op::Min(_) | Op::Prod(_))
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Op] {
        &self.0
    }

    /// How many operands it has.
    pub fn operands(&self) -> usize {
        self.0.iter().filter(|op| matches!(op, Op::Input(_))).count()
    }

    /// The types of its nodes, from its operands'.
    ///
    /// # Errors
    /// One line: which node does not fit.
    pub fn types(&self, operands: &[TensorType]) -> Result<Vec<Type>, String> {
        if operands.len() != self.operands() {
            return Err(format!("{self} takes {} operands, found {}", self.operands(), operands.len()));
        }
        let inputs = inputs(operands);
        let mut types: Vec<Type> = Vec::with_capacity(self.0.len());
        for op in self.0.iter() {
            let of = |id: Id| types[usize::from(id)].clone();
            let ty = infer::infer(op, &inputs, of, |id| self.0[usize::from(id)].clone())?;
            if let (Op::Cast([x, _]), Type::Tensor(to)) = (op, &ty) {
                let integer = matches!(of(*x), Type::Tensor(t) if t.dtype == DType::I32);
                if !integer || to.dtype != DType::F32 {
                    return Err(format!("{self} rounds: only i32 is cast, to f32"));
                }
            }
            if let Op::Sum([x, axis])
            | Op::Mean([x, axis])
            | Op::Max([x, axis])
            | Op::Min([x, axis])
            | Op::Prod([x, axis]) = op
            {
                let last = matches!(
                    (&self.0[usize::from(*axis)], of(*x)),
                    (Op::Int(a), Type::Tensor(t)) if *a + 1 == t.rank() as i64
                );
                if !last {
                    return Err(format!("{self} reduces an axis that is not the last"));
                }
            }
            types.push(ty);
        }
        Ok(types)
    }

    /// The same as a function of operands of these types.
    pub(crate) fn function(&self, operands: &[TensorType]) -> Function {
        let body = Expr::from(self.0.to_vec());
        let result = Id::from(self.0.len() - 1);
        Function { name: "map".into(), inputs: inputs(operands), body, outputs: vec![("y".into(), result)] }
    }

    fn write(&self, at: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = &self.0[at];
        if let Op::Input(id) = op {
            return write!(f, "${}", id.0);
        }
        if op.is_leaf() {
            return fmt::Display::fmt(op, f);
        }
        write!(f, "{op}[")?;
        for (i, &child) in op.children().iter().enumerate() {
            f.write_str(if i > 0 { "," } else { "" })?;
            self.write(usize::from(child), f)?;
        }
        f.write_str("]")
    }
}

fn inputs(operands: &[TensorType]) -> Vec<Input> {
    let named = |(at, ty): (usize, &TensorType)| Input {
        name: format!("x{at}"),
        ty: ty.clone(),
        kind: InputKind::Rows,
    };
    operands.iter().enumerate().map(named).collect()
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fn[")?;
        self.write(self.0.len() - 1, f)?;
        f.write_str("]")
    }
}

impl std::str::FromStr for Program {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let text = s.strip_prefix("fn[").and_then(|s| s.strip_suffix(']')).ok_or(())?;
        let mut parser = Parser { text, nodes: vec![], made: HashMap::new() };
        parser.term(0)?;
        if !parser.text.is_empty() {
            return Err(());
        }
        Program::new(parser.nodes).ok_or(())
    }
}

struct Parser<'a> {
    /// What is left.
    text: &'a str,
    nodes: Vec<Op>,
    made: HashMap<Op, Id>,
}

impl Parser<'_> {
    fn term(&mut self, depth: usize) -> Result<Id, ()> {
        let end = self.text.find(['[', ']', ',']).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(end);
        self.text = rest;
        if depth > MOST_NESTING || self.nodes.len() > MOST {
            return Err(());
        }
        let mut operands = vec![];
        while self.text.starts_with(if operands.is_empty() { '[' } else { ',' }) {
            self.text = &self.text[1..];
            operands.push(self.term(depth + 1)?);
        }
        if !operands.is_empty() {
            self.text = self.text.strip_prefix(']').ok_or(())?;
        }
        let op = match word.strip_prefix('$') {
            Some(number) if operands.is_empty() => Op::Input(InputId(number.parse().map_err(|_| ())?)),
            _ => Op::from_op(word, operands).map_err(|_| ())?,
        };
        Ok(*self.made.entry(op.clone()).or_insert_with(|| {
            self.nodes.push(op);
            Id::from(self.nodes.len() - 1)
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::types::Dim;

    #[test]
    fn programs_print_as_they_parse_and_share_what_is_equal() {
        for (text, nodes) in [
            ("fn[add[mul[$0,2.0],$1]]", 5),
            ("fn[div[exp[sub[$0,max[$0,1]]],sum[exp[sub[$0,max[$0,1]]],1]]]", 7),
            ("fn[cast[$0,f32]]", 3),
        ] {
            let program: Program = text.parse().unwrap();
            assert_eq!((program.to_string().as_str(), program.nodes().len()), (text, nodes));
        }
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for text in ["fn[]", "fn[$1]", "fn[linear[$0,$1,$2]]", "fn[add[$0]]", "fn[add[$0,$0]", "fn[neg[$0]]]"]
        {
            assert_eq!(text.parse::<Program>(), Err(()), "{text}");
        }
        let deep = format!("fn[{}$0{}]", "neg[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(deep.parse::<Program>(), Err(()));
    }

    #[test]
    fn types_are_those_of_the_operators() {
        let rows = |k| TensorType::new(DType::F32, vec![Dim::Rows, Dim::Fixed(k)]);
        let program: Program = "fn[sub[$0,mean[$0,1]]]".parse().unwrap();
        assert_eq!(program.types(&[rows(8)]).unwrap().pop(), Some(Type::Tensor(rows(8))));
        let first: Program = "fn[mean[$0,0]]".parse().unwrap();
        assert!(first.types(&[rows(8)]).unwrap_err().contains("not the last"));
        assert!(program.types(&[]).unwrap_err().contains("takes 1 operands, found 0"));
    }
}
