//! Tests of loops: nothing is computed in an innermost loop that does not change in it.
//!
//! Cranelift's optimiser moves such work out, where it walks a loop's body before what follows the loop. Kernels are
//! compiled for CPUs whose loops are all its own; of what it leaves in a loop each pure instruction must depend on that
//! loop. What it makes anew in each block by its own choice (numbers, integer sums with one) does not count; nor do
//! loops around loops, which what takes a number is not moved further than.

use std::collections::{HashMap, HashSet};

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Inst, Opcode, Value, ValueDef};
use lapidary_ir::{Extent, InputKind, text};
use lapidary_passes::{Limits, Machine, Selection};

use crate::image::ImageBuilder;
use crate::schedule::{self, Setting};
use crate::target::{Placement, Target};
use crate::view::Capacity;
use crate::{lower, memory};

/// CPUs without raw code, one of each architecture.
const CPUS: [&str; 3] = ["x86-64-v2", "aarch64", "rv64gcv"];

/// One of each kind of kernel.
const FUNCTIONS: &str = "
function attention(%q: f32[8,T,64] rows, %kn: f32[4,T,64] rows, %vn: f32[4,T,64] rows, %pos: i32[T] rows,
    %k: bf16[4,S,64] cache window=128, %v: bf16[4,S,64] cache window=128) {
    k = (append %k %kn)
    v = (append %v %vn)
    y = (attention %q (cast k f32) (cast v f32) %pos 0.125 50.0 128 bounded)
    return k=k, v=v, y=y
}
function online(%q: f32[8,T,64] rows, %kn: f32[4,T,64] rows, %pos: i32[T] rows, %k: f32[4,S,64] cache) {
    k = (append %k %kn)
    return k=k, y=(attention %q k k %pos 0.125 none none online), s=(softmax (scores %q k 0.125 50.0) %pos none online)
}
function linear(%x: f32[T,96] rows, %w: f32[40,96] weight, %a: bf16[40,96] weight, %b: bf16[40,96] weight,
    %c: q8[40,96] weight, %d: q4[40,96] weight, %n: f32[96] weight) {
    return y=(linear %x (weights %w) store), \
        z=(linear (norm_prologue %x %n 1e-6) (weights (cast %a f32) (cast %b f32)) gate),
        u=(linear %x (weights (cast %c f32)) store), v=(linear %x (weights (cast %d f32)) (cap 30.0))
}
function elements(%ids: i32[T] rows, %pos: i32[T] rows, \
    %table: bf16[50,64] weight, %w: f32[64] weight, %f: f32[8] weight) {
    x = (embedding %table %ids 8.0)
    n = (add_rms_norm x (rms_norm x %w 1e-6) %w 1e-6)
    h = (rope (transpose (reshape n [T,4,16]) [1,0,2]) %pos %f)
    m = (matmul n (transpose (cast (slice %table 0 0 20) f32) [1,0]))
    return h=h, m=(div (softcap 30.0 m) (sum m 1)), a=(argmax n 1), p=(softmax n none none online)
}";

/// The optimised functions of all kernels that have no raw code, for calls of few rows and of many.
fn kernels(cpu: &str, mut each: impl FnMut(String, &mut Context)) {
    let target = Target::new(cpu, Placement::Object).expect("it is in the table");
    let features = target.features;
    for function in text::parse_module(FUNCTIONS).expect("it parses").functions {
        let rings: HashMap<String, usize> = (function.inputs.iter())
            .filter(|input| matches!(input.kind, InputKind::Cache { window: Some(_) }))
            .map(|input| (input.name.clone(), 384))
            .collect();
        let saturated = lapidary_passes::prepare(&function, &Selection::none(), Limits::default());
        let saturated = saturated.expect("it is well-typed");
        for rows in [1, 256] {
            let form = lapidary_passes::select(&saturated, Machine::GENERIC, Extent { rows, keys: 512 });
            let setting = Setting {
                capacity: Capacity { rows, keys: 1024 },
                regime: rows,
                rings: rings.clone(),
                features,
                rounded: false,
                machine: Machine::GENERIC,
            };
            let form = form.expect("it has a form").function;
            let schedule = schedule::schedule(&form, &setting).expect("it has kernels");
            let offsets = memory::plan(&schedule.buffers).offsets;
            for kernel in &schedule.kernels {
                if lower::raw_code(kernel, &features).is_empty() {
                    let mut image = ImageBuilder::new(target.clone());
                    image.define(kernel, &offsets).expect("it compiles");
                    let mut context = Context::for_function(image.last().clone());
                    let optimised = context.optimize(&*target.isa, &mut ControlPlane::default());
                    optimised.expect("it is valid");
                    each(format!("{cpu}, {rows} rows, {}.{}", function.name, kernel.name), &mut context);
                }
            }
        }
    }
}

