//! What an operand is likely to be: types handed down, so that terms mostly turn out well-typed.
//!
//! In: an operator, the operands that there are, what is expected of the whole. Out: a type, or none: any will do.

use egg::Id;
use lapidary_ir::{DType, Dim, Op, TensorType};

use super::Attempt;

impl Attempt<'_> {
    /// What an operand is likely to be, from the operands before it and from what is expected of the whole.
    pub(super) fn expect(
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
            (
                Op::Slice(_)
                | Op::Sum(_)
                | Op::Mean(_)
                | Op::Max(_)
                | Op::Min(_)
                | Op::Prod(_)
                | Op::Argmax(_),
                0,
            ) => {
                let k = self.length();
                f32s(if self.chance(2) { vec![Dim::Rows, k] } else { vec![self.length(), Dim::Rows, k] })
            }
            _ => whole.cloned(),
        }
    }

    /// A fixed dim.
    pub(super) fn length(&mut self) -> Dim {
        Dim::Fixed(1 + self.random.below(self.size.longest))
    }

    pub(super) fn any_shape(&mut self) -> Vec<Dim> {
        let rank = self.random.below(4);
        (0..rank).map(|i| if i + 2 == rank && !self.chance(3) { Dim::Rows } else { self.length() }).collect()
    }
}
