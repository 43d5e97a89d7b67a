//! Interpreter = machine code = artifact, as written and fused: over random functions of every primitive, and over each
//! fusion that has a name, at random shapes and constants.
//!
//! `PROPTEST_CASES` sets the number of cases; the seed is fixed, so a failure comes again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use egg::Language;
use lapidary_codegen::callable::compile_callable_for;
use lapidary_codegen::compile::{Loose, compile_functions};
use lapidary_codegen::target::{Placement, Target, triple};
use lapidary_codegen::{Error, Options, call};
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate, evaluate_all};
use lapidary_ir::{DType, Dim, Extent, Function, Type, rows, text};
use lapidary_passes::Selection;
use lapidary_passes::check::values;
use lapidary_runtime::artifact::Artifact;
use lapidary_runtime::artifact::write::{self, About, Part, Variant};
use lapidary_runtime::callable::Callable;
use lapidary_runtime::program::{Counts, Role};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[path = "generate/primitives.rs"]
mod primitives;

/// The most positions and rows that functions are compiled for; three row regimes.
const CONTEXT: usize = 64;
const CHUNK: usize = 17;

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

/// A function as machine code.
struct Compiled {
    source: Function,
    loose: Loose,
}

fn options(selection: Selection, cpu: &str) -> Options {
    Options {
        selection,
        cpu: cpu.into(),
        context: CONTEXT,
        chunk: CHUNK,
        rounded: false,
        machine: lapidary_passes::Machine::GENERIC,
        listings: false,
    }
}

/// A function written as an artifact, and opened; none of one that reads by ids that it computes.
fn opened(source: &Function, selection: Selection) -> Option<Callable> {
    let target = Target::new("native", Placement::Object).unwrap();
    let image = match compile_callable_for(target.clone(), source, &options(selection, "native")) {
        Ok(compiled) => compiled.image,
        Err(Error::Unsupported { .. }) => return None,
        Err(error) => panic!("{error}\n{source}"),
    };
    let (cpus, features) = ([target.name.clone()], target.required());
    let about = About {
        target: triple(target.set.architecture()),
        cpus: &cpus,
        weights: "stored",
        function: Some(&source.name),
        compiler: "",
        key: None,
    };
    let image = Variant { cpu: &target.name, features: &features, tuning: None, image: &image };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("function.lap");
    write::write(&path, &about, &Part::images(&[image]), &mut |_, _| {}).unwrap();
    let program = Artifact::open(&path).unwrap().function(None).unwrap_or_else(|e| panic!("{e}\n{source}"));
    Some(Callable::new(Arc::new(program), 1).unwrap())
}

/// Calls an opened function: its outputs, in order.
fn call_opened(
    callable: &mut Callable,
    inputs: &[Tensor],
    outputs: &[Tensor],
    extent: Extent,
) -> Vec<Tensor> {
    let bytes: Vec<Vec<u8>> = inputs.iter().map(Tensor::to_bytes).collect();
    let operands = callable.signature().operands.iter();
    assert_eq!(operands.filter(|o| o.role != Role::Output).count(), inputs.len());
    let takes: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let returned = callable.returned(Counts { rows: extent.rows, keys: extent.keys }, &takes).unwrap();
    let found = returned.iter().zip(outputs);
    found.map(|(found, like)| Tensor::from_bytes(like.dtype, &found.shape, &found.bytes)).collect()
}

impl Compiled {
    fn new(source: &Function, selection: Selection, cpu: &str) -> Compiled {
        let options = options(selection, cpu);
        let loose = compile_functions(std::slice::from_ref(source), &options)
            .unwrap_or_else(|e| panic!("{e}\n{source}"));
        Compiled { source: source.clone(), loose }
    }

    /// The function as extraction chose it, for each row regime.
    fn forms(&self) -> impl Iterator<Item = &Function> {
        self.loose.reports[0].variants.iter().map(|v| &v.function)
    }

    /// The rows that an output keeps, if it is a cache that wraps.
    fn ring(&self, name: &str) -> Option<usize> {
        call::ring(&self.loose, 0, name)
    }

