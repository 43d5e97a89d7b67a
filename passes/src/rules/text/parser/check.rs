//! What must hold of a rule as a whole: every variable is bound, every predicate applies, and places agree on what a
//! variable is.

use egg::Var;
use lapidary_ir::Kinds;

use super::super::RuleError;
use super::super::lexer::Token;
use super::{Node, Parser, Placed};
use crate::rules::applicable;
use crate::rules::predicate::{Binding, Predicate};
use crate::rules::term::MOST_SPELLINGS;

impl<'a> Parser<'a> {
    pub(super) fn check(
        &self,
        left: &[Placed<'a>],
        right: &Placed<'a>,
        further: &[Placed<'a>],
        when: &[(Predicate, Token<'a>)],
    ) -> Result<(), RuleError> {
        let predicates: Vec<Predicate> = when.iter().map(|(p, _)| p.clone()).collect();
        let mut reached = vec![false; when.len()];
        for side in left {
            self.check_spellings(side)?;
        }
        for side in left {
            let mut vars = vec![];
            collect_vars(side, &mut vars);
            let known: Vec<Var> = vars.iter().map(|(v, _)| *v).collect();
            let bound = applicable(&known, &predicates);
            bound.when.iter().for_each(|&at| reached[at] = true);
            let mut wanted = vec![];
            collect_vars(right, &mut wanted);
            if let Some((var, token)) = wanted.iter().find(|(v, _)| !bound.vars.contains(v)) {
                return Err(self.error(
                    *token,
                    format!("`{var}` is bound by no predicate, nor by the left side `{}`", side.term()),
                ));
            }
        }
        if let Some(at) = reached.iter().position(|r| !r) {
            let terms = predicates[at].terms();
            let all: Vec<String> = terms.vars.iter().map(ToString::to_string).chain(terms.names).collect();
            let reason = format!(
                "`{}` applies to no left side: none of them and no predicate before it binds all of {}",
                predicates[at],
                all.join(", ")
            );
            return Err(self.error(when[at].1, reason));
        }
        // Kinds: what a variable is by each of its places.
        let mut of_vars: Vec<(Var, Kinds)> = vec![];
        for term in left.iter().chain(further).chain([right]) {
            self.kinds(term, &mut of_vars)?;
        }
        for (predicate, token) in when {
            let (var, kinds) = match predicate {
                Predicate::Type { var, .. } => (*var, Kinds::TENSOR.or(Kinds::CACHE)),
                Predicate::Constant(var) => (*var, Kinds::NUMBER),
                Predicate::Integer(var) | Predicate::LastAxis { axis: var, .. } => (*var, Kinds::INTEGER),
                Predicate::Dims { var, .. } => (*var, Kinds::DIMS),
                Predicate::Let { var, value } => match value {
                    Binding::Number(_) => (*var, Kinds::NUMBER),
                    Binding::Integer(_) => (*var, Kinds::INTEGER),
                    Binding::Dims(_) => (*var, Kinds::DIMS),
                },
                Predicate::Compare { .. }
                | Predicate::Near { .. }
                | Predicate::Range { .. }
                | Predicate::SameType(..)
                | Predicate::SingleUse(_)
                | Predicate::Weight(_)
                | Predicate::Matches { .. } => continue,
            };
            self.narrow(var, kinds, *token, &mut of_vars)?;
        }
        Ok(())
    }

    pub(super) fn check_spellings(&self, side: &Placed<'a>) -> Result<(), RuleError> {
        let n = side.term().most_spellings();
        if n <= MOST_SPELLINGS {
            return Ok(());
        }
        let reason = format!("{n} spellings up to commutativity: expected at most {MOST_SPELLINGS}");
        Err(self.error(side.token, reason))
    }

    fn narrow(
        &self,
        var: Var,
        kinds: Kinds,
        token: Token<'a>,
        of_vars: &mut Vec<(Var, Kinds)>,
    ) -> Result<(), RuleError> {
        match of_vars.iter_mut().find(|(v, _)| *v == var) {
            Some((_, known)) => {
                let both = known.and(kinds);
                if both.is_empty() {
                    let reason =
                        format!("`{var}` is {} here, {} elsewhere", kinds.describe(), known.describe());
                    return Err(self.error(token, reason));
                }
                *known = both;
            }
            None => of_vars.push((var, kinds)),
        }
        Ok(())
    }

    fn kinds(&self, term: &Placed<'a>, of_vars: &mut Vec<(Var, Kinds)>) -> Result<(), RuleError> {
        let Node::Op(op, operands) = &term.node else { return Ok(()) };
        let places = op.signature().operands;
        for (index, operand) in operands.iter().enumerate() {
            let place = places.kinds(index).unwrap_or(Kinds::ALL);
            match &operand.node {
                Node::Var(var) => self.narrow(*var, place, operand.token, of_vars)?,
                Node::Op(inner, _) => {
                    let found = inner.signature().result;
                    // A computed tensor may fold to a number, and a number is a tensor.
                    if found.and(place).is_empty() {
                        let reason =
                            format!("`{op}` takes {} here, found {}", place.describe(), found.describe());
                        return Err(self.error(operand.token, reason));
                    }
                    self.kinds(operand, of_vars)?;
                }
            }
        }
        Ok(())
    }
}

fn collect_vars<'a>(term: &Placed<'a>, vars: &mut Vec<(Var, Token<'a>)>) {
    match &term.node {
        Node::Var(var) => {
            if vars.iter().all(|(v, _)| v != var) {
                vars.push((*var, term.token));
            }
        }
        Node::Op(_, operands) => operands.iter().for_each(|o| collect_vars(o, vars)),
    }
}
