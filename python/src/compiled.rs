//! A compiled function: code for each length that it is called with, on arrays where they lie.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lapidary::Options;
use lapidary::call::{self, Place, Placed, TensorFile};
use lapidary::ir::{self, DType, Extent, InputKind, TensorType};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{Array, empty, numpy_name};
use crate::error::{failure, of, usage};

/// Lengths of calls that code is kept for, those that were called last.
const KEPT: usize = 16;

/// A weight, for as long as the code lives.
pub(crate) enum Weight {
    /// The caller's.
    Array(Array),
    /// Where a file is mapped.
    Mapped(#[allow(dead_code)] Arc<TensorFile>, Place),
    /// Made of what a file has; words, so that elements are aligned.
    Own(Vec<u32>, usize),
}

impl Weight {
    /// A file's tensor of this type.
    pub(crate) fn of_file(file: &Arc<TensorFile>, name: &str, ty: &TensorType) -> lapidary::Result<Weight> {
        Ok(match call::weight(file, name, ty)? {
            Cow::Borrowed(bytes) => {
                let place = Place { address: bytes.as_ptr().cast_mut(), bytes: bytes.len() };
                Weight::Mapped(Arc::clone(file), place)
            }
            Cow::Owned(bytes) => Weight::own(&bytes),
        })
    }

    /// Elements that nobody else has.
    pub(crate) fn own(bytes: &[u8]) -> Weight {
        let word = |b: &[u8]| {
            let mut word = [0; 4];
            word[..b.len()].copy_from_slice(b);
            u32::from_le_bytes(word)
        };
        Weight::Own(bytes.chunks(4).map(word).collect(), bytes.len())
    }

    /// Its elements.
    fn bytes(&self) -> &[u8] {
        let Place { address, bytes } = self.place();
        // SAFETY: the memory is held as long as the weight, and nobody writes to weights.
        unsafe { std::slice::from_raw_parts(address, bytes) }
    }

    fn place(&self) -> Place {
        match self {
            Weight::Array(array) => array.place(),
            Weight::Mapped(_, place) => *place,
            Weight::Own(words, bytes) => Place { address: words.as_ptr().cast_mut().cast(), bytes: *bytes },
        }
    }
}

type Code = Arc<Mutex<Placed>>;

/// A compiled function.
#[pyclass(frozen, module = "lapidary._lapidary")]
pub(crate) struct Compiled {
    function: Arc<ir::Function>,
    options: Options,
    /// By the input's index.
    weights: Vec<(usize, Weight)>,
    /// Indices of the other inputs.
    taken: Vec<usize>,
    outputs: Vec<(String, TensorType, Option<usize>)>,
    /// The last one called last.
    codes: Mutex<Vec<(Extent, Code)>>,
}

impl Compiled {
    pub(crate) fn new(
        function: Arc<ir::Function>,
        options: Options,
        weights: Vec<(usize, Weight)>,
    ) -> PyResult<Compiled> {
        let (function, weights) = folded(function, &options, weights)?;
        let inputs = function.inputs.iter().enumerate();
        let taken = inputs.filter(|(_, i)| i.kind != InputKind::Weight).map(|(at, _)| at).collect();
        let outputs = Placed::outputs(&function).map_err(of)?;
        Ok(Compiled { function, options, weights, taken, outputs, codes: Mutex::default() })
    }

