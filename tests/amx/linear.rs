//! Linear kernels by tiles against the interpreter, at the edges of blocks, panels and parts of k.
//!
//! x and weights are numbers of bf16, so products of tiles are exact and only the order of sums differs.

use lapidary_codegen::compile::compile_functions;
use lapidary_codegen::{Options, call, micro};
use lapidary_ir::interp::{Precision, evaluate};
use lapidary_ir::{DType, Extent, text};
use lapidary_passes::Selection;
use lapidary_passes::check::values;

use super::*;

/// Rows of the largest call: two panels, the second one narrow or wide.
const CHUNK: usize = 65;

/// Checks a function of `k` elements a row in calls of all sorts of rows.
fn check(source: &str, k: usize) {
    check_in(CHUNK, &[5, 16, 17, 32, 33, 48, 49, 65], source, k);
}

/// The same in calls of so many rows, of at most `chunk`.
fn check_in(chunk: usize, calls: &[usize], source: &str, k: usize) {
    if !make_ready() {
        return;
    }
    let features = Target::new(CPU, Placement::Jit).unwrap().features;
    assert!(micro::choose(chunk, k, true, micro::Quantised::No, &features).is_configured(), "{k}");
    let function = text::parse_module(source).unwrap_or_else(|e| panic!("{e}\n{source}")).functions.remove(0);
    let options = Options {
        selection: Selection::all(),
        cpu: CPU.into(),
        context: chunk,
        chunk,
        rounded: true,
        machine: lapidary_passes::Machine::GENERIC,
        listings: false,
    };
    let loose = compile_functions(std::slice::from_ref(&function), &options).unwrap();
    for &rows in calls {
        let extent = Extent { rows, keys: rows };
        let mut inputs = values::inputs(&function, extent, rows as u64);
        for input in inputs.iter_mut().filter(|t| t.dtype == DType::F32) {
            input.data.iter_mut().for_each(|x| *x = f64::from(value(bits(*x as f32))));
        }
        let expected = evaluate(&function, &inputs, extent, Precision::F64).unwrap();
        let found = call::call(&loose, 0, chunk, &inputs, extent).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.shape, expected.shape);
            for (at, (&a, &b)) in found.data.iter().zip(&expected.data).enumerate() {
                let close = (a - b).abs() <= 1e-5 * (1.0 + b.abs()) * (k as f64).sqrt();
                assert!(close, "{rows} rows, element {at}: {a}, expected {b}\n{source}");
            }
        }
    }
}

#[test]
fn blocks_and_parts_end_anywhere() {
    for (n, k) in [(1, 32), (31, 64), (32, 96), (33, 544), (65, 1056), (100, 512)] {
        for dtype in ["bf16", "f32"] {
            check(
                &format!(
                    "function f(%x: f32[T,{k}] rows, %w: {dtype}[{n},{k}] weight) {{\n    \
                     return y=(linear %x (weights %w) store)\n}}"
                ),
                k,
            );
        }
    }
}

#[test]
fn several_weights_of_one_call() {
    check(
        "function f(%x: f32[T,544] rows, %a: bf16[40,544] weight, %b: f32[33,544] weight, \
         %c: bf16[7,544] weight) {\n    \
         l = (linear %x (weights %a %b %c) store)\n    \
         return a=(output 0 l), b=(output 1 l), third=(output 2 l)\n}",
        544,
    );
}

#[test]
fn gate_and_softcap() {
    check(
        "function f(%x: f32[T,544] rows, %g: bf16[40,544] weight, %u: bf16[40,544] weight) {\n    \
         return y=(linear %x (weights %g %u) gate)\n}",
        544,
    );
    check(
        "function f(%x: f32[T,64] rows, %w: bf16[70,64] weight) {\n    \
         return y=(linear %x (weights %w) (cap 5.0))\n}",
        64,
    );
}

/// More rows of x, and longer ones, than the second cache holds at a time.
#[test]
fn rows_and_their_elements_are_cut() {
    let (n, k) = (70, 4672);
    for (dtype, calls) in [("f32", [66, 300]), ("bf16", [257, 280])] {
        check_in(
            300,
            &calls,
            &format!(
                "function f(%x: f32[T,{k}] rows, %a: {dtype}[{n},{k}] weight, %b: {dtype}[33,{k}] weight) {{\n    \
                 l = (linear %x (weights %a %b) store)\n    \
                 return a=(output 0 l), b=(output 1 l)\n}}"
            ),
            k,
        );
    }
    check_in(
        300,
        &[290],
        "function f(%x: f32[T,2400] rows, %g: bf16[40,2400] weight, %u: bf16[40,2400] weight) {\n    \
         return y=(linear %x (weights %g %u) gate)\n}",
        2400,
    );
}
