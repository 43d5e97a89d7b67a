//! What the cost model says of each kernel that a benchmark launches.
//!
//! In: a compiled model, the options it was compiled with, the read bandwidth and the threads of the run. Out:
//! nanoseconds of a launch at an extent. A kernel's price is that of the e-node that it computes, by the model that
//! extraction chose it with; a node that takes several launches has a price of each. Memory is as fast as this run
//! measured it, for other guests of a host take bandwidth; everything else is the calibration or the built-in
//! constants.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use egg::Language;
use lapidary_codegen::compile::{Lowered, regime_of};
use lapidary_codegen::kernel::{Body, Kernel};
use lapidary_ir::{Extent, Id, Op};
use lapidary_passes::price::Parts;
use lapidary_passes::{CostModel, Limits, Machine, Objective, Saturated, prepare, select};

use super::calibration;
use crate::bench::kernels::Place;
use crate::model::Engine;
use crate::options::CompileArgs;

/// Prices of a model's kernels.
pub(crate) struct Predictor {
    machine: Machine,
    functions: Vec<Function>,
    known: RefCell<HashMap<(Place, usize, usize), Option<f64>>>,
}

struct Function {
    saturated: Saturated,
    variants: Vec<Variant>,
}

struct Variant {
    /// The extracted function's nodes, operands as e-classes, and the class of each.
    nodes: Vec<(Op, Id)>,
    /// Of each kernel, its node and which of its launches it is.
    kernels: Vec<(Id, Role)>,
    /// The rows whose kernels these are.
    regime: usize,
}

/// Which launch of its node a kernel is.
#[derive(Clone, Copy)]
enum Role {
    Before,
    Itself,
    After,
    /// One that moves an operand or a result, which is in no price.
    Unpriced,
    /// What a view cannot say: extraction prices the copy of repeated keys and values.
    Moved,
}

impl Predictor {
    /// For a run on `threads` threads that reads `memory` GB/s.
    pub(crate) fn new(args: &CompileArgs, engine: &Engine, memory: f64, threads: usize) -> Result<Predictor> {
        let compilation = engine.model.compilation()?.context("an artifact holds no graph")?;
        let options = &compilation.options;
        let base = match calibration::of_this_machine(&args.cpu, threads) {
            Some(own) if args.calibration.is_none() => own.machine(args.activations),
            _ => options.machine.on(threads as f64),
        };
        let weight_bytes = options.machine.weight_bytes;
        let keys = base.keys.min(memory);
        let objective = Objective::Roofline;
        let shapes = options.machine.shapes;
        let machine = Machine { shapes, memory, keys, weight_bytes, objective, measured: None, ..base };
        let mut functions = vec![];
        for report in &compilation.functions {
            let saturated = prepare(&report.source, &options.selection, Limits::default())?;
            let mut variants = vec![];
            for lowered in &report.variants {
                let regime = regime_of(lowered.rows, options.chunk);
                let rows = options.chunk.min(regime);
                let extent = Extent { rows, keys: (options.context / 2).max(rows) };
                let form = select(&saturated, options.machine, extent)?;
                ensure!(
                    form.function.body == lowered.function.body,
                    "{}: extraction gave another form the second time",
                    report.source.name
                );
                let class = |id: Id| saturated.graph.find(form.classes[usize::from(id)]);
                let body = form.function.body.as_ref().iter().enumerate();
                let nodes =
                    body.map(|(at, op)| (op.clone().map_children(class), class(Id::from(at)))).collect();
                let kernels = &lowered.schedule.kernels;
                let kernels = kernels.iter().map(|k| (k.node, role(k, lowered))).collect();
                variants.push(Variant { nodes, kernels, regime });
            }
            functions.push(Function { saturated, variants });
        }
        Ok(Predictor { machine, functions, known: RefCell::default() })
    }

    /// Nanoseconds of a launch; none of what is not priced.
    pub(crate) fn nanoseconds(&self, place: Place, rows: usize, keys: usize) -> Option<f64> {
        let key = (place, rows, keys);
        let known = self.known.borrow().get(&key).copied();
        known.unwrap_or_else(|| {
            let ns = self.price(place, Extent { rows, keys: keys.max(rows) });
            self.known.borrow_mut().insert(key, ns);
            ns
        })
    }

    fn price(&self, (function, variant, step): Place, extent: Extent) -> Option<f64> {
        let function = &self.functions[function];
        let variant = &function.variants[variant];
        let (id, role) = variant.kernels[step];
        let model = CostModel { machine: self.machine.of_regime(variant.regime), extent };
        let parts = |at: usize| -> Option<Parts> {
            let (op, class) = &variant.nodes[at];
            Some(model.parts(model.work(&function.saturated.graph, *class, op)?))
        };
        let mut price = parts(usize::from(id))?;
        // A norm that is read as the operand is normed where it is read.
        if let (Op::Linear([x, ..]), _) = &variant.nodes[usize::from(id)] {
            let norm = variant.nodes.iter().position(|(op, class)| {
                class == &function.saturated.graph.find(*x) && matches!(op, Op::NormPrologue(_))
            });
            let norm = norm.and_then(parts).map_or(0.0, Parts::sum);
            if price.before > 0.0 { price.before += norm } else { price.itself += norm }
        }
        match role {
            Role::Before => Some(price.before),
            Role::Itself => Some(price.itself),
            Role::After => Some(price.after),
            Role::Moved => Some(price.itself).filter(|&ns| ns > 0.0),
            Role::Unpriced => None,
        }
    }
}

/// Which of its node's launches a kernel is.
fn role(kernel: &Kernel, lowered: &Lowered) -> Role {
    let op = &lowered.function.body[kernel.node];
    match (op, &kernel.body) {
        (Op::Linear(_), Body::Linear(_)) | (Op::Attention(_), Body::Attention { .. }) => Role::Itself,
        (Op::Linear(_), _) | (_, Body::PackColumns(_)) => Role::Before,
        (Op::Attention(_), Body::MergeAttention { .. }) => Role::After,
        (Op::Reshape(_), _) => Role::Moved,
        (Op::Attention(_) | Op::Transpose(_) | Op::Input(_), _) => Role::Unpriced,
        (Op::Cast(_) | Op::Concat(_), _) => Role::Itself,
        (_, Body::Elementwise(lapidary_codegen::kernel::Elementwise::Copy)) => Role::Unpriced,
        _ => Role::Itself,
    }
}
