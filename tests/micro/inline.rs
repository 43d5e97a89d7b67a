//! Rows that are instructions of the kernel itself: linear functions for the oldest CPU, against the interpreter.
//!
//! Their quantised weights are `codegen/tests/fused/micro.rs`'s.

use lapidary_codegen::compile::compile_functions;
use lapidary_codegen::micro::{self, Microkernel, Quantised};
use lapidary_codegen::target::{Placement, TARGETS, Target};
use lapidary_codegen::{Options, call};
use lapidary_ir::interp::{Precision, evaluate};
use lapidary_ir::{Extent, text};
use lapidary_passes::check::values;
use lapidary_passes::{Machine, Selection};

/// Runs a row at its edges; how often.
pub(crate) fn check(micro: &Microkernel) -> usize {
    let here = TARGETS.iter().find(|t| t.triple.starts_with(std::env::consts::ARCH)).expect("a target");
    let features = Target::new(here.name, Placement::Jit).unwrap().features;
    let few = micro.max_rows < usize::MAX;
    let capacity = if few { micro.max_rows } else { 2 * micro.mr + 1 };
    let calls: Vec<usize> = if few { (1..=capacity).collect() } else { vec![1, micro.mr, capacity] };
    let mut count = 0;
    for nr in micro.shapes.iter().map(|s| s.1) {
        for n in [1, nr - 1, nr + 1, 2 * nr] {
            for (dtype, k) in [("f32", 1), ("bf16", 33), ("f16", 67)] {
                assert_eq!(micro::choose(capacity, k, false, Quantised::No, &features).name, micro.name);
                let source = format!(
                    "function f(%x: f32[T,{k}] rows, %w: {dtype}[{n},{k}] weight) {{\n    \
                     return y=(linear %x (weights %w) store)\n}}"
                );
                let function = text::parse_module(&source).unwrap().functions.remove(0);
                let options = Options {
                    selection: Selection::all(),
                    cpu: here.name.into(),
                    context: capacity,
                    chunk: capacity,
                    rounded: false,
                    machine: Machine::GENERIC,
                    listings: false,
                };
                let loose = compile_functions(std::slice::from_ref(&function), &options).unwrap();
                for &rows in &calls {
                    let extent = Extent { rows, keys: rows };
                    let inputs = values::inputs(&function, extent, rows as u64);
                    let expected = evaluate(&function, &inputs, extent, Precision::F64).unwrap();
                    let found = call::call(&loose, 0, capacity, &inputs, extent).unwrap();
                    for (&a, &b) in found[0].data.iter().zip(&expected[0].data) {
                        let close = (a - b).abs() <= 1e-5 * (1.0 + b.abs()) * (k as f64).sqrt();
                        assert!(close, "{}: {a}, expected {b}\n{source}", micro.name);
                    }
                    count += 1;
                }
            }
        }
    }
    count
}