    /// Calls it: its outputs, in order.
    fn call(&self, inputs: &[Tensor], extent: Extent) -> Vec<Tensor> {
        call::call(&self.loose, 0, CONTEXT, inputs, extent).unwrap_or_else(|e| panic!("{e}\n{}", self.source))
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

/// A fusion.
struct Fusion {
    /// A naive function.
    source: String,
    /// What some fused form has: where two forms cost the same, a regime may have either.
    has: &'static [&'static str],
    /// What none has.
    has_not: &'static [&'static str],
}

/// Checks that a fusion happens, that no row regime keeps what it replaces, and that it changes nothing.
fn check_fusion(fusion: &Fusion) {
    let function = text::parse_module(&fusion.source)
        .unwrap_or_else(|e| panic!("{e}\n{}", fusion.source))
        .functions
        .remove(0);
    lapidary_ir::verify::verify(&function).unwrap_or_else(|e| panic!("{e}\n{function}"));
    let compiled = Compiled::new(&function, Selection::all(), "native");
    let mut all = BTreeSet::new();
    for form in compiled.forms() {
        let names: BTreeSet<String> = form.body.as_ref().iter().map(|op| op.to_string()).collect();
        for name in fusion.has_not {
            assert!(!names.contains(*name), "`{name}` is left in\n{form}");
        }
        all.extend(names);
    }
    for name in fusion.has {
        assert!(all.contains(*name), "no `{name}` in any form of\n{function}");
    }
    for (seed, extent) in (1..).zip(EXTENTS) {
        let inputs = values::inputs(&function, extent, seed);
        let naive = evaluate(&function, &inputs, extent, Precision::F64).unwrap();
        let mut found = compiled.call(&inputs, extent);
        for (at, (name, _)) in function.outputs.iter().enumerate() {
            // Keys that a ring has overwritten are of no interest.
            let ring = compiled.ring(name).unwrap_or(usize::MAX);
            let (keys, row) = (extent.keys, naive[at].shape.last().copied().unwrap_or(1));
            for (i, x) in found[at].data.iter_mut().enumerate() {
                if i / row % keys < keys.saturating_sub(ring) {
                    *x = naive[at].data[i];
                }
            }
        }
        for form in compiled.forms() {
            let fused = evaluate(form, &inputs, extent, Precision::F64).unwrap();
            for (at, (name, _)) in function.outputs.iter().enumerate() {
                let what = format!("output `{name}` in a call of {extent:?} of\n{function}");
                // GELU's constants are of f32.
                compare(&format!("interpreted, {what}{form}"), &fused[at], &naive[at], 1e-6, 1e-6);
                if found[at].dtype == DType::F32 {
                    compare(&format!("machine code, {what}{form}"), &found[at], &naive[at], 3e-5, 3e-5);
                } else {
                    compare(&format!("machine code, {what}{form}"), &found[at], &naive[at], 0.0, 0.0);
                }
            }
        }
    }
}

/// Random shapes and constants.
type Shapes = values::Random;

fn one_of<'a>(random: &mut Shapes, choices: &[&'a str]) -> &'a str {
    choices[random.below(choices.len())]
}

/// A fusion's naive function from a seed.
macro_rules! fusions {
    ($($name:ident($random:ident) $has:expr, not $has_not:expr, $source:expr)*) => {
        proptest! {
            #![proptest_config(config(12))]
            $(
                #[test]
                fn $name(seed in any::<u64>()) {
                    let mut random = values::Random(seed);
                    let $random = &mut random;
                    check_fusion(&Fusion { source: $source, has: $has, has_not: $has_not });
                }
            )*
        }
    };
}

const GELU: [&str; 2] = [
    "(mul (mul 0.5 X) (add 1.0 (tanh (mul 0.7978845608 (add X (mul 0.044715 (pow X 3.0)))))))",
    "(mul X (mul 0.5 (add 1.0 (tanh (mul 0.7978845608 (add X (mul 0.044715 (mul (mul X X) X))))))))",
];

const NORM: [&str; 3] = [
    "(mul (mul X (rsqrt (add (mean (mul X X) 1) 1e-6))) (add 1.0 W))",
    "(mul X (mul (recip (sqrt (add (mean (pow X 2.0) 1) 1e-6))) (add W 1.0)))",
    "(mul (div X (sqrt (add (mean (mul X X) 1) 1e-6))) (add 1.0 W))",
];

