//! Each fusion that has a name: it happens, and changes nothing, at random shapes and constants.

use std::collections::BTreeSet;

use lapidary_ir::interp::{Precision, evaluate};
use lapidary_ir::{DType, text};
use lapidary_passes::Selection;
use lapidary_passes::check::values;
use proptest::prelude::*;

use crate::compiled::Compiled;
use crate::{EXTENTS, compare, config};

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
        format!("function f(%x: f32[T,{k}] rows{declared}) {{\n g = {}\n \
            return y=(mul {gate} {})\n}}", terms[0], terms[1])
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
        format!("function f(%t: {dtype}[9,{k}] weight, %ids: i32[T] rows) {{ \
            return y=(mul (cast (gather %t %ids) f32) 2.5) }}")
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
