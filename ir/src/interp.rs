//! The reference interpreter: what every operator means, primitive and fused, one plain loop each.
//!
//! In: a function, its inputs' values, the named dims' lengths. Out: every node's value. It is the oracle that kernels and
//! rules are held against, so it favours being plainly right over being fast: values are f64, and [`Precision::F32`]
//! rounds each elementwise result to f32 (computed in f64 first, so correctly rounded), while sums and dot products
//! accumulate in f64 and round once. Casts to bf16 and f16 round to nearest even in either precision.

use egg::{Id, Language};

use crate::Error;
use crate::function::Function;
use crate::op::Op;
use crate::types::{BLOCK, DType, Dim, Extent, TensorType, Type};

/// A tensor's value, row-major; whole numbers and truth values (0 or 1) too are held as f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Elements, the last axis fastest.
    pub data: Vec<f64>,
}

/// How results are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Each result to f32, as kernels compute.
    F32,
    /// Not at all: the real numbers, nearly.
    F64,
}

/// The value of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An attribute, an epilogue, a list of weights.
    None,
    /// A tensor or a prologue's rows.
    Tensor(Tensor),
    /// Several.
    Tuple(Vec<Tensor>),
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Panics
    /// If their number is not the shape's.
    pub fn new(dtype: DType, shape: &[usize], data: Vec<f64>) -> Tensor {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "elements of {shape:?}");
        Tensor { dtype, shape: shape.to_vec(), data }
    }

    /// An f32 tensor.
    pub fn from_f32(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(DType::F32, shape, data.iter().map(|&x| x.into()).collect())
    }

    /// An i32 tensor.
    pub fn from_i32(shape: &[usize], data: &[i32]) -> Tensor {
        Tensor::new(DType::I32, shape, data.iter().map(|&x| x.into()).collect())
    }

    /// A tensor from little-endian bytes as they lie in a checkpoint or in a kernel's memory.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Tensor {
        let data = match dtype {
            DType::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            DType::I32 => {
                bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            DType::Bool => bytes.chunks_exact(4).map(|b| f64::from(u8::from(b[0] != 0))).collect(),
            DType::F16 => {
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
            DType::BF16 => {
                bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
            DType::Q8 | DType::Q4 => dequantised(dtype, shape.last().copied().unwrap_or(BLOCK), bytes),
        };
        Tensor::new(dtype, shape, data)
    }

    /// The elements as little-endian bytes, as kernels hold them.
    ///
    /// Of q8, blocks as `rounded_blocks` makes them, which finds the same quants again in what it has rounded.
    ///
    /// # Panics
    /// For q4: nothing but a quantiser makes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let elements = self.data.iter();
        match self.dtype {
            DType::F32 => elements.flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::I32 => elements.flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            DType::Bool => elements.flat_map(|&x| (-i32::from(x != 0.0)).to_le_bytes()).collect(),
            DType::F16 => elements.flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect(),
            DType::BF16 => elements.flat_map(|&x| half::bf16::from_f64(x).to_le_bytes()).collect(),
            DType::Q8 => {
                let k = self.row();
                let rows = self.data.chunks(k.max(1));
                rows.flat_map(|row| {
                    let (quants, scales): (Vec<_>, Vec<_>) = row.chunks(BLOCK).map(q8_block).unzip();
                    let scales = scales.into_iter().flat_map(|s: half::bf16| s.to_le_bytes());
                    let quants = quants.into_iter().flatten().map(|q: i8| q as u8);
                    quants.chain(scales).collect::<Vec<u8>>()
                })
                .collect()
            }
            DType::Q4 => unreachable!("{} is read, never written", self.dtype),
        }
    }

    /// The elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&x| x as f32).collect()
    }

    /// Elements of the last axis; 1 at rank 0.
    fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Evaluates a function: its outputs, in order. `inputs` are in the order of declaration.