fn gelu(random: &mut Shapes, x: &str) -> String {
    one_of(random, &GELU).replace('X', x)
}

fn norm(random: &mut Shapes, x: &str, w: &str) -> String {
    one_of(random, &NORM).replace('X', x).replace('W', w)
}

/// A masked attention, as a model writes it: heads of their own or shared, capped or not, windowed or not, any cache.
fn attention(
    random: &mut Shapes,
    repeat: usize,
    cap: Option<&str>,
    window: Option<usize>,
    result: &str,
) -> String {
    let (groups, d) = (1 + random.below(3), 2 * (1 + random.below(9)));
    let heads = groups * repeat;
    let cache = one_of(random, &["f32", "bf16", "f16"]);
    let kind = window.map_or("cache".to_owned(), |w| format!("cache window={w}"));
    let mut lines = String::new();
    for x in ["k", "v"] {
        let (narrow, wide) = match cache {
            "f32" => (format!("%{x}"), format!("{x}c")),
            _ => (format!("(cast %{x} {cache})"), format!("(cast {x}c f32)")),
        };
        lines += &format!("    {x}c = (append %{x}c {narrow})\n    {x}w = {wide}\n");
        let repeated = format!(
            "(reshape (broadcast (reshape {x}w [{groups},1,S,{d}]) [{groups},{repeat},S,{d}]) [{heads},S,{d}])"
        );
        if repeat > 1 {
            lines += &format!("    {x} = {repeated}\n");
        }
    }
    let (k, v) = if repeat == 1 { ("kw", "vw") } else { ("k", "v") };
    let scale = one_of(random, &["0.25", "0.5"]);
    lines += &format!("    s = (mul (matmul %q (transpose {k} [0,2,1])) {scale})\n");
    let capped = cap.map_or("s".to_owned(), |cap| format!("(mul (tanh (div s {cap})) {cap})"));
    lines += &format!("    capped = {capped}\n");
    let (key, query) = ("(reshape (iota [S] i32) [1,S])", "(reshape %pos [T,1])");
    let causal = format!("(le {key} {query})");
    let visible = match window {
        None => causal,
        Some(w) => {
            let near = one_of(random, &["(lt (sub Q W) K)", "(lt (sub Q K) W)", "(lt Q (add K W))"])
                .replace('Q', query)
                .replace('K', key)
                .replace('W', &w.to_string());
            format!("(and {causal} {near})")
        }
    };
    lines += &format!("    masked = (select {visible} capped -inf)\n");
    lines += "    e = (exp (sub masked (max masked 2)))\n    p = (div e (sum e 2))\n";
    lines += &format!("    y = (matmul p {v})\n");
    format!(
        "function f(%q: f32[{heads},T,{d}] rows, %k: f32[{groups},T,{d}] rows, %v: f32[{groups},T,{d}] rows, \
         %pos: i32[T] rows, %kc: {cache}[{groups},S,{d}] {kind}, %vc: {cache}[{groups},S,{d}] {kind}) {{\n{lines}    \
         return y={result}, kc=kc, vc=vc\n}}"
    )
}

/// A few linears of one x (T, k): declarations and terms.
fn linears(random: &mut Shapes, x: &str, k: usize, widths: &[usize]) -> (String, Vec<String>) {
    let mut declared = String::new();
    let mut terms = vec![];
    for (i, n) in widths.iter().enumerate() {
        let dtype = one_of(random, &["f32", "bf16", "f16"]);
        declared += &format!(", %w{i}: {dtype}[{n},{k}] weight");
        let wide = if dtype == "f32" { format!("%w{i}") } else { format!("(cast %w{i} f32)") };
        terms.push(format!("(matmul {x} (transpose {wide} [1,0]))"));
    }
    (declared, terms)
}

