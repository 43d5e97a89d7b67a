//! Interpreter = machine code = artifact, as written and fused: over random functions of every primitive, and over each
//! fusion that has a name, at random shapes and constants (`fusions`). `rows` has what treats rows alike.
//!
//! `PROPTEST_CASES` sets the number of cases; the seed is fixed, so a failure comes again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use compiled::{Compiled, call_opened, opened};
use lapidary_ir::interp::{Precision, Tensor, evaluate};
use lapidary_ir::{Extent, text};
use lapidary_passes::Selection;
use lapidary_passes::check::values;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[path = "differential/compiled.rs"]
mod compiled;
#[path = "differential/fusions.rs"]
mod fusions;
#[path = "generate/primitives.rs"]
mod primitives;
#[path = "differential/rows.rs"]
mod rows;

/// Rows and keys of the calls: one row, and some of each regime.
const EXTENTS: [Extent; 5] = [
    Extent { rows: 1, keys: 1 },
    Extent { rows: 1, keys: 23 },
    Extent { rows: 2, keys: 7 },
    Extent { rows: 5, keys: 5 },
    Extent { rows: 17, keys: 40 },
];

fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    }
}

/// Asserts that an output is within an absolute and a relative distance of what it should be.
fn compare(what: &str, found: &Tensor, expected: &Tensor, absolute: f64, relative: f64) {
    assert_eq!((found.dtype, &found.shape), (expected.dtype, &expected.shape), "{what}");
    for (at, (&a, &b)) in found.data.iter().zip(&expected.data).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan());
        assert!(
            same || (a - b).abs() <= absolute + relative * b.abs(),
            "{what}: element {at} of {:?} is {a:e}, expected {b:e} within {absolute:e} + {relative:e}",
            found.shape
        );
    }
}

/// Some of the rules, by the bits of a number.
fn some_rules(bits: u64) -> Selection {
    let all = Selection::all();
    let chosen = all.enabled().enumerate().filter(|(at, _)| bits.rotate_left(*at as u32) & 1 == 1);
    let names: Vec<String> = chosen.map(|(_, name)| name.into()).collect();
    all.with_only(names)
}

