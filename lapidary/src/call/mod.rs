//! A function of the tensor language called on tensors by name: compiled, run on a pool of threads, compared.
//!
//! In: a function, and safetensors files that hold its weights and its inputs under their own names; `T` and `S` are
//! what the shapes say. Out: what it returns, by name. Code is compiled for exactly these lengths, so that every
//! operand is dense and weights are read where they are mapped. Ids are looked at before machine code, which does not
//! look, reads by them.

mod code;
mod indices;
mod placed;
mod tensors;

use lapidary_ir::interp::{Precision, Tensor, evaluate};
use lapidary_ir::{Dim, Extent, Function, InputKind, Type, verify};
use lapidary_runtime::program::Aligned;

use crate::error::{Error, Result};
use crate::options::Options;
use indices::indices;
use tensors::{Bytes, Named};

pub use code::Compiled;
pub use placed::{Place, Placed};
pub use tensors::{Returned, TensorFile, write_tensors};

/// A function with its operands.
pub struct Call<'a> {
    function: Function,
    extent: Extent,
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

impl<'a> Call<'a> {
    /// Binds a function to what the files have under its inputs' names.
    ///
    /// # Errors
    /// [`Error::Option`] for a file that is needed and not given, [`Error::Lacks`] for a tensor that is not there or
    /// of another type, [`Error::Graph`] for a function that is ill-typed or reads by ids that cannot be checked.
    pub fn bind(
        function: &Function,
        weights: Option<&'a TensorFile>,
        inputs: Option<&'a TensorFile>,
    ) -> Result<Call<'a>> {
        verify::verify(function).map_err(|e| Error::Graph(e.to_string()))?;
        let mut named = Named::default();
        let mut operands = Vec::with_capacity(function.inputs.len());
        for input in &function.inputs {
            let (option, file) = match input.kind {
                InputKind::Weight => ("weights", weights),
                InputKind::Rows | InputKind::Cache { .. } => ("inputs", inputs),
            };
            let Some(file) = file else {
                let (name, ty) = (&input.name, &input.ty);
                let reason = format!("function `{}` takes `{name}`, {ty}: expected a file", function.name);
                return Err(Error::Option { option, reason });
            };
            operands.push(file.operand(&input.name, &input.ty, &mut named)?);
        }
        let extent = named.extent(function)?;
        let function = without_rings(function);
        let call = Call { function, extent, operands };
        indices(&call.function, extent)?
            .iter()
            .try_for_each(|i| i.check(call.operands[i.input].as_slice()))?;
        Ok(call)
    }

    /// `T` and `S`.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Compiles the function for operands of these lengths, to run here.
    ///
    /// # Errors
    /// [`Error::Compiler`] for a node that has no kernel; as [`Options::check`].
    pub fn compile(&self, options: &Options) -> Result<Compiled> {
        Compiled::new(&self.function, self.extent, options)
    }

    /// Runs code that was compiled for this call.
    ///
    /// # Errors
    /// [`Error::Run`] for memory that cannot be had.
    pub fn run(&self, compiled: &mut Compiled) -> Result<Vec<Returned>> {
        let (function, extent) = (&self.function, self.extent);
        let types = function.types().map_err(|e| Error::Graph(e.to_string()))?;
        let memory = |bytes: usize| {
            Aligned::try_zeroed(bytes)
                .ok_or(lapidary_runtime::Error::Memory { what: "a call's operands".into(), bytes })
        };
        // Rows and caches are written to, or read a little at a time: copies. Weights stay where they are.
        let mut held: Vec<Option<Aligned>> =
            Vec::with_capacity(function.inputs.len() + function.outputs.len());
        for (input, bytes) in function.inputs.iter().zip(&self.operands) {
            held.push(match input.kind {
                InputKind::Weight => None,
                InputKind::Rows | InputKind::Cache { .. } => {
                    let mut copy = memory(bytes.as_slice().len())?;
                    copy.as_mut_slice()[..bytes.as_slice().len()].copy_from_slice(bytes.as_slice());
                    Some(copy)
                }
            });
        }
        let is_cache = |kind: &InputKind| matches!(kind, InputKind::Cache { .. });
        let mut outputs = Vec::with_capacity(function.outputs.len());
        for (name, id) in &function.outputs {
            let Type::Tensor(ty) = &types[usize::from(*id)] else {
                return Err(Error::Graph(format!("output `{name}` is no tensor")));
            };
            let bytes = ty.bytes(extent);
            let cache = function.inputs.iter().position(|i| is_cache(&i.kind) && &i.name == name);
            let slot = cache.unwrap_or(held.len());
            if cache.is_none() {
                held.push(Some(memory(bytes)?));
            }
            outputs.push((name, ty, slot, bytes));
        }
        let slots: Vec<u64> = held
            .iter_mut()
            .enumerate()
            .map(|(slot, own)| match own {
                Some(memory) => memory.as_mut_ptr().expose_provenance() as u64,
                None => self.operands[slot].as_slice().as_ptr().expose_provenance() as u64,
            })
            .collect();
        // SAFETY: each slot is as long as its type in this call's lengths, and ids lie in what they count.
        unsafe { compiled.launch(&slots) };
        let read = |(name, ty, slot, bytes): (&String, _, usize, usize)| {
            let memory = held[slot].as_ref().map_or(&[][..], |m| &m.as_slice()[..bytes]);
            Returned::new(name, ty, extent, memory.to_vec())
        };
        Ok(outputs.into_iter().map(read).collect())
    }

    /// Holds results against the reference interpreter.
    ///
    /// # Errors
    /// [`Error::Graph`] for what the interpreter refuses.
    pub fn distances(&self, results: &[Returned]) -> Result<Vec<Distance>> {
        let shape = |dims: &[Dim]| dims.iter().map(|d| d.at(self.extent)).collect::<Vec<_>>();
        let inputs: Vec<Tensor> = self
            .function
            .inputs
            .iter()
            .zip(&self.operands)
            .map(|(input, bytes)| {
                Tensor::from_bytes(input.ty.dtype, &shape(&input.ty.shape), bytes.as_slice())
            })
            .collect();
        let expected = evaluate(&self.function, &inputs, self.extent, Precision::F32)
            .map_err(|e| Error::Graph(e.to_string()))?;
        let far = |(result, expected): (&Returned, &Tensor)| {
            let most = expected.data.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
            let found = result.tensor();
            let pairs = found.data.iter().zip(&expected.data);
            let share = pairs
                .map(|(a, b)| if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() / most })
                .fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
            Distance { name: result.name.clone(), share }
        };
        Ok(results.iter().zip(&expected).map(far).collect())
    }
}

/// The function with every cache whole: of a call's own length, none is a ring.
fn without_rings(function: &Function) -> Function {
    let mut function = function.clone();
    for input in &mut function.inputs {
        if let InputKind::Cache { window } = &mut input.kind {
            *window = None;
        }
    }
    function
}