///
/// # Errors
/// [`Error::Evaluate`] for inputs that do not fit or an id outside of its table; [`Error::Type`] for an ill-typed graph.
pub fn evaluate(
    function: &Function,
    inputs: &[Tensor],
    extent: Extent,
    precision: Precision,
) -> Result<Vec<Tensor>, Error> {
    let values = evaluate_all(function, inputs, extent, precision)?;
    function
        .outputs
        .iter()
        .map(|(name, id)| match &values[usize::from(*id)] {
            Value::Tensor(t) => Ok(t.clone()),
            _ => Err(fail(function, format!("output `{name}` is no tensor"))),
        })
        .collect()
}

/// Evaluates a function: every node.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_all(
    function: &Function,
    inputs: &[Tensor],
    extent: Extent,
    precision: Precision,
) -> Result<Vec<Value>, Error> {
    if inputs.len() != function.inputs.len() {
        return Err(fail(
            function,
            format!("expected {} inputs, found {}", function.inputs.len(), inputs.len()),
        ));
    }
    for (declared, given) in function.inputs.iter().zip(inputs) {
        let shape: Vec<usize> = declared.ty.shape.iter().map(|d| d.at(extent)).collect();
        if given.shape != shape || given.dtype != declared.ty.dtype {
            let found = format!("{} {:?}", given.dtype, given.shape);
            return Err(fail(
                function,
                format!("input `{}`: expected {} = {shape:?}, found {found}", declared.name, declared.ty),
            ));
        }
    }
    let types = function.types()?;
    let mut values: Vec<Value> = Vec::with_capacity(types.len());
    for (at, op) in function.body.as_ref().iter().enumerate() {
        representable(&types[at], extent).map_err(|e| {
            fail(function, format!("{}: {e}", crate::text::statement(function, Id::from(at))))
        })?;
        let call = Call { function, values: &values, extent, precision };
        let value = match op {
            Op::Input(id) => Value::Tensor(inputs[id.0 as usize].clone()),
            _ => call.eval(op, &types[at])?,
        };
        values.push(value);
    }
    Ok(values)
}

/// Whether values of this type can be held: fixed axes of some length, and no absurd number of elements.
fn representable(ty: &Type, extent: Extent) -> Result<(), String> {
    const MOST: usize = 1 << 40;
    let tensors = match ty {
        Type::Tensor(t) | Type::Prologue(t) => std::slice::from_ref(t),
        Type::Tuple(many) => many,
        Type::Weights(_) | Type::Epilogue | Type::Attribute => &[],
    };
    for t in tensors {
        if t.shape.contains(&Dim::Fixed(0)) {
            return Err(format!("{t} has an axis of length 0"));
        }
        let elements = t.shape.iter().try_fold(1usize, |n, d| n.checked_mul(d.at(extent)));
        if elements.is_none_or(|n| n > MOST) {
            return Err(format!("{t} has too many elements"));
        }
    }
    Ok(())
}

/// The value in f32 of a node that depends on no input and no named dim; `None` of any other.
pub fn constant(function: &Function, id: Id) -> Option<Tensor> {
    let types = function.types().ok()?;
    let nodes = function.body.as_ref();
    let mut needed = vec![false; nodes.len()];
    *needed.get_mut(usize::from(id))? = true;
    for at in (0..=usize::from(id)).rev() {
        if needed[at] {
            nodes[at].for_each(|c| needed[usize::from(c)] = true);
        }
    }
    let extent = Extent { rows: 0, keys: 0 };
    let mut values: Vec<Value> = Vec::with_capacity(nodes.len());
    for (at, op) in nodes.iter().enumerate().take(usize::from(id) + 1) {
        if !needed[at] {
            values.push(Value::None);
            continue;
        }
        let named = matches!(&types[at], Type::Tensor(t) if t.shape.iter().any(|d| d.fixed().is_none()));
        if named || matches!(op, Op::Input(_)) || representable(&types[at], extent).is_err() {
            return None;
        }
        let call = Call { function, values: &values, extent, precision: Precision::F32 };
        values.push(call.eval(op, &types[at]).ok()?);
    }
    match values.pop() {
        Some(Value::Tensor(t)) => Some(t),
        _ => None,
    }
}

fn fail(function: &Function, reason: String) -> Error {
    Error::Evaluate { function: function.name.clone(), reason }
}

/// The evaluation of one node.
struct Call<'a> {
    function: &'a Function,
    values: &'a [Value],
    extent: Extent,
    precision: Precision,
}

