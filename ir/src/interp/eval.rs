//! One node's value from its operands' values: the meaning of every operator, an arm each.

use egg::Id;

use super::fused::gelu_tanh;
use super::tensor::{Tensor, gather_strided, round_to, rounded_blocks, stretched_strides, strides};
use super::{Call, Value, fail};
use crate::Error;
use crate::op::Op;
use crate::types::{DType, TensorType, Type};

impl Call<'_> {
    pub(super) fn eval(&self, op: &Op, ty: &Type) -> Result<Value, Error> {
        let out = match ty {
            Type::Tensor(t) | Type::Prologue(t) => t.clone(),
            Type::Tuple(_) => return self.linear_of(op),
            Type::Weights(_) | Type::Epilogue | Type::Attribute => return Ok(Value::None),
        };
        let shape = self.shape(&out);
        let map = |x: &Id, f: &dyn Fn(f64) -> f64| self.elementwise(&out, &[*x], &|v| f(v[0]));
        let zip = |a: &Id, b: &Id, f: &dyn Fn(f64, f64) -> f64| {
            self.elementwise(&out, &[*a, *b], &|v| f(v[0], v[1]))
        };
        let tensor = match op {
            Op::Num(n) => Tensor::new(DType::F32, &[], vec![n.value().into()]),
            Op::Int(n) => Tensor::new(DType::I32, &[], vec![f64::from(*n as i32)]),
            Op::Input(_)
            | Op::None
            | Op::DType(_)
            | Op::Dims(_)
            | Op::Online
            | Op::Bounded
            | Op::Store
            | Op::Gate
            | Op::Cap(_)
            | Op::Then(_)
            | Op::Program(_)
            | Op::Weights(_) => return Ok(Value::None),

            Op::Neg(x) => map(x, &|x| -x),
            Op::Recip(x) => map(x, &|x| 1.0 / x),
            Op::Sqrt(x) => map(x, &f64::sqrt),
            Op::Rsqrt(x) => map(x, &|x| 1.0 / x.sqrt()),
            Op::Exp(x) => map(x, &f64::exp),
            Op::Tanh(x) => map(x, &f64::tanh),
            Op::Cos(x) => map(x, &f64::cos),
            Op::Sin(x) => map(x, &f64::sin),
            Op::Abs(x) => map(x, &f64::abs),
            Op::Floor(x) => map(x, &f64::floor),
            Op::Log(x) => map(x, &f64::ln),
            Op::Cast([x, _]) => map(x, &|x| round_to(out.dtype, x, self.precision)),
            Op::Add([a, b]) => zip(a, b, &|a, b| a + b),
            Op::Sub([a, b]) => zip(a, b, &|a, b| a - b),
            Op::Mul([a, b]) => zip(a, b, &|a, b| a * b),
            Op::Div([a, b]) => zip(a, b, &|a, b| a / b),
            // The whole power of a negative number alone is one: (-inf)^-0.5 is as little as (-1)^-0.5.
            Op::Pow([a, b]) => {
                zip(a, b, &|a: f64, b: f64| if a < 0.0 && b.fract() != 0.0 { f64::NAN } else { a.powf(b) })
            }
            Op::Maximum([a, b]) => zip(a, b, &|a, b| if a > b || a.is_nan() { a } else { b }),
            Op::Minimum([a, b]) => zip(a, b, &|a, b| if a < b || a.is_nan() { a } else { b }),
            Op::Lt([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a < b))),
            Op::Le([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a <= b))),
            Op::Eq([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a == b))),
            Op::And([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a != 0.0 && b != 0.0))),
            Op::Or([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a != 0.0 || b != 0.0))),
            Op::Not(x) => map(x, &|x| f64::from(u8::from(x == 0.0))),
            Op::Select([c, a, b]) => {
                self.elementwise(&out, &[*c, *a, *b], &|v| if v[0] != 0.0 { v[1] } else { v[2] })
            }

            Op::Sum([x, axis]) => self.reduce(&out, *x, *axis, &|x| self.round(x.iter().sum())),
            Op::Mean([x, axis]) => {
                self.reduce(&out, *x, *axis, &|x| self.round(x.iter().sum::<f64>() / x.len() as f64))
            }
            Op::Max([x, axis]) => {
                self.reduce(&out, *x, *axis, &|x| x.iter().copied().fold(f64::NEG_INFINITY, f64::max))
            }
            Op::Min([x, axis]) => {
                self.reduce(&out, *x, *axis, &|x| x.iter().copied().fold(f64::INFINITY, f64::min))
            }
            Op::Prod([x, axis]) => self.reduce(&out, *x, *axis, &|x| self.round(x.iter().product())),
            Op::Argmax([x, axis]) => self.reduce(&out, *x, *axis, &|x| {
                let best = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                x.iter().position(|&v| v == best).unwrap_or(0) as f64
            }),

            Op::Matmul([a, b]) => self.matmul(self.tensor(*a), self.tensor(*b), &shape),

            Op::Reshape([x, _]) => Tensor { shape, ..self.tensor(*x).clone() },
            Op::Transpose([x, p]) => {
                let (x, p) = (self.tensor(*x), self.dims(*p));
                let from = strides(&x.shape);
                let steps: Vec<usize> = p.iter().map(|&a| from[a]).collect();
                gather_strided(x, &shape, &steps, 0)
            }
            Op::Broadcast([x, _]) => {
                let x = self.tensor(*x);
                gather_strided(x, &shape, &stretched_strides(&x.shape, &shape), 0)
            }
            Op::Slice([x, axis, start, _]) => {
                let (x, axis, start) = (self.tensor(*x), self.int(*axis) as usize, self.int(*start));
                let from = strides(&x.shape);
                let start = if start < 0 { start + x.shape[axis] as i64 } else { start };
                let Ok(start) = usize::try_from(start) else {
                    return Err(fail(self.function, format!("slice: axis {axis} has no last row")));
                };
                gather_strided(x, &shape, &from, start * from[axis])
            }
            Op::Concat([a, b, axis]) => {
                let (a, b, axis) = (self.tensor(*a), self.tensor(*b), self.int(*axis) as usize);
                let rows = |t: &Tensor| t.shape[axis..].iter().product::<usize>();
                let outer: usize = shape[..axis].iter().product();
                let mut data = Vec::with_capacity(shape.iter().product());
                for i in 0..outer {
                    data.extend_from_slice(&a.data[i * rows(a)..(i + 1) * rows(a)]);
                    data.extend_from_slice(&b.data[i * rows(b)..(i + 1) * rows(b)]);
                }
                Tensor { dtype: out.dtype, shape, data }
            }
            Op::Pad([x, axis, before, after, value]) => {
                let (x, axis) = (self.tensor(*x), self.int(*axis) as usize);
                let step = strides(&x.shape)[axis];
                let [before, after] = [*before, *after].map(|n| vec![0.0; self.int(n) as usize * step]);
                let value = self.tensor(*value).data[0];
                let mut data = Vec::with_capacity(shape.iter().product());
                for row in x.data.chunks((x.shape[axis] * step).max(1)) {
                    data.extend(before.iter().map(|_| value));
                    data.extend_from_slice(row);
                    data.extend(after.iter().map(|_| value));
                }
                Tensor { dtype: out.dtype, shape, data }
            }
            Op::Take([x, ids, axis]) => self.take(&out, *x, *ids, self.int(*axis) as usize)?,
            Op::Gather([table, ids]) => self.gather(&out, *table, *ids, &|x| x)?,
            Op::Embedding([table, ids, scale]) => {
                let scale = self.num(*scale);
                self.gather(&out, *table, *ids, &|x| self.round(x * scale))?
            }
            Op::Iota(_) => Tensor::new(out.dtype, &shape, (0..shape[0]).map(|i| i as f64).collect()),
            Op::Append([cache, rows]) => {
                let (cache, rows) = (self.tensor(*cache), self.tensor(*rows));
                let (s, d, t) = (cache.shape[1], cache.shape[2], rows.shape[1]);
                if t > s {
                    return Err(fail(self.function, format!("append: {t} rows to a cache of {s} keys")));
                }
                let mut result = cache.clone();
                for g in 0..cache.shape[0] {
                    let rows = &rows.data[g * t * d..(g + 1) * t * d];
                    let to = &mut result.data[(g * s + s - t) * d..(g * s + s) * d];
                    if cache.dtype == DType::Q8 {
                        to.copy_from_slice(&rounded_blocks(rows));
                    } else {
                        let round = |x: &f64| round_to(cache.dtype, *x, self.precision);
                        to.iter_mut().zip(rows).for_each(|(y, x)| *y = round(x));
                    }
                }
                result
            }

            Op::RmsNorm([x, w, eps]) | Op::NormPrologue([x, w, eps]) => self.norm(*x, *w, *eps),
            Op::AddRmsNorm([r, x, w, eps]) => {
                let mut normed = self.norm(*x, *w, *eps);
                for (y, r) in normed.data.iter_mut().zip(&self.tensor(*r).data) {
                    *y = self.round(r + *y);
                }
                normed
            }
            Op::Linear(_) => return self.linear_of(op),
            Op::Output([index, tuple]) => {
                let value = &self.values[usize::from(*tuple)];
                let Value::Tuple(parts) = value else { unreachable!("a tuple was inferred, not {value:?}") };
                parts[self.int(*index) as usize].clone()
            }

            Op::Softcap([cap, x]) => {
                let cap = self.num(*cap);
                map(x, &|x| self.softcap(cap, x))
            }
            Op::GeluTanh(x) => map(x, &gelu_tanh),
            Op::Map(operands) => self.program(operands, vec![])?,
            Op::GatedGelu([gate, up]) => zip(gate, up, &|g, u| self.round(gelu_tanh(g)) * u),

            Op::Rope([x, pos, frequencies]) => self.rope(*x, *pos, *frequencies),
            Op::Scores([q, k, scale, cap]) => self.scores(self.tensor(*q), self.tensor(*k), *scale, *cap),
            Op::WindowMask([x, pos, window]) => {
                let mut x = self.tensor(*x).clone();
                let s = x.row();
                for (row, scores) in x.data.chunks_mut(s.max(1)).enumerate() {
                    let (low, high) = self.range(*pos, *window, row, s);
                    scores[..low].fill(f64::NEG_INFINITY);
                    scores[high..].fill(f64::NEG_INFINITY);
                }
                x
            }
            Op::Softmax([x, pos, window, _]) => self.softmax(self.tensor(*x).clone(), *pos, *window),
            Op::Attention([q, k, v, pos, scale, cap, window, _]) => {
                let (q, k, v) = (self.tensor(*q), self.tensor(*k), self.tensor(*v));
                let weights = self.softmax(self.scores(q, k, *scale, *cap), *pos, *window);
                let (h, t, s, d) = (q.shape[0], q.shape[1], k.shape[1], q.shape[2]);
                let repeat = h / k.shape[0];
                let mut data = vec![0.0; h * t * d];
                for (row, y) in data.chunks_mut(d).enumerate() {
                    let group = row / t / repeat;
                    for j in 0..s {
                        let p = weights.data[row * s + j];
                        if p != 0.0 {
                            let v = &v.data[(group * s + j) * d..][..d];
                            y.iter_mut().zip(v).for_each(|(y, v)| *y += p * v);
                        }
                    }
                    y.iter_mut().for_each(|y| *y = self.round(*y));
                }
                Tensor { dtype: DType::F32, shape, data }
            }
        };
        Ok(Value::Tensor(tensor))
    }

    /// f over operands stretched to the result's shape, rounded to its dtype.
    fn elementwise(&self, out: &TensorType, operands: &[Id], f: &dyn Fn(&[f64]) -> f64) -> Tensor {
        let shape = self.shape(out);
        let stretched: Vec<Tensor> = operands
            .iter()
            .map(|&o| {
                let x = self.tensor(o);
                gather_strided(x, &shape, &stretched_strides(&x.shape, &shape), 0)
            })
            .collect();
        let count = shape.iter().product();
        let mut row = vec![0.0; operands.len()];
        let data = (0..count)
            .map(|i| {
                row.iter_mut().zip(&stretched).for_each(|(r, x)| *r = x.data[i]);
                round_to(out.dtype, f(&row), self.precision)
            })
            .collect();
        Tensor { dtype: out.dtype, shape, data }
    }

    fn reduce(&self, out: &TensorType, x: Id, axis: Id, f: &dyn Fn(&[f64]) -> f64) -> Tensor {
        let (x, axis) = (self.tensor(x), self.int(axis) as usize);
        let shape = self.shape(out);
        let (n, step) = (x.shape[axis], strides(&x.shape)[axis]);
        let outer: usize = x.shape[..axis].iter().product();
        let mut line = vec![0.0; n];
        let mut data = Vec::with_capacity(outer * step);
        for o in 0..outer {
            for i in 0..step {
                line.iter_mut().enumerate().for_each(|(j, l)| *l = x.data[(o * n + j) * step + i]);
                data.push(f(&line));
            }
        }
        Tensor { dtype: out.dtype, shape, data }
    }

    fn matmul(&self, a: &Tensor, b: &Tensor, shape: &[usize]) -> Tensor {
        let r = shape.len();
        let (m, n, k) = (shape[r - 2], shape[r - 1], a.shape[a.shape.len() - 1]);
        let batches: usize = shape[..r - 2].iter().product();
        let stretched = |t: &Tensor| {
            let tail = t.shape.len() - 2;
            let whole = [&shape[..r - 2], &t.shape[tail..]].concat();
            gather_strided(t, &whole, &stretched_strides(&t.shape, &whole), 0)
        };
        let (a, b) = (stretched(a), stretched(b));
        let mut data = vec![0.0; batches * m * n];
        for batch in 0..batches {
            for i in 0..m {
                let y = &mut data[(batch * m + i) * n..][..n];
                for l in 0..k {
                    let x = a.data[(batch * m + i) * k + l];
                    let b = &b.data[(batch * k + l) * n..][..n];
                    y.iter_mut().zip(b).for_each(|(y, b)| *y += x * b);
                }
                y.iter_mut().for_each(|y| *y = self.round(*y));
            }
        }
        Tensor { dtype: DType::F32, shape: shape.to_vec(), data }
    }

    fn take(&self, out: &TensorType, x: Id, ids: Id, axis: usize) -> Result<Tensor, Error> {
        let (x, ids) = (self.tensor(x), self.tensor(ids));
        let (n, step) = (x.shape[axis], strides(&x.shape)[axis]);
        let mut data = Vec::new();
        for row in x.data.chunks((n * step).max(1)) {
            for &id in &ids.data {
                if id < 0.0 || id >= n as f64 {
                    return Err(fail(self.function, format!("take: id {id} of an axis of {n}")));
                }
                data.extend_from_slice(&row[id as usize * step..][..step]);
            }
        }
        Ok(Tensor { dtype: out.dtype, shape: self.shape(out), data })
    }

    fn gather(&self, out: &TensorType, table: Id, ids: Id, f: &dyn Fn(f64) -> f64) -> Result<Tensor, Error> {
        let (table, ids) = (self.tensor(table), self.tensor(ids));
        let row: usize = table.shape[1..].iter().product();
        let mut data = Vec::with_capacity(ids.data.len() * row);
        for &id in &ids.data {
            if id < 0.0 || id >= table.shape[0] as f64 {
                return Err(fail(
                    self.function,
                    format!("gather: id {id} of a table of {} rows", table.shape[0]),
                ));
            }
            data.extend(table.data[id as usize * row..][..row].iter().map(|&x| f(x)));
        }
        Ok(Tensor { dtype: out.dtype, shape: self.shape(out), data })
    }
}
