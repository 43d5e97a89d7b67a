//! A function of the tensor language compiled ahead of time: the same files that models become, by the same writers.
//!
//! In: a function, its weights, options whose chunk is the most rows of a call. Out: an artifact or an object. Weights
//! are checked and stored as kernels hold them, terms of weights alone as what they come to.

use std::path::Path;
use std::time::Instant;

use lapidary_codegen::callable::{CallableImage, compile_callable_for};
use lapidary_codegen::object::callable::{Parts, build};
use lapidary_codegen::object::weights::TensorType;
use lapidary_codegen::target::Target;
use lapidary_ir::Function;
use lapidary_runtime::artifact::can_name_weight;
use lapidary_runtime::artifact::write::Part;
use lapidary_runtime::callable::tensors::{Bytes, Taken};
use lapidary_runtime::program::{Counts, Image, Operand, Role, Signature, WeightSource};

use super::artifact::Code;
use super::object::Begun;
use super::{Compile, Written};
use crate::call::{Folded, TensorFile, file_of, loose, signed};
use crate::error::{Error, Result};
use crate::options::Options;

/// How an artifact's metadata call weights that are as their file has them.
const AS_STORED: &str = "stored";

/// A function's weights, by name.
struct Weights<'a> {
    tensors: Vec<(Operand, Bytes<'a>)>,
}

// SAFETY: the bytes are mapped or owned, and nobody writes to them.
unsafe impl WeightSource for Weights<'_> {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        let (_, bytes) = self.tensors.iter().find(|(operand, _)| operand.name == name)?;
        Some(bytes.as_slice())
    }
}

impl<'a> Weights<'a> {
    /// The weights of a function that was made of this one's, terms of which are computed here, once.
    fn folded(self, folded: &Folded, options: &Options) -> Result<Weights<'a>> {
        let read: Vec<&[u8]> = folded.reads().filter_map(|(name, _)| self.tensor(name)).collect();
        let mut computed = folded.compute(&read, options)?;
        let mut own = self.tensors;
        let signature = signed(folded.function(), Counts { rows: 1, keys: 1 })?;
        let mut tensors = vec![];
        for operand in signature.operands.into_iter().filter(|o| o.role == Role::Weight) {
            if let Some(at) = own.iter().position(|(known, _)| known.name == operand.name) {
                tensors.push(own.swap_remove(at));
            } else if let Some(at) = computed.iter().position(|(name, ..)| *name == operand.name) {
                tensors.push((operand, Bytes::Own(computed.swap_remove(at).2)));
            }
        }
        Ok(Weights { tensors })
    }

    fn new(signature: &Signature, file: Option<&'a TensorFile>) -> Result<Weights<'a>> {
        let taken = Taken::new(signature, |operand| match operand.role {
            Role::Weight => file_of(signature, Role::Weight, file),
            Role::Input | Role::Cache | Role::Output => Ok(None),
        })?;
        let operands = signature.operands.iter().zip(taken.operands);
        Ok(Weights { tensors: operands.filter_map(|(o, bytes)| Some((o.clone(), bytes?))).collect() })
    }
}

impl Compile {
    /// Compiles a function ahead of time, and writes it: to be called with its own inputs, of up to as many rows as the
    /// options' chunk.
    ///
    /// # Errors
    /// As [`Compile::check`]; [`Error::Graph`] for a function that is ill-typed or has caches, [`Error::Compiler`] for
    /// one that has no kernels or reads by ids that cannot be checked; [`Error::Option`] and [`Error::Run`] for weights
    /// that are missing or of another type; [`Error::Write`] and [`Error::Run`] where the system refuses to write.
    pub fn function(
        &self,
        function: &Function,
        weights: Option<&TensorFile>,
        options: &Options,
        output: impl AsRef<Path>,
    ) -> Result<Written> {
        let output = output.as_ref();
        let signature = signed(function, Counts { rows: 1, keys: 1 })?;
        if let Some(cache) = signature.operands.iter().find(|operand| operand.role == Role::Cache) {
            let reason = "a function with caches is called, and not compiled ahead of time";
            return Err(Error::Graph(format!(
                "function `{}`: `{}` is a cache: {reason}",
                function.name, cache.name
            )));
        }
        let weights = Weights::new(&signature, weights)?;
        self.check(options, output)?;
        let folded = Folded::new(function, options)?;
        let (function, weights) = match &folded {
            Some(folded) => (folded.function(), weights.folded(folded, options)?),
            None => (function, weights),
        };
        let signature = signed(function, Counts { rows: 1, keys: 1 })?;
        let targets = self.targets(options)?;
        let start = Instant::now();
        let graph = loose(function, &signature, Counts { rows: 1, keys: 1 }, options);
        let image = |target: &Target| -> Result<Image<Signature>> {
            let options = graph.compiler(&options.clone().cpu(&target.name))?;
            let CallableImage { image, .. } =
                compile_callable_for(target.clone(), &graph.module.functions[0], &options)?;
            Ok(image)
        };
        if self.is_object {
            let (begun, target) = (Begun::new(output)?, &targets[0]);
            let image = image(target)?;
            let parts = Parts { image: &image, cpu: &target.name, prefix: begun.prefix() };
            let object = build(&parts)?;
            return begun.finish(&object, &weights, target, image.code.len(), start.elapsed());
        }
        let images = targets.iter().map(image).collect::<Result<Vec<_>>>()?;
        let tensors = weights.tensors.iter().map(|(operand, bytes)| {
            if !can_name_weight(&operand.name) {
                let reason = "a section of artifacts has this name";
                return Err(Error::Graph(format!(
                    "function `{}`: `{}`: {reason}",
                    function.name, operand.name
                )));
            }
            let TensorType { dtype, shape } = TensorType::held(operand);
            Ok(Part::weight(&operand.name, dtype, shape, bytes.as_slice()))
        });
        let parts = tensors.collect::<Result<Vec<_>>>()?;
        let code = Code { targets: &targets, images: &images, compile: start.elapsed() };
        code.write(self, options, parts, (AS_STORED, Some(&function.name)), output)
    }
}
