#![allow(clippy::unwrap_used)]

use super::*;
use crate::text::parse_module;
use crate::types::DType;

const EXTENT: Extent = Extent { rows: 2, keys: 3 };

fn parse(source: &str) -> Function {
    parse_module(source).unwrap().functions.remove(0)
}

fn run(source: &str, inputs: &[Tensor]) -> Vec<Tensor> {
    let function = parse(source);
    crate::verify::verify(&function).unwrap();
    evaluate(&function, inputs, EXTENT, Precision::F32).unwrap()
}

/// The value of a term without inputs.
fn value(term: &str) -> Tensor {
    run(&format!("function f() {{ return y={term} }}"), &[]).remove(0)
}

fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed;
    let data = (0..shape.iter().product()).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 4e6 - 2.0
    });
    Tensor::from_f32(shape, &data.collect::<Vec<_>>())
}

fn near(a: &[Tensor], b: &[Tensor], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape));
        for (x, y) in a.data.iter().zip(&b.data) {
            assert!((x - y).abs() <= tolerance, "{:?} against {:?}", a.data, b.data);
        }
    }
}

#[test]
fn elementwise_operators_broadcast_and_round() {
    assert_eq!(value("(div 1.0 3.0)").data, [f64::from(1.0f32 / 3.0)]);
    assert_eq!(value("(add (iota [3] f32) (reshape (iota [2] f32) [2,1]))").data, [0., 1., 2., 1., 2., 3.]);
    assert_eq!(value("(cast 1.00390625 bf16)").data, [1.0], "halves to even");
    assert_eq!(value("(cast 1.01171875 bf16)").data, [1.015625], "halves to even");
    assert_eq!(value("(cast 65520.0 f16)").data, [f64::INFINITY]);
    let y = value("(select (lt (iota [3] i32) 1) (iota [3] f32) (neg (iota [3] f32)))");
    assert_eq!(y.data, [0.0, -1.0, -2.0]);
}

#[test]
fn reductions_keep_their_axis() {
    let x = "(reshape (iota [6] f32) [2,3])";
    let y = value(&format!("(sum {x} 0)"));
    assert_eq!((y.shape, y.data), (vec![1, 3], vec![3., 5., 7.]));
    assert_eq!(value(&format!("(mean {x} 1)")).data, [1., 4.]);
    assert_eq!(value(&format!("(max {x} 1)")).data, [2., 5.]);
    let of = |data: [f32; 4]| {
        run("function f(%x: f32[4] weight) { return y=(argmax %x 0) }", &[Tensor::from_f32(&[4], &data)])
            .remove(0)
    };
    assert_eq!(of([1.0, f32::NAN, 3.0, 3.0]).data, [2.0]);
    assert_eq!(of([f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN]).data, [1.0]);
    assert_eq!(of([f32::NAN, f32::NEG_INFINITY, 0.0, 1.0]).dtype, DType::I32);
}

#[test]
fn contraction_and_movement() {
    let x = "(reshape (iota [6] f32) [2,3])";
    assert_eq!(value(&format!("(matmul {x} (transpose {x} [1,0]))")).data, [5., 14., 14., 50.]);
    assert_eq!(value(&format!("(slice {x} 1 -2 2)")).data, [1., 2., 4., 5.]);
    assert_eq!(value(&format!("(concat {x} {x} 1)")).shape, [2, 6]);
    assert_eq!(value(&format!("(broadcast (slice {x} 1 0 1) [2,2])")).data, [0., 0., 3., 3.]);
    let table = "function f(%i: i32[T] rows) { return y=(gather (reshape (iota [6] f32) [3,2]) %i) }";
    assert_eq!(run(table, &[Tensor::from_i32(&[2], &[2, 0])])[0].data, [4., 5., 0., 1.]);
    for id in [3, -1] {
        let e =
            evaluate(&parse(table), &[Tensor::from_i32(&[2], &[0, id])], EXTENT, Precision::F32).unwrap_err();
        assert!(matches!(e, Error::Evaluate { .. }), "{e}");
    }
}