/// What is computed in innermost loops and does not depend on them.
fn idle(context: &mut Context) -> Vec<String> {
    context.flowgraph();
    context.compute_loop_analysis();
    let (function, loops) = (&context.func, &context.loop_analysis);
    let dfg = &function.dfg;
    // Values of a loop's that are the same in each of its rounds.
    let mut same: HashSet<Value> = HashSet::new();
    let mut found = vec![];
    for block in function.layout.blocks() {
        let Some(lp) = loops.innermost_loop(block) else { continue };
        if loops.loops().any(|other| loops.loop_parent(other) == Some(lp)) {
            continue;
        }
        let outside =
            |inst: Inst| function.layout.inst_block(inst).is_none_or(|block| !loops.is_in_loop(block, lp));
        for inst in function.layout.block_insts(block) {
            let op = dfg.insts[inst].opcode();
            let moves = op.can_load() || op.can_store() || op.can_trap() || op.other_side_effects();
            let read_only = dfg.insts[inst]
                .memflags_data(dfg)
                .is_some_and(|flags| flags.readonly() && flags.notrap() && flags.can_move());
            let pure = !op.is_terminator() && !op.is_call() && (!moves || op == Opcode::Load && read_only);
            let &[result] = dfg.inst_results(inst) else { continue };
            let fixed = |&arg: &Value| match dfg.value_def(dfg.resolve_aliases(arg)) {
                ValueDef::Result(by, _) => outside(by) || same.contains(&dfg.resolve_aliases(arg)),
                ValueDef::Param(of, _) => !loops.is_in_loop(of, lp),
                ValueDef::Union(..) => false,
            };
            if pure && dfg.inst_args(inst).iter().all(fixed) {
                same.insert(result);
                if !is_made_anew(context, inst) {
                    found.push(dfg.display_inst(inst).to_string());
                }
            }
        }
    }
    found
}

/// Whether Cranelift repeats it in each block that uses it.
fn is_made_anew(context: &Context, inst: Inst) -> bool {
    let dfg = &context.func.dfg;
    let number = |&arg: &Value| match dfg.value_def(dfg.resolve_aliases(arg)) {
        ValueDef::Result(by, _) => dfg.insts[by].opcode() == Opcode::Iconst,
        ValueDef::Param(..) | ValueDef::Union(..) => false,
    };
    let opcode = dfg.insts[inst].opcode();
    let with_number =
        matches!(opcode, Opcode::Iadd | Opcode::Isub | Opcode::Band | Opcode::Bor | Opcode::Bxor);
    matches!(opcode, Opcode::Iconst | Opcode::F32const | Opcode::F64const | Opcode::Bnot)
        || with_number && dfg.inst_args(inst).iter().any(number)
}

#[test]
fn loops_compute_nothing_that_stays_the_same() {
    for cpu in CPUS {
        let (mut seen, mut found) = (0, vec![]);
        kernels(cpu, |name, context| {
            seen += 1;
            found.extend(idle(context).into_iter().map(|inst| format!("{name}: {inst}")));
        });
        assert!(found.is_empty(), "{} instructions: {found:#?}", found.len());
        assert!(seen > 30, "{cpu}: {seen} kernels");
    }
}
