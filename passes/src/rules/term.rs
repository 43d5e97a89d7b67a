//! Patterns as terms: nodes of the language in which variables stand for operands.
//!
//! In: what the rule language's parser read, or code. Out: the spellings up to commutativity, what egg searches for,
//! text that parses back. Invariant: nodes lie in the order of the text, operands before what uses them, none shared;
//! so equal texts are equal terms.

use std::fmt::{self, Display};
use std::str::FromStr;

use egg::{ENodeOrVar, Id, Language, Pattern, PatternAst, RecExpr, Var};
use lapidary_ir::Op;

use super::text::{self, RuleError};

/// A term with variables.
#[derive(Clone, Debug, PartialEq)]
pub struct Term(PatternAst<Op>);

/// A node of a term: an operator over terms before it, or a variable.
pub type Node = ENodeOrVar<Op>;

/// The most spellings of one left side.
pub(crate) const MOST_SPELLINGS: usize = 4096;

impl Term {
    /// A variable.
    pub fn var(var: Var) -> Term {
        Term(RecExpr::from(vec![ENodeOrVar::Var(var)]))
    }

    /// An operator over terms, as many as it has operands; the ids of its own operands do not matter.
    pub fn new(op: &Op, operands: &[Term]) -> Term {
        let mut nodes: Vec<Node> = Vec::new();
        let mut roots = Vec::with_capacity(operands.len());
        for operand in operands {
            let from = nodes.len();
            let moved = |node: &Node| node.clone().map_children(|c| Id::from(usize::from(c) + from));
            nodes.extend(operand.0.as_ref().iter().map(moved));
            roots.push(Id::from(nodes.len() - 1));
        }
        let mut roots = roots.into_iter();
        let op = op
            .clone()
            .map_children(|_| roots.next().unwrap_or_else(|| unreachable!("an operand is missing")));
        nodes.push(ENodeOrVar::ENode(op));
        Term(RecExpr::from(nodes))
    }

    /// Its nodes; the last is the root.
    pub fn nodes(&self) -> &[Node] {
        self.0.as_ref()
    }

    /// What egg searches for and applies.
    pub fn pattern(&self) -> Pattern<Op> {
        Pattern::new(self.0.clone())
    }

    /// Its variables, in the order of the text, each once.
    pub fn vars(&self) -> Vec<Var> {
        let mut vars = Vec::new();
        for node in self.nodes() {
            if let ENodeOrVar::Var(var) = node
                && !vars.contains(var)
            {
                vars.push(*var);
            }
        }
        vars
    }

    /// How many spellings [`commuted`](Self::commuted) gives at most, without giving them.
    pub(crate) fn most_spellings(&self) -> usize {
        let commuting = self.nodes().iter().filter(|node| commutes(node)).count();
        1usize.checked_shl(commuting as u32).filter(|_| commuting < 60).unwrap_or(usize::MAX)
    }

    /// Every way to write it by swapping operands of `add`, `mul` and `and`, the given one first: so that the graph
    /// itself is never commuted.
    pub fn commuted(&self) -> Vec<Term> {
        let mut forms: Vec<Vec<Term>> = Vec::with_capacity(self.nodes().len());
        for node in self.nodes() {
            let op = match node {
                ENodeOrVar::Var(var) => {
                    forms.push(vec![Term::var(*var)]);
                    continue;
                }
                ENodeOrVar::ENode(op) => op,
            };
            let mut rows: Vec<Vec<Term>> = vec![vec![]];
            for &operand in op.children() {
                let of_operand = &forms[usize::from(operand)];
                let longer = |row: &Vec<Term>| -> Vec<Vec<Term>> {
                    of_operand.iter().map(|form| [&row[..], std::slice::from_ref(form)].concat()).collect()
                };
                rows = rows.iter().flat_map(longer).collect();
            }
            let mut all: Vec<Term> = rows.iter().map(|row| Term::new(op, row)).collect();
            if commutes(node) {
                let swapped = rows.iter().filter(|row| row[0] != row[1]);
                all.extend(swapped.map(|row| Term::new(op, &[row[1].clone(), row[0].clone()])));
            }
            let mut once: Vec<Term> = Vec::with_capacity(all.len());
            let mut seen = std::collections::HashSet::new();
            once.extend(all.into_iter().filter(|form| seen.insert(form.nodes().to_vec())));
            forms.push(once);
        }
        forms.pop().unwrap_or_default()
    }

    fn write(&self, at: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nodes()[at] {
            ENodeOrVar::Var(var) => var.fmt(f),
            ENodeOrVar::ENode(op) if op.is_leaf() => op.fmt(f),
            ENodeOrVar::ENode(op) => {
                write!(f, "({op}")?;
                for &operand in op.children() {
                    f.write_str(" ")?;
                    self.write(usize::from(operand), f)?;
                }
                f.write_str(")")
            }
        }
    }
}

/// Whether a node means the same with its two operands swapped.
fn commutes(node: &Node) -> bool {
    matches!(node, ENodeOrVar::ENode(Op::Add(_) | Op::Mul(_) | Op::And(_)))
}

impl From<&Pattern<Op>> for Term {
    /// The pattern's term; egg shares equal nodes, which are written out again.
    fn from(pattern: &Pattern<Op>) -> Term {
        let mut terms: Vec<Term> = Vec::new();
        for node in pattern.ast.as_ref() {
            terms.push(match node {
                ENodeOrVar::Var(var) => Term::var(*var),
                ENodeOrVar::ENode(op) => {
                    let operands: Vec<Term> =
                        op.children().iter().map(|&c| terms[usize::from(c)].clone()).collect();
                    Term::new(op, &operands)
                }
            });
        }
        terms.pop().unwrap_or_else(|| unreachable!("a pattern has a root"))
    }
}

impl Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(self.nodes().len() - 1, f)
    }
}

impl FromStr for Term {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Term, RuleError> {
        text::parse_term(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Term;

    fn commuted(text: &str) -> Vec<String> {
        text.parse::<Term>().unwrap().commuted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn commuting() {
        assert_eq!(
            commuted("(mul ?a (add ?b 1.0))"),
            [
                "(mul ?a (add ?b 1.0))",
                "(mul ?a (add 1.0 ?b))",
                "(mul (add ?b 1.0) ?a)",
                "(mul (add 1.0 ?b) ?a)",
            ]
        );
        assert_eq!(commuted("(mul ?x ?x)"), ["(mul ?x ?x)"]);
        assert_eq!(commuted("(sub ?a ?b)"), ["(sub ?a ?b)"]);
    }

    #[test]
    fn terms_print_as_they_parse_and_survive_sharing() {
        for text in ["?x", "(linear ?x (weights ?a ?b) (cap 2.0))", "(add (neg ?x) (reshape (neg ?x) [T,4]))"]
        {
            let term: Term = text.parse().unwrap();
            assert_eq!(term.to_string(), text);
            assert_eq!(Term::from(&term.pattern()), term);
        }
    }
}
