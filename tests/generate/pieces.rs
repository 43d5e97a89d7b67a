//! What a choice adds to a random function: an operator of its kind over values that fit, if there are any.

use lapidary_ir::{DType, Dim, InputKind, Op};

use super::{Choice, Generator, KINDS, ULP, Value, broadcast, longest};

impl Generator {
    /// Adds a piece, if there are operands for it.
    pub(super) fn piece(&mut self, (kind, i, j, k): Choice) -> Option<Value> {
        use Dim::{Fixed, Keys, Rows};
        let is_f32 = |v: &Value| v.dtype == DType::F32;
        let unary =
            |v: &Value, size: f64, slope: f64| (v.dims.clone(), size, slope * v.error + 4.0 * ULP * size);
        match kind % KINDS {
            0 => {
                let x = self.pick(i, is_f32)?;
                let id = self.b.add(Op::Neg(x.id));
                self.push(id, x.dtype, x.dims, x.size, x.error)
            }
            1 => {
                let x = self.pick(i, is_f32)?;
                let x = self.positive(&x, 1.0);
                let id = self.b.add(Op::Recip(x.id));
                let (dims, size, error) = unary(&x, 1.0, 1.0);
                self.push(id, DType::F32, dims, size, error)
            }
            2 => {
                let x = self.pick(i, is_f32)?;
                let x = self.positive(&x, 0.25);
                let (op, size, slope) =
                    if j % 2 == 0 { (Op::Sqrt(x.id), x.size, 1.0) } else { (Op::Rsqrt(x.id), 2.0, 4.0) };
                let id = self.b.add(op);
                let (dims, size, error) = unary(&x, size, slope);
                self.push(id, DType::F32, dims, size, error)
            }
            3 => {
                let x = self.pick(i, |v| is_f32(v) && v.size <= 8.0)?;
                let id = self.b.add(Op::Exp(x.id));
                let (dims, size, error) = unary(&x, x.size.exp(), x.size.exp());
                self.push(id, DType::F32, dims, size, error)
            }
            4 => {
                let x = self.pick(i, is_f32)?;
                let id = self.b.add(Op::Tanh(x.id));
                let (dims, size, error) = unary(&x, 1.0, 1.0);
                self.push(id, DType::F32, dims, size, error)
            }
            5 => {
                let x = self.pick(i, is_f32)?;
                let id = self.b.add(if j % 2 == 0 { Op::Cos(x.id) } else { Op::Sin(x.id) });
                let (dims, size, error) = unary(&x, 1.0, 1.0);
                self.push(id, DType::F32, dims, size, error)
            }
            // Casts: to 16 bits, between those, and wider.
            6 => {
                let to = [DType::BF16, DType::F16][j % 2];
                let x = self.pick(i, |v| v.dtype.is_float() && v.dtype != to && v.error == 0.0)?;
                let dtype = self.b.dtype(to);
                let id = self.b.add(Op::Cast([x.id, dtype]));
                self.push(id, to, x.dims, 1.01 * x.size, 0.0)
            }
            7 | 8 => {
                let x = self.pick(i, |v| !matches!(v.dtype, DType::F32 | DType::Bool))?;
                let dtype = self.b.dtype(DType::F32);
                let id = self.b.add(Op::Cast([x.id, dtype]));
                self.push(id, DType::F32, x.dims, x.size, x.error)
            }
            9..=12 => {
                let integer = k % 4 == 0;
                let dtype = if integer { DType::I32 } else { DType::F32 };
                let x = self.pick(i, |v| v.dtype == dtype)?;
                let (y, dims) = self.partner(j, &x, |v| v.dtype == dtype)?;
                let (op, size, error) = match kind % 3 {
                    0 => (Op::Add([x.id, y.id]), x.size + y.size, x.error + y.error),
                    1 => (Op::Sub([x.id, y.id]), x.size + y.size, x.error + y.error),
                    _ => (Op::Mul([x.id, y.id]), x.size * y.size, x.size * y.error + y.size * x.error),
                };
                let id = self.b.add(op);
                self.push(id, dtype, dims, size, if integer { 0.0 } else { error + ULP * size })
            }
            // With a number.
            13 => {
                let x = self.pick(i, is_f32)?;
                let number = [0.5, 2.0, -3.0, 0.044715, 0.0][j % 5];
                let c = self.b.num(number);
                let number = f64::from(number.abs());
                let (op, size, error) = match k % 3 {
                    0 => (Op::Add([c, x.id]), x.size + number, x.error),
                    1 => (Op::Mul([x.id, c]), x.size * number, x.error * number),
                    _ => (Op::Sub([c, x.id]), x.size + number, x.error),
                };
                let id = self.b.add(op);
                self.push(id, DType::F32, x.dims, size, error + ULP * size)
            }
            14 => {
                let x = self.pick(i, is_f32)?;
                let (y, dims) = self.partner(j, &x, is_f32)?;
                let y = self.positive(&y, 1.0);
                let id = self.b.add(Op::Div([x.id, y.id]));
                self.push(id, DType::F32, dims, x.size, x.error + x.size * y.error + 2.0 * ULP * x.size)
            }
            15 => {
                let x = self.pick(i, is_f32)?;
                let power = [2.0, 3.0, 0.5, -1.5, -0.5, 4.0][j % 6];
                let by = self.b.num(power);
                let power = f64::from(power);
                let whole = power.fract() == 0.0 && power > 0.0;
                let (x, least) = if whole { (x, 0.0) } else { (self.positive(&x, 0.25), 0.25) };
                let id = self.b.add(Op::Pow([x.id, by]));
                let size = x.size.powf(power).max(if whole { 0.0 } else { f64::powf(least, power) });
                let slope = power.abs()
                    * x.size.powf(power - 1.0).max(if whole { 0.0 } else { f64::powf(least, power - 1.0) });
                let rounding = (4.0 + 2.0 * power.abs() * (x.size + 4.0).ln()) * ULP * size;
                self.push(id, DType::F32, x.dims, size, slope * x.error + rounding)
            }
            16 => {
                let y = self.pick(i, |v| is_f32(v) && v.size <= 6.0)?;
                let base = self.b.num(2.5);
                let id = self.b.add(Op::Pow([base, y.id]));
                let log = 2.5f64.ln();
                let size = (y.size * log).exp();
                self.push(
                    id,
                    DType::F32,
                    y.dims,
                    size,
                    size * (log * y.error + (3.0 + 2.0 * log * y.size) * ULP),
                )
            }
            17 => {
                let x = self.pick(i, |v| v.dtype == DType::I32 || v.is_exact_f32())?;
                let (y, dims) = self.partner(j, &x, |v| v.dtype == x.dtype && v.error == 0.0)?;
                let id = self.b.add([Op::Lt, Op::Le, Op::Eq][k % 3]([x.id, y.id]));
                self.push(id, DType::Bool, dims, 1.0, 0.0)
            }
            18 => {
                let x = self.pick(i, |v| v.dtype == DType::Bool)?;
                let (y, dims) = self.partner(j, &x, |v| v.dtype == DType::Bool)?;
                let id = self.b.add(match k % 3 {
                    0 => Op::And([x.id, y.id]),
                    1 => Op::Or([x.id, y.id]),
                    _ => Op::Not(x.id),
                });
                let dims = if k % 3 == 2 { x.dims } else { dims };
                self.push(id, DType::Bool, dims, 1.0, 0.0)
            }
            19 => {
                let c = self.pick(i, |v| v.dtype == DType::Bool)?;
                let (x, dims) = self.partner(j, &c, |v| matches!(v.dtype, DType::F32 | DType::I32))?;
                let seen = Value { dims, ..c.clone() };
                let (y, dims) = self.partner(k, &seen, |v| v.dtype == x.dtype)?;
                let id = self.b.add(Op::Select([c.id, x.id, y.id]));
                self.push(id, x.dtype, dims, x.size.max(y.size), x.error.max(y.error))
            }
            20 | 21 => {
                let argmax = k % 5 == 3;
                let x = self.pick(i, |v| is_f32(v) && !v.dims.is_empty() && (!argmax || v.error == 0.0))?;
                let axis = j % x.dims.len();
                let n = longest(x.dims[axis]) as f64;
                let id = self.attribute(axis);
                let (op, size, error) = match k % 5 {
                    0 => (Op::Sum([x.id, id]), n * x.size, n * x.error + 4.0 * ULP * n * x.size),
                    1 => (Op::Mean([x.id, id]), x.size, x.error + 4.0 * ULP * x.size),
                    2 => (Op::Max([x.id, id]), x.size, x.error),
                    4 => (Op::Min([x.id, id]), x.size, x.error),
                    _ => (Op::Argmax([x.id, id]), n, 0.0),
                };
                let mut dims = x.dims.clone();
                dims[axis] = Fixed(1);
                let id = self.b.add(op);
                self.push(id, if argmax { DType::I32 } else { DType::F32 }, dims, size, error)
            }
            22 | 23 => {
                let a = self.pick(i, |v| is_f32(v) && v.dims.len() >= 2)?;
                let last = a.dims[a.dims.len() - 1];
                let leading = |v: &Value| {
                    let s = v.dims.len().checked_sub(2)?;
                    broadcast(&a.dims[..a.dims.len() - 2], &v.dims[..s])
                };
                let fits = |v: &Value| is_f32(v) && leading(v).is_some() && v.dims[v.dims.len() - 2] == last;
                // Or one by its own transpose, or by another's.
                let turned = |v: &Value| is_f32(v) && leading(v).is_some() && v.dims.last() == Some(&last);
                let b = match self.pick(j, fits) {
                    Some(b) if k % 2 == 0 => b,
                    _ => {
                        let b = self.pick(j, turned)?;
                        let r = b.dims.len();
                        let mut order: Vec<usize> = (0..r).collect();
                        order.swap(r - 2, r - 1);
                        self.transposed(&b, &order)
                    }
                };
                let n = longest(last) as f64;
                let mut dims = leading(&b)?;
                dims.extend([a.dims[a.dims.len() - 2], b.dims[b.dims.len() - 1]]);
                let id = self.b.add(Op::Matmul([a.id, b.id]));
                let error = n * (a.size * b.error + b.size * a.error) + 4.0 * ULP * n * a.size * b.size;
                self.push(id, DType::F32, dims, n * a.size * b.size, error)
            }
            24 => {
                let x = self.pick(i, |v| !v.dims.is_empty())?;
                let mut dims = x.dims.clone();
                let axis = j % dims.len();
                match (k % 3, dims[axis], dims.get(axis + 1).copied()) {
                    (0, Fixed(a), Some(Fixed(b))) => {
                        dims[axis] = Fixed(a * b);
                        dims.remove(axis + 1);
                    }
                    (1, Fixed(6), _) => {
                        dims[axis] = Fixed(2);
                        dims.insert(axis + 1, Fixed(3));
                    }
                    (_, Fixed(1), _) => {
                        dims.remove(axis);
                    }
                    _ => dims.insert(axis, Fixed(1)),
                }
                let to = self.b.dims(&dims);
                let id = self.b.add(Op::Reshape([x.id, to]));
                self.push(id, x.dtype, dims, x.size, x.error)
            }
            25 => {
                let x = self.pick(i, |v| v.dims.len() >= 2)?;
                let mut order: Vec<usize> = (0..x.dims.len()).collect();
                order.swap(j % x.dims.len(), k % x.dims.len());
                order.rotate_left(i % 2);
                let x = self.transposed(&x, &order);
                self.push(x.id, x.dtype, x.dims, x.size, x.error)
            }
            26 => {
                let x = self.pick(i, |v| v.dims.contains(&Fixed(1)))?;
                let axis = x.dims.iter().position(|&d| d == Fixed(1))?;
                let mut dims = x.dims.clone();
                dims[axis] = [Fixed(3), Rows, Keys][j % 3];
                let to = self.b.dims(&dims);
                let id = self.b.add(Op::Broadcast([x.id, to]));
                self.push(id, x.dtype, dims, x.size, x.error)
            }
            27 => {
                let x = self.pick(i, |v| v.dims.iter().any(|&d| d != Keys))?;
                let axes: Vec<usize> = (0..x.dims.len()).filter(|&a| x.dims[a] != Keys).collect();
                let axis = axes[j % axes.len()];
                let (start, length) = match x.dims[axis] {
                    Fixed(n) => {
                        let start = k % n;
                        let length = 1 + i % (n - start);
                        (if j % 2 == 0 { start as i64 } else { start as i64 - n as i64 }, length)
                    }
                    Rows | Keys => (-1, 1),
                };
                let mut dims = x.dims.clone();
                dims[axis] = Fixed(length);
                let (a, s, l) = (self.attribute(axis), self.b.int(start), self.attribute(length));
                let id = self.b.add(Op::Slice([x.id, a, s, l]));
                self.push(id, x.dtype, dims, x.size, x.error)
            }
            28 => {
                let x = self.pick(i, |v| v.dims.iter().any(|d| d.fixed().is_some()))?;
                let axes: Vec<usize> = (0..x.dims.len()).filter(|&a| x.dims[a].fixed().is_some()).collect();
                let axis = axes[k % axes.len()];
                let joins = |v: &Value| {
                    v.dtype == x.dtype
                        && v.dims.len() == x.dims.len()
                        && (0..x.dims.len())
                            .all(|a| v.dims[a] == x.dims[a] || (a == axis && v.dims[a].fixed().is_some()))
                };
                let y = self.pick(j, joins)?;
                let mut dims = x.dims.clone();
                dims[axis] = Fixed(longest(x.dims[axis]) + longest(y.dims[axis]));
                let a = self.attribute(axis);
                let id = self.b.add(Op::Concat([x.id, y.id, a]));
                self.push(id, x.dtype, dims, x.size.max(y.size), x.error.max(y.error))
            }
            29 => {
                let x = self.pick(i, |v| is_f32(v) && (j % 2 == 0 || v.error == 0.0))?;
                let id = self.b.add(if j % 2 == 0 { Op::Abs(x.id) } else { Op::Floor(x.id) });
                self.push(id, DType::F32, x.dims, x.size + 1.0, x.error)
            }
            30 => {
                let x = self.pick(i, is_f32)?;
                let x = self.positive(&x, 0.25);
                let id = self.b.add(Op::Log(x.id));
                let (dims, size, error) = unary(&x, x.size.ln().abs().max(1.4), 4.0);
                self.push(id, DType::F32, dims, size, error)
            }
            31 => {
                let dtype = if k % 4 == 0 { DType::I32 } else { DType::F32 };
                let x = self.pick(i, |v| v.dtype == dtype)?;
                let (y, dims) = self.partner(j, &x, |v| v.dtype == dtype)?;
                let id = self.b.add([Op::Maximum, Op::Minimum][k % 2]([x.id, y.id]));
                self.push(id, dtype, dims, x.size.max(y.size), x.error.max(y.error))
            }
            32 => {
                let x = self.pick(i, |v| is_f32(v) && v.dims.iter().any(|d| d.fixed().is_some()))?;
                // Of numbers near 1, so that few factors leave it there.
                let scale = self.b.num(0.1);
                let bounded = self.b.add(Op::Tanh(x.id));
                let small = self.b.add(Op::Mul([bounded, scale]));
                let axis = x.dims.iter().position(|d| d.fixed().is_some())?;
                let (a, n) = (self.attribute(axis), longest(x.dims[axis]) as f64);
                let id = self.b.add(Op::Prod([small, a]));
                let mut dims = x.dims;
                dims[axis] = Fixed(1);
                self.push(id, DType::F32, dims, 1.0, n * (0.1 * x.error + 4.0 * ULP))
            }
            33 => {
                let fixed = |v: &Value| v.dims.iter().any(|d| d.fixed().is_some());
                let x = self.pick(i, |v| matches!(v.dtype, DType::F32 | DType::I32) && fixed(v))?;
                let axes: Vec<usize> = (0..x.dims.len()).filter(|&a| x.dims[a].fixed().is_some()).collect();
                let axis = axes[j % axes.len()];
                let (before, after) = (k % 3, k / 3 % 3);
                let value = if x.dtype == DType::I32 { self.b.int(2) } else { self.b.num(-1.5) };
                let [a, lead, trail] = [axis, before, after].map(|n| self.attribute(n));
                let id = self.b.add(Op::Pad([x.id, a, lead, trail, value]));
                let mut dims = x.dims;
                dims[axis] = Fixed(longest(dims[axis]) + before + after);
                self.push(id, x.dtype, dims, x.size.max(2.0), x.error)
            }
            34 => {
                let x = self.pick(j, |v| v.dims.contains(&Fixed(5)))?;
                let axis = x.dims.iter().position(|&d| d == Fixed(5))?;
                let ids = self.values.iter().find(|v| v.size == 4.0 && v.dtype == DType::I32)?.id;
                let a = self.attribute(axis);
                let id = self.b.add(Op::Take([x.id, ids, a]));
                let mut dims = x.dims;
                dims[axis] = Rows;
                self.push(id, x.dtype, dims, x.size, x.error)
            }
            _ => match i % 3 {
                0 => {
                    let (dim, dtype) = ([Fixed(5), Rows, Keys][j % 3], [DType::I32, DType::F32][k % 2]);
                    let (dims, of) = (self.b.dims(&[dim]), self.b.dtype(dtype));
                    let id = self.b.add(Op::Iota([dims, of]));
                    self.push(id, dtype, vec![dim], longest(dim) as f64, 0.0)
                }
                1 => {
                    let table = self.pick(j, |v| v.dims.first() == Some(&Fixed(5)))?;
                    let ids = self.values.iter().find(|v| v.size == 4.0 && v.dtype == DType::I32)?.id;
                    let id = self.b.add(Op::Gather([table.id, ids]));
                    let dims = [&[Rows][..], &table.dims[1..]].concat();
                    self.push(id, table.dtype, dims, table.size, table.error)
                }
                _ => self.append(j, k),
            },
        }
    }