fusions! {
    softcap(r) &["softcap"], not &["tanh"], {
        let c = one_of(r, &["2.0", "30.0", "50.0"]);
        let term = one_of(r, &["(mul (tanh (div %x C)) C)", "(mul C (tanh (div %x C)))"]).replace('C', c);
        format!("function f(%x: f32[T,{}] rows) {{ return y={term} }}", 1 + r.below(20))
    }
    causal_mask(r) &["window_mask", "scores"], not &["select", "le"], {
        attention(r, 1, None, None, "masked")
    }
    sliding_window_mask(r) &["window_mask", "scores"], not &["select", "le", "lt"], {
        let window = 1 + r.below(30);
        attention(r, 1, None, Some(window), "masked")
    }
    softmax(r) &["softmax"], not &["exp"], {
        let n = 1 + r.below(20);
        let p = one_of(r, &["(div e (sum e 1))", "(mul (recip (sum e 1)) e)"]);
        format!("function f(%x: f32[T,{n}] rows) {{\n e = (exp (sub %x (max %x 1)))\n return y={p}\n}}")
    }
    attention_forms(r) &["attention"], not &["matmul", "exp", "select", "softmax"], {
        let window = if r.below(2) == 0 { None } else { Some(1 + r.below(30)) };
        attention(r, 1, None, window, "y")
    }
    // Keys may still be read as a broadcast view of a few: it costs nothing.
    grouped_queries(r) &["attention"], not &["matmul", "exp", "select"], {
        let window = if r.below(2) == 0 { None } else { Some(1 + r.below(30)) };
        let repeat = 2 + r.below(3);
        attention(r, repeat, None, window, "y")
    }
    bounded_softmax(r) &["attention", "bounded"], not &["matmul", "exp", "select", "tanh"], {
        let cap = one_of(r, &["2.0", "30.0", "50.0"]);
        let window = if r.below(2) == 0 { None } else { Some(1 + r.below(30)) };
        let repeat = 1 + r.below(2);
        attention(r, repeat, Some(cap), window, "y")
    }
    unbounded_softmax(r) &["attention", "online"], not &["matmul", "exp", "select", "tanh", "bounded"], {
        attention(r, 2, Some("90.0"), None, "y")
    }
    rms_norm(r) &["rms_norm"], not &["mean", "rsqrt", "sqrt"], {
        let term = norm(r, "%x", "%w");
        let n = 1 + r.below(40);
        format!("function f(%x: f32[T,{n}] rows, %w: f32[{n}] weight) {{ return y={term} }}")
    }
    norms_of_whole_weights(r) &["rms_norm", "add_rms_norm", "sub"], not &["mean", "rsqrt"], {
        let n = 1 + r.below(40);
        let held = one_of(r, &["f32", "bf16"]);
        let w = if held == "f32" { "%w" } else { "(cast %w f32)" };
        format!(
            "function f(%x: f32[T,{n}] rows, %z: f32[T,{n}] rows, %r: f32[T,{n}] rows, %w: {held}[{n}] weight) {{
                s = (rsqrt (add (mean (mul %x %x) 1) 1e-6))
                t = (rsqrt (add (mean (mul %z %z) 1) 1e-6))
                return a=(mul (mul %x s) {w}), b=(add %r (mul (mul %z t) {w}))
            }}"
        )
    }
    residual_norm(r) &["add_rms_norm"], not &["mean", "add", "rms_norm"], {
        let normed = norm(r, "%x", "%w");
        let term = if r.below(2) == 0 { format!("(add %r {normed})") } else { format!("(add {normed} %r)") };
        let n = 1 + r.below(40);
        format!("function f(%x: f32[T,{n}] rows, %r: f32[T,{n}] rows, %w: f32[{n}] weight) {{ return y={term} }}")
    }
    gelu_tanh(r) &["gelu_tanh"], not &["tanh", "pow"], {
        let term = gelu(r, "%x");
        format!("function f(%x: f32[T,{}] rows) {{ return y={term} }}", 1 + r.below(40))
    }
    gated_gelu(r) &["gated_gelu"], not &["tanh", "pow", "mul"], {
        let term = gelu(r, "%x");
        let n = 1 + r.below(40);
        format!("function f(%x: f32[T,{n}] rows, %u: f32[T,{n}] rows) {{ return y=(mul {term} %u) }}")
    }
    gated_linear(r) &["linear", "gate"], not &["tanh", "matmul", "gated_gelu"], {
        let (k, n) = (1 + r.below(40), 1 + r.below(40));
        let (declared, terms) = linears(r, "%x", k, &[n, n]);
        let gate = gelu(r, "g");
        format!("function f(%x: f32[T,{k}] rows{declared}) {{\n g = {}\n return y=(mul {gate} {})\n}}", terms[0], terms[1])
    }
    merged_linear(r) &["linear", "output"], not &["matmul"], {
        let k = 1 + r.below(40);
        let widths = [1 + r.below(40), 1 + r.below(40), 1 + r.below(40)];
        let (declared, terms) = linears(r, "%x", k, &widths);
        format!("function f(%x: f32[T,{k}] rows{declared}) {{ return a={}, b={}, c={} }}", terms[0], terms[1], terms[2])
    }
    capped_linear(r) &["linear", "cap"], not &["matmul", "tanh", "softcap"], {
        let k = 1 + r.below(40);
        // Of two or three rows a product is cheaper as it is written.
        let n = 4 + r.below(40);
        let (declared, terms) = linears(r, "%x", k, &[n]);
        format!("function f(%x: f32[T,{k}] rows{declared}) {{ return y=(mul (tanh (div {} 2.0)) 2.0) }}", terms[0])
    }
    rope(r) &["rope"], not &["cos", "sin", "concat"], {
        let (heads, half) = (1 + r.below(3), 1 + r.below(9));
        let d = 2 * half;
        format!(
            "function f(%x: f32[{heads},T,{d}] rows, %pos: i32[T] rows, %f: f32[{half}] weight) {{\n\
             a = (mul (reshape (cast %pos f32) [T,1]) %f)\n c = (concat a a 1)\n\
             t = (concat (neg (slice %x 2 {half} {half})) (slice %x 2 0 {half}) 2)\n\
             return y=(add (mul %x (cos c)) (mul t (sin c)))\n}}"
        )
    }
    embedding(r) &["embedding"], not &["gather", "mul", "cast"], {
        let dtype = one_of(r, &["bf16", "f16"]);
        let k = 1 + r.below(40);
        format!("function f(%t: {dtype}[9,{k}] weight, %ids: i32[T] rows) {{ return y=(mul (cast (gather %t %ids) f32) 2.5) }}")
    }
    last_row(r) &["slice", "linear"], not &["matmul", "tanh", "mean"], {
        let (k, n) = (1 + r.below(40), 1 + r.below(40));
        let (declared, terms) = linears(r, "h", k, &[n]);
        let normed = norm(r, "%x", "%w");
        format!(
            "function f(%x: f32[T,{k}] rows, %w: f32[{k}] weight{declared}) {{\n h = {normed}\n\
             l = (mul (tanh (div {} 30.0)) 30.0)\n return y=(slice l 0 -1 1)\n}}",
            terms[0]
        )
    }
    argmax_needs_no_softcap(r) &["argmax"], not &["tanh", "softcap"], {
        let n = 1 + r.below(40);
        let c = one_of(r, &["30.0", "50.0"]);
        format!("function f(%x: f32[T,{n}] rows) {{ return y=(argmax (mul (tanh (div %x {c})) {c}) 1) }}")
    }
}

