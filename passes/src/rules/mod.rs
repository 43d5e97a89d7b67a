//! Rewrite rules as data: one row each, in tables by what they are about.
//!
//! A rule has a name, a class, its algebra in words, left sides, a right side, and a condition over e-class data. Left
//! sides match up to the commutativity of `add`, `mul` and `and`: the pattern is expanded, the graph never is. The law:
//! directional, never worse under the cost model, no blanket commutativity or associativity.

mod algebra;
mod attention;
mod head;
mod linear;
mod norm;

use std::sync::OnceLock;

use egg::{Applier, Id, Pattern, Searcher, Subst, Symbol, Var};
use lapidary_ir::{DType, Num, Op, TensorType, Type};

use crate::analysis::Graph;
use crate::range::Range;

/// How much a rule may change a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Bit for bit the same value wherever it is finite.
    Exact,
    /// The same real number by another order or association of roundings.
    Reassociating,
    /// Another real number, within this relative bound.
    Approximate(f32),
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Class::Exact => f.write_str("exact"),
            Class::Reassociating => f.write_str("reassociating"),
            Class::Approximate(bound) => write!(f, "approximate ({bound:e})"),
        }
    }
}

/// A match being judged: reads e-class data, binds computed attributes for the right side.
pub struct Match<'a> {
    graph: &'a mut Graph,
    subst: &'a mut Subst,
}

/// Whether a match may be rewritten; may bind further variables of the right side.
pub type Condition = fn(&mut Match<'_>) -> bool;

/// How a rule finds what it rewrites.
pub enum Search {
    /// Any of these patterns, each up to commutativity, becomes the right side.
    Patterns {
        /// Left sides.
        lhs: &'static [&'static str],
        /// Right side.
        rhs: &'static str,
        /// Holds for a match to be rewritten.
        when: Condition,
    },
    /// A search over the whole graph, for what one pattern cannot say: classes to merge, pairwise.
    Group(fn(&mut Graph) -> Vec<(Id, Id)>),
}

/// A rewrite rule.
pub struct Rule {
    /// Name, unique.
    pub name: &'static str,
    /// How much it may change a result.
    pub class: Class,
    /// Its algebra and what it is for, one line.
    pub algebra: &'static str,
    /// What it matches and makes.
    pub search: Search,
}

/// A group of rules about one thing, what `--passes` names.
pub struct Group {
    /// Name, unique.
    pub name: &'static str,
    /// Its rules.
    pub rules: &'static [Rule],
}

/// Every group, in the order in which rules are tried. Add a group here, a rule in its file.
pub const GROUPS: &[Group] = &[
    Group { name: "algebra", rules: algebra::RULES },
    Group { name: "norm", rules: norm::RULES },
    Group { name: "linear", rules: linear::RULES },
    Group { name: "attention", rules: attention::RULES },
    Group { name: "head", rules: head::RULES },
];

/// Every rule, in order.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    GROUPS.iter().flat_map(|g| g.rules)
}

/// The rule of this name.
pub fn find(name: &str) -> Option<&'static Rule> {
    all().find(|r| r.name == name)
}

/// No condition.
pub(crate) fn always(_: &mut Match<'_>) -> bool {
    true
}

impl Match<'_> {
    fn id(&self, var: &str) -> Id {
        self.subst[parse_var(var)]
    }

    /// Whether the matching alternative has this variable.
    pub fn bound(&self, var: &str) -> bool {
        self.subst.get(parse_var(var)).is_some()
    }

    /// The tensor type of a variable.
    pub fn tensor(&self, var: &str) -> Option<TensorType> {
        match &self.graph[self.id(var)].data.ty {
            Type::Tensor(t) => Some(t.clone()),
            _ => None,
        }
    }

    /// The value range of a variable.
    pub fn range(&self, var: &str) -> Range {
        self.graph[self.id(var)].data.range
    }

    /// The leaf that a variable is.
    pub fn leaf(&self, var: &str) -> Option<Op> {
        self.graph[self.id(var)].data.leaf.clone()
    }

    /// The number that a variable is.
    pub fn num(&self, var: &str) -> Option<f32> {
        match self.leaf(var) {
            Some(Op::Num(n)) => Some(n.value()),
            _ => None,
        }
    }

    /// The integer that a variable is.
    pub fn int(&self, var: &str) -> Option<i64> {
        match self.leaf(var) {
            Some(Op::Int(n)) => Some(n),
            _ => None,
        }
    }

    /// Whether two variables have the same type.
    pub fn same_type(&self, a: &str, b: &str) -> bool {
        self.graph[self.id(a)].data.ty == self.graph[self.id(b)].data.ty
    }

    /// Whether `axis` is the last axis of the tensor `x`.
    pub fn is_last_axis(&self, x: &str, axis: &str) -> bool {
        matches!((self.tensor(x), self.int(axis)), (Some(t), Some(a)) if a + 1 == t.rank() as i64)
    }

    /// Binds a variable of the right side to a number.
    pub fn bind_num(&mut self, var: &str, value: f32) {
        let id = self.graph.add(Op::Num(Num::new(value)));
        self.subst.insert(parse_var(var), id);
    }

    /// Matches a further pattern against a variable's class, up to commutativity, and takes over its first match's
    /// variables.
    pub fn also(&mut self, var: &str, pattern: &str) -> bool {
        if !self.graph.clean {
            self.graph.rebuild();
        }
        let class = self.graph.find(self.id(var));
        for pattern in commuted(pattern) {
            let pattern = parse_pattern(&pattern);
            let found = pattern.search_eclass(self.graph, class);
            let first = found.and_then(|m| m.substs.into_iter().next());
            if let Some(more) = first {
                for v in pattern.vars() {
                    self.subst.insert(v, more[v]);
                }
                return true;
            }
        }
        false
    }
}