impl Call<'_> {
    fn round(&self, x: f64) -> f64 {
        match self.precision {
            Precision::F32 => f64::from(x as f32),
            Precision::F64 => x,
        }
    }

    fn tensor(&self, id: Id) -> &Tensor {
        match &self.values[usize::from(id)] {
            Value::Tensor(t) => t,
            other => unreachable!("a tensor was inferred, not {other:?}"),
        }
    }

    fn op(&self, id: Id) -> &Op {
        &self.function.body[id]
    }

    fn num(&self, id: Id) -> f64 {
        match self.op(id) {
            Op::Num(n) => n.value().into(),
            other => unreachable!("a number was inferred, not {other}"),
        }
    }

    fn optional(&self, id: Id) -> Option<f64> {
        (*self.op(id) != Op::None).then(|| self.num(id))
    }

    fn int(&self, id: Id) -> i64 {
        match self.op(id) {
            Op::Int(n) => *n,
            other => unreachable!("an integer was inferred, not {other}"),
        }
    }

    fn window(&self, id: Id) -> Option<i64> {
        (*self.op(id) != Op::None).then(|| self.int(id))
    }

    fn dims(&self, id: Id) -> Vec<usize> {
        match self.op(id) {
            Op::Dims(d) => d.iter().map(|d| d.at(self.extent)).collect(),
            other => unreachable!("dims were inferred, not {other}"),
        }
    }

    fn shape(&self, ty: &TensorType) -> Vec<usize> {
        ty.shape.iter().map(|d| d.at(self.extent)).collect()
    }

    fn eval(&self, op: &Op, ty: &Type) -> Result<Value, Error> {
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
            | Op::Weights(_) => return Ok(Value::None),

            Op::Neg(x) => map(x, &|x| -x),
            Op::Recip(x) => map(x, &|x| 1.0 / x),
            Op::Sqrt(x) => map(x, &f64::sqrt),
            Op::Rsqrt(x) => map(x, &|x| 1.0 / x.sqrt()),
            Op::Exp(x) => map(x, &f64::exp),
            Op::Tanh(x) => map(x, &f64::tanh),
            Op::Cos(x) => map(x, &f64::cos),
            Op::Sin(x) => map(x, &f64::sin),
            Op::Cast([x, _]) => map(x, &|x| round_to(out.dtype, x, self.precision)),
            Op::Add([a, b]) => zip(a, b, &|a, b| a + b),
            Op::Sub([a, b]) => zip(a, b, &|a, b| a - b),
            Op::Mul([a, b]) => zip(a, b, &|a, b| a * b),
            Op::Div([a, b]) => zip(a, b, &|a, b| a / b),
            // The whole power of a negative number alone is one: (-inf)^-0.5 is as little as (-1)^-0.5.
            Op::Pow([a, b]) => {
                zip(a, b, &|a: f64, b: f64| if a < 0.0 && b.fract() != 0.0 { f64::NAN } else { a.powf(b) })
            }
            Op::Lt([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a < b))),
            Op::Le([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a <= b))),
            Op::And([a, b]) => zip(a, b, &|a, b| f64::from(u8::from(a != 0.0 && b != 0.0))),
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
            Op::Output([index, tuple]) => match &self.values[usize::from(*tuple)] {
                Value::Tuple(parts) => parts[self.int(*index) as usize].clone(),
                other => unreachable!("a tuple was inferred, not {other:?}"),
            },

            Op::Softcap([cap, x]) => {
                let cap = self.num(*cap);
                map(x, &|x| self.softcap(cap, x))
            }
            Op::GeluTanh(x) => map(x, &gelu_tanh),
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
        let (m, n, k) = (shape[r - 2], shape[r - 1], a.shape[r - 1]);
        let batches: usize = shape[..r - 2].iter().product();
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

    fn norm(&self, x: Id, w: Id, eps: Id) -> Tensor {
        let (x, w, eps) = (self.tensor(x), self.tensor(w), self.num(eps));
        let k = x.row();
        let mut data = Vec::with_capacity(x.data.len());
        for row in x.data.chunks(k) {
            let mean = self.round(row.iter().map(|x| x * x).sum::<f64>() / k as f64);
            let scale = self.round(1.0 / self.round(mean + eps).sqrt());
            data.extend(
                row.iter().zip(&w.data).map(|(x, w)| self.round(self.round(x * scale) * self.round(1.0 + w))),
            );
        }
        Tensor { data, ..x.clone() }
    }

    /// A linear of one output or several.
    fn linear_of(&self, op: &Op) -> Result<Value, Error> {
        let Op::Linear([x, weights, epilogue]) = op else { unreachable!("only linears give tuples") };
        let Op::Weights(weights) = self.op(*weights) else { unreachable!("weights were inferred") };
        let x = self.tensor(*x);
        let (rows, k) = (x.shape[0], x.shape[1]);
        let mut parts: Vec<Tensor> = weights
            .iter()
            .map(|&w| {
                let w = self.tensor(w);
                let n = w.shape[0];
                let mut data = Vec::with_capacity(rows * n);
                for t in 0..rows {
                    let x = &x.data[t * k..][..k];
                    data.extend(
                        w.data.chunks(k).map(|w| self.round(x.iter().zip(w).map(|(x, w)| x * w).sum())),
                    );
                }
                Tensor::new(DType::F32, &[rows, n], data)
            })
            .collect();
        match self.op(*epilogue) {
            Op::Gate => {
                let up = parts.pop().unwrap_or_else(|| unreachable!("two weights"));
                for (g, u) in parts[0].data.iter_mut().zip(&up.data) {
                    *g = self.round(self.round(gelu_tanh(*g)) * u);
                }
            }
            Op::Cap(cap) => {
                let cap = self.num(*cap);
                parts.iter_mut().flat_map(|p| &mut p.data).for_each(|x| *x = self.softcap(cap, *x));
            }
            _ => {}
        }
        Ok(if parts.len() == 1 { Value::Tensor(parts.remove(0)) } else { Value::Tuple(parts) })
    }

    fn softcap(&self, cap: f64, x: f64) -> f64 {
        self.round(self.round(self.round(x / cap).tanh()) * cap)
    }

    fn rope(&self, x: Id, pos: Id, frequencies: Id) -> Tensor {
        let (x, pos, f) = (self.tensor(x), self.tensor(pos), self.tensor(frequencies));
        let (t, d) = (x.shape[1], x.shape[2]);
        let mut result = x.clone();
        for (row, (y, x)) in result.data.chunks_mut(d).zip(x.data.chunks(d)).enumerate() {
            for i in 0..d / 2 {
                let (sin, cos) = self.round(pos.data[row % t] * f.data[i]).sin_cos();
                let (sin, cos) = (self.round(sin), self.round(cos));
                let (a, b) = (x[i], x[i + d / 2]);
                y[i] = self.round(self.round(a * cos) - self.round(b * sin));
                y[i + d / 2] = self.round(self.round(b * cos) + self.round(a * sin));
            }
        }
        result
    }

    fn scores(&self, q: &Tensor, k: &Tensor, scale: Id, cap: Id) -> Tensor {
        let (h, t, s, d) = (q.shape[0], q.shape[1], k.shape[1], q.shape[2]);
        let repeat = h / k.shape[0];
        let (scale, cap) = (self.num(scale), self.optional(cap));
        let mut data = Vec::with_capacity(h * t * s);
        for (row, q) in q.data.chunks(d).enumerate() {
            let group = row / t / repeat;
            data.extend(k.data[group * s * d..][..s * d].chunks(d).map(|k| {
                let dot = self.round(q.iter().zip(k).map(|(q, k)| q * k).sum());
                let score = self.round(dot * scale);
                cap.map_or(score, |cap| self.softcap(cap, score))
            }));
        }
        Tensor::new(DType::F32, &[h, t, s], data)
    }

    /// The keys `low..high` of `s` that row `row` of (.., T) sees.
    fn range(&self, pos: Id, window: Id, row: usize, s: usize) -> (usize, usize) {
        let pos = self.tensor(pos);
        let high = (pos.data[row % pos.data.len()] as i64 + 1).clamp(0, s as i64);
        let after = pos.data[row % pos.data.len()] as i64 + 1;
        let low = self.window(window).map_or(0, |w| (after.saturating_sub(w)).clamp(0, high));
        (low as usize, high as usize)
    }

    fn softmax(&self, mut x: Tensor, pos: Id, window: Id) -> Tensor {
        let s = x.row();
        let ranged = *self.op(pos) != Op::None;
        for (row, x) in x.data.chunks_mut(s.max(1)).enumerate() {
            let (low, high) = if ranged { self.range(pos, window, row, s) } else { (0, x.len()) };
            x[..low].fill(0.0);
            x[high..].fill(0.0);
            let x = &mut x[low..high];
            if x.iter().all(|&x| x == f64::NEG_INFINITY) {
                x.fill(0.0);
                continue;
            }
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            x.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f64 = x.iter().sum();
            x.iter_mut().for_each(|x| *x = self.round(*x / sum));
        }
        x
    }
}

