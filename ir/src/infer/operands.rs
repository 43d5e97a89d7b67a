//! Operands as operators take them: read by what they must be, with one line for what they are not.

use egg::{Id, Language};

use super::{Inferred, Operands, tensor};
use crate::Program;
use crate::function::InputKind;
use crate::op::Op;
use crate::types::{DType, Dim, Dims, TensorType, Type};

impl Operands<'_> {
    /// Only what reads or writes whole rows takes quantised operands.
    pub(super) fn check_quantised(&self, op: &Op) -> Result<(), String> {
        if matches!(op, Op::Cast(_) | Op::Gather(_) | Op::Embedding(_) | Op::Weights(_)) {
            return Ok(());
        }
        // An append writes whole rows of its cache.
        let from = usize::from(matches!(op, Op::Append(_)));
        for &child in &op.children()[from..] {
            if let Type::Tensor(t) = (self.ty)(child)
                && t.dtype.is_quantised()
            {
                return Err(format!("{t} is quantised: only cast, gather, embedding and linear read it"));
            }
        }
        Ok(())
    }

    /// Elementwise: operands of the class' element types, broadcast.
    pub(super) fn elementwise(&self, op: &Op, takes: Option<DType>, makes: Option<DType>) -> Inferred {
        let names: &[&str] = if op.children().len() == 1 { &["x"] } else { &["a", "b"] };
        let operands: Vec<TensorType> = names
            .iter()
            .zip(op.children())
            .map(|(name, &id)| self.tensor(name, id))
            .collect::<Result<_, _>>()?;
        match takes {
            Some(dtype) => {
                names.iter().zip(&operands).try_for_each(|(name, t)| expect_dtype(name, t, dtype))?;
            }
            None => expect_numbers(&operands[0], &operands[operands.len() - 1])?,
        }
        let first = &operands[0];
        let shape =
            operands[1..].iter().try_fold(first.shape.clone(), |shape, t| broadcast(&shape, &t.shape))?;
        tensor(makes.unwrap_or(first.dtype), shape)
    }

    pub(super) fn tensor(&self, what: &str, id: Id) -> Result<TensorType, String> {
        let ty = (self.ty)(id);
        if let Type::Tensor(t) = ty { Ok(t) } else { Err(format!("{what}: expected a tensor, found {ty}")) }
    }

    pub(super) fn number(&self, what: &str, id: Id) -> Result<f32, String> {
        let op = (self.leaf)(id);
        op.number().ok_or_else(|| format!("{what}: expected a number, found {op}"))
    }

    pub(super) fn optional_number(&self, what: &str, id: Id) -> Result<Option<f32>, String> {
        let op = (self.leaf)(id);
        match op.number() {
            None if op != Op::None => Err(format!("{what}: expected a number or none, found {op}")),
            number => Ok(number),
        }
    }

    pub(super) fn int(&self, what: &str, id: Id) -> Result<i64, String> {
        let op = (self.leaf)(id);
        op.integer().ok_or_else(|| format!("{what}: expected an integer, found {op}"))
    }

    pub(super) fn dims(&self, what: &str, id: Id) -> Result<Dims, String> {
        let op = (self.leaf)(id);
        if let Op::Dims(d) = op { Ok(d) } else { Err(format!("{what}: expected a list of dims, found {op}")) }
    }

    pub(super) fn axis(&self, id: Id, rank: usize) -> Result<usize, String> {
        let axis = self.int("axis", id)?;
        match usize::try_from(axis) {
            Ok(a) if a < rank => Ok(a),
            _ => Err(format!("axis {axis} of a tensor of rank {rank}")),
        }
    }

    pub(super) fn mode(&self, id: Id) -> Result<(), String> {
        let op = (self.leaf)(id);
        let is_mode = matches!(op, Op::Online | Op::Bounded);
        if is_mode { Ok(()) } else { Err(format!("mode: expected online or bounded, found {op}")) }
    }

    pub(super) fn norm(&self, x: Id, w: Id, eps: Id) -> Result<TensorType, String> {
        let (x, w) = (self.tensor("x", x)?, self.tensor("w", w)?);
        expect_dtype("x", &x, DType::F32)?;
        self.number("eps", eps)?;
        let fits =
            x.rank() >= 1 && w.rank() == 1 && w.shape[0] == x.shape[x.rank() - 1] && w.dtype == DType::F32;
        if fits { Ok(x) } else { Err(format!("expected x (.., K) and w f32 (K), found {x} and {w}")) }
    }

    pub(super) fn linear(&self, x: Id, weights: Id, epilogue: Id) -> Inferred {
        let x = match (self.ty)(x) {
            Type::Tensor(t) | Type::Prologue(t) => t,
            other @ (Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute) => {
                return Err(format!("x: expected a tensor or a prologue, found {other}"));
            }
        };
        expect_dtype("x", &x, DType::F32)?;
        let Type::Weights(weights) = (self.ty)(weights) else { return Err("expected weights".into()) };
        if x.rank() != 2 || weights.iter().any(|w| w.shape[1] != x.shape[1]) {
            return Err(format!(
                "expected x (T, K) and weights (N, K), found {x} and {}",
                Type::Weights(weights)
            ));
        }
        if (self.ty)(epilogue) != Type::Epilogue {
            return Err(format!("expected an epilogue, found {}", (self.ty)(epilogue)));
        }
        let out = |w: &TensorType| TensorType::new(DType::F32, vec![x.shape[0], w.shape[0]]);
        if let Op::Then(operands) = (self.leaf)(epilogue) {
            let sums: Vec<TensorType> = weights.iter().map(out).collect();
            let (program, types) = self.program(&operands, Some(&sums))?;
            let whole = made(&program, &types)?;
            let reduces = program.nodes().iter().any(Program::reduces);
            return if whole == Type::Tensor(sums[0].clone()) && !reduces {
                Ok(whole)
            } else {
                Err(format!("expected a program that makes {} of each sum, found {program}", sums[0]))
            };
        }
        match ((self.leaf)(epilogue), &weights[..]) {
            (Op::Gate, [gate, up]) if gate.shape == up.shape => Ok(Type::Tensor(out(gate))),
            (Op::Gate, _) => Err(format!("gate takes two equal weights, found {}", Type::Weights(weights))),
            (_, [one]) => Ok(Type::Tensor(out(one))),
            (_, many) => Ok(Type::Tuple(many.iter().map(out).collect())),
        }
    }

    /// A program and the tensors that stand behind it; with operands that come before these, the types of its nodes.
    pub(super) fn program(
        &self,
        operands: &[Id],
        before: Option<&[TensorType]>,
    ) -> Result<(Program, Vec<Type>), String> {
        let Some((&program, rest)) = operands.split_first() else { return Err("expected a program".into()) };
        let op = (self.leaf)(program);
        let Op::Program(program) = op else { return Err(format!("expected a program, found {op}")) };
        let rest = rest.iter().map(|&id| self.tensor("operand", id)).collect::<Result<Vec<_>, _>>()?;
        let types = match before {
            Some(before) => program.types(&[before, &rest[..]].concat())?,
            None => vec![],
        };
        Ok((program, types))
    }

    /// q (H, T, D) and k (G, S, D), G a divisor of H.
    pub(super) fn heads(&self, q: Id, k: Id) -> Result<(TensorType, TensorType), String> {
        let (q, k) = (self.tensor("q", q)?, self.tensor("k", k)?);
        let fits = q.rank() == 3
            && k.rank() == 3
            && q.dtype == DType::F32
            && k.dtype == DType::F32
            && q.shape[2] == k.shape[2]
            && matches!((q.shape[0], k.shape[0]), (Dim::Fixed(h), Dim::Fixed(g)) if g > 0 && h % g == 0);
        if fits {
            Ok((q, k))
        } else {
            Err(format!("expected q (H, T, D) and k (G, S, D), found {q} and {k}"))
        }
    }

    /// scores (.., T, S), pos i32 (T), window none or positive.
    pub(super) fn range(&self, scores: &TensorType, pos: Id, window: Id) -> Result<(), String> {
        let pos = self.tensor("pos", pos)?;
        let r = scores.rank();
        if r < 2 || pos != TensorType::new(DType::I32, vec![scores.shape[r - 2]]) {
            return Err(format!("expected scores (.., T, S) and pos i32 (T), found {scores} and {pos}"));
        }
        let op = (self.leaf)(window);
        let is_window = op == Op::None || op.integer().is_some_and(|w| w > 0);
        if is_window {
            Ok(())
        } else {
            Err(format!("window: expected a positive integer or none, found {op}"))
        }
    }
}

