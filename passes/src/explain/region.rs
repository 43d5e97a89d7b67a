//! What of a function one kernel is about: its own nodes, and where its operands begin.
//!
//! In: the source, the extracted function, one of its kernels. Out: roots, classes that the source has a term of, whose
//! terms the kernel came from; the extracted nodes from there down; and the cuts, values of other kernels, which the
//! explanation takes as inputs. A kernel whose value the source never names (all of Q, K and V at once) is explained
//! with those of its users that it does.

use std::collections::{BTreeSet, HashMap, HashSet};

use egg::{Id, Language};
use lapidary_ir::{Input, InputKind, Op, Type};

use super::edges::canonical;
use super::term::Term;
use crate::extract::Extracted;
use crate::price::CostModel;
use crate::saturate::Saturated;

/// A kernel's region.
pub(super) struct Region {
    /// Extracted nodes at the top, with the source nodes of their classes and the names of their results.
    pub(super) roots: Vec<(Id, usize, String)>,
    /// Extracted nodes that are explained.
    pub(super) interior: HashSet<Id>,
    /// Classes that are inputs.
    pub(super) cuts: BTreeSet<Id>,
}

/// The first source node of each class.
pub(super) fn sources(saturated: &Saturated) -> HashMap<Id, usize> {
    let mut sources = HashMap::new();
    for (at, class) in saturated.classes.iter().enumerate() {
        sources.entry(*class).or_insert(at);
    }
    sources
}

/// Whether an extracted node is launched.
pub(super) fn is_kernel(saturated: &Saturated, extracted: &Extracted, model: &CostModel, node: Id) -> bool {
    let at = usize::from(node);
    let op = enode(saturated, extracted, node);
    model.work(&saturated.graph, extracted.classes[at], &op).is_some()
}

/// The e-node of an extracted node.
pub(super) fn enode(saturated: &Saturated, extracted: &Extracted, node: Id) -> Op {
    let op = extracted.function.body[node].clone();
    canonical(&saturated.graph, &op.map_children(|c| extracted.classes[usize::from(c)]))
}

impl Region {
    /// The region of a kernel. Classes in `open` are not cut.
    pub(super) fn new(
        saturated: &Saturated,
        extracted: &Extracted,
        model: &CostModel,
        kernel: Id,
        open: &BTreeSet<Id>,
    ) -> Region {
        let sources = sources(saturated);
        let nodes = extracted.function.body.as_ref();
        let mut users: Vec<Vec<Id>> = vec![vec![]; nodes.len()];
        for (at, op) in nodes.iter().enumerate() {
            op.for_each(|c| users[usize::from(c)].push(Id::from(at)));
        }
        let class = |id: Id| extracted.classes[usize::from(id)];
        // Up, to where the source has terms.
        let mut interior: HashSet<Id> = HashSet::new();
        let mut tops: BTreeSet<usize> = BTreeSet::new();
        let mut queue = vec![kernel];
        while let Some(id) = queue.pop() {
            if !interior.insert(id) {
                continue;
            }
            if sources.contains_key(&class(id)) {
                tops.insert(usize::from(id));
            } else {
                queue.extend(&users[usize::from(id)]);
            }
        }
        // Down, to the values of other kernels.
        let constants = constants(nodes);
        let mut cuts = BTreeSet::new();
        let mut queue: Vec<Id> = interior.iter().copied().collect();
        queue.sort_unstable();
        let mut seen: HashSet<Id> = interior.clone();
        while let Some(id) = queue.pop() {
            for &child in nodes[usize::from(id)].children() {
                if !seen.insert(child) {
                    continue;
                }
                let made = matches!(nodes[usize::from(child)], Op::Output(_))
                    || is_kernel(saturated, extracted, model, child);
                let tensor = matches!(saturated.graph[class(child)].data.ty, Type::Tensor(_));
                let constant = constants[usize::from(child)];
                let named = sources.contains_key(&class(child));
                if made && tensor && named && !constant && !open.contains(&class(child)) {
                    cuts.insert(class(child));
                } else {
                    interior.insert(child);
                    queue.push(child);
                }
            }
        }
        let mut roots = vec![];
        for top in tops {
            let id = Id::from(top);
            let output = extracted.function.outputs.iter().find(|(_, o)| *o == id);
            let (source, name) = match output {
                Some((name, _)) => {
                    let written = saturated.source.outputs.iter().find(|(n, _)| n == name);
                    (written.map_or(sources[&class(id)], |(_, id)| usize::from(*id)), name.clone())
                }
                None => (sources[&class(id)], String::new()),
            };
            roots.push((id, source, name));
        }
        let many = roots.len() > 1;
        for (at, root) in roots.iter_mut().enumerate().filter(|(_, r)| r.2.is_empty()) {
            root.2 = if many { format!("y{at}") } else { "y".into() };
        }
        Region { roots, interior, cuts }
    }

