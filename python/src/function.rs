//! Functions of the tensor language: parsed, printed, interpreted, compiled, explained.

use std::path::PathBuf;
use std::sync::Arc;

use lapidary::Graph;
use lapidary::call::{Placed, TensorFile};
use lapidary::explain::{Explained, explain};
use lapidary::ir::interp::{Precision, Tensor, evaluate};
use lapidary::ir::{self, Dim, Dims, Id, InputKind, Type, text, verify};
use lapidary::why_not::{Answer, answers};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyString};

use crate::array::{Array, numpy_name};
use crate::compiled::{Compiled, Weight};
use crate::error::{failure, of, usage, warn};
use crate::options::{options, selection};

/// A verified function.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Function {
    function: Arc<ir::Function>,
}

/// The functions of a module's text, verified; `name` is what errors call the text.
#[pyfunction]
pub(crate) fn parse(source: &str, name: &str) -> PyResult<Vec<Function>> {
    let module = text::parse_module(source).map_err(|e| failure(format!("{name}: {e}")))?;
    if module.functions.is_empty() {
        return Err(failure(format!("{name}: expected a function, found none")));
    }
    module.functions.into_iter().map(|f| Function::new(f, Some(name))).collect()
}

/// Axes as Python has them: numbers and names.
pub(crate) fn dims_of<'py>(py: Python<'py>, dims: &Dims) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(n) => Ok(PyInt::new(py, *n).into_any()),
        Dim::Rows | Dim::Keys => Ok(PyString::new(py, &dim.to_string()).into_any()),
    };
    dims.iter().map(dim).collect()
}

/// A tensor's name, element type, axes and kind.
type Declared<'py> = (String, &'static str, Vec<Bound<'py, PyAny>>, &'static str);

/// A tensor's name, numpy's name of its type, its shape and its bytes.
type Evaluated<'py> = (String, &'static str, Vec<usize>, Bound<'py, PyBytes>);

#[pymethods]
impl Function {
    #[getter]
    fn name(&self) -> &str {
        &self.function.name
    }