/// A block of numbers in 8 bits: its quants and its scale. The scale is the largest magnitude over 127, in f32, rounded to
/// bf16; a quant is the element over the scale, in f32, to the nearest even integer. Of a scale of 0 all are 0.
fn q8_block(block: &[f64]) -> (Vec<i8>, half::bf16) {
    let largest = block.iter().fold(0f32, |most, &x| most.max((x as f32).abs()));
    let scale = half::bf16::from_f32(largest / 127.0);
    let s = scale.to_f32();
    let quant =
        |&x: &f64| if s > 0.0 { (x as f32 / s).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 };
    (block.iter().map(quant).collect(), scale)
}

/// What blocks of 8 bits hold of numbers.
fn rounded_blocks(x: &[f64]) -> Vec<f64> {
    x.chunks(BLOCK)
        .flat_map(|block| {
            let (quants, scale) = q8_block(block);
            quants.into_iter().map(move |q| f64::from(q) * scale.to_f64())
        })
        .collect()
}

/// Rows of `k` quantised elements as numbers.
fn dequantised(dtype: DType, k: usize, bytes: &[u8]) -> Vec<f64> {
    let mut data = Vec::new();
    for row in bytes.chunks_exact(dtype.row_bytes(k).max(1)) {
        let (quants, scales) = row.split_at(row.len() - k / BLOCK * 2);
        for i in 0..k {
            let (block, at) = (i / BLOCK, i % BLOCK);
            let scale = half::bf16::from_le_bytes([scales[2 * block], scales[2 * block + 1]]).to_f64();
            let q = if dtype == DType::Q8 {
                f64::from(quants[i] as i8)
            } else {
                let byte = quants[block * 16 + at % 16];
                f64::from(if at < 16 { byte & 15 } else { byte >> 4 }) - 8.0
            };
            data.push(q * scale);
        }
    }
    data
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in f64.
fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

fn round_to(dtype: DType, x: f64, precision: Precision) -> f64 {
    match dtype {
        DType::F32 if precision == Precision::F32 => f64::from(x as f32),
        DType::F32 | DType::Bool | DType::Q8 | DType::Q4 => x,
        // bf16 from f32, as hardware does: a second rounding only where the first was to f32.
        DType::BF16 => half::bf16::from_f32(x as f32).to_f64(),
        DType::F16 => half::f16::from_f32(x as f32).to_f64(),
        DType::I32 => f64::from(x as i64 as i32),
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i] * shape[i];
    }
    steps
}

