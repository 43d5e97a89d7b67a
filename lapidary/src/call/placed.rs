//! A function called again and again on operands that lie where the caller has them: nothing is copied.
//!
//! In: a function, the stored shapes of a call's inputs. Out: code for calls of these shapes, which takes addresses.
//! What is checked of bytes (ids) is checked in each call.

use lapidary_codegen::callable::{operand, without_rings};
use lapidary_codegen::compile::FunctionReport;
use lapidary_ir::{Extent, Function, InputKind, TensorType};
use lapidary_runtime::callable::tensors::Named;
use lapidary_runtime::program::{Counts, Role, Signature};

use super::code::OneLength;
use super::{extent, signed};
use crate::error::{Error, Result};
use crate::options::Options;

/// Where an operand lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its first byte.
    pub address: *mut u8,
    /// Its length.
    pub bytes: usize,
}

// SAFETY: an address is a number; who calls by it vouches for what lies there.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// Code for calls of some shapes, on operands in the caller's memory.
pub struct Placed {
    compiled: OneLength,
    signature: Signature,
    /// Bytes of each input, then of each output that is no cache.
    lengths: Vec<(String, usize)>,
    slots: Vec<u64>,
}

impl Placed {
    /// `T` and `S` of a call by the stored shapes of a function's inputs, by their index: of blocks, the last axis is
    /// bytes.
    ///
    /// # Errors
    /// [`Error::Graph`] names the tensor, what was expected and what was found.
    pub fn extent(function: &Function, shapes: &[(usize, &[usize])]) -> Result<Extent> {
        let mut named = Named::default();
        for &(index, shape) in shapes {
            let input = &function.inputs[index];
            let operand = operand(&input.name, &input.ty, Role::Input);
            let found = |reason| {
                let (name, ty, stored) = (&input.name, &input.ty, operand.element.stored());
                Error::Graph(format!("tensor `{name}`: expected {ty}, found {stored} {shape:?}{reason}"))
            };
            named.learn(&operand, shape).map_err(found)?;
        }
        extent(function, named.counts())
    }

    /// The extent of calls of so many rows and keys.
    ///
    /// # Errors
    /// [`Error::Graph`] for numbers out of their range.
    pub fn checked(function: &Function, rows: usize, keys: usize) -> Result<Extent> {
        extent(function, Counts { rows, keys })
    }

    /// The outputs of a function in order: each has its type, or is the cache of this index among the inputs.
    ///
    /// # Errors
    /// [`Error::Graph`] for an ill-typed function.
    pub fn outputs(function: &Function) -> Result<Vec<(String, TensorType, Option<usize>)>> {
        let types = function.types().map_err(|e| Error::Graph(e.to_string()))?;
        let is_cache = |kind: &InputKind| matches!(kind, InputKind::Cache { .. });
        let output = |(name, id): &(String, _)| {
            let none = || Error::Graph(format!("function `{}`: output `{name}` is no tensor", function.name));
            let ty = types[usize::from(*id)].tensor().ok_or_else(none)?;
            let cache = function.inputs.iter().position(|i| is_cache(&i.kind) && i.name == *name);
            Ok((name.clone(), ty.clone(), cache))
        };
        function.outputs.iter().map(output).collect()
    }

    /// Compiles a function for calls of one length.
    ///
    /// # Errors
    /// [`Error::Graph`] for a function that is ill-typed or reads by ids that cannot be checked, [`Error::Compiler`]
    /// for a node that has no kernel; as [`Options::check`].
    pub fn new(function: &Function, extent: Extent, options: &Options) -> Result<Placed> {
        let signature = signed(function, Counts { rows: extent.rows, keys: extent.keys })?;
        let function = without_rings(function);
        let compiled = OneLength::new(&function, extent, options)?;
        let inputs = function.inputs.iter().map(|i| (i.name.clone(), i.ty.bytes(extent)));
        let outputs = Placed::outputs(&function)?.into_iter().filter(|(.., cache)| cache.is_none());
        let lengths = inputs.chain(outputs.map(|(name, ty, _)| (name, ty.bytes(extent)))).collect();
        Ok(Placed { compiled, signature, lengths, slots: Vec::new() })
    }

    /// How the code came about.
    pub fn report(&self) -> &FunctionReport {
        self.compiled.report()
    }

    /// Runs it on inputs, then outputs that are no caches, in order.
    ///
    /// # Errors
    /// [`Error::Graph`] for a place of another length than its tensor's, and ids out of their bounds.
    ///
    /// # Safety
    /// Each place is memory of its length, at a multiple of its elements' size, that nobody writes meanwhile; outputs
    /// and caches are nobody else's.
    pub unsafe fn run(&mut self, places: &[Place]) -> Result<()> {
        if places.len() != self.lengths.len() {
            let (expected, found) = (self.lengths.len(), places.len());
            return Err(Error::Graph(format!("expected {expected} places, found {found}")));
        }
        for (place, (name, bytes)) in places.iter().zip(&self.lengths) {
            if place.bytes != *bytes {
                let found = place.bytes;
                return Err(Error::Graph(format!("tensor `{name}`: expected {bytes} bytes, found {found}")));
            }
        }
        let stray = self.signature.stray_id(self.signature.most, |at| {
            let Place { address, bytes } = places[at];
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts(address, bytes) }
        });
        if let Some(stray) = stray {
            return Err(Error::Graph(stray.to_string()));
        }
        self.slots.clear();
        self.slots.extend(places.iter().map(|p| p.address.expose_provenance() as u64));
        // SAFETY: lengths and ids were checked, the rest is the caller's promise.
        unsafe { self.compiled.launch(&self.slots) };
        Ok(())
    }
}
