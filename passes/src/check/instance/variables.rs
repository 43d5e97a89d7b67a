//! What stands for a variable of a left side: an attribute or a tensor that the rule's predicates may allow.

use egg::{Id, Var};
use lapidary_ir::{DType, Dim, Dims, Kinds, Num, Op, TensorType, Type};

use super::Attempt;
use crate::rules::Predicate;
use crate::rules::predicate::{Amount, DTypePattern, DimPattern, Known, ShapePattern};

impl Attempt<'_> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "other predicates, and those of others, leave the choice free"
    )]
    pub(super) fn choose(&mut self, var: Var, expected: Option<TensorType>) -> Option<Id> {
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
                let n = self.likely_number(var);
                self.add(Op::Num(Num::new(n)))
            }
            Kinds::INTEGER => {
                let n = self.likely_integer(var);
                self.add(Op::Int(n))
            }
            Kinds::NONE => self.add(Op::None),
            Kinds::DIMS => {
                let mut dims = expected.map_or_else(|| self.any_shape(), |t| t.shape.0);
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
        let t = expected.unwrap_or_else(|| TensorType::new(DType::F32, self.any_shape()));
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
            None => TensorType::new(DType::F32, self.any_shape()),
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
                    let n = amount.value(self)?;
                    (n.fract() == 0.0 && n >= 1.0).then_some(Dim::Fixed(n as usize))?
                }
            });
        }
        Some(dims)
    }

    /// A number: of a few that models have, or one that a predicate speaks of.
    fn likely_number(&mut self, var: Var) -> f32 {
        const PLAIN: [f32; 8] = [1e-6, 0.125, 0.5, 1.0, 2.0, 3.0, 30.0, -1.5];
        let mut spoken: Vec<f64> = vec![];
        for predicate in self.when {
            let (Predicate::Near { a, b, .. } | Predicate::Compare { left: a, right: b, .. }) = predicate
            else {
                continue;
            };
            let speaks = |x: &Amount| x.mentions(var);
            if speaks(a) || speaks(b) {
                // x, f x = b, x f = b, x / f = b: solved for x.
                let target = if speaks(a) { b.value(self) } else { a.value(self) };
                let factor = if let Amount::Binary(_, l, r) = if speaks(a) { a } else { b } {
                    if speaks(l) { r.value(self) } else { l.value(self) }
                } else {
                    Some(1.0)
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

    fn likely_integer(&mut self, var: Var) -> i64 {
        let mut spoken: Vec<i64> = self.names.values().filter_map(|d| d.fixed()).map(|n| n as i64).collect();
        spoken.sort_unstable();
        let compared = self.when.iter().any(|p| {
            matches!(p, Predicate::Compare { left, right, .. } if left.mentions(var) || right.mentions(var))
        });
        if compared && !spoken.is_empty() && !self.chance(3) {
            return spoken[self.random.below(spoken.len())];
        }
        self.random.below(4) as i64
    }
}

impl Known for Attempt<'_> {
    fn number(&self, var: Var) -> Option<f64> {
        self.builder.function().body[*self.vars.get(&var)?].value()
    }

    fn named(&self, name: &str) -> Option<Dim> {
        self.names.get(name).copied()
    }

    fn shape(&self, var: Var) -> Option<&[Dim]> {
        match &self.types[usize::from(*self.vars.get(&var)?)] {
            Type::Tensor(t) | Type::Prologue(t) => Some(&t.shape),
            Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => None,
        }
    }
}
