//! Programs against the interpreter: elementwise operators and reductions over broadcast operands of any layout.

use lapidary_codegen::kernel::Body;
use lapidary_codegen::view::{Base, View};
use lapidary_ir::DType::{self, Bool, F32, I32};
use lapidary_ir::Dim::{self, Fixed, Rows};
use lapidary_ir::interp::{Precision, Tensor, evaluate};
use lapidary_ir::{Builder, Extent, InputKind, Op, Program};

use super::harness::*;

/// Programs, and their operands' element types.
const PROGRAMS: &[(&str, &[DType])] = &[
    ("fn[add[mul[$0,$1],$2]]", &[F32, F32, F32]),
    ("fn[mul[$0,recip[add[1.0,exp[neg[$0]]]]]]", &[F32]),
    ("fn[select[lt[$0,$1],exp[$0],mul[$1,2.0]]]", &[F32, F32]),
    ("fn[select[or[$2,eq[$0,$1]],add[$0,3],minimum[$1,$0]]]", &[I32, I32, Bool]),
    ("fn[add[pow[$0,3.0],softcap[2.0,gated_gelu[$0,mul[$0,$1]]]]]", &[F32, F32]),
    ("fn[mul[cast[$0,f32],$1]]", &[I32, F32]),
    ("fn[maximum[abs[sub[$0,$1]],0.5]]", &[F32, F32]),
];

/// Programs of rows, of one operand (.., K).
const ROWS: &[&str] = &[
    "fn[sub[$0,mean[$0,A]]]",
    "fn[div[exp[sub[$0,max[$0,A]]],sum[exp[sub[$0,max[$0,A]]],A]]]",
    "fn[mul[sub[$0,mean[$0,A]],rsqrt[add[mean[mul[sub[$0,mean[$0,A]],sub[$0,mean[$0,A]]],A],1e-5]]]]",
    "fn[sum[mul[$0,tanh[$0]],A]]",
    "fn[add[min[$0,A],prod[mul[0.25,$0],A]]]",
    "fn[mul[2.0,max[neg[$0],A]]]",
];

fn run(random: &mut Random, text: &str, dtypes: &[DType], whole: bool) {
    let (rows, n) = (1 + random.below(9), 1 + random.below(20));
    let mut m = Memory::new(random, rows, rows + 3);
    let dims = match random.below(5) {
        0 => vec![Fixed(n)],
        1 => vec![Fixed(1 + random.below(4)), Rows, Fixed(n)],
        2 if whole => vec![Rows, Dim::Keys],
        _ => vec![Rows, Fixed(n)],
    };
    let program: Program = text.replace('A', &(dims.len() - 1).to_string()).parse().unwrap();
    let mut builder = Builder::new("map");
    let (mut views, mut operands) = (vec![], vec![builder.add(Op::Program(program.clone()))]);
    for (at, &dtype) in dtypes.iter().enumerate() {
        let from = if at > 0 && random.below(3) == 0 { random.below(dims.len()) } else { 0 };
        let some = dims[from..].iter();
        let own: Vec<Dim> =
            some.map(|&d| if at > 0 && random.below(4) == 0 { Fixed(1) } else { d }).collect();
        let stored = if dtype == F32 { random.one_of(&FLOATS) } else { dtype };
        views.push(m.input(random, stored, &own, Layout::Any, |r| match dtype {
            I32 => r.below(7) as f32 - 3.0,
            Bool => -(r.below(2) as f32),
            _ => r.float(),
        }));
        operands.push(builder.input(&format!("x{at}"), InputKind::Rows, dtype, &own));
    }
    let root = builder.add(Op::Map(operands.into()));
    builder.output("y", root);
    let function = builder.finish();
    let types = function.types().unwrap_or_else(|e| panic!("{e}\n{function}"));
    let lapidary_ir::Type::Tensor(made) = types.last().unwrap().clone() else { panic!("a tensor") };
    let y = m.output(random, made.dtype, &made.shape, Layout::Any);
    let cpu = random.one_of(&CPUS);
    let got = m.run_rows(random, cpu, Body::Map(program), &views.iter().collect::<Vec<_>>(), &y);
    let extent = Extent { rows, keys: rows + 3 };
    let tensor = |view: &View| {
        assert!(!matches!(view.base, Base::Number(_)));
        let shape: Vec<usize> = view.axes.iter().map(|a| a.dim.at(extent)).collect();
        let wide = if view.dtype.is_float() { F32 } else { view.dtype };
        let data = m.read(view).into_iter();
        let data = data.map(|x| if wide == Bool { f64::from(u8::from(x != 0.0)) } else { x });
        Tensor { dtype: wide, shape, data: data.collect() }
    };
    let inputs: Vec<Tensor> = views.iter().map(tensor).collect();
    let want = evaluate(&function, &inputs, extent, Precision::F64).unwrap().remove(0).data;
    assert_close(&format!("{text} of {dims:?}"), made.dtype, &got, &want, |i| {
        if made.dtype == I32 { 0.0 } else { 2e-5 * (want[i].abs() + 0.1) }
    });
}

#[test]
fn elements() {
    let mut random = Random(81);
    for i in 0..12 * PROGRAMS.len() {
        let (text, dtypes) = PROGRAMS[i % PROGRAMS.len()];
        run(&mut random, text, dtypes, true);
    }
}

#[test]
fn rows() {
    let mut random = Random(82);
    for i in 0..12 * ROWS.len() {
        run(&mut random, ROWS[i % ROWS.len()], &[F32], true);
    }
}
