//! Functions and modules: a term with typed inputs and named outputs; a model is a module of a few of them.

use std::collections::HashMap;

use egg::{Id, Language};

use crate::op::{Expr, InputId, Num, Op};
use crate::types::{DType, Dim, Dims, TensorType, Type};
use crate::{Error, infer};

/// What an input is to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Rows of this call.
    Rows,
    /// A tensor of the checkpoint.
    Weight,
    /// Rows of former calls, `(heads, S, row)`; only `append` may read it, and its result is an output of the same
    /// name.
    Cache {
        /// How many last keys are ever visible, when not all: older rows need not be kept.
        window: Option<usize>,
    },
}

/// A declared input.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Name, unique in the function; weights carry the checkpoint's names.
    pub name: String,
    /// Type.
    pub ty: TensorType,
    /// What it is to the caller.
    pub kind: InputKind,
}

/// A function: inputs, a term, and which nodes are its results.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// `embed`, `layer_local`, ...
    pub name: String,
    /// Inputs; `Op::Input` refers to them by index.
    pub inputs: Vec<Input>,
    /// The nodes, operands first.
    pub body: Expr,
    /// Names and nodes of the results, in order.
    pub outputs: Vec<(String, Id)>,
}

/// Functions under their names, in order.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// The functions.
    pub functions: Vec<Function>,
}

impl Module {
    /// The function of this name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }
}

impl Function {
    /// The input of this name and its index.
    pub fn input(&self, name: &str) -> Option<(InputId, &Input)> {
        let at = self.inputs.iter().position(|i| i.name == name)?;
        Some((InputId(at as u32), &self.inputs[at]))
    }

    /// The type of every node, by its index.
    ///
    /// # Errors
    /// [`Error::Type`] names the first node that has none.
    pub fn types(&self) -> Result<Vec<Type>, Error> {
        let mut types: Vec<Type> = Vec::with_capacity(self.body.as_ref().len());
        for (at, op) in self.body.as_ref().iter().enumerate() {
            let ty = if op.all(|c| usize::from(c) < at) {
                infer::infer(
                    op,
                    &self.inputs,
                    |id| types[usize::from(id)].clone(),
                    |id| self.body[id].clone(),
                )
            } else {
                Err("an operand does not come before it".into())
            };
            types.push(ty.map_err(|reason| Error::Type {
                function: self.name.clone(),
                node: crate::text::statement(self, Id::from(at)),
                reason,
            })?);
        }
        Ok(types)
    }

    /// How many nodes and outputs use each node, by index. Attributes count too.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.body.as_ref().len()];
        for op in self.body.as_ref() {
            op.for_each(|c| uses[usize::from(c)] += 1);
        }
        for (_, id) in &self.outputs {
            uses[usize::from(*id)] += 1;
        }
        uses
    }
}

/// Builds a function node by node; equal nodes are shared, so the term is a DAG.
///
/// Operands are taken on trust here; [`Function::types`] and the verifier check the whole.
#[derive(Default)]
pub struct Builder {
    function: Function,
    shared: HashMap<Op, Id>,
}

impl Builder {
    /// An empty function of this name.
    pub fn new(name: &str) -> Builder {
        Builder { function: Function { name: name.into(), ..Function::default() }, shared: HashMap::new() }
    }

    /// Declares an input and refers to it.
    pub fn input(&mut self, name: &str, kind: InputKind, dtype: DType, shape: &[Dim]) -> Id {
        let id = InputId(self.function.inputs.len() as u32);
        let ty = TensorType::new(dtype, shape.to_vec());
        self.function.inputs.push(Input { name: name.into(), ty, kind });
        self.add(Op::Input(id))
    }

    /// Adds a node, or finds its equal.
    pub fn add(&mut self, op: Op) -> Id {
        if let Some(&id) = self.shared.get(&op) {
            return id;
        }
        let id = self.function.body.add(op.clone());
        self.shared.insert(op, id);
        id
    }

    /// Forgets all nodes but the first `keep`; no output may be one of them, and no input's node.
    pub fn truncate(&mut self, keep: usize) {
        let kept = self.function.body.as_ref()[..keep].to_vec();
        self.function.body = kept.into();
        self.shared.retain(|_, id| usize::from(*id) < keep);
    }

    /// A number.
    pub fn num(&mut self, value: f32) -> Id {
        self.add(Op::Num(Num::new(value)))
    }

    /// An integer attribute or i32 number.
    pub fn int(&mut self, value: i64) -> Id {
        self.add(Op::Int(value))
    }

    /// A shape attribute.
    pub fn dims(&mut self, dims: &[Dim]) -> Id {
        self.add(Op::Dims(Dims(dims.to_vec())))
    }

    /// A dtype attribute.
    pub fn dtype(&mut self, dtype: DType) -> Id {
        self.add(Op::DType(dtype))
    }

    /// Names a result.
    pub fn output(&mut self, name: &str, id: Id) {
        self.function.outputs.push((name.into(), id));
    }

    /// The function so far.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// The function.
    pub fn finish(self) -> Function {
        self.function
    }
}
