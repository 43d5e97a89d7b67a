//! The type of a node from its operands' types: the one place that says what fits.
//!
//! Used over functions (where operands are nodes) and over e-graphs (where they are e-classes), hence the two closures.

mod operands;

use egg::Id;

use crate::format::BLOCK;
use crate::function::{Input, InputKind};
use crate::op::Op;
use crate::signature::OpClass;
use crate::types::{DType, Dim, Dims, TensorType, Type};
use operands::{broadcast, expect_dtype, expect_numbers, made, product, whole_blocks};

/// The type of `op`. `ty` gives an operand's type; `leaf` the leaf node of an attribute operand.
///
/// # Errors
/// One line saying which operand does not fit and what was expected.
pub fn infer(
    op: &Op,
    inputs: &[Input],
    ty: impl Fn(Id) -> Type,
    leaf: impl Fn(Id) -> Op,
) -> Result<Type, String> {
    let operands = Operands { ty: &ty, leaf: &leaf };
    operands.check_quantised(op)?;
    operands.infer(op, inputs)
}

struct Operands<'a> {
    ty: &'a dyn Fn(Id) -> Type,
    leaf: &'a dyn Fn(Id) -> Op,
}

type Inferred = Result<Type, String>;

fn tensor(dtype: DType, shape: impl Into<Dims>) -> Inferred {
    Ok(Type::Tensor(TensorType::new(dtype, shape)))
}

