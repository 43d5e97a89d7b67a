//! Functions on which a rule fires: a left side whose variables have become inputs and attributes.
//!
//! In: a rule, one of its left sides, random numbers. Out: a verified function of that term. Types are chosen on the
//! way down, from what predicates and operators expect of a place, and tried by inference on the way up; what does not
//! fit is thrown away, and the next attempt begins anew.

mod expect;
mod inputs;
mod variables;

use std::collections::HashMap;

use egg::{ENodeOrVar, Id, Language, Var};
use lapidary_ir::{Builder, Dim, Function, Kinds, Op, TensorType, Type, infer, verify};

use super::values::Random;
use crate::rules::{self, Predicate, Rule, Search};

/// A pattern as a tree.
#[derive(Clone, Debug)]
enum Tree {
    Var(Var),
    Node(Op, Vec<Tree>),
}

fn tree(pattern: &rules::Term) -> Tree {
    fn at(nodes: &[rules::Node], id: usize) -> Tree {
        match &nodes[id] {
            ENodeOrVar::Var(var) => Tree::Var(*var),
            ENodeOrVar::ENode(op) => {
                Tree::Node(op.clone(), op.children().iter().map(|&c| at(nodes, usize::from(c))).collect())
            }
        }
    }
    at(pattern.nodes(), pattern.nodes().len() - 1)
}

/// The tree of an example in a native search's table.
fn example(text: &&str) -> Tree {
    tree(&text.parse().unwrap_or_else(|e| unreachable!("example `{text}`: {e}")))
}

impl Tree {
    /// The same with a variable replaced.
    fn with(&self, var: Var, by: &Tree) -> Tree {
        match self {
            Tree::Var(v) if *v == var => by.clone(),
            Tree::Var(_) => self.clone(),
            Tree::Node(op, operands) => {
                Tree::Node(op.clone(), operands.iter().map(|o| o.with(var, by)).collect())
            }
        }
    }

    fn kinds(&self, of: &mut HashMap<Var, Kinds>) {
        let Tree::Node(op, operands) = self else { return };
        for (index, operand) in operands.iter().enumerate() {
            let place = op.signature().operands.kinds(index).unwrap_or(Kinds::ALL);
            if let Tree::Var(var) = operand {
                let known = of.entry(*var).or_insert(Kinds::ALL);
                *known = known.and(place);
            }
            operand.kinds(of);
        }
    }
}

/// How large a generated function's dims are.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// The longest fixed axis of a tensor that no predicate fixes.
    pub longest: usize,
}

/// Left sides that functions can be made of: a rule's own, or the examples of a native search.
pub fn sides(rule: &Rule) -> usize {
    match &rule.search {
        Search::Patterns { lhs, .. } => lhs.len(),
        Search::Native(native) => native.examples.len(),
    }
}

/// An attempt at a function on which a left side matches; most attempts fail.
///
/// # Errors
/// What inference refused first, if it was that.
pub fn attempt(
    rule: &Rule,
    side: usize,
    size: Size,
    random: &mut Random,
) -> Result<Function, Option<String>> {
    let (mut roots, when): (Vec<Tree>, &[Predicate]) = match &rule.search {
        Search::Patterns { lhs, when, .. } => (lhs.get(side).map(tree).into_iter().collect(), when),
        Search::Native(native) => {
            (native.examples.get(side).into_iter().flat_map(|e| e.iter().map(example)).collect(), &[])
        }
    };
    for predicate in when {
        if let Predicate::Matches { var, further } = predicate {
            let pattern = tree(further.term());
            roots = roots.iter().map(|root| root.with(*var, &pattern)).collect();
        }
    }
    let mut kinds = HashMap::new();
    roots.iter().for_each(|root| root.kinds(&mut kinds));
    let builder = Builder::new(&rule.name.replace('-', "_"));
    let mut attempt = Attempt {
        builder,
        types: vec![],
        kinds,
        when,
        vars: HashMap::new(),
        names: HashMap::new(),
        caches: vec![],
        size,
        random,
        refused: None,
    };
    let built: Option<Vec<Id>> = roots.iter().map(|root| attempt.build(root, None)).collect();
    let refused = attempt.refused.take();
    built.and_then(|roots| attempt.finish(&roots)).ok_or(refused)
}

