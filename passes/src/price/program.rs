//! What a program does: how often each of its operators is computed, and what that takes.
//!
//! Kernels walk a row once for each reduction and once for the result, and compute anew each time what they need; what
//! is the same along a row is computed once a row.

use egg::Id;
use lapidary_ir::{Op, Program, TensorType, Type};

use super::cost::CostModel;
use crate::analysis::Graph;

/// An operator whose operands and result stay in registers, as a share of one that loads and stores them.
const IN_REGISTERS: f64 = 0.25;

/// Evaluations of a program's operators in a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Steps {
    /// Of arithmetic.
    pub(crate) flops: f64,
    /// exp, tanh and the like.
    pub(crate) transcendentals: f64,
    /// Elements that are put together along rows.
    pub(crate) reduced: f64,
}

impl CostModel {
    /// Evaluations of a program over operands of these types; none if it is ill-typed.
    pub(crate) fn steps(&self, program: &Program, operands: &[TensorType]) -> Steps {
        let mut steps = Steps::default();
        let Ok(types) = program.types(operands) else { return steps };
        let nodes = program.nodes();
        let length = |at: usize| {
            let last = types[at].tensor().and_then(|t| t.shape.last());
            last.map_or(1, |d| d.at(self.extent)).max(1) as f64
        };
        let elements = |at: usize| types[at].tensor().map_or(0.0, |t| t.elements(self.extent) as f64);
        let root = nodes.len() - 1;
        let rows = elements(root) / length(root);
        // The terms that loops compute: of the result, and of each reduction.
        let loops = nodes.iter().enumerate().filter(|(_, op)| Program::reduces(op));
        let loops = loops.map(|(_, op)| usize::from(egg::Language::children(op)[0])).chain([root]);
        let mut once: Vec<bool> = vec![false; nodes.len()];
        for top in loops {
            let mut seen = vec![false; nodes.len()];
            let mut open = vec![top];
            while let Some(at) = open.pop() {
                if std::mem::replace(&mut seen[at], true) {
                    continue;
                }
                let op = &nodes[at];
                let held = length(at) == 1.0;
                if held && std::mem::replace(&mut once[at], true) {
                    continue;
                }
                if !Program::reduces(op) {
                    open.extend(egg::Language::children(op).iter().map(|&c| usize::from(c)));
                    steps.count(op, rows * length(at));
                } else {
                    steps.reduced += rows * length(usize::from(egg::Language::children(op)[0]));
                }
            }
        }
        steps
    }

    /// What the program of a linear's epilogue does, over the sums of so many weights.
    pub(crate) fn epilogue(&self, graph: &Graph, linear: Id, weights: usize, operands: &[Id]) -> Steps {
        let Some(sum) = graph[linear].data.ty.tensor() else { return Steps::default() };
        self.map_steps(graph, operands, vec![sum.clone(); weights])
    }

    /// What a program does, by the operands of its node, over tensors that come before these.
    pub(crate) fn map_steps(&self, graph: &Graph, operands: &[Id], mut types: Vec<TensorType>) -> Steps {
        let Some(Op::Program(program)) = &graph[operands[0]].data.leaf else { return Steps::default() };
        for &operand in &operands[1..] {
            let Type::Tensor(t) = &graph[operand].data.ty else { return Steps::default() };
            types.push(t.clone());
        }
        self.steps(program, &types)
    }

    /// What the evaluations take, in nanoseconds of all threads.
    pub(crate) fn steps_time(&self, steps: Steps) -> f64 {
        let m = &self.machine;
        steps.flops * IN_REGISTERS * m.element
            + steps.transcendentals * m.transcendental
            + steps.reduced * IN_REGISTERS * m.element
    }
}

impl Steps {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what else a program admits is one operation an element"
    )]
    fn count(&mut self, op: &Op, times: f64) {
        match op {
            Op::Input(_) | Op::Num(_) | Op::Int(_) | Op::DType(_) => {}
            Op::Exp(_)
            | Op::Log(_)
            | Op::Tanh(_)
            | Op::Cos(_)
            | Op::Sin(_)
            | Op::GeluTanh(_)
            | Op::GatedGelu(_)
            | Op::Softcap(_) => self.transcendentals += times,
            Op::Pow(_) => self.transcendentals += 2.0 * times,
            _ => self.flops += times,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lapidary_ir::{DType, Dim, Extent};

    use super::*;
    use crate::Machine;

    #[test]
    fn what_is_the_same_along_a_row_is_computed_once_and_the_rest_once_a_walk() {
        let model = CostModel { machine: Machine::GENERIC, extent: Extent { rows: 3, keys: 3 } };
        let rows = TensorType::new(DType::F32, vec![Dim::Rows, Dim::Fixed(8)]);
        let program: Program = "fn[mul[exp[$0],rsqrt[mean[exp[$0],1]]]]".parse().unwrap();
        let steps = model.steps(&program, &[rows]);
        // exp twice, the product, one root a row.
        assert_eq!(steps, Steps { flops: 24.0 + 3.0, transcendentals: 48.0, reduced: 24.0 });
    }
}