#[test]
fn append_replaces_the_last_rows_and_rounds() {
    let source = "function f(%c: bf16[1,S,1] cache, %x: f32[1,T,1] rows) { return c=(append %c %x) }";
    let cache = Tensor::new(DType::BF16, &[1, 3, 1], vec![7., 8., 9.]);
    let y = run(source, &[cache, Tensor::from_f32(&[1, 2, 1], &[1.003_906_2, 2.0])]).remove(0);
    assert_eq!((y.dtype, y.data), (DType::BF16, vec![7., 1., 2.]));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let of = |source: &str, inputs: &[Tensor], extent: Extent| {
        evaluate(&parse(source), inputs, extent, Precision::F32).unwrap_err().to_string()
    };
    let one = "function f(%x: f32[T] rows) { return y=(slice %x 0 -1 1) }";
    assert!(of(one, &[], EXTENT).contains("expected 1 inputs"));
    assert!(of(one, &[Tensor::from_f32(&[3], &[0.0; 3])], EXTENT).contains("input `x`"));
    assert!(of(one, &[Tensor::from_f32(&[0], &[])], Extent { rows: 0, keys: 0 }).contains("no last row"));
    let empty = "function f() { return y=(reshape (iota [0] f32) [0,1]) }";
    assert!(of(empty, &[], EXTENT).contains("length 0"));
    let huge = "function f() { return y=(broadcast (iota [1] f32) [99999999999999]) }";
    assert!(of(huge, &[], EXTENT).contains("too many"));
    assert_eq!(constant(&parse(huge), Id::from(4)), None);
}

#[test]
fn fused_norms_and_activations_are_their_primitives() {
    let rms = "(mul (mul %x (rsqrt (add (mean (mul %x %x) 1) 1e-6))) (add 1.0 %w))";
    let gelu =
        "(mul (mul 0.5 %x) (add 1.0 (tanh (mul 0.7978845608 (add %x (mul 0.044715 (mul %x (mul %x %x))))))))";
    let source = |terms: [&str; 5]| {
        let outputs: Vec<String> = terms.iter().enumerate().map(|(i, t)| format!("y{i}={t}")).collect();
        format!("function f(%x: f32[T,4] rows, %w: f32[4] weight) {{ return {} }}", outputs.join(", "))
    };
    let residual = format!("(add %x {rms})");
    let gated = format!("(mul {gelu} (neg %x))");
    let inputs = [numbers(&[2, 4], 1), numbers(&[4], 2)];
    let primitive = source([rms, &residual, gelu, &gated, "(mul 2.0 (tanh (div %x 2.0)))"]);
    let fused = source([
        "(rms_norm %x %w 1e-6)",
        "(add_rms_norm %x %x %w 1e-6)",
        "(gelu_tanh %x)",
        "(gated_gelu %x (neg %x))",
        "(softcap 2.0 %x)",
    ]);
    near(&run(&fused, &inputs), &run(&primitive, &inputs), 1e-6);
}

#[test]
fn linears_are_products_with_the_transpose() {
    let declared =
        "function f(%x: f32[T,4] rows, %n: f32[4] weight, %a: bf16[3,4] weight, %b: f32[3,4] weight)";
    let fused = format!(
        "{declared} {{
            p = (norm_prologue %x %n 1e-6)
            two = (linear p (weights %a %b) store)
            return one=(linear %x (weights %a) store), cap=(linear %x (weights %b) (cap 2.0)),
                gate=(linear p (weights %a %b) gate), first=(output 0 two), second=(output 1 two)
        }}"
    );
    let primitive = format!(
        "{declared} {{
            at = (transpose (cast %a f32) [1,0])
            bt = (transpose %b [1,0])
            n = (rms_norm %x %n 1e-6)
            return one=(matmul %x at), cap=(softcap 2.0 (matmul %x bt)),
                gate=(gated_gelu (matmul n at) (matmul n bt)), first=(matmul n at), second=(matmul n bt)
        }}"
    );
    let mut a = numbers(&[3, 4], 3);
    a = Tensor::from_bytes(DType::BF16, &[3, 4], &Tensor { dtype: DType::BF16, ..a }.to_bytes());
    let inputs = [numbers(&[2, 4], 1), numbers(&[4], 2), a, numbers(&[3, 4], 4)];
    near(&run(&fused, &inputs), &run(&primitive, &inputs), 1e-6);
}

