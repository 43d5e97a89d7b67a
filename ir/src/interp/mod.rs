//! The reference interpreter: what every operator means, primitive and fused, one plain loop each.
//!
//! In: a function, its inputs' values, the named dims' lengths. Out: every node's value. It is the oracle that kernels
//! and rules are held against, so it favours being plainly right over being fast: values are f64, and
//! [`Precision::F32`] rounds each elementwise result to f32 (computed in f64 first, so correctly rounded), while sums
//! and dot products accumulate in f64 and round once. Casts to bf16 and f16 round to nearest even in either precision.

mod eval;
mod fused;
mod tensor;

use egg::{Id, Language};

use crate::Error;
use crate::function::Function;
use crate::op::Op;
use crate::types::{Dim, Extent, TensorType, Type};

pub use self::tensor::Tensor;

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

/// Evaluates a function: its outputs, in order. `inputs` are in the order of declaration.
///
/// # Errors
/// [`Error::Evaluate`] for inputs that do not fit or an id outside of its table; [`Error::Type`] for an ill-typed
/// graph.
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
            Value::None | Value::Tuple(_) => Err(fail(function, format!("output `{name}` is no tensor"))),
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
        let value = if let Op::Input(id) = op {
            Value::Tensor(inputs[id.0 as usize].clone())
        } else {
            call.eval(op, &types[at])?
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
        let value = &self.values[usize::from(id)];
        let Value::Tensor(t) = value else { unreachable!("a tensor was inferred, not {value:?}") };
        t
    }

    fn op(&self, id: Id) -> &Op {
        &self.function.body[id]
    }

    fn num(&self, id: Id) -> f64 {
        let op = self.op(id);
        op.number().unwrap_or_else(|| unreachable!("a number was inferred, not {op}")).into()
    }

    fn optional(&self, id: Id) -> Option<f64> {
        (*self.op(id) != Op::None).then(|| self.num(id))
    }

    fn int(&self, id: Id) -> i64 {
        let op = self.op(id);
        op.integer().unwrap_or_else(|| unreachable!("an integer was inferred, not {op}"))
    }

    fn window(&self, id: Id) -> Option<i64> {
        (*self.op(id) != Op::None).then(|| self.int(id))
    }

    fn dims(&self, id: Id) -> Vec<usize> {
        let op = self.op(id);
        let Op::Dims(d) = op else { unreachable!("dims were inferred, not {op}") };
        d.iter().map(|d| d.at(self.extent)).collect()
    }

    fn shape(&self, ty: &TensorType) -> Vec<usize> {
        ty.shape.iter().map(|d| d.at(self.extent)).collect()
    }
}

#[cfg(test)]
mod tests;
