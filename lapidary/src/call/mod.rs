//! A function of the tensor language called on tensors by name: compiled, run on a pool of threads, compared.
//!
//! In: a function, and safetensors files that hold its weights and its inputs under their own names; `T` and `S` are
//! what the shapes say. Out: what it returns, by name. The code is that of an artifact or object of the same options:
//! of a call of T rows, the variant that serves T; so are the bits.

mod code;
mod folded;
mod placed;

use std::borrow::Cow;

use lapidary_codegen::callable::{compile_callable, operand, signature};
use lapidary_codegen::compile::FunctionReport;
use lapidary_ir::interp::{Precision, Tensor, evaluate};
use lapidary_ir::{Dim, Extent, Function, InputKind, Module, TensorType, verify};
use lapidary_runtime::Callable;
use lapidary_runtime::callable::tensors::{Bytes, Named, Taken};
use lapidary_runtime::program::{Counts, Role, Signature};

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::options::{MAX_CHUNK, MAX_CONTEXT, Options};

pub use folded::Folded;
pub use lapidary_runtime::callable::tensors::{Returned, TensorFile, write_tensors};
pub use placed::{Place, Placed};

/// A function with its operands.
pub struct Call<'a> {
    function: Function,
    signature: Signature,
    counts: Counts,
    operands: Vec<Bytes<'a>>,
}

/// How far a result is from what the reference interpreter makes of the same operands.
#[derive(Clone, Debug)]
pub struct Distance {
    /// The result.
    pub name: String,
    /// The largest distance of an element, as a share of the largest expected value, or of 1 if that is more.
    pub share: f64,
}

/// What a function takes and gives, called with at most so many rows and keys.
///
/// # Errors
/// [`Error::Graph`] for a function that is ill-typed, [`Error::Compiler`] for one that reads by ids that cannot be
/// checked.
pub fn signed(function: &Function, most: Counts) -> Result<Signature> {
    verify::verify(function).map_err(|e| Error::Graph(e.to_string()))?;
    Ok(signature(function, most)?)
}

/// `T` and `S` of a call of a function.
fn extent(function: &Function, counts: Counts) -> Result<Extent> {
    let Counts { rows, keys } = counts;
    let refuse = |reason: String| Err(Error::Graph(format!("function `{}`: {reason}", function.name)));
    if rows > MAX_CHUNK || keys > MAX_CONTEXT {
        return refuse(format!("T is {rows} and S {keys}: expected {MAX_CHUNK} and {MAX_CONTEXT} at most"));
    }
    if keys < rows {
        return refuse(format!("S is {keys}, T is {rows}: the keys include those of the call's rows"));
    }
    Ok(Extent { rows, keys })
}

/// A file's weight of this type, as kernels hold it: where the file is mapped, or made of what it has.
///
/// # Errors
/// [`Error::Run`] for a tensor that is not there or of another type.
pub fn weight<'f>(file: &'f TensorFile, name: &str, ty: &TensorType) -> Result<Cow<'f, [u8]>> {
    Ok(match file.operand(&operand(name, ty, Role::Weight), &mut Named::default())? {
        Bytes::Mapped(bytes) => Cow::Borrowed(bytes),
        Bytes::Own(bytes) => Cow::Owned(bytes),
    })
}

/// The file that an operand is to come from.
pub(crate) fn file_of<'a>(
    signature: &Signature,
    role: Role,
    given: Option<&'a TensorFile>,
) -> Result<Option<&'a TensorFile>> {
    let option = if role == Role::Weight { "weights" } else { "inputs" };
    let missing = || {
        let first = signature.operands.iter().find(|o| o.role == role);
        let takes = first.map(|o| format!(" takes `{}`, {o}", o.name)).unwrap_or_default();
        Error::option(option, format!("function `{}`{takes}: expected a file", signature.name))
    };
    given.map(Some).ok_or_else(missing)
}