#[test]
fn rope_rotates_halves() {
    let source =
        "function f(%x: f32[1,T,4] rows, %p: i32[T] rows, %f: f32[2] weight) { return y=(rope %x %p %f) }";
    let x = Tensor::from_f32(&[1, 2, 4], &[1., 2., 3., 4., 1., 2., 3., 4.]);
    let inputs = [x, Tensor::from_i32(&[2], &[0, 3]), Tensor::from_f32(&[2], &[1.0, 0.5])];
    let y = run(source, &inputs).remove(0).data;
    assert_eq!(y[..4], [1., 2., 3., 4.]);
    let (s, c) = 3f64.sin_cos();
    assert!((y[4] - (c - 3.0 * s)).abs() < 1e-6 && (y[6] - (3.0 * c + s)).abs() < 1e-6, "{y:?}");
}

#[test]
fn attention_reads_its_window_of_its_group() {
    // Values name their group and key, equal scores: the result is the mean of the visible keys' names.
    let source = |window: &str| {
        format!(
            "function f(%q: f32[4,T,1] rows, %c: f32[2,S,1] cache, %p: i32[T] rows, %k: f32[2,T,1] rows) {{
                c = (append %c %k)
                return c=c, y=(attention %q c c %p 0.0 none {window} online),
                    z=(softmax (scores %q c 0.0 5.0) %p {window} bounded),
                    m=(softmax (window_mask (scores %q c 0.0 none) %p {window}) none none online)
            }}"
        )
    };
    let inputs = |positions: &[i32]| {
        [
            numbers(&[4, 2, 1], 1),
            Tensor::from_f32(&[2, 3, 1], &[0., 0., 0., 10., 0., 0.]),
            Tensor::from_i32(&[2], positions),
            Tensor::from_f32(&[2, 2, 1], &[1., 2., 11., 12.]),
        ]
    };
    let all = run(&source("none"), &inputs(&[1, 2]));
    assert_eq!(all[1].data, [0.5, 1., 0.5, 1., 10.5, 11., 10.5, 11.]);
    let windowed = run(&source("2"), &inputs(&[1, 2]));
    assert_eq!(windowed[1].data, [0.5, 1.5, 0.5, 1.5, 10.5, 11.5, 10.5, 11.5]);
    assert_eq!(windowed[2].data[..6], [0.5, 0.5, 0., 0., 0.5, 0.5]);
    assert_eq!(windowed[2], windowed[3]);
    let hidden = run(&source("2"), &inputs(&[-1, 9]));
    assert_eq!(hidden[1].data, [0.; 8]);
    assert_eq!(hidden[2].data, [0.; 24]);
    assert_eq!(hidden[3].data, [0.; 24]);
}

#[test]
fn constants_depend_on_no_input_and_no_named_dim() {
    let f = parse(
        "function f(%x: f32[T] rows) {
            a = (exp (mul 2.0 (cast (iota [3] i32) f32)))
            b = (add %x 1.0)
            c = (cast (iota [T] i32) f32)
            return a=a, b=b, c=c
        }",
    );
    let of = |name: &str| constant(&f, f.outputs.iter().find(|o| o.0 == name).unwrap().1);
    let a = of("a").unwrap();
    assert_eq!(a.to_f32(), [1.0, 2f64.exp() as f32, 4f64.exp() as f32]);
    assert_eq!((of("b"), of("c"), constant(&f, Id::from(999))), (None, None, None));
}

#[test]
fn doubles_are_not_rounded() {
    let f = parse("function f() { return y=(div 1.0 3.0), z=(cast (div 1.0 3.0) bf16) }");
    let y = evaluate(&f, &[], EXTENT, Precision::F64).unwrap();
    assert_eq!(y[0].data, [1.0 / 3.0]);
    assert_eq!(y[1].data, [half::bf16::from_f64(1.0 / 3.0).to_f64()]);
}

#[test]
fn bytes_there_and_back() {
    for dtype in DType::ALL.into_iter().filter(|d| !d.is_quantised()) {
        let x = Tensor::new(dtype, &[2, 2], vec![0.0, 1.0, 1.0, 0.0]);
        assert_eq!(Tensor::from_bytes(dtype, &[2, 2], &x.to_bytes()), x);
    }
}