/// Only the last row is normed and multiplied: the slice reads the input.
#[test]
fn the_last_row_alone_is_computed() {
    let source = "function f(%x: f32[T,8] rows, %w: bf16[5,8] weight) {
        return y=(slice (matmul %x (transpose (cast %w f32) [1,0])) 0 -1 1)
    }";
    let function = text::parse_module(source).unwrap().functions.remove(0);
    // Of calls of one row, which what is decoded is priced by, the last is the only one.
    let compiled = Compiled::new(&function, Selection::all(), "native");
    let form = compiled.forms().last().unwrap();
    let types = form.types().unwrap();
    let linears = form.body.as_ref().iter().zip(types).filter(|(op, _)| op.to_string() == "linear");
    let types: Vec<String> = linears.map(|(_, ty)| ty.to_string()).collect();
    assert_eq!(types, ["f32[1,5]"], "{form}");
}

/// A tensor with the rows that `order` names, along the axis of rows.
fn reordered(tensor: &Tensor, shape: &[Dim], order: &[usize]) -> Tensor {
    let Some(axis) = shape.iter().position(|&d| d == Dim::Rows) else { return tensor.clone() };
    let inner: usize = tensor.shape[axis + 1..].iter().product();
    let outer: usize = tensor.shape[..axis].iter().product();
    let rows = tensor.shape[axis];
    let mut to = tensor.shape.clone();
    to[axis] = order.len();
    let row = |o: usize, r: usize| &tensor.data[(o * rows + r) * inner..][..inner];
    let data = (0..outer).flat_map(|o| order.iter().flat_map(move |&r| row(o, r).to_vec())).collect();
    Tensor::new(tensor.dtype, &to, data)
}

