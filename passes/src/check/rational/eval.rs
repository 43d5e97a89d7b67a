//! The evaluation over rational numbers: every operator that has a value there, an arm each.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use egg::Id;
use lapidary_ir::{Extent, Function, Op, Type};
use num_rational::BigRational;

use super::{Exact, number, whole};

/// The evaluation of a function's nodes, each once.
pub(super) struct Call<'a> {
    function: &'a Function,
    inputs: &'a [Exact],
    extent: Extent,
    types: Vec<Type>,
    known: HashMap<Id, Exact>,
}

/// A number drawn from an unknown function's name and argument.
fn unknown(name: &str, x: &BigRational) -> BigRational {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((name, x.to_string()));
    whole((hash % 97) as i64 + 1) / whole((hash / 97 % 7) as i64 + 1)
}

impl<'a> Call<'a> {
    /// Of a typed function.
    pub(super) fn new(function: &'a Function, inputs: &'a [Exact], extent: Extent) -> Option<Call<'a>> {
        Some(Call { function, inputs, extent, types: function.types().ok()?, known: HashMap::new() })
    }

    /// The value of a node, if it has one.
    pub(super) fn value(&mut self, id: Id) -> Option<Exact> {
        if let Some(known) = self.known.get(&id) {
            return Some(known.clone());
        }
        let value = self.eval(id)?;
        self.known.insert(id, value.clone());
        Some(value)
    }

    fn op(&self, id: Id) -> &Op {
        &self.function.body[id]
    }

    fn int(&self, id: Id) -> Option<i64> {
        self.op(id).integer()
    }

    fn scalar(&self, id: Id) -> Option<BigRational> {
        let op = self.op(id);
        op.integer().map(whole).or_else(|| number(op.number()?.into()))
    }

    fn shape(&self, id: Id) -> Option<Vec<usize>> {
        let t = self.types[usize::from(id)].tensor_or_prologue()?;
        Some(t.shape.iter().map(|d| d.at(self.extent)).collect())
    }

    fn map(&mut self, x: Id, f: impl Fn(&BigRational) -> Option<BigRational>) -> Option<Exact> {
        let x = self.value(x)?;
        Some(Exact { data: x.data.iter().map(f).collect::<Option<_>>()?, shape: x.shape })
    }

    fn zip(
        &mut self,
        id: Id,
        [a, b]: [Id; 2],
        f: impl Fn(&BigRational, &BigRational) -> Option<BigRational>,
    ) -> Option<Exact> {
        let shape = self.shape(id)?;
        let (a, b) = (stretch(&self.value(a)?, &shape), stretch(&self.value(b)?, &shape));
        let data = a.iter().zip(&b).map(|(a, b)| f(a, b)).collect::<Option<_>>()?;
        Some(Exact { shape, data })
    }

    fn eval(&mut self, id: Id) -> Option<Exact> {
        let zero = whole(0);
        let one = whole(1);
        let inverse = |x: &BigRational| (*x != whole(0)).then(|| whole(1) / x);
        let root = |x: &BigRational| unknown("sqrt", x);
        let cap = |c: &BigRational, x: &BigRational| (*c != whole(0)).then(|| unknown("tanh", &(x / c)) * c);
        let op = self.op(id).clone();
        match &op {
            Op::Input(at) => self.inputs.get(at.0 as usize).cloned(),
            Op::Num(_) | Op::Int(_) => Some(Exact { shape: vec![], data: vec![self.scalar(id)?] }),
            Op::Neg(x) => self.map(*x, |x| Some(-x.clone())),
            Op::Recip(x) => self.map(*x, inverse),
            Op::Sqrt(x) => self.map(*x, |x| Some(root(x))),
            Op::Rsqrt(x) => self.map(*x, |x| inverse(&root(x))),
            Op::Exp(x) => self.map(*x, |x| Some(unknown("exp", x))),
            Op::Tanh(x) => self.map(*x, |x| Some(unknown("tanh", x))),
            Op::Cos(x) => self.map(*x, |x| Some(unknown("cos", x))),
            Op::Sin(x) => self.map(*x, |x| Some(unknown("sin", x))),
            Op::Abs(x) => self.map(*x, |x| Some(if *x < whole(0) { -x.clone() } else { x.clone() })),
            Op::Floor(x) => self.map(*x, |x| Some(x.floor())),
            Op::Log(x) => self.map(*x, |x| Some(unknown("log", x))),
            Op::Maximum(ab) => self.zip(id, *ab, |a, b| Some(a.max(b).clone())),
            Op::Minimum(ab) => self.zip(id, *ab, |a, b| Some(a.min(b).clone())),
            Op::Cast([x, _]) => self.value(*x),
            Op::Add(ab) => self.zip(id, *ab, |a, b| Some(a + b)),
            Op::Sub(ab) => self.zip(id, *ab, |a, b| Some(a - b)),
            Op::Mul(ab) => self.zip(id, *ab, |a, b| Some(a * b)),
            Op::Div(ab) => self.zip(id, *ab, |a, b| inverse(b).map(|b| a * b)),
            Op::Pow([x, p]) => {
                let p = self.scalar(*p)?;
                if p == number(-0.5)? {
                    return self.map(*x, |x| inverse(&root(x)));
                }
                let n = (0..=8).find(|&n| whole(n) == p)?;
                self.map(*x, |x| Some((0..n).fold(whole(1), |all, _| all * x)))
            }
            Op::Sum([x, axis])
            | Op::Mean([x, axis])
            | Op::Max([x, axis])
            | Op::Min([x, axis])
            | Op::Prod([x, axis]) => {
                let axis = usize::try_from(self.int(*axis)?).ok()?;
                let x = self.value(*x)?;
                let (n, inner): (usize, usize) = (x.shape[axis], x.shape[axis + 1..].iter().product());
                let shape = self.shape(id)?;
                #[expect(clippy::wildcard_enum_match_arm, reason = "of the arm's operators the sum is left")]
                let of = |at: usize| {
                    let (outer, rest) = (at / inner, at % inner);
                    let all = (0..n).map(|i| &x.data[(outer * n + i) * inner + rest]);
                    match op {
                        Op::Max(_) => all.max().cloned().unwrap_or_else(|| whole(0)),
                        Op::Min(_) => all.min().cloned().unwrap_or_else(|| whole(0)),
                        Op::Prod(_) => all.fold(whole(1), |s, x| s * x),
                        Op::Mean(_) => all.fold(whole(0), |s, x| s + x) / whole(n as i64),
                        _ => all.fold(whole(0), |s, x| s + x),
                    }
                };
                Some(Exact { data: (0..shape.iter().product()).map(of).collect(), shape })
            }
            Op::Matmul([a, b]) => {
                let shape = self.shape(id)?;
                let (a, b) = (self.value(*a)?, self.value(*b)?);
                let r = shape.len();
                let stretched = |x: &Exact| {
                    let whole = [&shape[..r - 2], &x.shape[x.shape.len() - 2..]].concat();
                    Exact { data: stretch(x, &whole), shape: whole }
                };
                let (a, b) = (stretched(&a), stretched(&b));
                let (m, n, k) = (shape[r - 2], shape[r - 1], a.shape[r - 1]);
                let at = |i: usize| {
                    let (batch, row, column) = (i / (m * n), i / n % m, i % n);
                    (0..k).fold(whole(0), |s, j| {
                        s + &a.data[(batch * m + row) * k + j] * &b.data[(batch * k + j) * n + column]
                    })
                };
                Some(Exact { data: (0..shape.iter().product()).map(at).collect(), shape })
            }
            Op::Reshape([x, _]) => Some(Exact { shape: self.shape(id)?, data: self.value(*x)?.data }),
            Op::Broadcast([x, _]) => {
                let shape = self.shape(id)?;
                Some(Exact { data: stretch(&self.value(*x)?, &shape), shape })
            }
            Op::Transpose([x, p]) => {
                let Op::Dims(p) = self.op(*p).clone() else { return None };
                let (axes, shape, x) = (p.permutation()?, self.shape(id)?, self.value(*x)?);
                Some(Exact { data: gathered(&shape, |at| axes_back(&axes, at), &x), shape })
            }
            Op::Slice([x, axis, start, _]) => {
                let (axis, start) = (usize::try_from(self.int(*axis)?).ok()?, self.int(*start)?);
                let (shape, x) = (self.shape(id)?, self.value(*x)?);
                let from = if start < 0 { x.shape[axis] as i64 + start } else { start };
                let from = usize::try_from(from).ok()?;
                let moved = |at: &[usize]| {
                    let mut at = at.to_vec();
                    at[axis] += from;
                    at
                };
                Some(Exact { data: gathered(&shape, moved, &x), shape })
            }
            Op::Iota(_) => {
                let shape = self.shape(id)?;
                Some(Exact { data: (0..shape.first().copied()?).map(|i| whole(i as i64)).collect(), shape })
            }
            Op::RmsNorm([x, w, eps]) | Op::NormPrologue([x, w, eps]) => self.norm(*x, *w, *eps),
            Op::AddRmsNorm([r, x, w, eps]) => {
                let (r, y) = (self.value(*r)?, self.norm(*x, *w, *eps)?);
                Some(Exact { data: r.data.iter().zip(&y.data).map(|(a, b)| a + b).collect(), shape: r.shape })
            }
            Op::Softcap([c, x]) => {
                let c = self.scalar(*c)?;
                self.map(*x, |x| cap(&c, x))
            }
            Op::Embedding([table, ids, s]) => {
                let s = self.scalar(*s)?;
                let shape = self.shape(id)?;
                let x = self.gather(*table, *ids, shape)?;
                Some(Exact { data: x.data.iter().map(|x| x * &s).collect(), shape: x.shape })
            }
            Op::Gather([table, ids]) => {
                let shape = self.shape(id)?;
                self.gather(*table, *ids, shape)
            }
            Op::Linear([x, ws, epilogue]) => {
                let Op::Weights(ws) = self.op(*ws).clone() else { return None };
                let [w] = ws[..] else { return None };
                let (x, w) = (self.value(*x)?, self.value(w)?);
                let (m, n, k) = (x.shape[0], w.shape[0], x.shape[1]);
                let epilogue = self.op(*epilogue);
                let c = if let Op::Cap(c) = epilogue { Some(self.scalar(*c)?) } else { None };
                if c.is_none() && *epilogue != Op::Store {
                    return None;
                }
                let at = |i: usize| {
                    let sum =
                        (0..k).fold(whole(0), |s, j| s + &x.data[i / n * k + j] * &w.data[i % n * k + j]);
                    match &c {
                        Some(c) => cap(c, &sum),
                        None => Some(sum),
                    }
                };
                Some(Exact { shape: vec![m, n], data: (0..m * n).map(at).collect::<Option<_>>()? })
            }
            Op::Scores([q, k, scale, c]) => {
                let scale = self.scalar(*scale)?;
                let c =
                    if *self.op(*c) == Op::None { None } else { Some(number(self.op(*c).number()?.into())?) };
                let (q, k) = (self.value(*q)?, self.value(*k)?);
                let (h, t, d) = (q.shape[0], q.shape[1], q.shape[2]);
                let (g, s) = (k.shape[0], k.shape[1]);
                let at = |i: usize| {
                    let (head, row, key) = (i / (t * s), i / s % t, i % s);
                    let group = head / (h / g);
                    let dot = (0..d).fold(whole(0), |sum, j| {
                        sum + &q.data[(head * t + row) * d + j] * &k.data[(group * s + key) * d + j]
                    });
                    let x = dot * &scale;
                    match &c {
                        Some(c) => cap(c, &x),
                        None => Some(x),
                    }
                };
                Some(Exact { shape: vec![h, t, s], data: (0..h * t * s).map(at).collect::<Option<_>>()? })
            }
            Op::Softmax([x, pos, _, mode]) if *self.op(*pos) == Op::None && *self.op(*mode) == Op::Online => {
                let x = self.value(*x)?;
                let n = x.shape.last().copied().unwrap_or(1);
                let mut data = Vec::with_capacity(x.data.len());
                for row in x.data.chunks(n) {
                    let most = row.iter().max().cloned().unwrap_or_else(|| zero.clone());
                    let e: Vec<BigRational> = row.iter().map(|x| unknown("exp", &(x - &most))).collect();
                    let sum = e.iter().fold(zero.clone(), |s, x| s + x);
                    let scale = inverse(&sum)?;
                    data.extend(e.iter().map(|x| x * &scale * &one));
                }
                Some(Exact { shape: x.shape, data })
            }
            Op::Append([cache, rows]) => {
                let (mut cache, rows) = (self.value(*cache)?, self.value(*rows)?);
                let (keys, row) = (cache.shape[1] * cache.shape[2], rows.shape[1] * rows.shape[2]);
                for (head, new) in rows.data.chunks(row).enumerate() {
                    cache.data[(head + 1) * keys - row..(head + 1) * keys].clone_from_slice(new);
                }
                Some(cache)
            }
            // Masks, comparisons, and what has laws of its own.
            Op::Lt(_)
            | Op::Le(_)
            | Op::Eq(_)
            | Op::And(_)
            | Op::Or(_)
            | Op::Not(_)
            | Op::Pad(_)
            | Op::Take(_)
            | Op::Select(_)
            | Op::Argmax(_)
            | Op::Concat(_)
            | Op::Weights(_)
            | Op::Output(_)
            | Op::Store
            | Op::Cap(_)
            | Op::Then(_)
            | Op::Map(_)
            | Op::Program(_)
            | Op::Gate
            | Op::GeluTanh(_)
            | Op::GatedGelu(_)
            | Op::Rope(_)
            | Op::WindowMask(_)
            | Op::Softmax(_)
            | Op::Attention(_)
            | Op::Online
            | Op::Bounded
            | Op::None
            | Op::DType(_)
            | Op::Dims(_) => None,
        }
    }

    /// x rsqrt(mean(x x) + eps) (1 + w), along the last axis.
    fn norm(&mut self, x: Id, w: Id, eps: Id) -> Option<Exact> {
        let eps = self.scalar(eps)?;
        let (x, w) = (self.value(x)?, self.value(w)?);
        let n = w.data.len();
        let mut data = Vec::with_capacity(x.data.len());
        for row in x.data.chunks(n) {
            let mean = row.iter().fold(whole(0), |s, x| s + x * x) / whole(n as i64) + &eps;
            let root = unknown("sqrt", &mean);
            data.extend(row.iter().zip(&w.data).map(|(x, w)| x / &root * (w + whole(1))));
        }
        Some(Exact { shape: x.shape, data })
    }

    fn gather(&mut self, table: Id, ids: Id, shape: Vec<usize>) -> Option<Exact> {
        let (table, ids) = (self.value(table)?, self.value(ids)?);
        let row: usize = table.shape[1..].iter().product();
        let mut data = Vec::with_capacity(ids.data.len() * row);
        for id in &ids.data {
            let at = (0..table.shape[0]).find(|&i| whole(i as i64) == *id)?;
            data.extend_from_slice(&table.data[at * row..(at + 1) * row]);
        }
        Some(Exact { shape, data })
    }
}

/// The elements of a result from the index of each in `x`.
fn gathered(shape: &[usize], source: impl Fn(&[usize]) -> Vec<usize>, x: &Exact) -> Vec<BigRational> {
    let n: usize = shape.iter().product();
    let element = |i: usize| {
        let mut at = vec![0; shape.len()];
        let mut rest = i;
        for axis in (0..shape.len()).rev() {
            at[axis] = rest % shape[axis];
            rest /= shape[axis];
        }
        let from = source(&at);
        let index = from.iter().zip(&x.shape).fold(0, |index, (i, n)| index * n + i);
        x.data[index].clone()
    };
    (0..n).map(element).collect()
}

/// The index in x of an index in its transpose.
fn axes_back(axes: &[usize], at: &[usize]) -> Vec<usize> {
    let mut from = vec![0; at.len()];
    for (i, &axis) in axes.iter().enumerate() {
        from[axis] = at[i];
    }
    from
}

/// Elements stretched to a shape, axes aligned at the end.
fn stretch(x: &Exact, shape: &[usize]) -> Vec<BigRational> {
    let missing = shape.len() - x.shape.len();
    let back = |at: &[usize]| {
        at[missing..].iter().zip(&x.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect()
    };
    gathered(shape, back, x)
}
