#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use egg::{FromOp, Id};

use super::*;
use crate::Error;
use crate::function::{Builder, Function, InputKind};
use crate::op::{OPERATORS, Op};
use crate::signature::Operands;
use crate::types::{DType, Dim, Dims, Type};
use crate::verify::verify;
use crate::{InputId, Num};

#[track_caller]
fn fails(source: &str, line: usize, column: usize, reason: &str) {
    match parse_module(source) {
        Err(Error::Parse { line: l, column: c, reason: r }) => {
            assert!((l, c) == (line, column) && r.contains(reason), "{l}:{c}: {r}");
        }
        other => panic!("expected an error, found {other:?}"),
    }
}

/// The error of a body of one line, by its column there.
#[track_caller]
fn fails_in_body(body: &str, column: usize, reason: &str) {
    fails(&format!("function f(%x: f32[T,4] rows) {{\n{body}\nreturn }}"), 2, column, reason);
}

#[test]
fn operators_take_as_many_operands_as_the_table_says() {
    for name in OPERATORS {
        let takes = |n: usize| Op::from_op(name, vec![Id::from(0); n]).ok();
        let Some(op) = (1..=8).find_map(takes) else { panic!("{name} takes 1 to 8 operands") };
        match op.signature().operands {
            Operands::Exactly(all) => {
                assert!((1..=9).all(|n| takes(n).is_some() == (n == all.len())), "{name}: {all:?}");
                assert_eq!(arity(name), Some(all.len()));
            }
            Operands::OneOrMore(_) => assert_eq!(arity(name), None),
        }
    }
    assert_eq!((arity("add"), arity("attention"), arity("weights")), (Some(2), Some(8), None));
}

#[test]
fn prints_as_documented() {
    let source = "\
function layer_local(
    %x: f32[T,4] rows,
    %c: bf16[2,S,4] cache window=128,
    %k: f32[2,T,4] rows,
    %self_attn.q_proj.weight: bf16[8,4] weight,
) {
    v0 = (mul %x %x)                                                ; f32[T,4]
    v1 = (add v0 1e-6)                                              ; f32[T,4]
    v2 = (rsqrt v1)                                                 ; f32[T,4]
    v3 = (linear v2 (weights %self_attn.q_proj.weight) (cap 30.0))  ; f32[T,8]
    v4 = (slice v3 0 -1 1)                                          ; f32[1,8]
    v5 = (append %c %k)                                             ; bf16[2,S,4]
    return y=v4, c=v5
}
";
    let module = parse_module(source).unwrap();
    assert_eq!(module.to_string(), source);
    let f = &module.functions[0];
    verify(f).unwrap();
    assert_eq!(node(f, f.outputs[0].1), "(slice v3 0 -1 1)");
    assert_eq!(statement(f, f.outputs[0].1), "v4 = (slice v3 0 -1 1)");
    let commented = print(f, &|id| (id == f.outputs[1].1).then(|| "two\nlines".into()));
    assert!(commented.contains("v5 = (append %c %k)  "), "{commented}");
    assert!(commented.contains("; two lines\n") && commented.contains("v0 = (mul %x %x)\n"), "{commented}");
    assert_eq!(parse_module(&commented).unwrap().to_string(), source);
    let empty = "function f() {\n    return\n}\n";
    assert_eq!(
        parse_module(&format!("{empty}; rest\n{}", empty.replace(" f", " g"))).unwrap().functions.len(),
        2
    );
    assert_eq!(parse_module(empty).unwrap().to_string(), empty);
}

#[test]
fn equal_nodes_are_shared() {
    let f = parse_module("function f(%x: f32[T] rows) { a = (neg %x) return y=(add (neg %x) a) }").unwrap();
    let f = &f.functions[0];
    assert_eq!(f.body.as_ref().len(), 3);
    assert!(parse_module("").unwrap().functions.is_empty());
}