struct Attempt<'a> {
    builder: Builder,
    /// Of the builder's nodes.
    types: Vec<Type>,
    kinds: HashMap<Var, Kinds>,
    when: &'a [Predicate],
    vars: HashMap<Var, Id>,
    names: HashMap<String, Dim>,
    /// Names of caches and the appends to them.
    caches: Vec<(String, Id)>,
    size: Size,
    random: &'a mut Random,
    /// What inference refused first.
    refused: Option<String>,
}

impl Attempt<'_> {
    fn finish(mut self, roots: &[Id]) -> Option<Function> {
        let mut results = vec![];
        for &root in roots {
            results.push(match &self.types[usize::from(root)] {
                Type::Tensor(_) => root,
                Type::Tuple(_) => {
                    let index = self.add(Op::Int(0))?;
                    self.add(Op::Output([index, root]))?
                }
                Type::Prologue(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => return None,
            });
        }
        for (name, append) in std::mem::take(&mut self.caches) {
            self.builder.output(&name, append);
        }
        for (at, &result) in results.iter().enumerate() {
            if self.builder.function().outputs.iter().all(|(_, id)| *id != result) {
                let name = if roots.len() > 1 { format!("y{at}") } else { "y".into() };
                self.builder.output(&name, result);
            }
        }
        let function = self.builder.finish();
        verify::verify(&function).is_ok().then_some(function)
    }

    /// Adds a node, if it is well-typed.
    fn add(&mut self, op: Op) -> Option<Id> {
        let body = &self.builder.function().body;
        let ty = match infer::infer(
            &op,
            &self.builder.function().inputs,
            |id| self.types[usize::from(id)].clone(),
            |id| body[id].clone(),
        ) {
            Ok(ty) => ty,
            Err(reason) => {
                self.refused.get_or_insert(format!("`{op}`: {reason}"));
                return None;
            }
        };
        let id = self.builder.add(op);
        if usize::from(id) == self.types.len() {
            self.types.push(ty);
        }
        Some(id)
    }

    fn tensor(&self, id: Id) -> Option<TensorType> {
        self.types[usize::from(id)].tensor_or_prologue().cloned()
    }

    fn chance(&mut self, of: usize) -> bool {
        self.random.below(of) == 0
    }

    fn build(&mut self, term: &Tree, expected: Option<TensorType>) -> Option<Id> {
        match term {
            Tree::Var(var) => {
                if let Some(&id) = self.vars.get(var) {
                    return Some(id);
                }
                let id = self.choose(*var, expected)?;
                self.vars.insert(*var, id);
                Some(id)
            }
            Tree::Node(op, operands) => {
                // Attributes first: they say what is expected of the rest.
                let mut ids: Vec<Option<Id>> = vec![None; operands.len()];
                for (at, operand) in operands.iter().enumerate() {
                    if matches!(operand, Tree::Node(_, inner) if inner.is_empty()) {
                        ids[at] = Some(self.build(operand, None)?);
                    }
                }
                for (at, operand) in operands.iter().enumerate() {
                    if ids[at].is_none() {
                        let expected = self.expect(op, at, &ids, expected.as_ref());
                        ids[at] = Some(self.build(operand, expected)?);
                    }
                }
                let mut ids = ids.into_iter().flatten();
                let node = op.clone().map_children(|_| ids.next().unwrap_or(Id::from(0)));
                let id = self.add(node.clone())?;
                if let Op::Append([cache, _]) = node
                    && let Op::Input(input) = self.builder.function().body[cache]
                {
                    let name = self.builder.function().inputs[input.0 as usize].name.clone();
                    self.caches.push((name, id));
                }
                Some(id)
            }
        }
    }
}
