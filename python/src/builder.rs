//! Functions built node by node. Each node's type is inferred as it is made, so that what does not fit fails in the
//! line that wrote it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use egg::FromOp;
use lapidary::ir::op::OPERATORS;
use lapidary::ir::signature::Operands;
use lapidary::ir::{self, Id, InputKind, Kinds, Op, TensorType, Type, infer, text};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyString};

use crate::error::{failure, usage};
use crate::function::{Function, dims_of};

/// A value of a function that is being built.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Node {
    id: Id,
    ty: Type,
}

#[pymethods]
impl Node {
    /// Its type as the text form has it.
    #[getter]
    fn ty(&self) -> String {
        self.ty.to_string()
    }

    /// Its element type; of what is no tensor none.
    #[getter]
    fn dtype(&self) -> Option<&'static str> {
        self.tensor().map(|t| t.dtype.name())
    }

    /// Its axes: numbers, `"T"` or `"S"`; of what is no tensor none.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
        self.tensor().map(|t| dims_of(py, &t.shape)).transpose()
    }
}

impl Node {
    fn tensor(&self) -> Option<&TensorType> {
        match &self.ty {
            Type::Tensor(t) | Type::Prologue(t) => Some(t),
            Type::Tuple(_) | Type::Weights(_) | Type::Epilogue | Type::Attribute => None,
        }
    }
}

struct Building {
    builder: ir::Builder,
    types: Vec<Type>,
}

/// A function being built.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Builder {
    building: Mutex<Building>,
}

/// What an operand may be in Python.
enum Operand<'a> {
    Node(Id),
    Int(i64),
    Float(f64),
    Word(&'a str),
}

#[pymethods]
impl Builder {
    #[new]
    fn new(name: &str) -> Builder {
        let building = Building { builder: ir::Builder::new(name), types: Vec::new() };
        Builder { building: Mutex::new(building) }
    }

    /// Declares an input: `kind` is `rows`, `weight` or `cache`, `ty` as the text form has it.
    #[pyo3(signature = (name, ty, kind, window = None))]
    fn input(&self, name: &str, ty: &str, kind: &str, window: Option<usize>) -> PyResult<Node> {
        let kind = match (kind, window) {
            ("rows", None) => InputKind::Rows,
            ("weight", None) => InputKind::Weight,
            ("cache", window) => InputKind::Cache { window },
            _ => {
                return Err(usage(format!("input `{name}`: expected rows, weight or cache, found `{kind}`")));
            }
        };
        let parsed: TensorType = ty.parse().map_err(|()| {
            usage(format!("input `{name}`: expected a type, such as `f32[T,64]`, found `{ty}`"))
        })?;
        let mut building = self.building();
        if building.builder.function().input(name).is_some() {
            return Err(usage(format!("duplicate input `{name}`")));
        }
        let id = building.builder.input(name, kind, parsed.dtype, &parsed.shape);
        building.infer(id)
    }

    /// Adds an operator of the language, or a derived one, over nodes, numbers and words.
    fn op(&self, name: &str, operands: Vec<Bound<'_, PyAny>>) -> PyResult<Node> {
        let mut building = self.building();
        let signature = signature(name, operands.len());
        let strings: Vec<Option<String>> = operands.iter().map(|o| o.extract().ok()).collect();
        let given = operands
            .iter()
            .zip(&strings)
            .map(|(o, string)| operand(o, string.as_deref()))
            .collect::<PyResult<Vec<_>>>()?;
        let is_float = given.iter().any(|o| match o {
            Operand::Node(id) => matches!(&building.types[usize::from(*id)],
                Type::Tensor(t) if t.dtype.is_float()),
            Operand::Float(_) => true,
            Operand::Int(_) | Operand::Word(_) => false,
        });
        let mut ids = Vec::with_capacity(given.len());
        for (at, operand) in given.iter().enumerate() {
            let kinds = signature.and_then(|s| s.kinds(at)).unwrap_or(Kinds::TENSOR);
            let takes = |kind: Kinds| !kinds.and(kind).is_empty();
            let (number, integer) = (takes(Kinds::NUMBER), takes(Kinds::INTEGER));
            ids.push(match *operand {
                Operand::Node(id) => id,
                Operand::Int(value) if number && (is_float || !integer) => building.builder.num(value as f32),
                Operand::Int(value) => building.builder.int(value),
                Operand::Float(value) => building.builder.num(value as f32),
                Operand::Word(word) => building.leaf(word)?,
            });
        }
        let before = building.builder.function().body.as_ref().len();
        let id = text::apply(&mut building.builder, name, &ids).map_err(usage)?;
        building.infer(id).inspect_err(|_| building.forget(before))
    }