impl Operands<'_> {
    fn infer(&self, op: &Op, inputs: &[Input]) -> Inferred {
        let (takes, makes) = match op.signature().class {
            OpClass::Floats | OpClass::IrrationalFloats => (Some(DType::F32), None),
            OpClass::Numbers => (None, None),
            OpClass::Comparison => (None, Some(DType::Bool)),
            OpClass::Truths => (Some(DType::Bool), None),
            OpClass::Rational | OpClass::Irrational => return self.infer_own(op, inputs),
        };
        self.elementwise(op, takes, makes)
    }

    /// Of operators that are not elementwise by their row.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "elementwise operators are told by their rows of the table"
    )]
    fn infer_own(&self, op: &Op, inputs: &[Input]) -> Inferred {
        match op {
            Op::Num(_) => tensor(DType::F32, vec![]),
            Op::Int(_) => tensor(DType::I32, vec![]),
            Op::None | Op::DType(_) | Op::Dims(_) | Op::Online | Op::Bounded | Op::Program(_) => {
                Ok(Type::Attribute)
            }
            Op::Input(id) => match inputs.get(id.0 as usize) {
                Some(Input { ty, kind, .. }) if ty.dtype.is_quantised() && !whole_blocks(ty, *kind) => {
                    Err(match kind {
                        InputKind::Cache { .. } => {
                            format!("{ty}: a quantised cache is q8 (G, S, D), D a multiple of {BLOCK}")
                        }
                        InputKind::Rows | InputKind::Weight => {
                            let block = ty.dtype.format().map_or(BLOCK, |f| f.block);
                            format!("{ty}: a quantised table is (V, K), K a multiple of {block}")
                        }
                    })
                }
                Some(input) => Ok(Type::Tensor(input.ty.clone())),
                None => Err(format!("input {id} is not declared; there are {}", inputs.len())),
            },

            Op::Cast([x, to]) => {
                let x = self.tensor("x", *x)?;
                let Op::DType(to) = (self.leaf)(*to) else {
                    return Err("the second operand must be a dtype".into());
                };
                let legal = match (x.dtype, to) {
                    (a, b) if a == b => false,
                    (DType::F32 | DType::F16 | DType::BF16, b) => b.is_float() && !b.is_quantised(),
                    (DType::I32 | DType::Block(_), b) => b == DType::F32,
                    (DType::Bool, _) => false,
                };
                if legal { tensor(to, x.shape) } else { Err(format!("no cast from {} to {to}", x.dtype)) }
            }
            Op::Select([c, a, b]) => {
                let c = self.tensor("condition", *c)?;
                let (a, b) = (self.tensor("then", *a)?, self.tensor("else", *b)?);
                expect_dtype("condition", &c, DType::Bool)?;
                expect_numbers(&a, &b)?;
                tensor(a.dtype, broadcast(&c.shape, &broadcast(&a.shape, &b.shape)?)?)
            }

            Op::Sum([x, axis])
            | Op::Mean([x, axis])
            | Op::Max([x, axis])
            | Op::Min([x, axis])
            | Op::Prod([x, axis])
            | Op::Argmax([x, axis]) => {
                let mut x = self.tensor("x", *x)?;
                expect_dtype("x", &x, DType::F32)?;
                let axis = self.axis(*axis, x.rank())?;
                x.shape.0[axis] = Dim::Fixed(1);
                tensor(if matches!(op, Op::Argmax(_)) { DType::I32 } else { DType::F32 }, x.shape)
            }

            Op::Matmul([a, b]) => {
                let (a, b) = (self.tensor("a", *a)?, self.tensor("b", *b)?);
                expect_dtype("a", &a, DType::F32)?;
                expect_dtype("b", &b, DType::F32)?;
                let (r, s) = (a.rank(), b.rank());
                if r < 2 || s < 2 || a.shape[r - 1] != b.shape[s - 2] {
                    return Err(format!("expected (.., M, K) x (.., K, N), found {a} x {b}"));
                }
                let leading = |t: &TensorType| Dims(t.shape[..t.rank() - 2].to_vec());
                let mut shape = broadcast(&leading(&a), &leading(&b))?;
                shape.0.extend([a.shape[r - 2], b.shape[s - 1]]);
                tensor(DType::F32, shape)
            }

            Op::Reshape([x, to]) => {
                let (x, to) = (self.tensor("x", *x)?, self.dims("shape", *to)?);
                if product(&x.shape) != product(&to) {
                    return Err(format!("{x} and {to} differ in their number of elements"));
                }
                tensor(x.dtype, to)
            }
            Op::Transpose([x, p]) => {
                let (x, p) = (self.tensor("x", *x)?, self.dims("permutation", *p)?);
                match p.permutation() {
                    Some(axes) if axes.len() == x.rank() => {
                        tensor(x.dtype, axes.into_iter().map(|a| x.shape[a]).collect::<Vec<_>>())
                    }
                    _ => Err(format!("{p} is no permutation of the {} axes of {x}", x.rank())),
                }
            }
            Op::Broadcast([x, to]) => {
                let (x, to) = (self.tensor("x", *x)?, self.dims("shape", *to)?);
                let fits = x.rank() == to.len()
                    && x.shape.iter().zip(to.iter()).all(|(a, b)| a == b || *a == Dim::Fixed(1));
                if fits { tensor(x.dtype, to) } else { Err(format!("{x} does not stretch to {to}")) }
            }
            Op::Slice([x, axis, start, len]) => {
                let mut x = self.tensor("x", *x)?;
                let axis = self.axis(*axis, x.rank())?;
                let (start, len) = (self.int("start", *start)?, self.int("length", *len)?);
                let fits = len > 0
                    && match x.shape[axis] {
                        Dim::Fixed(n) => {
                            let n = n as i64;
                            let from = if start < 0 { start.saturating_add(n) } else { start };
                            from >= 0 && from.saturating_add(len) <= n
                        }
                        // Only the last row of a named dim is sure to be there.
                        Dim::Rows | Dim::Keys => start == -1 && len == 1,
                    };
                if !fits {
                    return Err(format!("{len} elements from {start} do not lie in axis {axis} of {x}"));
                }
                x.shape.0[axis] = Dim::Fixed(len as usize);
                tensor(x.dtype, x.shape)
            }
            Op::Concat([a, b, axis]) => {
                let (a, b) = (self.tensor("a", *a)?, self.tensor("b", *b)?);
                let axis = self.axis(*axis, a.rank())?;
                let same = a.dtype == b.dtype
                    && a.rank() == b.rank()
                    && (0..a.rank()).all(|i| i == axis || a.shape[i] == b.shape[i]);
                match (same, a.shape.get(axis), b.shape.get(axis)) {
                    (true, Some(Dim::Fixed(m)), Some(Dim::Fixed(n))) => {
                        let mut shape = a.shape.clone();
                        shape.0[axis] = Dim::Fixed(m + n);
                        tensor(a.dtype, shape)
                    }
                    _ => Err(format!("{a} and {b} do not join along axis {axis}")),
                }
            }
            Op::Pad([x, axis, before, after, value]) => {
                let mut x = self.tensor("x", *x)?;
                let axis = self.axis(*axis, x.rank())?;
                let value = self.tensor("value", *value)?;
                let [before, after] = [("before", *before), ("after", *after)].map(|(what, n)| {
                    usize::try_from(self.int(what, n)?).map_err(|_| format!("{what}: expected 0 or more"))
                });
                let (before, after) = (before?, after?);
                if value.rank() != 0 || value.dtype != x.dtype {
                    return Err(format!(
                        "value: expected {}, found {value}",
                        TensorType::new(x.dtype, vec![])
                    ));
                }
                let Dim::Fixed(n) = x.shape[axis] else {
                    return Err(format!("axis {axis} of {x} has no fixed length to pad"));
                };
                let Some(n) = n.checked_add(before).and_then(|n| n.checked_add(after)) else {
                    return Err(format!("axis {axis} of {x} would be too long"));
                };
                x.shape.0[axis] = Dim::Fixed(n);
                tensor(x.dtype, x.shape)
            }
            Op::Take([x, ids, axis]) => {
                let (mut x, ids) = (self.tensor("x", *x)?, self.tensor("ids", *ids)?);
                let axis = self.axis(*axis, x.rank())?;
                expect_dtype("ids", &ids, DType::I32)?;
                let [n] = ids.shape[..] else { return Err(format!("expected ids (T), found {ids}")) };
                x.shape.0[axis] = n;
                tensor(x.dtype, x.shape)
            }
            Op::Gather([table, ids]) | Op::Embedding([table, ids, _]) => {
                let (table, ids) = (self.tensor("table", *table)?, self.tensor("ids", *ids)?);
                expect_dtype("ids", &ids, DType::I32)?;
                if ids.rank() != 1 || table.rank() < 1 {
                    return Err(format!("expected a table (V, ..) and ids (T), found {table} and {ids}"));
                }
                let mut shape = table.shape;
                shape.0[0] = ids.shape[0];
                let Op::Embedding([_, _, scale]) = op else { return tensor(table.dtype, shape) };
                self.number("scale", *scale)?;
                if !table.dtype.is_float() {
                    return Err(format!("table: expected floats, found {}", table.dtype));
                }
                tensor(DType::F32, shape)
            }
            Op::Iota([shape, dtype]) => {
                let shape = self.dims("shape", *shape)?;
                let op = (self.leaf)(*dtype);
                if let Op::DType(d @ (DType::I32 | DType::F32)) = op
                    && shape.len() == 1
                {
                    tensor(d, shape)
                } else {
                    Err(format!("expected one axis and i32 or f32, found {shape} and {op}"))
                }
            }
            Op::Append([cache, rows]) => {
                let (cache, rows) = (self.tensor("cache", *cache)?, self.tensor("rows", *rows)?);
                let fits = cache.rank() == 3
                    && rows.rank() == 3
                    && cache.shape[0] == rows.shape[0]
                    && cache.shape[2] == rows.shape[2]
                    && cache.shape[1] == Dim::Keys
                    && rows.shape[1] == Dim::Rows
                    && cache.dtype.is_float()
                    && (rows.dtype == cache.dtype || rows.dtype == DType::F32);
                if fits {
                    Ok(Type::Tensor(cache))
                } else {
                    Err(format!("expected a cache (G, S, D) and rows (G, T, D), found {cache} and {rows}"))
                }
            }

            Op::RmsNorm([x, w, eps]) => Ok(Type::Tensor(self.norm(*x, *w, *eps)?)),
            Op::NormPrologue([x, w, eps]) => Ok(Type::Prologue(self.norm(*x, *w, *eps)?)),
            Op::AddRmsNorm([residual, x, w, eps]) => {
                let residual = self.tensor("residual", *residual)?;
                let x = self.norm(*x, *w, *eps)?;
                if residual == x {
                    Ok(Type::Tensor(x))
                } else {
                    Err(format!("residual {residual} is not {x}"))
                }
            }

            Op::Linear([x, weights, epilogue]) => self.linear(*x, *weights, *epilogue),
            Op::Weights(ws) => {
                let types = ws.iter().map(|&w| self.tensor("weight", w)).collect::<Result<Vec<_>, _>>()?;
                for w in &types {
                    if w.rank() != 2 || !w.dtype.is_float() || w.shape.iter().any(|d| d.fixed().is_none()) {
                        return Err(format!("expected float matrices of fixed shape, found {w}"));
                    }
                }
                if types.is_empty() { Err("expected one or more".into()) } else { Ok(Type::Weights(types)) }
            }
            Op::Output([index, tuple]) => {
                let index = self.int("index", *index)?;
                let ty = (self.ty)(*tuple);
                let Type::Tuple(types) = ty else { return Err(format!("expected a tuple, found {ty}")) };
                match usize::try_from(index).ok().and_then(|i| types.get(i)) {
                    Some(t) => Ok(Type::Tensor(t.clone())),
                    None => Err(format!("index {index} of a tuple of {}", types.len())),
                }
            }
            Op::Store | Op::Gate => Ok(Type::Epilogue),
            Op::Then(operands) => self.program(operands, None).map(|_| Type::Epilogue),
            Op::Map(operands) => {
                let (program, types) = self.program(operands, Some(&[]))?;
                made(&program, &types)
            }
            Op::Cap(cap) => {
                self.number("cap", *cap)?;
                Ok(Type::Epilogue)
            }

            Op::Softcap([cap, x]) => {
                self.number("cap", *cap)?;
                let x = self.tensor("x", *x)?;
                expect_dtype("x", &x, DType::F32)?;
                Ok(Type::Tensor(x))
            }
            Op::GatedGelu([gate, up]) => {
                let (gate, up) = (self.tensor("gate", *gate)?, self.tensor("up", *up)?);
                expect_dtype("gate", &gate, DType::F32)?;
                if gate == up { Ok(Type::Tensor(gate)) } else { Err(format!("gate {gate} is not up {up}")) }
            }

            Op::Rope([x, pos, frequencies]) => {
                let (x, pos) = (self.tensor("x", *x)?, self.tensor("pos", *pos)?);
                let frequencies = self.tensor("frequencies", *frequencies)?;
                expect_dtype("x", &x, DType::F32)?;
                expect_dtype("frequencies", &frequencies, DType::F32)?;
                let fits = x.rank() == 3
                    && pos == TensorType::new(DType::I32, vec![x.shape[1]])
                    && frequencies.rank() == 1
                    && matches!((x.shape[2], frequencies.shape[0]), (Dim::Fixed(d), Dim::Fixed(h)) if d == 2 * h);
                if fits {
                    Ok(Type::Tensor(x))
                } else {
                    Err(format!("expected (H, T, D), i32 (T), (D/2), found {x}, {pos}, {frequencies}"))
                }
            }
            Op::Scores([q, k, scale, cap]) => {
                let (q, k) = self.heads(*q, *k)?;
                self.number("scale", *scale)?;
                self.optional_number("cap", *cap)?;
                tensor(DType::F32, vec![q.shape[0], q.shape[1], k.shape[1]])
            }
            Op::WindowMask([scores, pos, window]) => {
                let scores = self.tensor("scores", *scores)?;
                self.range(&scores, *pos, *window)?;
                Ok(Type::Tensor(scores))
            }
            Op::Softmax([x, pos, window, mode]) => {
                let x = self.tensor("x", *x)?;
                expect_dtype("x", &x, DType::F32)?;
                if (self.leaf)(*pos) == Op::None {
                    if (self.leaf)(*window) != Op::None || x.rank() < 1 {
                        return Err("a window needs positions".into());
                    }
                } else {
                    self.range(&x, *pos, *window)?;
                }
                self.mode(*mode)?;
                Ok(Type::Tensor(x))
            }
            Op::Attention([q, k, v, pos, scale, cap, window, mode]) => {
                let (q, k) = self.heads(*q, *k)?;
                let v = self.tensor("v", *v)?;
                if v != k {
                    return Err(format!("k {k} is not v {v}"));
                }
                let scores = TensorType::new(DType::F32, vec![q.shape[0], q.shape[1], k.shape[1]]);
                self.range(&scores, *pos, *window)?;
                self.number("scale", *scale)?;
                self.optional_number("cap", *cap)?;
                self.mode(*mode)?;
                Ok(Type::Tensor(q))
            }
            // `every_operator_has_its_types` walks the table.
            elementwise => unreachable!("{elementwise} gets its type by its class"),
        }
    }
}

#[cfg(test)]
mod tests {
    use egg::FromOp;

    use super::*;
    use crate::op::OPERATORS;

    #[test]
    fn every_operator_has_its_types() {
        let float = || Type::Tensor(TensorType::new(DType::F32, vec![Dim::Fixed(4)]));
        for name in OPERATORS {
            for n in 1..=8 {
                let Ok(op) = Op::from_op(name, vec![Id::from(0); n]) else { continue };
                // Right or wrong, it is an answer.
                let _ = infer(&op, &[], |_| float(), |_| Op::None);
            }
        }
    }
}