/// Whether what is derived holds: where every node up to one treats rows alike, its rows are those of a call whose rows
/// are permuted, or some of them. How many nodes that were; none where the values, ids of rows that a table lacks, are
/// no input of the function, or of its calls of fewer rows.
fn check_rows(function: &Function, seed: u64) -> Option<usize> {
    let types = function.types().unwrap();
    let mut alike = rows::row_wise(function, &types);
    for (at, op) in function.body.as_ref().iter().enumerate() {
        alike[at] &= op.children().iter().all(|&c| alike[usize::from(c)]);
    }
    let extent = Extent { rows: 6, keys: 9 };
    let inputs = values::inputs(function, extent, seed);
    let whole = evaluate_all(function, &inputs, extent, Precision::F64).ok()?;
    let mut checked = 0;
    for order in [&[3, 0, 5, 1, 4, 2][..], &[2, 3], &[5]] {
        let part = Extent { rows: order.len(), ..extent };
        let given: Vec<Tensor> = function
            .inputs
            .iter()
            .zip(&inputs)
            .map(|(input, tensor)| reordered(tensor, &input.ty.shape, order))
            .collect();
        let found = evaluate_all(function, &given, part, Precision::F64).ok()?;
        for (at, ty) in types.iter().enumerate().filter(|&(at, _)| alike[at]) {
            let (Type::Tensor(t), Value::Tensor(whole), Value::Tensor(found)) = (ty, &whole[at], &found[at])
            else {
                continue;
            };
            let expected = reordered(whole, &t.shape, order);
            let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(
                found.data.iter().zip(&expected.data).all(same),
                "node {at} of rows {order:?} is another in\n{function}"
            );
            checked += usize::from(t.shape.contains(&Dim::Rows));
        }
    }
    Some(checked)
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn rows_are_alike_where_it_is_derived(
        choices in prop::collection::vec((0u8..30, 0usize..64, 0usize..64, 0usize..64), 1..16),
        seed in 1u64..1000,
    ) {
        let function = primitives::function(&choices).function;
        let checked = check_rows(&function, seed);
        prop_assume!(checked.is_some());
        prop_assert!(checked > Some(0));
        for form in Compiled::new(&function, Selection::all(), "native").forms() {
            check_rows(form, seed);
        }
    }
}

/// What is not alike: a row's place in the call, sums over rows, keys.
#[test]
fn rows_are_not_alike_where_they_meet() {
    let cases = [
        ("(iota [T] i32)", false),
        ("(slice %x 0 -1 1)", false),
        ("(sum %x 0)", false),
        ("(sum %x 1)", true),
        ("(max (transpose %x [1,0]) 0)", true),
        ("(matmul %x (transpose %x [1,0]))", false),
        ("(matmul (transpose %x [1,0]) %x)", false),
        ("(reshape %x [T,2,3])", true),
        ("(append %cache (reshape %x [1,T,6]))", false),
        ("(gather %w %ids)", true),
        ("(gather %x %ids)", false),
    ];
    for (term, alike) in cases {
        let inputs = "%x: f32[T,6] rows, %ids: i32[T] rows, %w: f32[9,6] weight, %cache: f32[1,S,6] cache";
        let source = format!("function f({inputs}) {{\n    return y={term}\n}}");
        let module = text::parse_module(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
        let function = &module.functions[0];
        let types = function.types().unwrap();
        let (_, output) = &function.outputs[0];
        assert_eq!(rows::row_wise(function, &types)[usize::from(*output)], alike, "{term}");
    }
}