    /// The code for calls of an extent, compiled if there is none.
    fn code(&self, py: Python<'_>, extent: Extent) -> PyResult<Code> {
        let held = || self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut codes = held();
        if let Some(at) = codes.iter().position(|(known, _)| *known == extent) {
            if at + 1 < codes.len() {
                let found = codes.remove(at);
                codes.push(found);
            }
            return Ok(Arc::clone(&codes[codes.len() - 1].1));
        }
        drop(codes);
        let made = py.detach(|| Placed::new(&self.function, extent, &self.options)).map_err(of)?;
        let code = Arc::new(Mutex::new(made));
        let mut codes = held();
        codes.push((extent, Arc::clone(&code)));
        if codes.len() > KEPT {
            codes.remove(0);
        }
        Ok(code)
    }
}

/// A function, and the weights of its inputs, by number.
type Weighted = (Arc<ir::Function>, Vec<(usize, Weight)>);

/// A function without its terms of weights, which are computed now, and its weights.
fn folded(
    function: Arc<ir::Function>,
    options: &Options,
    weights: Vec<(usize, Weight)>,
) -> PyResult<Weighted> {
    let Some(folded) = call::Folded::new(&function, options).map_err(of)? else {
        return Ok((function, weights));
    };
    let mut named: HashMap<&str, Weight> =
        weights.into_iter().map(|(at, weight)| (function.inputs[at].name.as_str(), weight)).collect();
    let read: Vec<&[u8]> = folded.reads().map(|(name, _)| named[name].bytes()).collect();
    let computed = folded.compute(&read, options).map_err(of)?;
    let mut kept = vec![];
    for (at, input) in folded.function().inputs.iter().enumerate() {
        if let Some(weight) = named.remove(input.name.as_str()) {
            kept.push((at, weight));
        } else if let Some((.., bytes)) = computed.iter().find(|(name, ..)| *name == input.name) {
            kept.push((at, Weight::own(bytes)));
        }
    }
    Ok((Arc::new(folded.function().clone()), kept))
}

#[pymethods]
impl Compiled {
    /// Calls it on the inputs that are no weights, in order. Results go to `out`, in order, or to new arrays; caches
    /// are written to in place, and given back among the results.
    #[pyo3(signature = (arrays, out = None))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        arrays: Vec<pyo3::Bound<'py, PyAny>>,
        out: Option<Vec<pyo3::Bound<'py, PyAny>>>,
    ) -> PyResult<Vec<pyo3::Bound<'py, PyAny>>> {
        let Bound { extent, places, held, mut results } = self.bind(py, &arrays, out)?;
        let code = self.code(py, extent)?;
        // SAFETY: the buffers are held and of their types' lengths, and outputs overlap nothing.
        let run = || unsafe { code.lock().unwrap_or_else(PoisonError::into_inner).run(&places) };
        py.detach(run).map_err(of)?;
        drop(held);
        for ((_, ty, _), result) in self.outputs.iter().zip(&mut results) {
            if ty.dtype == DType::Bool {
                *result = result.call_method1("astype", ("bool",))?;
            }
        }
        Ok(results)
    }

    /// The addresses that kernels are given in such a call: of inputs, then of outputs that are no caches.
    fn addresses(
        &self,
        py: Python<'_>,
        arrays: Vec<pyo3::Bound<'_, PyAny>>,
        out: Vec<pyo3::Bound<'_, PyAny>>,
    ) -> PyResult<Vec<usize>> {
        let bound = self.bind(py, &arrays, Some(out))?;
        Ok(bound.places.iter().map(|p| p.address.addr()).collect())
    }

    /// What the compiler did for calls of `rows` rows and `keys` keys: kernels by name, in order, their nodes, the
    /// rules that fired and how often, times.
    fn report<'py>(&self, py: Python<'py>, rows: usize, keys: usize) -> PyResult<pyo3::Bound<'py, PyDict>> {
        let extent = Placed::checked(&self.function, rows, keys).map_err(of)?;
        let code = self.code(py, extent)?;
        let code = code.lock().unwrap_or_else(PoisonError::into_inner);
        let report = code.report();
        let Some(variant) = report.variants.iter().find(|v| v.rows >= rows) else {
            return Err(failure(format!("function `{}` has no code for {rows} rows", self.function.name)));
        };
        let kernels: Vec<(String, String)> = variant
            .schedule
            .kernels
            .iter()
            .map(|k| (k.name.clone(), ir::text::statement(&variant.function, k.node)))
            .collect();
        let fired: Vec<&(String, usize)> = report.saturation.fired.iter().filter(|(_, n)| *n > 0).collect();
        let times = report.times;
        let compile = times.saturate + times.extract + times.schedule + times.code;
        let answer = PyDict::new(py);
        answer.set_item("function", &self.function.name)?;
        answer.set_item("rows", rows)?;
        answer.set_item("keys", keys)?;
        answer.set_item("kernels", kernels)?;
        let launches = variant.schedule.joins.iter().filter(|joins| !**joins).count();
        answer.set_item("launches", launches)?;
        let rules = PyDict::new(py);
        for (rule, times) in fired {
            rules.set_item(rule, times)?;
        }
        answer.set_item("rules", rules)?;
        answer.set_item("predicted_ms", variant.nanoseconds / 1e6)?;
        answer.set_item("compile_ms", compile.as_secs_f64() * 1e3)?;
        answer.set_item("fused", variant.function.to_string())?;
        Ok(answer)
    }
}