    fn transposed(&mut self, x: &Value, order: &[usize]) -> Value {
        let axes: Vec<Dim> = order.iter().map(|&a| Dim::Fixed(a)).collect();
        let axes = self.b.dims(&axes);
        let id = self.b.add(Op::Transpose([x.id, axes]));
        Value { id, dims: order.iter().map(|&a| x.dims[a]).collect(), ..x.clone() }
    }

    /// Appends rows to a cache of their own.
    fn append(&mut self, j: usize, k: usize) -> Option<Value> {
        if self.caches == 2 {
            return None;
        }
        let dtype = [DType::F32, DType::BF16, DType::F16][k % 3];
        let rows = self.pick(j, |v| {
            let fits = matches!(v.dims[..], [Dim::Fixed(_), Dim::Rows, Dim::Fixed(_)]);
            fits && v.dtype == DType::F32 && (v.error == 0.0 || dtype == DType::F32)
        })?;
        self.caches += 1;
        let name = format!("cache{}", self.caches);
        let dims = vec![rows.dims[0], Dim::Keys, rows.dims[2]];
        let cache = self.b.input(&name, InputKind::Cache { window: None }, dtype, &dims);
        let mut from = rows.id;
        if dtype != DType::F32 && k.is_multiple_of(2) {
            let to = self.b.dtype(dtype);
            from = self.b.add(Op::Cast([from, to]));
        }
        let id = self.b.add(Op::Append([cache, from]));
        let value = Value { id, dtype, dims, size: 1.01 * rows.size.max(6.0), error: rows.error };
        self.outputs.push((name, value.clone()));
        self.values.push(value.clone());
        Some(value)
    }
}
