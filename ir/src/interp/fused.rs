//! Fused operators, each as one plain loop.

use egg::Id;

use super::{Call, Tensor, Value, evaluate};
use crate::Error;
use crate::op::Op;
use crate::types::{DType, Dim, TensorType};

impl Call<'_> {
    pub(super) fn norm(&self, x: Id, w: Id, eps: Id) -> Tensor {
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

    /// A program over some tensors, and those of a node behind them.
    pub(super) fn program(&self, operands: &[Id], before: Vec<Tensor>) -> Result<Tensor, Error> {
        let Op::Program(program) = self.op(operands[0]) else { unreachable!("a program was inferred") };
        let rest = operands[1..].iter().map(|&id| self.tensor(id).clone());
        let tensors: Vec<Tensor> = before.into_iter().chain(rest).collect();
        let fixed =
            |t: &Tensor| TensorType::new(t.dtype, t.shape.iter().map(|&n| Dim::Fixed(n)).collect::<Vec<_>>());
        let types: Vec<TensorType> = tensors.iter().map(fixed).collect();
        let made = evaluate(&program.function(&types), &tensors, self.extent, self.precision)?;
        Ok(made.into_iter().next().unwrap_or_else(|| unreachable!("a program has a result")))
    }

    /// A linear of one output or several.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "an epilogue was inferred: it stores, if it is none of these"
    )]
    pub(super) fn linear_of(&self, op: &Op) -> Result<Value, Error> {
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
            Op::Then(operands) => {
                let done = self.program(operands, parts)?;
                return Ok(Value::Tensor(done));
            }
            Op::Cap(cap) => {
                let cap = self.num(*cap);
                parts.iter_mut().flat_map(|p| &mut p.data).for_each(|x| *x = self.softcap(cap, *x));
            }
            _ => {}
        }
        Ok(if parts.len() == 1 { Value::Tensor(parts.remove(0)) } else { Value::Tuple(parts) })
    }

    pub(super) fn softcap(&self, cap: f64, x: f64) -> f64 {
        self.round(self.round(self.round(x / cap).tanh()) * cap)
    }

    pub(super) fn rope(&self, x: Id, pos: Id, frequencies: Id) -> Tensor {
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

    pub(super) fn scores(&self, q: &Tensor, k: &Tensor, scale: Id, cap: Id) -> Tensor {
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
    pub(super) fn range(&self, pos: Id, window: Id, row: usize, s: usize) -> (usize, usize) {
        let pos = self.tensor(pos);
        let high = (pos.data[row % pos.data.len()] as i64 + 1).clamp(0, s as i64);
        let after = pos.data[row % pos.data.len()] as i64 + 1;
        let low = self.window(window).map_or(0, |w| (after.saturating_sub(w)).clamp(0, high));
        (low as usize, high as usize)
    }

    pub(super) fn softmax(&self, mut x: Tensor, pos: Id, window: Id) -> Tensor {
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

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in f64.
pub(super) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}