    /// The source's term under the roots, cut, and the inputs it reads: the function's, then the cuts.
    pub(super) fn start(&self, saturated: &Saturated) -> (Term, Vec<Input>) {
        let mut inputs = saturated.source.inputs.clone();
        let mut term = Term::default();
        let mut cells = HashMap::new();
        let mut opaque = HashMap::new();
        let tops: HashSet<usize> = self.roots.iter().map(|r| r.1).collect();
        let mut builder = Builder { saturated, region: self, tops: &tops, inputs: &mut inputs };
        for (_, source, name) in &self.roots {
            let cell = builder.cell(*source, &mut term, &mut cells, &mut opaque);
            term.roots.push((name.clone(), cell));
        }
        // A name is free again if the input that had it is not read here.
        let used: Vec<usize> = term.inputs();
        let own = saturated.source.inputs.len();
        for &at in used.iter().filter(|&&at| at >= own) {
            let base =
                inputs[at].name.rsplit_once('.').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
            if let Some(base) = base.map(|(base, _)| base.to_string())
                && used.iter().all(|&other| inputs[other].name != base)
            {
                inputs[at].name = base;
            }
        }
        (term, inputs)
    }
}

struct Builder<'a> {
    saturated: &'a Saturated,
    region: &'a Region,
    tops: &'a HashSet<usize>,
    inputs: &'a mut Vec<Input>,
}

impl Builder<'_> {
    fn cell(
        &mut self,
        at: usize,
        term: &mut Term,
        cells: &mut HashMap<usize, usize>,
        opaque: &mut HashMap<Id, usize>,
    ) -> usize {
        if let Some(&cell) = cells.get(&at) {
            return cell;
        }
        let class = self.saturated.classes[at];
        let cell = if self.region.cuts.contains(&class) && !self.tops.contains(&at) {
            match opaque.get(&class) {
                Some(&cell) => cell,
                None => {
                    let cell = self.cut(at, class, term);
                    opaque.insert(class, cell);
                    cell
                }
            }
        } else {
            let op = self.saturated.source.body[Id::from(at)].clone();
            let operands: Vec<usize> =
                op.children().iter().map(|&c| self.cell(usize::from(c), term, cells, opaque)).collect();
            let node = op.map_children(|c| self.saturated.classes[usize::from(c)]);
            term.add(class, node, operands)
        };
        cells.insert(at, cell);
        cell
    }

    /// The value of another kernel, as an input.
    fn cut(&mut self, at: usize, class: Id, term: &mut Term) -> usize {
        let Type::Tensor(ty) = &self.saturated.graph[class].data.ty else {
            unreachable!("only tensors are cut")
        };
        let kind = if ty.shape.contains(&lapidary_ir::Dim::Keys) {
            InputKind::Cache { window: None }
        } else {
            InputKind::Rows
        };
        let base = origin(self.saturated, at).unwrap_or_else(|| format!("v{at}"));
        let taken = |name: &str| self.inputs.iter().any(|i| i.name == name);
        let mut name = base.clone();
        for n in 2.. {
            if !taken(&name) {
                break;
            }
            name = format!("{base}.{n}");
        }
        self.inputs.push(Input { name, ty: ty.clone(), kind });
        let id = lapidary_ir::InputId(self.inputs.len() as u32 - 1);
        term.add(class, Op::Input(id), vec![])
    }
}

/// The name of the weight or cache nearest above a source node, without `.weight`: `self_attn.q_proj`.
pub(super) fn origin(saturated: &Saturated, at: usize) -> Option<String> {
    let source = &saturated.source;
    let mut seen = HashSet::new();
    let mut layer = vec![at];
    while !layer.is_empty() {
        let mut next = vec![];
        for at in layer {
            if !seen.insert(at) {
                continue;
            }
            let op = &source.body[Id::from(at)];
            if let Op::Input(id) = op {
                let input = &source.inputs[id.0 as usize];
                if input.kind != InputKind::Rows {
                    return Some(input.name.trim_end_matches(".weight").to_string());
                }
            }
            op.for_each(|c| next.push(usize::from(c)));
        }
        layer = next;
    }
    None
}

/// Whether each node depends on no input; operands come first.
fn constants(nodes: &[Op]) -> Vec<bool> {
    let mut constants: Vec<bool> = Vec::with_capacity(nodes.len());
    for op in nodes {
        let of_input = matches!(op, Op::Input(_)) || !op.all(|c| constants[usize::from(c)]);
        constants.push(!of_input);
    }
    constants
}