/// The operands of a call.
struct Bound<'py> {
    extent: Extent,
    /// Of inputs, then of outputs that are no caches.
    places: Vec<Place>,
    /// What keeps the places.
    held: Vec<Array>,
    results: Vec<pyo3::Bound<'py, PyAny>>,
}

impl Compiled {
    fn bind<'py>(
        &self,
        py: Python<'py>,
        arrays: &[pyo3::Bound<'py, PyAny>],
        out: Option<Vec<pyo3::Bound<'py, PyAny>>>,
    ) -> PyResult<Bound<'py>> {
        let function = &*self.function;
        if arrays.len() != self.taken.len() {
            let names: Vec<&str> = self.taken.iter().map(|&at| function.inputs[at].name.as_str()).collect();
            let (name, expected, found) = (&function.name, names.join(", "), arrays.len());
            return Err(usage(format!("function `{name}` takes {expected}: found {found} arrays")));
        }
        let mut held = Vec::with_capacity(arrays.len());
        for (&at, array) in self.taken.iter().zip(arrays) {
            let input = &function.inputs[at];
            let written = matches!(input.kind, InputKind::Cache { .. });
            held.push(Array::of(array, &input.name, &input.ty, written)?);
        }
        let shapes: Vec<(usize, &[usize])> =
            self.taken.iter().copied().zip(held.iter().map(Array::shape)).collect();
        let extent = Placed::extent(function, &shapes).map_err(of)?;
        let results = self.results(py, extent, arrays, out)?;
        let mut places = vec![Place { address: std::ptr::null_mut(), bytes: 0 }; function.inputs.len()];
        for (at, weight) in &self.weights {
            places[*at] = weight.place();
        }
        for (&at, array) in self.taken.iter().zip(&held) {
            places[at] = array.place();
        }
        let inputs = places.len();
        for ((name, ty, cache), result) in self.outputs.iter().zip(&results) {
            if cache.is_none() {
                let mask = TensorType::new(DType::I32, ty.shape.clone());
                let ty = if ty.dtype == DType::Bool { &mask } else { ty };
                let array = Array::of(result, name, ty, true)?;
                let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(extent)).collect();
                if array.shape() != shape {
                    let found = array.shape();
                    return Err(usage(format!(
                        "output `{name}`: expected {ty}, here {shape:?}, found {found:?}"
                    )));
                }
                places.push(array.place());
                held.push(array);
            }
        }
        apart(&places, inputs)?;
        Ok(Bound { extent, places, held, results })
    }

    /// Arrays for the results: the caller's, or new ones; a cache is the input.
    fn results<'py>(
        &self,
        py: Python<'py>,
        extent: Extent,
        arrays: &[pyo3::Bound<'py, PyAny>],
        out: Option<Vec<pyo3::Bound<'py, PyAny>>>,
    ) -> PyResult<Vec<pyo3::Bound<'py, PyAny>>> {
        if let Some(out) = &out
            && out.len() != self.outputs.len()
        {
            let names: Vec<&str> = self.outputs.iter().map(|(name, ..)| name.as_str()).collect();
            return Err(usage(format!("out: expected arrays for {}, found {}", names.join(", "), out.len())));
        }
        let mut results = Vec::with_capacity(self.outputs.len());
        for (at, (name, ty, cache)) in self.outputs.iter().enumerate() {
            if let Some(cache) = cache {
                let Some(taken) = self.taken.iter().position(|t| t == cache) else {
                    unreachable!("a cache is no weight")
                };
                results.push(arrays[taken].clone());
                continue;
            }
            match &out {
                Some(_) if ty.dtype == DType::Bool => {
                    return Err(usage(format!("out: `{name}` is bool, which kernels hold otherwise")));
                }
                Some(out) => results.push(out[at].clone()),
                None => {
                    let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(extent)).collect();
                    let dtype = if ty.dtype == DType::Bool { "int32" } else { numpy_name(ty.dtype) };
                    results.push(empty(py, &shape, dtype)?);
                }
            }
        }
        Ok(results)
    }
}

/// Fails if an output overlaps another place.
fn apart(places: &[Place], inputs: usize) -> PyResult<()> {
    let range = |p: &Place| (p.address.addr(), p.address.addr() + p.bytes);
    for at in inputs..places.len() {
        let (from, to) = range(&places[at]);
        let overlaps = |(other, p): (usize, &Place)| {
            let (a, b) = range(p);
            other != at && from < b && a < to
        };
        if places.iter().enumerate().any(overlaps) {
            return Err(usage("out: expected arrays that overlap no other"));
        }
    }
    Ok(())
}