fn check_random(choices: &[primitives::Choice], rules: u64) {
    let generated = primitives::function(choices);
    let function = &generated.function;
    lapidary_ir::verify::verify(function).unwrap_or_else(|e| panic!("{e}\n{function}"));
    let fused_alone = Compiled::new(function, Selection::new("fuse", &[]).unwrap(), "native");
    let forms = [
        ("as written", Compiled::new(function, Selection::none(), "native")),
        ("by some rules", Compiled::new(function, some_rules(rules), "native")),
        ("fused", Compiled::new(function, Selection::all(), "native")),
        ("as written, an older CPU", Compiled::new(function, Selection::none(), "x86-64-v2")),
    ];
    let mut artifact = opened(function, Selection::all());
    for (seed, extent) in (1..).zip(EXTENTS) {
        let inputs = values::inputs(function, extent, seed);
        let expected = evaluate(function, &inputs, extent, Precision::F32).unwrap();
        if let Some(artifact) = &mut artifact {
            let here = forms[2].1.call(&inputs, extent);
            for (a, b) in here.iter().zip(&call_opened(artifact, &inputs, &expected, extent)) {
                assert!(same_bits(a, b), "an artifact has other bits in a call of {extent:?} of\n{function}");
            }
        }
        // What fusion makes one kernel has the bits of its operators' own.
        let (written, fused) = (forms[0].1.call(&inputs, extent), fused_alone.call(&inputs, extent));
        for (written, fused) in written.iter().zip(&fused) {
            assert!(
                same_bits(written, fused),
                "a call of {extent:?} has other bits, fused alone, of\n{function}"
            );
        }
        for (what, compiled) in &forms {
            let found = compiled.call(&inputs, extent);
            for (at, (name, _)) in function.outputs.iter().enumerate() {
                let what = format!("{what}, output `{name}` in a call of {extent:?} of\n{function}");
                compare(&what, &found[at], &expected[at], 4.0 * generated.errors[at], 0.0);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn random_functions(
        choices in prop::collection::vec(
            (0u8..primitives::KINDS, 0usize..64, 0usize..64, 0usize..64), 1..16),
        rules in any::<u64>(),
    ) {
        check_random(&choices, rules);
    }
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.shape == b.shape && a.data.iter().zip(&b.data).all(same)
}

/// A linear's epilogue has the bits of the operators that it stands for, whatever the rows of a call.
#[test]
fn epilogues_change_no_bit() {
    let source = "function f(
        %x: f32[T,40] rows, %r: f32[T,50] rows, %u: bf16[50,40] weight, %w: f32[50,40] weight, %b: f32[50] weight,
        %d: f16[70,64] weight, %e: f32[T,64] rows,
    ) {
        u = (linear %x (weights %u) store)
        return bias=(add %r (relu (add (linear %x (weights %w) store) %b))), gate=(mul (silu u) (add 1.0 u)),
            half=(mul 0.5 (tanh (linear %e (weights %d) store)))
    }";
    let function = text::parse_module(source).unwrap().functions.remove(0);
    for cpu in ["native", "x86-64-v2"] {
        let written = Compiled::new(&function, Selection::none(), cpu);
        let fused = Compiled::new(&function, Selection::new("fuse", &[]).unwrap(), cpu);
        for form in fused.forms() {
            assert_eq!(form.body.as_ref().iter().filter(|op| op.name() == "then").count(), 3, "{form}");
        }
        for (seed, extent) in (1..).zip(EXTENTS) {
            let inputs = values::inputs(&function, extent, seed);
            for (a, b) in written.call(&inputs, extent).iter().zip(&fused.call(&inputs, extent)) {
                assert!(same_bits(a, b), "{cpu}, {extent:?}");
            }
        }
    }
}

/// Columns of a matrix, whose rows do not follow one another, as weights.
#[test]
fn some_columns_are_multiplied() {
    let source = "function f(%x: f32[T,40] rows, %m: f16[70,64] weight, %b: bf16[70,96] weight) {
        return halves=(matmul %x (transpose (cast (slice %m 1 0 40) f32) [1,0])),
            last=(matmul %x (transpose (cast (slice %b 1 -40 40) f32) [1,0]))
    }";
    let function = text::parse_module(source).unwrap().functions.remove(0);
    for cpu in ["native", "x86-64-v2", "x86-64-v3"] {
        let compiled = Compiled::new(&function, Selection::all(), cpu);
        for (seed, extent) in (1..).zip(EXTENTS) {
            let inputs = values::inputs(&function, extent, seed);
            let expected = evaluate(&function, &inputs, extent, Precision::F32).unwrap();
            for (at, found) in compiled.call(&inputs, extent).iter().enumerate() {
                compare(&format!("{cpu}, {extent:?}, output {at}"), found, &expected[at], 1e-4, 0.0);
            }
        }
    }
}

/// Every operator comes up in the random functions.
#[test]
fn random_functions_have_every_primitive() {
    let mut random = values::Random(1);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let choices: Vec<primitives::Choice> = (0..15)
            .map(|_| {
                (
                    random.below(usize::from(primitives::KINDS)) as u8,
                    random.below(64),
                    random.below(64),
                    random.below(64),
                )
            })
            .collect();
        let function = primitives::function(&choices).function;
        seen.extend(function.body.as_ref().iter().map(|op| op.name()));
    }
    for name in [
        "neg",
        "recip",
        "sqrt",
        "rsqrt",
        "exp",
        "log",
        "abs",
        "floor",
        "tanh",
        "cos",
        "sin",
        "cast",
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "maximum",
        "minimum",
        "lt",
        "le",
        "eq",
        "and",
        "or",
        "not",
        "select",
        "sum",
        "mean",
        "max",
        "min",
        "prod",
        "argmax",
        "matmul",
        "reshape",
        "transpose",
        "broadcast",
        "slice",
        "concat",
        "pad",
        "take",
        "gather",
        "iota",
        "append",
    ] {
        assert!(seen.contains(name), "no `{name}`");
    }
}
