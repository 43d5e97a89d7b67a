//! The elementary functions as machine code against f64: the bounds that `lapidary_codegen::math` states, and edges.
//!
//! Each function runs over every 1009th f32 of its domain, on this CPU and on one without fma.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, InstBuilder, Value};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use lapidary_codegen::emit::Emitter;
use lapidary_codegen::math;
use lapidary_codegen::target::{Placement, Target};
use lapidary_ir::DType;
use lapidary_runtime::program::KernelFn;

const CPUS: [&str; 2] = ["native", "x86-64-v2"];

/// Emits a function of one or two operands.
type Function = fn(&mut Emitter<'_>, Value, Value) -> Value;

/// The function's values for operands (a, b), four at a time.
fn values(cpu: &str, function: Function, operands: &[(f32, f32)]) -> Vec<f32> {
    let target = Target::new(cpu, Placement::Jit).unwrap();
    let mut module = JITModule::new(JITBuilder::with_isa(target.isa.clone(), default_libcall_names()));
    let mut context = module.make_context();
    let mut signature = module.make_signature();
    signature.params = vec![AbiParam::new(I64); 4];
    context.func.signature = signature;
    let id = module.declare_function("f", Linkage::Local, &context.func.signature).unwrap();
    let mut builder = FunctionBuilderContext::new();
    let raw = HashMap::new();
    let mut e =
        Emitter::new(FunctionBuilder::new(&mut context.func, &mut builder), target.features, &[], &raw, None);
    // A tile is four values; the frame is (a.., b.., result..) of four each.
    let (frame, begin, end) = {
        let entry = e.b.current_block().unwrap();
        let params = e.b.block_params(entry);
        (params[0], params[1], params[2])
    };
    e.for_range(begin, end, 1, &[], |e, tile, _| {
        let bytes = e.scale(tile, 48);
        let at = e.b.ins().iadd(frame, bytes);
        let (a, b) = (e.load(DType::F32, at, 0, 4), e.load(DType::F32, at, 16, 4));
        let y = function(e, a, b);
        e.store(DType::F32, y, at, 32, 4);
        vec![]
    });
    e.finish(module.target_config());
    module.define_function(id, &mut context).unwrap();
    module.finalize_definitions().unwrap();

    let tiles = operands.len().div_ceil(4);
    let mut memory = vec![[0f32; 12]; tiles];
    for (i, &(a, b)) in operands.iter().enumerate() {
        memory[i / 4][i % 4] = a;
        memory[i / 4][4 + i % 4] = b;
    }
    // SAFETY: the function was built with this signature, and its frame is as long as it reads and writes.
    unsafe {
        let f = std::mem::transmute::<*const u8, KernelFn>(module.get_finalized_function(id));
        f(memory.as_mut_ptr().cast::<u64>(), 0, tiles as u64, std::ptr::null_mut());
        module.free_memory();
    }
    (0..operands.len()).map(|i| memory[i / 4][8 + i % 4]).collect()
}

/// Every 1009th f32 in low..=high, both ends and the numbers around 0 among them.
fn sample(low: f32, high: f32) -> Vec<(f32, f32)> {
    let edges = [low, high, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, f32::MIN_POSITIVE, 1e-40, -1e-40];
    let all = (0..=u32::MAX).step_by(1009).map(f32::from_bits);
    edges.into_iter().chain(all).filter(|x| (low..=high).contains(x)).map(|x| (x, 0.0)).collect()
}

/// The distance of two neighbours around x in f32.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().max(f64::MIN_POSITIVE).to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 23)
}

/// Checks that the largest of the errors, as `error(operands, got, want)` has them, is within a bound on every CPU.
fn check(
    what: &str,
    bound: f64,
    operands: &[(f32, f32)],
    function: Function,
    exact: impl Fn(f64, f64) -> f64,
    error: impl Fn((f64, f64), f64, f64) -> f64,
) {
    assert!(operands.len() > 1000, "{what}: {} operands", operands.len());
    for cpu in CPUS {
        let got = values(cpu, function, operands);
        let mut worst = (0.0, (0.0, 0.0), 0.0, 0.0);
        for (&(a, b), &y) in operands.iter().zip(&got) {
            let (a, b) = (f64::from(a), f64::from(b));
            let want = exact(a, b);
            let e = error((a, b), y.into(), want);
            if e.is_nan() || e > worst.0 {
                worst = (if e.is_nan() { f64::INFINITY } else { e }, (a, b), y.into(), want);
            }
        }
        let (most, at, y, want) = worst;
        println!("{what} on {cpu}: {most:.3e}");
        assert!(
            most <= bound,
            "{what} on {cpu}: off by {most:.3e}, not {bound}, at {at:?}: {y:e} instead of {want:e}"
        );
    }
}