/// What a program with these types makes.
pub(super) fn made(program: &Program, types: &[Type]) -> Inferred {
    match types.last() {
        Some(made @ Type::Tensor(_)) => Ok(made.clone()),
        _ => Err(format!("{program} makes no tensor")),
    }
}

/// Two of f32 or two of i32.
pub(super) fn expect_numbers(a: &TensorType, b: &TensorType) -> Result<(), String> {
    if a.dtype == b.dtype && matches!(a.dtype, DType::F32 | DType::I32) {
        return Ok(());
    }
    Err(format!("expected two of f32 or two of i32, found {} and {}", a.dtype, b.dtype))
}

pub(super) fn expect_dtype(what: &str, t: &TensorType, dtype: DType) -> Result<(), String> {
    if t.dtype == dtype { Ok(()) } else { Err(format!("{what}: expected {dtype}, found {t}")) }
}

/// The shape two operands stretch to: axes aligned at the end, length 1 stretches.
pub(super) fn broadcast(a: &Dims, b: &Dims) -> Result<Dims, String> {
    let rank = a.len().max(b.len());
    let at = |d: &Dims, i: usize| (i + d.len()).checked_sub(rank).map_or(Dim::Fixed(1), |i| d[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, Dim::Fixed(1)) => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            _ => Err(format!("{a} and {b} do not broadcast")),
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Dims)
}

/// Number of elements as (fixed factor, power of T, power of S); `None` past a u64.
pub(super) fn product(dims: &Dims) -> Option<(u64, u32, u32)> {
    dims.iter().try_fold((1u64, 0, 0), |(n, t, s), d| match d {
        Dim::Fixed(m) => Some((n.checked_mul(*m as u64)?, t, s)),
        Dim::Rows => Some((n, t + 1, s)),
        Dim::Keys => Some((n, t, s + 1)),
    })
}

/// Whether rows of a matrix are whole blocks.
pub(super) fn whole_blocks(ty: &TensorType, kind: InputKind) -> bool {
    let shaped = match kind {
        InputKind::Cache { .. } => ty.rank() == 3 && ty.dtype == DType::Q8,
        InputKind::Rows | InputKind::Weight => ty.rank() == 2,
    };
    let whole = |k: usize| ty.dtype.format().is_none_or(|f| k.is_multiple_of(f.block));
    shaped && matches!(ty.shape.last(), Some(Dim::Fixed(k)) if whole(*k))
}
