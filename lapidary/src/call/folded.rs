//! Terms of weights alone, computed once: when a function is given its weights, not in each call.
//!
//! In: a function, options. Out: the function with such terms as weights of its own, and how to compute those, if that
//! is cheaper: a rule may know the term better than its value. What merely moves a weight's elements stays as it is,
//! for kernels read those where they lie.

use lapidary_ir::{Extent, Function, TensorType};
use lapidary_passes::Limits;
use lapidary_passes::weights::{Split, split};
use lapidary_runtime::program::Counts;

use super::{compile, loose, signed};
use crate::error::{Error, Result};
use crate::options::Options;

/// A function whose terms of weights are weights.
pub struct Folded(Split);

impl Folded {
    /// The function without its terms of weights, if it has any and is cheaper so.
    ///
    /// # Errors
    /// [`Error::Graph`] for an ill-typed function; as [`Options::check`].
    pub fn new(function: &Function, options: &Options) -> Result<Option<Folded>> {
        let Some(split) = split(function).map_err(|e| Error::Graph(e.to_string()))? else { return Ok(None) };
        let (before, after) = (price(function, options)?, price(&split.function, options)?);
        Ok((after < before).then_some(Folded(split)))
    }

    /// The function: weights that nothing else reads are gone, new ones come last.
    pub fn function(&self) -> &Function {
        &self.0.function
    }

    /// The weights that the terms are made of.
    pub fn reads(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.0.terms.inputs.iter().map(|input| (input.name.as_str(), &input.ty))
    }

    /// Computes the new weights: name, type and bytes of each. `weights` are the bytes of what [`Folded::reads`] names,
    /// in its order.
    ///
    /// # Errors
    /// As [`super::Call::compile`] and [`super::Call::run`].
    pub fn compute(
        &self,
        weights: &[&[u8]],
        options: &Options,
    ) -> Result<Vec<(String, TensorType, Vec<u8>)>> {
        let counts = Counts { rows: 1, keys: 1 };
        let options = options.clone().cpu("native");
        let mut compiled = compile(&self.0.terms, &signed(&self.0.terms, counts)?, counts, &options)?;
        let made = compiled.callable().returned(counts, weights)?;
        let new = self.0.function.inputs[self.0.function.inputs.len() - made.len()..].iter();
        Ok(new.zip(made).map(|(input, made)| (input.name.clone(), input.ty.clone(), made.bytes)).collect())
    }
}

/// The predicted time of a call of one row and of as many as the options say, nanoseconds.
fn price(function: &Function, options: &Options) -> Result<f64> {
    let signature = signed(function, Counts { rows: 1, keys: 1 })?;
    let compiler = loose(function, &signature, Counts { rows: 1, keys: 1 }, options).compiler(options)?;
    let failed = |e: lapidary_passes::Error| Error::Graph(e.to_string());
    let saturated =
        lapidary_passes::prepare(function, &compiler.selection, Limits::default()).map_err(failed)?;
    let mut sum = 0.0;
    for rows in [1, compiler.chunk] {
        let extent = Extent { rows, keys: rows.max(compiler.context.min(rows)) };
        sum += lapidary_passes::select(&saturated, compiler.machine, extent).map_err(failed)?.nanoseconds;
    }
    Ok(sum)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lapidary_ir::text;

    use super::*;

    #[test]
    fn results_have_the_bits_of_the_function_as_written() {
        let source = "function f(%x: f32[T,40] rows, %w: f32[24,40] weight, %s: f32[40] weight) {
            scaled = (mul %w (exp (neg %s)))
            return y=(matmul (tanh %x) (transpose scaled [1,0]))
        }";
        let function = text::parse_module(source).unwrap().functions.remove(0);
        let options = Options::new().threads(1).activations(crate::Activations::F32).chunk(64);
        let folded = Folded::new(&function, &options).unwrap().unwrap();
        let numbers = |n: usize, seed: usize| -> Vec<u8> {
            (0..n).flat_map(|i| (((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect()
        };
        let (w, s) = (numbers(24 * 40, 3), numbers(40, 11));
        let computed = folded.compute(&[&w, &s], &options).unwrap();
        assert_eq!(computed.len(), 1);
        for rows in [1, 7, 64] {
            let x = numbers(rows * 40, 5);
            let counts = Counts { rows, keys: rows };
            let call = |function: &Function, takes: &[&[u8]]| {
                let signature = signed(function, counts).unwrap();
                let mut compiled = compile(function, &signature, counts, &options).unwrap();
                compiled.callable().returned(counts, takes).unwrap().remove(0).bytes
            };
            let written = call(&function, &[&x, &w, &s]);
            assert_eq!(call(folded.function(), &[&x, &computed[0].2]), written, "{rows} rows");
        }
    }
}
