//! Inputs of a function that is being made, by type.

use egg::Id;
use lapidary_ir::{DType, Dim, Dims, InputKind, Op, TensorType, Type};

use super::Attempt;

impl Attempt<'_> {
    /// An input of this type, or what stands for one: only caches have an axis S, so a tensor with one is made of
    /// inputs without.
    pub(super) fn input(&mut self, t: TensorType, cache: bool) -> Option<Id> {
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