/// An error in ulp of the result.
fn in_ulp(_: (f64, f64), got: f64, want: f64) -> f64 {
    if got == want { 0.0 } else { (got - want).abs() / ulp(want) }
}

/// Checks values at edges, NaN equal to itself and zeros told apart.
fn check_edges(what: &str, function: Function, edges: &[((f32, f32), f32)]) {
    let operands: Vec<(f32, f32)> = edges.iter().map(|e| e.0).collect();
    for cpu in CPUS {
        for (y, &(x, want)) in values(cpu, function, &operands).into_iter().zip(edges) {
            let same = (y.is_nan() && want.is_nan()) || y.to_bits() == want.to_bits();
            assert!(same, "{what} on {cpu}: {y:e} instead of {want:e} at {x:?}");
        }
    }
}

const INF: f32 = f32::INFINITY;

#[test]
fn exp_below() {
    let f: Function = |e, x, _| math::exp_below(e, x);
    check("exp_below", 2.0, &sample(-87.3, 0.0), f, |x, _| x.exp(), in_ulp);
    let payload = f32::from_bits(0x7fc0_1234);
    check_edges(
        "exp_below",
        f,
        &[
            ((0.0, 0.0), 1.0),
            ((-0.0, 0.0), 1.0),
            ((-INF, 0.0), 0.0),
            ((f32::MIN, 0.0), 0.0),
            ((-87.4, 0.0), 0.0),
            ((f32::NAN, 0.0), f32::NAN),
            ((payload, 0.0), f32::NAN),
        ],
    );
}

#[test]
fn exp() {
    let f: Function = |e, x, _| math::exp(e, x);
    check("exp", 2.0, &sample(-87.3, 88.7), f, |x, _| x.exp(), in_ulp);
    check_edges(
        "exp",
        f,
        &[
            ((0.0, 0.0), 1.0),
            ((-0.0, 0.0), 1.0),
            ((INF, 0.0), INF),
            ((-INF, 0.0), 0.0),
            ((f32::NAN, 0.0), f32::NAN),
            ((88.73, 0.0), INF),
            ((-87.4, 0.0), 0.0),
            ((f32::MAX, 0.0), INF),
            ((f32::MIN, 0.0), 0.0),
            ((1e-45, 0.0), 1.0),
        ],
    );
}

#[test]
fn exp_bounded() {
    let f: Function = |e, x, _| math::exp_bounded(e, x);
    check("exp_bounded", 2.0, &sample(-80.0, 80.0), f, |x, _| x.exp(), in_ulp);
}

#[test]
fn tanh() {
    let f: Function = |e, x, _| math::tanh(e, x);
    check("tanh", 3.0, &sample(f32::MIN, f32::MAX), f, |x, _| x.tanh(), in_ulp);
    check_edges(
        "tanh",
        f,
        &[
            ((0.0, 0.0), 0.0),
            ((INF, 0.0), 1.0),
            ((-INF, 0.0), -1.0),
            ((f32::NAN, 0.0), f32::NAN),
            ((1e-45, 0.0), 1e-45),
            ((-1e-40, 0.0), -1e-40),
            ((1e30, 0.0), 1.0),
        ],
    );
}