#[test]
fn errors_say_where_and_what() {
    fails("fonction", 1, 1, "expected `function`, found `fonction`");
    fails("function f", 1, 11, "expected `(`, found the end of the text");
    fails("function f() { return }\nfunction f() { return }", 2, 10, "duplicate function `f`");
    fails("function f(x: f32[T] rows) { return }", 1, 12, "expected an input");
    fails("function f(%x: f33[T] rows) { return }", 1, 16, "expected a type");
    fails("function f(%x: f32[T] row) { return }", 1, 23, "expected `rows`, `weight` or `cache`");
    fails("function f(%x: f32[T] rows %y", 1, 28, "expected `,` or `)`");
    fails("function f(%x: f32[2,S,4] cache window=-1) {", 1, 40, "number of keys");
    fails("function f(%x: f32[T] rows, %x: f32[T] rows) { return }", 1, 29, "duplicate input `%x`");
    fails("function f(%x: f32[T] rows) { return y=%x, y=%x }", 1, 44, "duplicate output `y`");
    fails("function f(%x: f32[T] rows) { return y=%x", 1, 42, "expected `,` or `}`");
    fails("function f() { é = 1 return }", 1, 16, "expected a value's name or `return`, found `é`");
    fails_in_body("a = (negg %x)", 6, "unknown operator `negg`; did you mean `neg`?");
    fails_in_body("a = (é %x)", 6, "expected an operator, found `é`");
    fails_in_body("a = (add %x)", 6, "`add` takes 2 operands, found 1");
    fails_in_body("a = (neg %x %x)", 6, "`neg` takes 1 operand, found 2");
    fails_in_body("a = (weights)", 6, "`weights` takes 1 operand or more, found 0");
    fails_in_body("a = (neg }", 10, "expected an operand or `)`, found `}`");
    fails_in_body("a = neg", 5, "`neg` is an operator");
    fails_in_body("a = (add %x b)", 13, "undefined name `b`");
    fails_in_body("value = 1 b = (neg valu)", 20, "did you mean `value`?");
    fails_in_body("a = (neg %y)", 10, "undefined input `%y`; did you mean `%x`?");
    fails_in_body("a = 1 a = 2", 7, "duplicate value `a`");
    fails_in_body("f32 = 1", 1, "a word of the language");
    fails_in_body("a = (reshape %x [T,)", 17, "expected dims");
    fails_in_body("a = 99999999999999999999", 5, "expected a number");
    fails_in_body("a = +5", 5, "expected a number");
    let deep = |n: usize| format!("function f() {{ a = {}1.0{} return }}", "(neg ".repeat(n), ")".repeat(n));
    parse_module(&deep(MAX_NESTING)).unwrap();
    fails(&deep(MAX_NESTING + 1), 1, 20 + 5 * MAX_NESTING, "nested deeper");
    fails(&deep(1_000_000), 1, 20 + 5 * MAX_NESTING, "nested deeper");
}

#[test]
fn broken_functions_print() {
    let mut f = Function { name: "f".into(), ..Function::default() };
    let mut id = f.body.add(Op::Input(InputId(3)));
    for _ in 0..100 {
        id = f.body.add(Op::Weights(vec![id, id].into()));
    }
    f.outputs.push(("y".into(), Id::from(500)));
    assert!(f.to_string().len() < 10_000);
    assert_eq!(node(&f, Id::from(700)), "<node 700>");
    f.body = vec![Op::Neg(Id::from(1)), Op::Num(Num::new(1.0))].into();
    assert!(f.to_string().contains("v0 = (neg 1.0)"));
}