    /// The inputs in order: name, element type, axes, and `rows`, `weight` or `cache`.
    #[getter]
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Declared<'py>>> {
        let declared = |input: &ir::Input| {
            let kind = match input.kind {
                InputKind::Rows => "rows",
                InputKind::Weight => "weight",
                InputKind::Cache { .. } => "cache",
            };
            Ok((input.name.clone(), input.ty.dtype.name(), dims_of(py, &input.ty.shape)?, kind))
        };
        self.function.inputs.iter().map(declared).collect()
    }

    /// The results in order; of a cache, the kind is `cache`.
    #[getter]
    fn outputs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Declared<'py>>> {
        let outputs = Placed::outputs(&self.function).map_err(of)?;
        let declared = |(name, ty, cache): (String, ir::TensorType, Option<usize>)| {
            let kind = if cache.is_some() { "cache" } else { "rows" };
            Ok((name, ty.dtype.name(), dims_of(py, &ty.shape)?, kind))
        };
        outputs.into_iter().map(declared).collect()
    }

    /// The text form, each node's type behind it.
    fn __str__(&self) -> String {
        let types = self.function.types().unwrap_or_default();
        text::print(&self.function, &|id: Id| match types.get(usize::from(id))? {
            Type::Attribute => None,
            ty => Some(ty.to_string()),
        })
    }

    /// The same function without axes of length 1.
    fn squeezed(&self) -> PyResult<Function> {
        let function = ir::squeeze::squeeze(&self.function).map_err(|e| failure(e.to_string()))?;
        Function::new(function, None)
    }

    /// What the reference interpreter makes of arrays, in the order of the inputs.
    fn interpret<'py>(
        &self,
        py: Python<'py>,
        arrays: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Evaluated<'py>>> {
        let function = &*self.function;
        let bound = function.inputs.iter().zip(&arrays);
        let held = bound
            .map(|(input, array)| Array::of(array, &input.name, &input.ty, false))
            .collect::<PyResult<Vec<_>>>()?;
        let shapes: Vec<(usize, &[usize])> = held.iter().map(Array::shape).enumerate().collect();
        let extent = Placed::extent(function, &shapes).map_err(of)?;
        let inputs: Vec<Tensor> = function
            .inputs
            .iter()
            .zip(&held)
            .map(|(input, array)| {
                let shape: Vec<usize> = input.ty.shape.iter().map(|d| d.at(extent)).collect();
                Tensor::from_bytes(input.ty.dtype, &shape, &array.bytes())
            })
            .collect();
        let results = py
            .detach(|| evaluate(function, &inputs, extent, Precision::F32))
            .map_err(|e| failure(e.to_string()))?;
        let named = function.outputs.iter().zip(results);
        let result = |((name, _), tensor): (&(String, Id), Tensor)| {
            let bytes = match tensor.dtype {
                ir::DType::Bool => tensor.data.iter().map(|&x| u8::from(x != 0.0)).collect(),
                _ => tensor.to_bytes(),
            };
            (name.clone(), numpy_name(tensor.dtype), tensor.shape, PyBytes::new(py, &bytes))
        };
        Ok(named.map(result).collect())
    }

    /// Compiles it; `weights` are arrays by name, or the path of a safetensors file.
    fn compile(&self, weights: &Bound<'_, PyAny>, given: &Bound<'_, PyDict>) -> PyResult<Compiled> {
        let options = options(given)?;
        options.runs_here().map_err(of)?;
        let mut bound = Vec::new();
        let inputs = self.function.inputs.iter().enumerate().filter(|(_, i)| i.kind == InputKind::Weight);
        if let Ok(arrays) = weights.cast::<PyDict>() {
            for (index, input) in inputs {
                let Some(array) = arrays.get_item(&input.name)? else {
                    let (name, ty) = (&input.name, &input.ty);
                    return Err(usage(format!(
                        "function `{}`: no weight `{name}`: expected {ty}",
                        self.function.name
                    )));
                };
                let array = Array::of(&array, &input.name, &input.ty, false)?;
                Placed::extent(&self.function, &[(index, array.shape())]).map_err(of)?;
                bound.push((index, Weight::Array(array)));
            }
        } else {
            let file = TensorFile::open(weights.extract::<PathBuf>()?).map_err(|e| of(e.into()))?;
            let file = Arc::new(file);
            for (index, input) in inputs {
                bound.push((index, Weight::of_file(&file, &input.name, &input.ty).map_err(of)?));
            }
        }
        Compiled::new(Arc::clone(&self.function), options, bound)
    }

    /// How kernels for calls of `rows` rows came about: of one name, or all.
    fn explain(
        &self,
        py: Python<'_>,
        kernel: Option<&str>,
        rows: usize,
        steps: bool,
        given: &Bound<'_, PyDict>,
    ) -> PyResult<String> {
        let options = options(given)?.chunk(rows);
        options.check().map_err(of)?;
        let functions = [(*self.function).clone()];
        let graph = Graph::loose(ir::Module { functions: functions.to_vec() }, rows);
        let compiler = graph.compiler(&options).map_err(of)?;
        let all = py.detach(|| explain(&functions, &compiler, rows, kernel)).map_err(of)?;
        all.iter().filter_map(|e| e.warning.as_deref()).for_each(warn);
        let text = |e: &Explained| format!("; {}, {} rows\n{}", e.function, e.extent.rows, e.text(steps));
        Ok(all.iter().map(text).collect())
    }

    /// Whether a rule fired, and if not, what stood in its way.
    fn why_not(&self, py: Python<'_>, rule: &str, given: &Bound<'_, PyDict>) -> PyResult<String> {
        let selection = selection(given)?.unwrap_or_default();
        let functions = [(*self.function).clone()];
        let answers = py.detach(|| answers(&functions, &selection, rule)).map_err(of)?;
        answers.iter().filter_map(|a| a.warning.as_deref()).for_each(warn);
        Ok(answers.iter().map(Answer::text).collect())
    }
}

impl Function {
    pub(crate) fn new(function: ir::Function, of: Option<&str>) -> PyResult<Function> {
        verify::verify(&function).map_err(|e| match of {
            Some(name) => failure(format!("{name}: {e}")),
            None => failure(e.to_string()),
        })?;
        Ok(Function { function: Arc::new(function) })
    }
}