/// Strides of a tensor seen as a larger shape: 0 along axes of length 1 and missing ones.
fn stretched_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let steps = strides(from);
    let missing = to.len() - from.len();
    (0..to.len())
        .map(|i| match i.checked_sub(missing) {
            Some(i) if from[i] != 1 => steps[i],
            _ => 0,
        })
        .collect()
}

/// Elements of x at `start` and these steps, row-major over `shape`.
fn gather_strided(x: &Tensor, shape: &[usize], steps: &[usize], start: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let mut data = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    let mut at = start;
    for _ in 0..count {
        data.push(x.data[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Tensor { dtype: x.dtype, shape: shape.to_vec(), data }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::text::parse_module;

    const EXTENT: Extent = Extent { rows: 2, keys: 3 };

    fn parse(source: &str) -> Function {
        parse_module(source).unwrap().functions.remove(0)
    }

    fn run(source: &str, inputs: &[Tensor]) -> Vec<Tensor> {
        let function = parse(source);
        crate::verify::verify(&function).unwrap();
        evaluate(&function, inputs, EXTENT, Precision::F32).unwrap()
    }

    /// The value of a term without inputs.
    fn value(term: &str) -> Tensor {
        run(&format!("function f() {{ return y={term} }}"), &[]).remove(0)
    }

    fn numbers(shape: &[usize], seed: u32) -> Tensor {
        let mut state = seed;
        let data = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 4e6 - 2.0
        });
        Tensor::from_f32(shape, &data.collect::<Vec<_>>())
    }

    fn near(a: &[Tensor], b: &[Tensor], tolerance: f64) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape));
            for (x, y) in a.data.iter().zip(&b.data) {
                assert!((x - y).abs() <= tolerance, "{:?} against {:?}", a.data, b.data);
            }
        }
    }

    #[test]
    fn elementwise_operators_broadcast_and_round() {
        assert_eq!(value("(div 1.0 3.0)").data, [f64::from(1.0f32 / 3.0)]);
        assert_eq!(
            value("(add (iota [3] f32) (reshape (iota [2] f32) [2,1]))").data,
            [0., 1., 2., 1., 2., 3.]
        );
        assert_eq!(value("(cast 1.00390625 bf16)").data, [1.0], "halves to even");
        assert_eq!(value("(cast 1.01171875 bf16)").data, [1.015625], "halves to even");
        assert_eq!(value("(cast 65520.0 f16)").data, [f64::INFINITY]);
        let y = value("(select (lt (iota [3] i32) 1) (iota [3] f32) (neg (iota [3] f32)))");
        assert_eq!(y.data, [0.0, -1.0, -2.0]);
    }

    #[test]
    fn reductions_keep_their_axis() {
        let x = "(reshape (iota [6] f32) [2,3])";
        let y = value(&format!("(sum {x} 0)"));
        assert_eq!((y.shape, y.data), (vec![1, 3], vec![3., 5., 7.]));
        assert_eq!(value(&format!("(mean {x} 1)")).data, [1., 4.]);
        assert_eq!(value(&format!("(max {x} 1)")).data, [2., 5.]);
        let of = |data: [f32; 4]| {
            run("function f(%x: f32[4] weight) { return y=(argmax %x 0) }", &[Tensor::from_f32(&[4], &data)])
                .remove(0)
        };
        assert_eq!(of([1.0, f32::NAN, 3.0, 3.0]).data, [2.0]);
        assert_eq!(of([f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN]).data, [1.0]);
        assert_eq!(of([f32::NAN, f32::NEG_INFINITY, 0.0, 1.0]).dtype, DType::I32);
    }

    #[test]
    fn contraction_and_movement() {
        let x = "(reshape (iota [6] f32) [2,3])";
        assert_eq!(value(&format!("(matmul {x} (transpose {x} [1,0]))")).data, [5., 14., 14., 50.]);
        assert_eq!(value(&format!("(slice {x} 1 -2 2)")).data, [1., 2., 4., 5.]);
        assert_eq!(value(&format!("(concat {x} {x} 1)")).shape, [2, 6]);
        assert_eq!(value(&format!("(broadcast (slice {x} 1 0 1) [2,2])")).data, [0., 0., 3., 3.]);
        let table = "function f(%i: i32[T] rows) { return y=(gather (reshape (iota [6] f32) [3,2]) %i) }";
        assert_eq!(run(table, &[Tensor::from_i32(&[2], &[2, 0])])[0].data, [4., 5., 0., 1.]);
        for id in [3, -1] {
            let e = evaluate(&parse(table), &[Tensor::from_i32(&[2], &[0, id])], EXTENT, Precision::F32)
                .unwrap_err();
            assert!(matches!(e, Error::Evaluate { .. }), "{e}");
        }
    }

    #[test]
    fn append_replaces_the_last_rows_and_rounds() {
        let source = "function f(%c: bf16[1,S,1] cache, %x: f32[1,T,1] rows) { return c=(append %c %x) }";
        let cache = Tensor::new(DType::BF16, &[1, 3, 1], vec![7., 8., 9.]);
        let y = run(source, &[cache, Tensor::from_f32(&[1, 2, 1], &[1.003_906_2, 2.0])]).remove(0);
        assert_eq!((y.dtype, y.data), (DType::BF16, vec![7., 1., 2.]));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let of = |source: &str, inputs: &[Tensor], extent: Extent| {
            evaluate(&parse(source), inputs, extent, Precision::F32).unwrap_err().to_string()
        };
        let one = "function f(%x: f32[T] rows) { return y=(slice %x 0 -1 1) }";
        assert!(of(one, &[], EXTENT).contains("expected 1 inputs"));
        assert!(of(one, &[Tensor::from_f32(&[3], &[0.0; 3])], EXTENT).contains("input `x`"));
        assert!(of(one, &[Tensor::from_f32(&[0], &[])], Extent { rows: 0, keys: 0 }).contains("no last row"));
        let empty = "function f() { return y=(reshape (iota [0] f32) [0,1]) }";
        assert!(of(empty, &[], EXTENT).contains("length 0"));
        let huge = "function f() { return y=(broadcast (iota [1] f32) [99999999999999]) }";
        assert!(of(huge, &[], EXTENT).contains("too many"));
        assert_eq!(constant(&parse(huge), Id::from(4)), None);
    }

    #[test]
    fn fused_norms_and_activations_are_their_primitives() {
        let rms = "(mul (mul %x (rsqrt (add (mean (mul %x %x) 1) 1e-6))) (add 1.0 %w))";
        let gelu = "(mul (mul 0.5 %x) (add 1.0 (tanh (mul 0.7978845608 (add %x (mul 0.044715 (mul %x (mul %x %x))))))))";
        let source = |terms: [&str; 5]| {
            let outputs: Vec<String> = terms.iter().enumerate().map(|(i, t)| format!("y{i}={t}")).collect();
            format!("function f(%x: f32[T,4] rows, %w: f32[4] weight) {{ return {} }}", outputs.join(", "))
        };
        let residual = format!("(add %x {rms})");
        let gated = format!("(mul {gelu} (neg %x))");
        let inputs = [numbers(&[2, 4], 1), numbers(&[4], 2)];
        let primitive = source([rms, &residual, gelu, &gated, "(mul 2.0 (tanh (div %x 2.0)))"]);
        let fused = source([
            "(rms_norm %x %w 1e-6)",
            "(add_rms_norm %x %x %w 1e-6)",
            "(gelu_tanh %x)",
            "(gated_gelu %x (neg %x))",
            "(softcap 2.0 %x)",
        ]);
        near(&run(&fused, &inputs), &run(&primitive, &inputs), 1e-6);
    }

    #[test]
    fn linears_are_products_with_the_transpose() {
        let declared =
            "function f(%x: f32[T,4] rows, %n: f32[4] weight, %a: bf16[3,4] weight, %b: f32[3,4] weight)";
        let fused = format!(
            "{declared} {{
                p = (norm_prologue %x %n 1e-6)
                two = (linear p (weights %a %b) store)
                return one=(linear %x (weights %a) store), cap=(linear %x (weights %b) (cap 2.0)),
                    gate=(linear p (weights %a %b) gate), first=(output 0 two), second=(output 1 two)
            }}"
        );
        let primitive = format!(
            "{declared} {{
                at = (transpose (cast %a f32) [1,0])
                bt = (transpose %b [1,0])
                n = (rms_norm %x %n 1e-6)
                return one=(matmul %x at), cap=(softcap 2.0 (matmul %x bt)),
                    gate=(gated_gelu (matmul n at) (matmul n bt)), first=(matmul n at), second=(matmul n bt)
            }}"
        );
        let mut a = numbers(&[3, 4], 3);
        a = Tensor::from_bytes(DType::BF16, &[3, 4], &Tensor { dtype: DType::BF16, ..a }.to_bytes());
        let inputs = [numbers(&[2, 4], 1), numbers(&[4], 2), a, numbers(&[3, 4], 4)];
        near(&run(&fused, &inputs), &run(&primitive, &inputs), 1e-6);
    }

    #[test]
    fn rope_rotates_halves() {
        let source = "function f(%x: f32[1,T,4] rows, %p: i32[T] rows, %f: f32[2] weight) { return y=(rope %x %p %f) }";
        let x = Tensor::from_f32(&[1, 2, 4], &[1., 2., 3., 4., 1., 2., 3., 4.]);
        let inputs = [x, Tensor::from_i32(&[2], &[0, 3]), Tensor::from_f32(&[2], &[1.0, 0.5])];
        let y = run(source, &inputs).remove(0).data;
        assert_eq!(y[..4], [1., 2., 3., 4.]);
        let (s, c) = 3f64.sin_cos();
        assert!((y[4] - (c - 3.0 * s)).abs() < 1e-6 && (y[6] - (3.0 * c + s)).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn attention_reads_its_window_of_its_group() {
        // Values name their group and key, equal scores: the result is the mean of the visible keys' names.
        let source = |window: &str| {
            format!(
                "function f(%q: f32[4,T,1] rows, %c: f32[2,S,1] cache, %p: i32[T] rows, %k: f32[2,T,1] rows) {{
                    c = (append %c %k)
                    return c=c, y=(attention %q c c %p 0.0 none {window} online),
                        z=(softmax (scores %q c 0.0 5.0) %p {window} bounded),
                        m=(softmax (window_mask (scores %q c 0.0 none) %p {window}) none none online)
                }}"
            )
        };
        let inputs = |positions: &[i32]| {
            [
                numbers(&[4, 2, 1], 1),
                Tensor::from_f32(&[2, 3, 1], &[0., 0., 0., 10., 0., 0.]),
                Tensor::from_i32(&[2], positions),
                Tensor::from_f32(&[2, 2, 1], &[1., 2., 11., 12.]),
            ]
        };
        let all = run(&source("none"), &inputs(&[1, 2]));
        assert_eq!(all[1].data, [0.5, 1., 0.5, 1., 10.5, 11., 10.5, 11.]);
        let windowed = run(&source("2"), &inputs(&[1, 2]));
        assert_eq!(windowed[1].data, [0.5, 1.5, 0.5, 1.5, 10.5, 11.5, 10.5, 11.5]);
        assert_eq!(windowed[2].data[..6], [0.5, 0.5, 0., 0., 0.5, 0.5]);
        assert_eq!(windowed[2], windowed[3]);
        let hidden = run(&source("2"), &inputs(&[-1, 9]));
        assert_eq!(hidden[1].data, [0.; 8]);
        assert_eq!(hidden[2].data, [0.; 24]);
        assert_eq!(hidden[3].data, [0.; 24]);
    }

    #[test]
    fn constants_depend_on_no_input_and_no_named_dim() {
        let f = parse(
            "function f(%x: f32[T] rows) {
                a = (exp (mul 2.0 (cast (iota [3] i32) f32)))
                b = (add %x 1.0)
                c = (cast (iota [T] i32) f32)
                return a=a, b=b, c=c
            }",
        );
        let of = |name: &str| constant(&f, f.outputs.iter().find(|o| o.0 == name).unwrap().1);
        let a = of("a").unwrap();
        assert_eq!(a.to_f32(), [1.0, 2f64.exp() as f32, 4f64.exp() as f32]);
        assert_eq!((of("b"), of("c"), constant(&f, Id::from(999))), (None, None, None));
    }

    #[test]
    fn doubles_are_not_rounded() {
        let f = parse("function f() { return y=(div 1.0 3.0), z=(cast (div 1.0 3.0) bf16) }");
        let y = evaluate(&f, &[], EXTENT, Precision::F64).unwrap();
        assert_eq!(y[0].data, [1.0 / 3.0]);
        assert_eq!(y[1].data, [half::bf16::from_f64(1.0 / 3.0).to_f64()]);
    }

    #[test]
    fn bytes_there_and_back() {
        for dtype in DType::ALL.into_iter().filter(|d| !d.is_quantised()) {
            let x = Tensor::new(dtype, &[2, 2], vec![0.0, 1.0, 1.0, 0.0]);
            assert_eq!(Tensor::from_bytes(dtype, &[2, 2], &x.to_bytes()), x);
        }
    }
}
