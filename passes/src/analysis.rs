//! E-class data: what is known of every term of a class.
//!
//! In: nodes. Out: type, value range, leaf. Two classes merge only if their types are equal (anything else is an
//! unsound rule and stops the saturation with an error, in every build); their ranges intersect, for both hold.

use egg::{Analysis, DidMerge, EGraph, Id, Language};
use lapidary_ir::{DType, Input, Op, Type, infer};

use crate::range::Range;

/// The e-graph of a function.
pub type Graph = EGraph<Op, Facts>;

/// What is known of a class.
#[derive(Clone, Debug)]
pub struct Data {
    /// The type, equal for all its nodes.
    pub ty: Type,
    /// An interval that holds every element that is not NaN.
    pub range: Range,
    /// The attribute or number that the class is, if it is one.
    pub leaf: Option<Op>,
    /// Element type in memory if the value is a view of something stored: a widened bf16 weight is `bf16`.
    pub stored: Option<DType>,
    /// How often merges have narrowed the range.
    pub narrowed: u32,
}

/// How often merges may narrow a range: a class that contains itself, `x = tanh(x)`, would narrow it for ever.
const MOST_NARROWINGS: u32 = 64;

/// The analysis' own state: the function's inputs, and the first error met.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The function's inputs.
    pub inputs: Vec<Input>,
    /// The first ill-typed node or merge, in words.
    pub error: Option<String>,
    /// Who uses what in the function as it was written: an operand's class, and its user's, `None` for an output.
    pub uses: Vec<(Id, Option<Id>)>,
}

impl Facts {
    /// How many nodes and outputs of the function as it was written use a class. Users that have become equal count
    /// once; a value that only rewriting made has none.
    pub fn users(&self, graph: &Graph, class: Id) -> usize {
        let class = graph.find(class);
        let used = self.uses.iter().filter(|(operand, _)| graph.find(*operand) == class);
        let (nodes, outputs): (Vec<_>, Vec<_>) = used.map(|(_, user)| *user).partition(Option::is_some);
        let nodes: std::collections::BTreeSet<Id> =
            nodes.into_iter().flatten().map(|u| graph.find(u)).collect();
        nodes.len() + outputs.len()
    }
}

impl Analysis<Op> for Facts {
    type Data = Data;

    fn make(graph: &mut Graph, node: &Op, _id: Id) -> Data {
        let ty = infer::infer(
            node,
            &graph.analysis.inputs,
            |id| graph[id].data.ty.clone(),
            |id| graph[id].data.leaf.clone().unwrap_or_else(|| graph[id].nodes[0].clone()),
        );
        let ty = match ty {
            Ok(Type::Tensor(t)) if is_absurd(&t) => {
                let error = format!("`{}`: {t} has more than 2^40 elements", describe(graph, node));
                graph.analysis.error.get_or_insert(error);
                Type::Attribute
            }
            Ok(ty) => ty,
            Err(reason) => {
                let error = format!("`{}`: {reason}", describe(graph, node));
                graph.analysis.error.get_or_insert(error);
                Type::Attribute
            }
        };
        let range = Range::of(node, |id| graph[id].data.range, |id| graph[id].data.leaf.clone());
        let leaf = (node.is_leaf() && !matches!(node, Op::Input(_))).then(|| node.clone());
        let leaf = leaf.or_else(|| matches!(node, Op::Cap(_) | Op::Then(_)).then(|| node.clone()));
        let stored = match (node, &ty) {
            (Op::Cast([x, _]), Type::Tensor(to)) if widens(&graph[*x].data.ty, to.dtype) => {
                graph[*x].data.stored
            }
            (Op::Reshape([x, _]) | Op::Transpose([x, _]) | Op::Broadcast([x, _]) | Op::Slice([x, ..]), _) => {
                graph[*x].data.stored
            }
            (_, Type::Tensor(t)) => Some(t.dtype),
            _ => None,
        };
        Data { ty, range, leaf, stored, narrowed: 0 }
    }

    fn merge(&mut self, a: &mut Data, b: Data) -> DidMerge {
        if a.ty != b.ty {
            self.error.get_or_insert(format!("merges {} with {}", a.ty, b.ty));
        }
        let before = a.clone();
        let both = a.range.intersect(b.range);
        if both != a.range && a.narrowed < MOST_NARROWINGS {
            a.range = both;
            a.narrowed += 1;
        }
        if a.leaf.is_none() {
            a.leaf = b.leaf.clone();
        }
        // Of two ways to hold it, the narrower is read.
        if b.stored.map(DType::mean_bytes) < a.stored.map(DType::mean_bytes) {
            a.stored = b.stored;
        }
        let same = |x: &Data, y: &Data| x.range == y.range && x.leaf == y.leaf && x.stored == y.stored;
        DidMerge(!same(a, &before), !same(a, &b))
    }
}

/// Whether the fixed axes have more elements together than the verifier allows, or there are more than 8 axes.
fn is_absurd(t: &lapidary_ir::TensorType) -> bool {
    let fixed = t.shape.iter().filter_map(|d| d.fixed()).try_fold(1usize, |n, d| n.checked_mul(d));
    t.rank() > 8 || fixed.is_none_or(|n| n > 1 << 40)
}

/// Whether a cast from this type to `to` loses nothing, so that loads can do it.
pub(crate) fn widens(from: &Type, to: DType) -> bool {
    from.tensor().is_some_and(|t| t.dtype.is_float() && t.dtype != to && to == DType::F32)
}

/// The node with its operands' types, `mul f32[T,4] i32[]`.
fn describe(graph: &Graph, node: &Op) -> String {
    let mut text = node.to_string();
    node.for_each(|id| {
        text.push(' ');
        text.push_str(&match &graph[id].data.leaf {
            Some(leaf) => leaf.to_string(),
            None => graph[id].data.ty.to_string(),
        });
    });
    text
}