/// A well-typed function made of choices: each picks an operator and operands among the tensors so far.
fn function(choices: &[(u8, usize, usize, usize)]) -> Function {
    let mut b = Builder::new("random");
    let mut tensors = vec![
        b.input("x", InputKind::Rows, DType::F32, &[Dim::Rows, Dim::Fixed(4)]),
        b.input("w.0", InputKind::Weight, DType::BF16, &[Dim::Fixed(6), Dim::Fixed(4)]),
        b.input("ids", InputKind::Rows, DType::I32, &[Dim::Rows]),
        b.input("v_1", InputKind::Weight, DType::F32, &[Dim::Fixed(4)]),
    ];
    for &(kind, i, j, n) in choices {
        let (x, y) = (tensors[i % tensors.len()], tensors[j % tensors.len()]);
        let Type::Tensor(t) = b.function().types().unwrap()[usize::from(x)].clone() else { continue };
        let rank = t.rank();
        let axis = b.int((n % rank.max(1)) as i64);
        let number = b.num(n as f32 / 7.0 - 3.0);
        let op = match kind % 15 {
            0 => Op::Neg(x),
            1 => Op::Tanh(x),
            2 => Op::Add([x, y]),
            3 => Op::Mul([x, number]),
            4 => Op::Sum([x, axis]),
            5 => Op::Argmax([x, axis]),
            6 => {
                let mut axes: Vec<usize> = (0..rank).collect();
                axes.rotate_left(n % rank.max(1));
                Op::Transpose([x, b.add(Op::Dims(Dims::fixed(&axes)))])
            }
            7 => Op::Matmul([x, y]),
            8 => {
                let mut shape = t.shape.0;
                shape.insert(n % (rank + 1), Dim::Fixed(1));
                Op::Reshape([x, b.dims(&shape)])
            }
            9 => {
                let stretch = |d: Dim| if d == Dim::Fixed(1) { Dim::Fixed(n % 5 + 1) } else { d };
                let shape: Vec<Dim> = t.shape.iter().map(|&d| stretch(d)).collect();
                Op::Broadcast([x, b.dims(&shape)])
            }
            10 => Op::Slice([x, axis, b.int(-1), b.int(1)]),
            11 => Op::Concat([x, y, axis]),
            12 => Op::Cast([x, b.dtype(DType::ALL[n % DType::ALL.len()])]),
            13 => {
                let (weights, cap) = (b.add(Op::Weights(vec![tensors[1]].into())), b.add(Op::Cap(number)));
                Op::Linear([x, weights, cap])
            }
            _ if matches!(t.dtype, DType::F32 | DType::I32) => Op::Select([b.add(Op::Le([x, x])), x, y]),
            _ => continue,
        };
        // Kept only where it is well-typed.
        let mut with = b.function().clone();
        with.body.add(op.clone());
        if with.types().is_ok() {
            tensors.push(b.add(op));
        }
    }
    for (i, &t) in tensors.iter().enumerate().skip(4).step_by(3) {
        b.output(&format!("y{i}"), t);
    }
    b.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn printed_functions_parse_to_themselves(
        choices in prop::collection::vec(any::<(u8, usize, usize, usize)>(), 0..40)
    ) {
        let f = function(&choices);
        let printed = f.to_string();
        let parsed = parse_module(&printed).unwrap();
        prop_assert_eq!(parsed.to_string(), printed);
        let parsed = &parsed.functions[0];
        prop_assert_eq!(&parsed.inputs, &f.inputs);
        verify(parsed).unwrap();
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_module(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn tokens_never_panic(words in prop::collection::vec(prop::sample::select(vec![
        "function", "f", "(", ")", "{", "}", ",", ":", "=", "%x", "f32[T,4]", "rows", "cache", "window", "weight",
        "add", "neg", "v0", "1", "1.0", "[T", "]", "[2,S]", "none", "return", ";", "\n", "é", "weights", "cap",
        "linear", "gate",
    ]), 0..60)) {
        const BODY: &str = "function f(%x: f32[T] rows) { v0 = (neg %x) ";
        const OUTPUT: &str = "function f(%x: f32[T] rows) { return y=(add ";
        for start in ["", BODY, OUTPUT] {
            if let Ok(module) = parse_module(&format!("{start}{}", words.join(" "))) {
                let printed = module.to_string();
                prop_assert_eq!(parse_module(&printed).unwrap().to_string(), printed);
                let _ = crate::verify::verify_module(&module);
            }
        }
    }

    #[test]
    fn broken_text_never_panics(choices in prop::collection::vec(any::<(u8, usize, usize, usize)>(), 0..12),
                                at in any::<prop::sample::Index>(), c in any::<char>()) {
        let mut chars: Vec<char> = function(&choices).to_string().chars().collect();
        let at = at.index(chars.len());
        chars[at] = c;
        if let Ok(module) = parse_module(&chars.into_iter().collect::<String>()) {
            let _ = crate::verify::verify_module(&module);
        }
    }

    #[test]
    fn numbers_print_as_themselves(bits in any::<u32>(), n in any::<i64>()) {
        let mut b = Builder::new("f");
        let (x, i) = (b.num(f32::from_bits(bits)), b.int(n));
        b.output("x", x);
        b.output("i", i);
        let f = b.finish();
        let parsed = parse_module(&f.to_string()).unwrap();
        prop_assert_eq!(parsed.functions[0].body.as_ref(), f.body.as_ref());
    }
}
