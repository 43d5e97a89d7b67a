//! Whether a match may be rewritten: predicates evaluated over e-class data.
//!
//! In: a graph, a match's substitution, a rule's predicates. Out: the substitution with what predicates bound, or which
//! predicate failed and, if asked, the values it saw. May add attributes to the graph; never merges classes.

use egg::{Id, Pattern, Searcher, Subst, Var};
use lapidary_ir::{Dim, Dims, InputKind, Num, Op, TensorType};

use super::predicate::{Amount, Binding, DTypePattern, DimPattern, Known, Predicate, ShapePattern};
use crate::analysis::Graph;

/// A match being judged.
pub(crate) struct Match<'a> {
    graph: &'a mut Graph,
    subst: Subst,
    names: Vec<(String, Dim)>,
}

impl<'a> Match<'a> {
    pub(crate) fn new(graph: &'a mut Graph, subst: &Subst) -> Match<'a> {
        Match { graph, subst: subst.clone(), names: vec![] }
    }

    /// Takes the predicates in order; the index of the first that fails.
    pub(crate) fn admit<'p>(
        &mut self,
        when: impl Iterator<Item = (usize, &'p Predicate)>,
    ) -> Result<(), usize> {
        for (at, predicate) in when {
            self.holds(predicate).ok_or(at)?;
        }
        Ok(())
    }

    /// The match's variables, those that predicates bound included.
    pub(crate) fn into_subst(self) -> Subst {
        self.subst
    }

    fn id(&self, var: Var) -> Option<Id> {
        self.subst.get(var).copied()
    }

    fn tensor(&self, var: Var) -> Option<&TensorType> {
        self.graph[self.id(var)?].data.ty.tensor()
    }

    fn leaf(&self, var: Var) -> Option<&Op> {
        self.graph[self.id(var)?].data.leaf.as_ref()
    }

    fn integer(&self, var: Var) -> Option<i64> {
        match self.leaf(var) {
            Some(Op::Int(n)) => Some(*n),
            _ => None,
        }
    }

    fn holds(&mut self, predicate: &Predicate) -> Option<()> {
        let yes = |holds: bool| holds.then_some(());
        match predicate {
            Predicate::Type { var, dtype, shape } => {
                let t = self.tensor(*var)?;
                let fits = match dtype {
                    DTypePattern::Any => true,
                    DTypePattern::Float => t.dtype.is_float(),
                    DTypePattern::Is(dtype) => t.dtype == *dtype,
                };
                yes(fits)?;
                let dims = t.shape.clone();
                self.fits(shape, &dims)
            }
            Predicate::Dims { var, shape } => match self.leaf(*var) {
                Some(Op::Dims(dims)) => {
                    let dims = dims.clone();
                    self.fits(shape, &dims)
                }
                _ => None,
            },
            Predicate::Constant(var) => yes(matches!(self.leaf(*var), Some(Op::Num(_)))),
            Predicate::Integer(var) => yes(matches!(self.leaf(*var), Some(Op::Int(_)))),
            Predicate::Compare { left, sign, right } => {
                yes(sign.holds(left.value(self)?, right.value(self)?))
            }
            Predicate::Near { a, b, relative } => {
                let (a, b) = (a.value(self)?, b.value(self)?);
                yes((a - b).abs() <= b.abs() * relative)
            }
            Predicate::Range { var, lo, hi } => {
                let range = self.graph[self.id(*var)?].data.range;
                yes(*lo <= range.lo && range.hi <= *hi)
            }
            Predicate::SameType(a, b) => {
                yes(self.graph[self.id(*a)?].data.ty == self.graph[self.id(*b)?].data.ty)
            }
            Predicate::LastAxis { axis, of } => {
                yes(self.integer(*axis)? + 1 == self.tensor(*of)?.rank() as i64)
            }
            Predicate::SingleUse(var) => {
                let class = self.id(*var)?;
                yes(self.graph.analysis.users(self.graph, class) <= 1)
            }
            Predicate::Weight(var) => {
                let class = self.graph.find(self.id(*var)?);
                yes(is_weight(self.graph, class))
            }
            Predicate::Matches { var, further } => self.also(*var, further.spellings()),
            Predicate::Let { var, value } => {
                let op = match value {
                    Binding::Number(amount) => Op::Num(Num::new(amount.value(self)? as f32)),
                    Binding::Integer(amount) => {
                        let n = amount.value(self)?;
                        yes(n.fract() == 0.0 && n.abs() < 1e15)?;
                        Op::Int(n as i64)
                    }
                    Binding::Dims(dims) => {
                        Op::Dims(Dims(dims.iter().map(|d| self.dim(d)).collect::<Option<_>>()?))
                    }
                };
                let id = self.graph.add(op);
                self.subst.insert(*var, id);
                Some(())
            }
        }
    }

    /// Whether a shape is as the pattern says; binds the names that it has first.
    fn fits(&mut self, shape: &ShapePattern, dims: &[Dim]) -> Option<()> {
        let n = shape.dims.len();
        let fits = if shape.rest.is_some() { dims.len() >= n } else { dims.len() == n };
        if !fits {
            return None;
        }
        let before = shape.rest.unwrap_or(n);
        let skipped = dims.len() - n;
        for (at, pattern) in shape.dims.iter().enumerate() {
            let dim = dims[if at < before { at } else { at + skipped }];
            let same = match pattern {
                DimPattern::Any => true,
                DimPattern::Fixed => dim.fixed().is_some(),
                DimPattern::Is(Amount::Name(name)) => match self.named(name) {
                    Some(bound) => bound == dim,
                    None => {
                        self.names.push((name.clone(), dim));
                        true
                    }
                },
                DimPattern::Rows | DimPattern::Keys | DimPattern::Is(_) => self.dim(pattern)? == dim,
            };
            same.then_some(())?;
        }
        Some(())
    }

    fn dim(&self, pattern: &DimPattern) -> Option<Dim> {
        match pattern {
            DimPattern::Rows => Some(Dim::Rows),
            DimPattern::Keys => Some(Dim::Keys),
            DimPattern::Is(Amount::Name(name)) => self.named(name),
            DimPattern::Is(amount) => {
                let n = amount.value(self)?;
                (n.fract() == 0.0 && (0.0..1e15).contains(&n)).then_some(Dim::Fixed(n as usize))
            }
            DimPattern::Any | DimPattern::Fixed => None,
        }
    }

    /// Matches the spellings of a further pattern against a variable's class and takes over the first match's
    /// variables.
    fn also(&mut self, var: Var, spellings: &[Pattern<Op>]) -> Option<()> {
        if !self.graph.clean {
            self.graph.rebuild();
        }
        let class = self.graph.find(self.id(var)?);
        for pattern in spellings {
            let found = pattern.search_eclass(self.graph, class);
            if let Some(more) = found.and_then(|m| m.substs.into_iter().next()) {
                for v in pattern.vars() {
                    self.subst.insert(v, more[v]);
                }
                return Some(());
            }
        }
        None
    }

    /// The values that a predicate saw: `?x: f32[T,8] in [-inf, inf], k = 8`.
    pub(crate) fn seen(&self, predicate: &Predicate) -> String {
        let terms = predicate.terms();
        let mut parts = Vec::new();
        let mut told = Vec::new();
        for var in terms.vars {
            if told.contains(&var) {
                continue;
            }
            told.push(var);
            let Some(id) = self.id(var) else { continue };
            let data = &self.graph[id].data;
            let mut text = match &data.leaf {
                Some(leaf) => format!("{var} is {leaf}"),
                None => format!("{var} is {}", data.ty),
            };
            if let Predicate::Range { .. } = predicate {
                text.push_str(&format!(" in [{}, {}]", data.range.lo, data.range.hi));
            } else if let Predicate::SingleUse(_) = predicate {
                text.push_str(&format!(", used {} times", self.graph.analysis.users(self.graph, id)));
            }
            parts.push(text);
        }
        for name in terms.names.into_iter().chain(terms.bound_names) {
            if let Some(dim) = self.named(&name) {
                let text = format!("{name} = {dim}");
                if !parts.contains(&text) {
                    parts.push(text);
                }
            }
        }
        parts.join(", ")
    }
}

impl Known for Match<'_> {
    fn number(&self, var: Var) -> Option<f64> {
        self.leaf(var)?.value()
    }

    fn named(&self, name: &str) -> Option<Dim> {
        self.names.iter().find(|(n, _)| n == name).map(|n| n.1)
    }

    fn shape(&self, var: Var) -> Option<&[Dim]> {
        self.tensor(var).map(|t| &t.shape[..])
    }
}

/// An input declared `weight`, as it is or cast.
fn is_weight(graph: &Graph, class: Id) -> bool {
    let declared = |op: &Op| {
        let Op::Input(id) = op else { return false };
        graph.analysis.inputs.get(id.0 as usize).is_some_and(|i| i.kind == InputKind::Weight)
    };
    graph[class]
        .iter()
        .any(|op| if let Op::Cast([x, _]) = op { graph[*x].iter().any(declared) } else { declared(op) })
}
