//! Functions on which a rule fires: a left side whose variables have become inputs and attributes.
//!
//! In: a rule, one of its left sides, random numbers. Out: a verified function of that term. Types are chosen on the
//! way down, from what predicates and operators expect of a place, and tried by inference on the way up; what does not
//! fit is thrown away, and the next attempt begins anew.

use std::collections::HashMap;

use egg::{ENodeOrVar, Id, Language, Var};
use lapidary_ir::{
    Builder, DType, Dim, Dims, Function, InputKind, Kinds, Num, Op, TensorType, Type, infer, verify,
};

use super::values::Random;
use crate::rules::predicate::{Amount, Arithmetic, DTypePattern, DimPattern, ShapePattern};
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
                _ => return None,
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
        match &self.types[usize::from(id)] {
            Type::Tensor(t) | Type::Prologue(t) => Some(t.clone()),
            _ => None,
        }
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

    /// What an operand is likely to be, from the operands before it and from what is expected of the whole.
    fn expect(
        &mut self,
        op: &Op,
        at: usize,
        ids: &[Option<Id>],
        whole: Option<&TensorType>,
    ) -> Option<TensorType> {
        let known = |i: usize| ids.get(i).copied().flatten().and_then(|id| self.tensor(id));
        let first = known(0);
        let f32s = |shape: Vec<Dim>| Some(TensorType::new(DType::F32, shape));
        let last = |t: &TensorType| t.shape.last().copied();
        match (op, at) {
            (Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Pow(_) | Op::Lt(_) | Op::Le(_), 1) => {
                let mut t =
                    whole.cloned().filter(|_| first.as_ref().is_none_or(|f| f.rank() < 2)).or(first)?;
                // A number goes with anything.
                if t.rank() == 0 {
                    return None;
                }
                let drop = self.random.below(2 * t.rank().max(1));
                t.shape.0.drain(..drop.min(t.rank()));
                Some(t)
            }
            (Op::Select(_), 1 | 2) => whole.cloned().or(first.and_then(|t| f32s(t.shape.0))),
            (Op::Matmul(_), 0) => {
                let inner = self.length();
                let mut t = match whole.filter(|t| t.rank() >= 2) {
                    Some(t) => t.clone(),
                    None => TensorType::new(DType::F32, vec![Dim::Rows, inner]),
                };
                if let Some(k) = t.shape.0.last_mut() {
                    *k = inner;
                }
                Some(t)
            }
            (Op::Matmul(_), 1) => {
                let mut shape = first?.shape.0;
                let n = shape.len();
                if n < 2 {
                    return None;
                }
                shape[n - 2] = shape[n - 1];
                shape[n - 1] = match whole.filter(|t| t.rank() == n).and_then(last) {
                    Some(d) => d,
                    None => self.length(),
                };
                f32s(shape)
            }
            (Op::Transpose(_), 0) => {
                let axes = match ids.get(1).copied().flatten().map(|id| &self.builder.function().body[id]) {
                    Some(Op::Dims(d)) => d.permutation()?,
                    _ => return None,
                };
                let whole = whole.filter(|t| t.rank() == axes.len());
                let mut shape = vec![Dim::Fixed(1); axes.len()];
                for (i, &a) in axes.iter().enumerate() {
                    shape[a] = match whole {
                        Some(t) => t.shape[i],
                        None => self.length(),
                    };
                }
                f32s(shape)
            }
            (Op::Cast(_), 0) => whole.map(|t| TensorType {
                dtype: [DType::F32, DType::BF16, DType::F16, DType::I32][self.random.below(4)],
                ..t.clone()
            }),
            (Op::Concat(_), 0) => whole.map(|t| {
                let mut t = t.clone();
                let axis = ids.get(2).copied().flatten().map(|id| &self.builder.function().body[id]);
                if let Some(Op::Int(axis)) = axis
                    && let Some(Dim::Fixed(n)) = t.shape.0.get_mut(*axis as usize)
                {
                    *n = (*n / 2).max(1);
                }
                t
            }),
            (Op::Concat(_), 1) => first,
            (Op::Gather(_) | Op::Embedding(_), 0) => {
                let (v, k) = (self.length(), self.length());
                let dtype = [DType::F32, DType::BF16, DType::F16][self.random.below(3)];
                Some(TensorType::new(dtype, vec![v, k]))
            }
            (Op::Gather(_) | Op::Embedding(_), 1) => Some(TensorType::new(DType::I32, vec![Dim::Rows])),
            (Op::RmsNorm(_) | Op::NormPrologue(_), 1) => f32s(vec![last(&first?)?]),
            (Op::AddRmsNorm(_), 1) | (Op::GatedGelu(_), 1) => first,
            (Op::AddRmsNorm(_), 2) => f32s(vec![last(&first?)?]),
            (Op::Linear(_), 0) => {
                let k = self.length();
                let rows = if self.chance(3) { self.length() } else { Dim::Rows };
                f32s(vec![rows, k])
            }
            // Handed on to each weight.
            (Op::Linear(_), 1) => {
                let n = self.length();
                f32s(vec![n, last(&first?)?])
            }
            (Op::Weights(_), _) => {
                ids.first().copied().flatten().and_then(|id| self.tensor(id)).or(whole.cloned())
            }
            (Op::Rope(_), 1) | (Op::WindowMask(_) | Op::Softmax(_), 1) => {
                let t = first?;
                let axis = if matches!(op, Op::Rope(_)) { 1 } else { t.rank().checked_sub(2)? };
                Some(TensorType::new(DType::I32, vec![*t.shape.get(axis)?]))
            }
            (Op::Rope(_), 2) => match last(&first?)? {
                Dim::Fixed(d) => f32s(vec![Dim::Fixed((d / 2).max(1))]),
                Dim::Rows | Dim::Keys => None,
            },
            (Op::WindowMask(_), 0) => {
                whole.cloned().or_else(|| f32s(vec![Dim::Fixed(1), Dim::Rows, Dim::Keys]))
            }
            (Op::Softmax(_), 0) => whole.cloned().or_else(|| {
                let n = self.length();
                if self.chance(2) { f32s(vec![Dim::Rows, Dim::Keys]) } else { f32s(vec![Dim::Rows, n]) }
            }),
            (Op::Scores(_) | Op::Attention(_), 0) => {
                let (g, d) = (self.length(), self.length());
                let (Dim::Fixed(g), repeat) = (g, 1 + self.random.below(2)) else { return None };
                f32s(vec![Dim::Fixed(g * repeat), Dim::Rows, d])
            }
            (Op::Scores(_) | Op::Attention(_), 1) => {
                let mut shape = first?.shape.0;
                if let [Dim::Fixed(h), keys, _] = &mut shape[..] {
                    if *h % 2 == 0 && self.random.below(2) == 0 {
                        *h /= 2;
                    }
                    *keys = Dim::Keys;
                }
                f32s(shape)
            }
            (Op::Attention(_), 2) => known(1),
            (Op::Attention(_), 3) => Some(TensorType::new(DType::I32, vec![*first?.shape.get(1)?])),
            (Op::Append(_), 1) => {
                let mut t = first?;
                if let Some(keys) = t.shape.0.get_mut(1) {
                    *keys = Dim::Rows;
                }
                Some(TensorType { dtype: DType::F32, ..t })
            }
            (Op::Slice(_) | Op::Sum(_) | Op::Mean(_) | Op::Max(_) | Op::Argmax(_), 0) => {
                let k = self.length();
                f32s(if self.chance(2) { vec![Dim::Rows, k] } else { vec![self.length(), Dim::Rows, k] })
            }
            _ => whole.cloned(),
        }
    }

    /// A fixed dim.
    fn length(&mut self) -> Dim {
        Dim::Fixed(1 + self.random.below(self.size.longest))
    }

    fn shape(&mut self) -> Vec<Dim> {
        let rank = self.random.below(4);
        (0..rank).map(|i| if i + 2 == rank && !self.chance(3) { Dim::Rows } else { self.length() }).collect()
    }

    // ---- variables ----

    fn choose(&mut self, var: Var, expected: Option<TensorType>) -> Option<Id> {
        let mut kinds = self.kinds.get(&var).copied().unwrap_or(Kinds::TENSOR);
        for predicate in self.when {
            match predicate {
                Predicate::Constant(v) if *v == var => kinds = kinds.and(Kinds::NUMBER),
                Predicate::Integer(v) if *v == var => kinds = kinds.and(Kinds::INTEGER),
                Predicate::LastAxis { axis, of } if *axis == var => {
                    let rank = self.vars.get(of).and_then(|&id| self.tensor(id)).map(|t| t.rank());
                    if let Some(rank) = rank {
                        return self.add(Op::Int(rank as i64 - 1));
                    }
                }
                Predicate::Range { var: v, lo, hi } if *v == var => {
                    return self.bounded(expected, *lo, *hi);
                }
                Predicate::Dims { var: v, shape } if *v == var => {
                    let dims = self.dims_of(shape, None)?;
                    return self.add(Op::Dims(Dims(dims)));
                }
                _ => {}
            }
        }
        let options: Vec<Kinds> = [
            Kinds::COMPUTED,
            Kinds::NUMBER,
            Kinds::INTEGER,
            Kinds::NONE,
            Kinds::DIMS,
            Kinds::DTYPE,
            Kinds::MODE,
            Kinds::WEIGHTS,
            Kinds::EPILOGUE,
            Kinds::PROLOGUE,
            Kinds::CACHE,
        ]
        .into_iter()
        .filter(|k| !kinds.and(*k).is_empty())
        .collect();
        let mut kind = options[self.random.below(options.len())];
        // Mostly tensors where they may stand; a cache wherever it may.
        if options.contains(&Kinds::CACHE) {
            kind = Kinds::CACHE;
        } else if options.contains(&Kinds::COMPUTED) && !self.chance(5) {
            kind = Kinds::COMPUTED;
        }
        match kind {
            Kinds::NUMBER => {
                let n = self.number(var);
                self.add(Op::Num(Num::new(n)))
            }
            Kinds::INTEGER => {
                let n = self.integer(var);
                self.add(Op::Int(n))
            }
            Kinds::NONE => self.add(Op::None),
            Kinds::DIMS => {
                let mut dims = expected.map_or_else(|| self.shape(), |t| t.shape.0);
                if self.chance(2) {
                    dims = (0..dims.len()).rev().map(Dim::Fixed).collect();
                }
                self.add(Op::Dims(Dims(dims)))
            }
            Kinds::DTYPE => {
                let dtype = [DType::F32, DType::BF16, DType::F16][self.random.below(3)];
                self.add(Op::DType(dtype))
            }
            Kinds::MODE => {
                let mode = if self.chance(2) { Op::Online } else { Op::Bounded };
                self.add(mode)
            }
            Kinds::EPILOGUE => match self.random.below(2) {
                0 => self.add(Op::Store),
                _ => {
                    let cap = self.add(Op::Num(Num::new(2.0)))?;
                    self.add(Op::Cap(cap))
                }
            },
            Kinds::WEIGHTS => {
                let t = expected.filter(|t| t.rank() == 2)?;
                let w = self.input(TensorType { dtype: DType::F32, ..t }, false)?;
                self.add(Op::Weights(vec![w].into()))
            }
            Kinds::CACHE => {
                let (g, d) = (self.length(), self.length());
                let dtype = [DType::F32, DType::BF16, DType::F16][self.random.below(3)];
                self.input(TensorType::new(dtype, vec![g, Dim::Keys, d]), true)
            }
            _ => {
                let t = self.tensor_type(var, expected)?;
                self.input(t, false)
            }
        }
    }

    /// An f32 tensor whose values lie in an interval by the analysis of ranges: a softcap about its middle.
    fn bounded(&mut self, expected: Option<TensorType>, lo: f64, hi: f64) -> Option<Id> {
        let (lo, hi) = (lo.max(-1e30), hi.min(1e30));
        let (middle, half) = ((lo + hi) / 2.0, (hi - lo) / 2.0 * 0.99);
        let t = expected.unwrap_or_else(|| TensorType::new(DType::F32, self.shape()));
        let x = self.input(t, false)?;
        let half = self.add(Op::Num(Num::new(half as f32)))?;
        let capped = self.add(Op::Softcap([half, x]))?;
        if middle == 0.0 {
            return Some(capped);
        }
        let middle = self.add(Op::Num(Num::new(middle as f32)))?;
        self.add(Op::Add([capped, middle]))
    }

    /// A type that the predicates on a variable allow.
    fn tensor_type(&mut self, var: Var, expected: Option<TensorType>) -> Option<TensorType> {
        for predicate in self.when {
            if let Predicate::SameType(a, b) = predicate {
                let other = if *a == var {
                    b
                } else if *b == var {
                    a
                } else {
                    continue;
                };
                if let Some(t) = self.vars.get(other).and_then(|&id| self.tensor(id)) {
                    return Some(t);
                }
            }
        }
        let mut t = match &expected {
            Some(t) => t.clone(),
            None => TensorType::new(DType::F32, self.shape()),
        };
        if self.chance(12) {
            t.dtype = DType::ALL[self.random.below(5)];
        }
        for predicate in self.when {
            if let Predicate::Type { var: v, dtype, shape } = predicate
                && *v == var
            {
                match dtype {
                    DTypePattern::Is(dtype) => t.dtype = *dtype,
                    DTypePattern::Float if !t.dtype.is_float() => t.dtype = DType::F32,
                    DTypePattern::Any | DTypePattern::Float => {}
                }
                t.shape = Dims(self.dims_of(shape, Some(&t.shape.0))?);
            }
        }
        Some(t)
    }

    /// Dims that a pattern allows: what is expected where it fits, else chosen.
    fn dims_of(&mut self, pattern: &ShapePattern, expected: Option<&[Dim]>) -> Option<Vec<Dim>> {
        let n = pattern.dims.len();
        let expected = expected.filter(|e| e.len() == n || pattern.rest.is_some() && e.len() >= n);
        let before = pattern.rest.unwrap_or(n);
        let skipped = match expected {
            Some(e) => e.len() - n,
            None if pattern.rest.is_some() => self.random.below(2),
            None => 0,
        };
        let mut dims = Vec::with_capacity(n + skipped);
        for at in 0..n + skipped {
            let wanted = expected.map(|e| e[at]);
            let inside = (before..before + skipped).contains(&at);
            let free = match wanted {
                Some(d) => d,
                None => self.length(),
            };
            if inside {
                dims.push(free);
                continue;
            }
            dims.push(match &pattern.dims[if at < before { at } else { at - skipped }] {
                DimPattern::Any => free,
                DimPattern::Fixed if free.fixed().is_some() => free,
                DimPattern::Fixed => self.length(),
                DimPattern::Rows => Dim::Rows,
                DimPattern::Keys => Dim::Keys,
                DimPattern::Is(Amount::Name(name)) => match self.names.get(name) {
                    Some(&d) => d,
                    None => {
                        self.names.insert(name.clone(), free);
                        free
                    }
                },
                DimPattern::Is(amount) => {
                    let n = self.amount(amount)?;
                    (n.fract() == 0.0 && n >= 1.0).then_some(Dim::Fixed(n as usize))?
                }
            });
        }
        Some(dims)
    }

    fn amount(&self, amount: &Amount) -> Option<f64> {
        match amount {
            Amount::Number(n) => Some(*n),
            Amount::Var(v) => match self.builder.function().body[*self.vars.get(v)?] {
                Op::Num(n) => Some(n.value().into()),
                Op::Int(n) => Some(n as f64),
                _ => None,
            },
            Amount::Name(name) => self.names.get(name)?.fixed().map(|n| n as f64),
            Amount::Length(v, axis) => {
                let t = self.tensor(*self.vars.get(v)?)?;
                t.shape.get(self.amount(axis)? as usize)?.fixed().map(|n| n as f64)
            }
            Amount::Rank(v) => Some(self.tensor(*self.vars.get(v)?)?.rank() as f64),
            Amount::Sqrt(a) => self.amount(a).map(f64::sqrt),
            Amount::Binary(how, a, b) => {
                let (a, b) = (self.amount(a)?, self.amount(b)?);
                Some(match how {
                    Arithmetic::Add => a + b,
                    Arithmetic::Sub => a - b,
                    Arithmetic::Mul => a * b,
                    Arithmetic::Div => a / b,
                })
            }
        }
    }

    /// A number: of a few that models have, or one that a predicate speaks of.
    fn number(&mut self, var: Var) -> f32 {
        const PLAIN: [f32; 8] = [1e-6, 0.125, 0.5, 1.0, 2.0, 3.0, 30.0, -1.5];
        let mut spoken: Vec<f64> = vec![];
        for predicate in self.when {
            let (a, b) = match predicate {
                Predicate::Near { a, b, .. } => (a, b),
                Predicate::Compare { left, right, .. } => (left, right),
                _ => continue,
            };
            let speaks = |x: &Amount| mentions(x, var);
            if speaks(a) || speaks(b) {
                // x, f x = b, x f = b, x / f = b: solved for x.
                let target = if speaks(a) { self.amount(b) } else { self.amount(a) };
                let factor = match if speaks(a) { a } else { b } {
                    Amount::Binary(_, l, r) => {
                        if speaks(l) {
                            self.amount(r)
                        } else {
                            self.amount(l)
                        }
                    }
                    _ => Some(1.0),
                };
                if let (Some(t), Some(f)) = (target, factor) {
                    spoken.extend([t / f, t * f, t, t - f]);
                }
            }
        }
        spoken.retain(|x| x.is_finite());
        if !spoken.is_empty() && !self.chance(4) {
            return spoken[self.random.below(spoken.len())] as f32;
        }
        PLAIN[self.random.below(PLAIN.len())]
    }

    fn integer(&mut self, var: Var) -> i64 {
        let mut spoken: Vec<i64> = self.names.values().filter_map(|d| d.fixed()).map(|n| n as i64).collect();
        spoken.sort_unstable();
        let compared = self.when.iter().any(|p| {
            matches!(p, Predicate::Compare { left, right, .. } if mentions(left, var) || mentions(right, var))
        });
        if compared && !spoken.is_empty() && !self.chance(3) {
            return spoken[self.random.below(spoken.len())];
        }
        self.random.below(4) as i64
    }

    /// An input of this type, or what stands for one: only caches have an axis S, so a tensor with one is made of
    /// inputs without.
    fn input(&mut self, t: TensorType, cache: bool) -> Option<Id> {
        let at = self.builder.function().inputs.len();
        if cache {
            return self.declare(&format!("c{at}"), InputKind::Cache { window: None }, t);
        }
        if !t.shape.contains(&Dim::Keys) {
            let fixed = t.shape.iter().all(|d| d.fixed().is_some());
            let name =
                if t.dtype == DType::I32 && t.rank() == 1 { format!("pos{at}") } else { format!("x{at}") };
            return self.declare(&name, if fixed { InputKind::Weight } else { InputKind::Rows }, t);
        }
        match t.shape[..] {
            [Dim::Fixed(g), Dim::Keys, Dim::Fixed(d)] if t.dtype.is_float() => {
                let name = format!("c{at}");
                let cache = self.declare(&name, InputKind::Cache { window: None }, t.clone())?;
                let rows = TensorType::new(t.dtype, vec![Dim::Fixed(g), Dim::Rows, Dim::Fixed(d)]);
                let rows = self.declare(&format!("x{at}"), InputKind::Rows, rows)?;
                let id = self.add(Op::Append([cache, rows]))?;
                self.caches.push((name, id));
                Some(id)
            }
            // x with 1 in place of S, times 0, 1, 2, ..
            _ if matches!(t.dtype, DType::F32 | DType::I32)
                && t.shape.iter().filter(|&&d| d == Dim::Keys).count() == 1 =>
            {
                let axis = t.shape.iter().position(|&d| d == Dim::Keys)?;
                let (keys, dtype) =
                    (self.add(Op::Dims(Dims(vec![Dim::Keys])))?, self.add(Op::DType(t.dtype))?);
                let mut iota = self.add(Op::Iota([keys, dtype]))?;
                if axis + 1 < t.rank() {
                    let mut dims = vec![Dim::Fixed(1); t.rank() - axis];
                    dims[0] = Dim::Keys;
                    let dims = self.add(Op::Dims(Dims(dims)))?;
                    iota = self.add(Op::Reshape([iota, dims]))?;
                }
                if t.rank() == 1 {
                    return Some(iota);
                }
                let mut shape = t.shape.0;
                shape[axis] = Dim::Fixed(1);
                let x = self.input(TensorType::new(t.dtype, shape), false)?;
                self.add(Op::Mul([x, iota]))
            }
            _ => None,
        }
    }

    fn declare(&mut self, name: &str, kind: InputKind, t: TensorType) -> Option<Id> {
        if t.dtype.is_quantised() {
            return None;
        }
        let id = self.builder.input(name, kind, t.dtype, &t.shape);
        self.types.push(Type::Tensor(t));
        Some(id)
    }
}

fn mentions(amount: &Amount, var: Var) -> bool {
    match amount {
        Amount::Var(v) => *v == var,
        Amount::Binary(_, a, b) => mentions(a, var) || mentions(b, var),
        Amount::Sqrt(a) => mentions(a, var),
        Amount::Number(_) | Amount::Name(_) | Amount::Length(..) | Amount::Rank(_) => false,
    }
}