    /// Names a result.
    fn output(&self, name: &str, node: &Node) -> PyResult<()> {
        let mut building = self.building();
        if building.builder.function().outputs.iter().any(|(known, _)| known == name) {
            return Err(usage(format!("duplicate output `{name}`")));
        }
        building.builder.output(name, node.id);
        Ok(())
    }

    /// The function so far, verified.
    fn function(&self) -> PyResult<Function> {
        Function::new(self.building().builder.function().clone(), None)
    }
}

impl Builder {
    fn building(&self) -> MutexGuard<'_, Building> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Building {
    fn leaf(&mut self, word: &str) -> PyResult<Id> {
        match Op::from_op(word, vec![]) {
            Ok(leaf) if !matches!(leaf, Op::Input(_)) => Ok(self.builder.add(leaf)),
            _ => Err(usage(format!("`{word}` is no word of the language, such as `none`, `f32` or `[T,4]`"))),
        }
    }

    /// The type of a node; those of the nodes that were made before it.
    fn infer(&mut self, id: Id) -> PyResult<Node> {
        let function = self.builder.function();
        let body = function.body.as_ref();
        for (at, op) in body.iter().enumerate().skip(self.types.len()) {
            let types = &self.types;
            let ty = infer::infer(
                op,
                &function.inputs,
                |c| types[usize::from(c)].clone(),
                |c| function.body[c].clone(),
            );
            let ty = ty.map_err(|reason| {
                let (name, node) = (&function.name, text::statement(function, at.into()));
                failure(format!("function `{name}`: {node}: {reason}"))
            })?;
            self.types.push(ty);
        }
        Ok(Node { id, ty: self.types[usize::from(id)].clone() })
    }

    /// Forgets all nodes but the first.
    fn forget(&mut self, keep: usize) {
        self.builder.truncate(keep);
        self.types.truncate(keep);
    }
}

fn operand<'a>(object: &Bound<'_, PyAny>, string: Option<&'a str>) -> PyResult<Operand<'a>> {
    if let Ok(node) = object.cast::<Node>() {
        return Ok(Operand::Node(node.get().id));
    }
    if let (true, Some(word)) = (object.is_instance_of::<PyString>(), string) {
        return Ok(Operand::Word(word));
    }
    if object.is_instance_of::<PyInt>() && !object.is_instance_of::<PyBool>() {
        return Ok(Operand::Int(object.extract()?));
    }
    if object.is_instance_of::<PyFloat>() {
        return Ok(Operand::Float(object.extract()?));
    }
    Err(usage(format!("expected a value, a number, a shape or a word, found {}", object.repr()?)))
}

/// What an operator's operands may be; of a derived one, tensors.
fn signature(name: &str, operands: usize) -> Option<Operands> {
    OPERATORS
        .contains(&name)
        .then(|| Op::from_op(name, vec![Id::from(0); operands]).ok())?
        .map(|op| op.signature().operands)
}

/// Every operator: its name, where it comes from (`primitive`, `fused` or `derived`), and what each operand may be, in
/// words; of an operator with any number of operands one word, and dots.
#[pyfunction]
pub(crate) fn operators() -> Vec<(&'static str, &'static str, Vec<String>)> {
    let own = OPERATORS.iter().filter_map(|name| {
        let op = Op::from_op(name, vec![Id::from(0); text::arity(name).unwrap_or(1)]).ok()?;
        let origin = if op.is_fused() { "fused" } else { "primitive" };
        let operands = match op.signature().operands {
            Operands::Exactly(kinds) => kinds.iter().map(|k| k.describe()).collect(),
            Operands::OneOrMore(kinds) => vec![kinds.describe(), "...".into()],
        };
        Some((*name, origin, operands))
    });
    let tensors = |n: usize| vec![Kinds::TENSOR.describe(); n];
    own.chain(text::derived_operators().map(|(name, n)| (name, "derived", tensors(n)))).collect()
}