impl<'a> Call<'a> {
    /// Binds a function to what the files have under its inputs' names.
    ///
    /// # Errors
    /// [`Error::Option`] for a file that is needed and not given, [`Error::Run`] for a tensor that is not there or of
    /// another type, or for ids that are out of bounds; [`Error::Graph`] for a function that is ill-typed,
    /// [`Error::Compiler`] for one that reads by ids that cannot be checked.
    pub fn bind(
        function: &Function,
        weights: Option<&'a TensorFile>,
        inputs: Option<&'a TensorFile>,
    ) -> Result<Call<'a>> {
        let mut signature = signed(function, Counts { rows: 1, keys: 1 })?;
        let taken = Taken::new(&signature, |operand| {
            let given = if operand.role == Role::Weight { weights } else { inputs };
            file_of(&signature, operand.role, given)
        })?;
        let (counts, operands) = (taken.counts, taken.operands.into_iter().flatten().collect::<Vec<_>>());
        extent(function, counts)?;
        if let Some(stray) = signature.stray_id(counts, |at| operands[at].as_slice()) {
            return Err(Error::Graph(stray.to_string()));
        }
        signature.most = counts;
        Ok(Call { function: function.clone(), signature, counts, operands })
    }

    /// `T` and `S`.
    pub fn extent(&self) -> Extent {
        Extent { rows: self.counts.rows, keys: self.counts.keys }
    }

    /// Compiles the function for as many rows as the options say, or for this call's if they are more, to run here.
    ///
    /// # Errors
    /// [`Error::Compiler`] for a node that has no kernel; as [`Options::check`].
    pub fn compile(&self, options: &Options) -> Result<Compiled> {
        compile(&self.function, &self.signature, self.counts, options)
    }

    /// Runs code that was compiled for this call.
    ///
    /// # Errors
    /// [`Error::Run`] for memory that cannot be had.
    pub fn run(&self, compiled: &mut Compiled) -> Result<Vec<Returned>> {
        let takes: Vec<&[u8]> = self.operands.iter().map(Bytes::as_slice).collect();
        Ok(compiled.callable.returned(self.counts, &takes)?)
    }

    /// Holds results against the reference interpreter.
    ///
    /// # Errors
    /// [`Error::Graph`] for what the interpreter refuses.
    pub fn distances(&self, results: &[Returned]) -> Result<Vec<Distance>> {
        let extent = self.extent();
        let shape = |dims: &[Dim]| dims.iter().map(|d| d.at(extent)).collect::<Vec<_>>();
        let inputs: Vec<Tensor> = self
            .function
            .inputs
            .iter()
            .zip(&self.operands)
            .map(|(input, bytes)| {
                Tensor::from_bytes(input.ty.dtype, &shape(&input.ty.shape), bytes.as_slice())
            })
            .collect();
        let expected = evaluate(&self.function, &inputs, extent, Precision::F32)
            .map_err(|e| Error::Graph(e.to_string()))?;
        let far = |(result, expected): (&Returned, &Tensor)| {
            let most = expected.data.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
            let found = Tensor::from_bytes(expected.dtype, &result.shape, &result.bytes);
            let pairs = found.data.iter().zip(&expected.data);
            let share = pairs
                .map(|(a, b)| if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() / most })
                .fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            Distance { name: result.name.clone(), share }
        };
        Ok(results.iter().zip(&expected).map(far).collect())
    }
}

/// Code for a call.
pub struct Compiled {
    callable: Callable,
    report: FunctionReport,
}

impl Compiled {
    /// What is called.
    pub fn callable(&mut self) -> &mut Callable {
        &mut self.callable
    }

    /// Every stage of its compilation.
    pub fn report(&self) -> &FunctionReport {
        &self.report
    }
}

/// The functions of a graph, for calls of as many rows and keys as options say, or `least`.
pub(crate) fn loose(function: &Function, signature: &Signature, least: Counts, options: &Options) -> Graph {
    let has_keys = function.inputs.iter().any(|i| matches!(i.kind, InputKind::Cache { .. }));
    let rows = if signature.has_rows() { options.chunk.max(least.rows) } else { 1 };
    // Caches are as long as the call's keys, and so dense.
    let keys = if has_keys { least.keys } else { rows };
    Graph::loose(Module { functions: vec![function.clone()] }, keys)
}

/// Compiles a function for calls of as many rows as the options say, or as `least` has, to run here.
///
/// # Errors
/// As [`Call::compile`].
pub fn compile(
    function: &Function,
    signature: &Signature,
    least: Counts,
    options: &Options,
) -> Result<Compiled> {
    let graph = loose(function, signature, least, options);
    let options = options.clone().chunk(options.chunk.max(least.rows));
    options.runs_here()?;
    let (program, report) = compile_callable(&graph.module.functions[0], &graph.compiler(&options)?)?;
    Ok(Compiled { callable: Callable::new(program, options.threads)?, report })
}