/// Whether a tensor is a matrix of fixed shape: what a linear kernel takes as weights.
pub(crate) fn is_weight(t: &TensorType) -> bool {
    t.rank() == 2 && t.dtype.is_float() && t.shape.iter().all(|d| d.fixed().is_some())
}

/// Whether two numbers are the same constant, up to how it was rounded.
pub(crate) fn about(a: f32, b: f64) -> bool {
    (f64::from(a) - b).abs() <= b.abs() * 2e-4
}

/// Whether a number is 1/n up to rounding.
pub(crate) fn is_reciprocal(r: f32, n: f32) -> bool {
    (f64::from(r) * f64::from(n) - 1.0).abs() <= 2e-7
}

pub(crate) const F32: DType = DType::F32;

fn parse_var(var: &str) -> Var {
    var.parse().unwrap_or_else(|_| unreachable!("`{var}` is no variable"))
}

fn parse_pattern(text: &str) -> Pattern<Op> {
    text.parse().unwrap_or_else(|e| unreachable!("pattern `{text}`: {e}"))
}

/// Rules' patterns, parsed once.
pub(crate) struct Prepared {
    pub(crate) rule: &'static Rule,
    pub(crate) lhs: Vec<Pattern<Op>>,
    rhs: Option<Pattern<Op>>,
}

pub(crate) fn prepared() -> &'static [Prepared] {
    static PREPARED: OnceLock<Vec<Prepared>> = OnceLock::new();
    PREPARED.get_or_init(|| {
        all()
            .map(|rule| match &rule.search {
                Search::Patterns { lhs, rhs, .. } => Prepared {
                    rule,
                    lhs: lhs.iter().flat_map(|l| commuted(l)).map(|l| parse_pattern(&l)).collect(),
                    rhs: Some(parse_pattern(rhs)),
                },
                Search::Group(_) => Prepared { rule, lhs: vec![], rhs: None },
            })
            .collect()
    })
}

impl Prepared {
    /// Applies the rule to one match; whether the graph changed.
    pub(crate) fn apply(&self, graph: &mut Graph, class: Id, subst: &Subst, lhs: &Pattern<Op>) -> bool {
        let (Search::Patterns { when, .. }, Some(rhs)) = (&self.rule.search, &self.rhs) else {
            unreachable!("only pattern rules have matches")
        };
        let mut subst = subst.clone();
        if !when(&mut Match { graph, subst: &mut subst }) {
            return false;
        }
        let name = Symbol::from(self.rule.name);
        !rhs.apply_one(graph, class, &subst, Some(&lhs.ast), name).is_empty()
    }
}

/// Every way to write a pattern by swapping operands of `add`, `mul` and `and`, the given one first.
pub(crate) fn commuted(pattern: &str) -> Vec<String> {
    enum Term {
        Leaf(String),
        Node(Vec<Term>),
    }
    fn parse(tokens: &mut std::vec::IntoIter<String>) -> Term {
        match tokens.next() {
            Some(t) if t == "(" => {
                let mut items = vec![];
                while tokens.as_slice().first().is_some_and(|t| t != ")") {
                    items.push(parse(tokens));
                }
                tokens.next();
                Term::Node(items)
            }
            Some(t) => Term::Leaf(t),
            None => unreachable!("unbalanced pattern"),
        }
    }
    fn spell(term: &Term) -> Vec<String> {
        let items = match term {
            Term::Leaf(text) => return vec![text.clone()],
            Term::Node(items) => items,
        };
        let mut rows: Vec<Vec<String>> = vec![vec![]];
        for item in items {
            let forms = spell(item);
            rows = rows
                .iter()
                .flat_map(|r| forms.iter().map(move |f| [&r[..], std::slice::from_ref(f)].concat()))
                .collect();
        }
        let commutes =
            rows.first().is_some_and(|r| r.len() == 3 && matches!(r[0].as_str(), "add" | "mul" | "and"));
        let mut all: Vec<String> = rows.iter().map(|r| format!("({})", r.join(" "))).collect();
        if commutes {
            all.extend(rows.iter().filter(|r| r[1] != r[2]).map(|r| format!("({} {} {})", r[0], r[2], r[1])));
        }
        all
    }
    let spaced = pattern.replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut forms = spell(&parse(&mut tokens.into_iter()));
    let mut seen = std::collections::HashSet::new();
    forms.retain(|f| seen.insert(f.clone()));
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_patterns_parse() {
        let mut names = std::collections::HashSet::new();
        for rule in all() {
            assert!(names.insert(rule.name), "{} twice", rule.name);
            assert!(rule.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", rule.name);
        }
        assert_eq!(prepared().len(), names.len());
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
}