#[test]
fn sin_cos() {
    let absolute = |_: (f64, f64), got: f64, want: f64| (got - want).abs();
    let sin: Function = |e, x, _| math::sin_cos(e, x).0;
    let cos: Function = |e, x, _| math::sin_cos(e, x).1;
    check("sin", 1.5e-7, &sample(-1e6, 1e6), sin, |x, _| x.sin(), absolute);
    check("cos", 1.5e-7, &sample(-1e6, 1e6), cos, |x, _| x.cos(), absolute);
    for f in [sin, cos] {
        check_edges(
            "sin, cos",
            f,
            &[((INF, 0.0), f32::NAN), ((-INF, 0.0), f32::NAN), ((f32::NAN, 0.0), f32::NAN)],
        );
    }
    check_edges("sin", sin, &[((0.0, 0.0), 0.0), ((1e-45, 0.0), 1e-45)]);
    check_edges("cos", cos, &[((0.0, 0.0), 1.0), ((-0.0, 0.0), 1.0), ((1e-45, 0.0), 1.0)]);
}

#[test]
fn log() {
    let f: Function = |e, x, _| math::log(e, x);
    check("log", 2.0, &sample(f32::MIN_POSITIVE, f32::MAX), f, |x, _| x.ln(), in_ulp);
    check_edges(
        "log",
        f,
        &[
            ((1.0, 0.0), 0.0),
            ((0.0, 0.0), -INF),
            ((-0.0, 0.0), -INF),
            ((1e-45, 0.0), -INF),
            ((INF, 0.0), INF),
            ((-1.0, 0.0), f32::NAN),
            ((-INF, 0.0), f32::NAN),
            ((f32::NAN, 0.0), f32::NAN),
        ],
    );
}

#[test]
fn pow() {
    let f: Function = |e, a, b| math::pow(e, a, b);
    let powers = [-31.5, -2.0, -0.5, -1e-3, 0.0, 1e-6, 0.25, 0.5, 1.0, 2.5, 7.0, 100.0];
    let bases = sample(f32::MIN_POSITIVE, f32::MAX);
    let operands: Vec<(f32, f32)> = bases
        .iter()
        .enumerate()
        .map(|(i, &(a, _))| (a, powers[i % powers.len()]))
        .filter(|&(a, b)| (-87.3..88.7).contains(&(b * a.ln())))
        .collect();
    // In units of what is stated: 2 + 2 |b log a| ulp.
    let stated = |(a, b): (f64, f64), got: f64, want: f64| {
        in_ulp((a, b), got, want) / (2.0 + 2.0 * (b * a.ln()).abs())
    };
    check("pow", 1.0, &operands, f, f64::powf, stated);
    check_edges(
        "pow",
        f,
        &[
            ((0.0, 2.0), 0.0),
            ((0.0, -1.0), INF),
            ((1.0, 1e30), 1.0),
            ((INF, 2.0), INF),
            ((INF, -2.0), 0.0),
            ((-2.0, 0.5), f32::NAN),
            ((f32::NAN, 2.0), f32::NAN),
        ],
    );
}

#[test]
fn softcap() {
    let f: Function = |e, x, _| math::softcap(e, 30.0, x);
    check(
        "softcap",
        3.0,
        &sample(f32::MIN, f32::MAX),
        f,
        |x, _| 30.0 * (x / 30.0).tanh(),
        |x, got, want| {
            // Of denormals a quotient has lost digits.
            if want.abs() < 1e-36 { (got - want).abs() / 1e-36 } else { in_ulp(x, got, want) }
        },
    );
    check_edges(
        "softcap",
        f,
        &[((INF, 0.0), 30.0), ((-INF, 0.0), -30.0), ((f32::NAN, 0.0), f32::NAN), ((0.0, 0.0), 0.0)],
    );
}

#[test]
fn gelu_tanh() {
    let f: Function = |e, x, _| math::gelu_tanh(e, x);
    let gelu = |x: f64, _| {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    };
    let of_x = |x: (f64, f64), got: f64, want: f64| (got - want).abs() / ulp(x.0);
    check("gelu_tanh", 2.0, &sample(-1e12, 1e12), f, gelu, of_x);
    check_edges(
        "gelu_tanh",
        f,
        &[
            ((0.0, 0.0), 0.0),
            ((-0.0, 0.0), -0.0),
            ((20.0, 0.0), 20.0),
            ((-20.0, 0.0), -0.0),
            ((1e30, 0.0), 1e30),
            ((INF, 0.0), INF),
            ((f32::NAN, 0.0), f32::NAN),
        ],
    );
}
