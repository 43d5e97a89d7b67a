//! Axes of length 1 taken out of a function, as those of a batch of one: what rules know are rows, heads and features.
//!
//! In: a typed function. Out: one with the same inputs, outputs and values, whose operators work without such axes
//! where they can, and reshapes at its edges. An operator that is not listed keeps its operands' shapes.

use std::collections::HashMap;

use egg::{Id, Language};

use crate::function::{Builder, Function};
use crate::op::Op;
use crate::types::{Dim, Dims, Type};

/// The function without axes of length 1.
///
/// # Errors
/// As [`Function::types`].
pub fn squeeze(function: &Function) -> Result<Function, crate::Error> {
    let types = function.types()?;
    let builder = Builder::new(&function.name);
    let mut s = Squeezer { function, types: &types, builder, values: vec![], forms: vec![] };
    for input in &function.inputs {
        s.builder.input(&input.name, input.kind, input.ty.dtype, &input.ty.shape);
    }
    for at in 0..types.len() {
        let value = s.node(Id::from(at));
        s.values.push(value);
    }
    for (name, id) in &function.outputs {
        let shape = s.shape(*id);
        let id = s.form(*id, &shape);
        s.builder.output(name, id);
    }
    Ok(pruned(&s.builder.finish()))
}

/// What a node has become.
#[derive(Clone, Copy)]
enum Value {
    /// No tensor: a node.
    Attribute(Id),
    /// A tensor: an index of `forms`.
    Tensor(usize),
}

struct Squeezer<'a> {
    function: &'a Function,
    types: &'a [Type],
    builder: Builder,
    values: Vec<Value>,
    /// Of each value the nodes that hold its elements, by shape; the first is what computed them.
    forms: Vec<Vec<(Vec<Dim>, Id)>>,
}

const ONE: Dim = Dim::Fixed(1);

/// The axes that stay: all but those of length 1, and the last one, which reductions of rows leave.
fn kept(shape: &[Dim]) -> Vec<usize> {
    (0..shape.len()).filter(|&a| shape[a] != ONE || a + 1 == shape.len()).collect()
}

fn of_axes(shape: &[Dim], axes: &[usize]) -> Vec<Dim> {
    axes.iter().map(|&a| shape[a]).collect()
}

fn squeezed_shape(shape: &[Dim]) -> Vec<Dim> {
    of_axes(shape, &kept(shape))
}

/// Where an axis that stays is among those that do.
fn place(shape: &[Dim], axis: usize) -> usize {
    kept(shape).iter().filter(|a| **a < axis).count()
}

impl Squeezer<'_> {
    fn shape(&self, id: Id) -> Vec<Dim> {
        self.types[usize::from(id)].tensor_or_prologue().map_or(vec![], |t| t.shape.0.clone())
    }

    fn int(&self, id: Id) -> usize {
        self.function.body[id].integer().map_or(0, |n| n as usize)
    }

    fn made(&mut self, shape: Vec<Dim>, id: Id) -> Value {
        self.forms.push(vec![(shape, id)]);
        Value::Tensor(self.forms.len() - 1)
    }

    /// A value's elements under a shape; attributes as they are.
    fn form(&mut self, id: Id, shape: &[Dim]) -> Id {
        let index = match self.values[usize::from(id)] {
            Value::Attribute(id) => return id,
            Value::Tensor(index) => index,
        };
        if let Some((_, id)) = self.forms[index].iter().find(|(s, _)| s == shape) {
            return *id;
        }
        let of = self.forms[index][0].1;
        let to = self.builder.dims(shape);
        let id = self.builder.add(Op::Reshape([of, to]));
        self.forms[index].push((shape.to_vec(), id));
        id
    }

    /// The node over operands as they were.
    fn plain(&mut self, id: Id, op: &Op) -> Value {
        let op = op.clone().map_children(|c| {
            let shape = self.shape(c);
            self.form(c, &shape)
        });
        let made = self.builder.add(op);
        match self.types[usize::from(id)].tensor() {
            Some(t) => self.made(t.shape.0.clone(), made),
            None => Value::Attribute(made),
        }
    }

    /// An operand's axes that stand under these of the result, which are aligned at the end.
    fn under(&self, operand: Id, rank: usize, kept: &[usize]) -> Vec<Dim> {
        let shape = self.shape(operand);
        let missing = rank - shape.len().min(rank);
        let under = kept.iter().filter_map(|a| a.checked_sub(missing)).map(|a| shape[a]);
        let mut under: Vec<Dim> = under.collect();
        let ones = under.iter().take_while(|d| **d == ONE).count();
        under.drain(..ones);
        under
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what has no arm is told by its class, or stays as it is"
    )]
    fn node(&mut self, id: Id) -> Value {
        let op = self.function.body[id].clone();
        let shape = self.shape(id);
        let rank = shape.len();
        let (stay, to) = (kept(&shape), squeezed_shape(&shape));
        let is_tensor = matches!(self.types[usize::from(id)], Type::Tensor(_));
        if !is_tensor || op.is_leaf() {
            return self.plain(id, &op);
        }
        match op {
            Op::Reshape([x, _]) => self.values[usize::from(x)],
            Op::Sum([x, axis])
            | Op::Mean([x, axis])
            | Op::Max([x, axis])
            | Op::Min([x, axis])
            | Op::Prod([x, axis])
            | Op::Argmax([x, axis]) => {
                let (of, axis) = (self.shape(x), self.int(axis));
                if of[axis] == ONE {
                    return self.plain(id, &op);
                }
                let (mut to, at) = (squeezed_shape(&of), place(&of, axis));
                let operands = [self.form(x, &to), self.builder.int(at as i64)];
                to[at] = ONE;
                let made = self.with(&op, &operands);
                self.made(to, made)
            }
            Op::Transpose([x, p]) => {
                let Op::Dims(p) = &self.function.body[p] else { return self.plain(id, &op) };
                let Some(order) = p.permutation() else { return self.plain(id, &op) };
                let of = self.shape(x);
                let long: Vec<usize> = (0..of.len()).filter(|&a| of[a] != ONE).collect();
                let order: Vec<usize> = order.iter().filter_map(|a| long.binary_search(a).ok()).collect();
                if order.is_sorted() {
                    return self.values[usize::from(x)];
                }
                let of = of_axes(&of, &long);
                let to = of_axes(&of, &order);
                let from = self.form(x, &of);
                let order = self.builder.add(Op::Dims(Dims::fixed(&order)));
                let made = self.builder.add(Op::Transpose([from, order]));
                self.made(to, made)
            }
            Op::Broadcast([x, _]) => {
                let under = of_axes(&self.shape(x), &stay);
                if under == to {
                    return self.values[usize::from(x)];
                }
                let from = self.form(x, &under);
                let dims = self.builder.dims(&to);
                let made = self.builder.add(Op::Broadcast([from, dims]));
                self.made(to, made)
            }
            Op::Slice([x, axis, start, len]) => {
                let (of, axis) = (self.shape(x), self.int(axis));
                if of[axis] == ONE {
                    return self.values[usize::from(x)];
                }
                let (mut to, at) = (squeezed_shape(&of), place(&of, axis));
                let from = self.form(x, &to);
                to[at] = shape[axis];
                let axis = self.builder.int(at as i64);
                let [start, len] = [start, len].map(|x| self.form(x, &[]));
                let made = self.builder.add(Op::Slice([from, axis, start, len]));
                self.made(to, made)
            }
            Op::Concat([a, b, axis]) => {
                let at = place(&shape, self.int(axis));
                let [a, b] = [a, b].map(|x| {
                    let under = of_axes(&self.shape(x), &stay);
                    self.form(x, &under)
                });
                let axis = self.builder.int(at as i64);
                let made = self.builder.add(Op::Concat([a, b, axis]));
                self.made(to, made)
            }
            Op::Pad([x, axis, before, after, value]) => {
                let at = place(&shape, self.int(axis));
                let under = of_axes(&self.shape(x), &stay);
                let from = self.form(x, &under);
                let axis = self.builder.int(at as i64);
                let [before, after, value] = [before, after, value].map(|x| self.form(x, &[]));
                let made = self.builder.add(Op::Pad([from, axis, before, after, value]));
                self.made(to, made)
            }
            Op::Matmul([a, b]) => {
                let lead: Vec<usize> = (0..rank - 2).filter(|&a| shape[a] != ONE).collect();
                let operands = [a, b].map(|x| {
                    let of = self.shape(x);
                    let (first, last) = of.split_at(of.len() - 2);
                    let missing = rank - of.len();
                    let under = lead.iter().filter_map(|a| a.checked_sub(missing)).map(|a| first[a]);
                    let under = under.skip_while(|d| *d == ONE);
                    let to: Vec<Dim> = under.chain(last.iter().copied()).collect();
                    self.form(x, &to)
                });
                let mut to = of_axes(&shape, &lead);
                to.extend_from_slice(&shape[rank - 2..]);
                let made = self.builder.add(Op::Matmul(operands));
                self.made(to, made)
            }
            Op::Select(_) | Op::Cast(_) => self.elementwise(&op, &shape),
            _ if op.signature().class.is_elementwise() => self.elementwise(&op, &shape),
            op => self.plain(id, &op),
        }
    }

    fn elementwise(&mut self, op: &Op, shape: &[Dim]) -> Value {
        let stay = kept(shape);
        let operands: Vec<Id> = op
            .children()
            .iter()
            .map(|&c| {
                let under = self.under(c, shape.len(), &stay);
                self.form(c, &under)
            })
            .collect();
        let made = self.with(op, &operands);
        self.made(of_axes(shape, &stay), made)
    }

    fn with(&mut self, op: &Op, operands: &[Id]) -> Id {
        let mut operands = operands.iter();
        let op = op.clone().map_children(|c| operands.next().copied().unwrap_or(c));
        self.builder.add(op)
    }
}

/// The function without nodes that no output needs.
fn pruned(function: &Function) -> Function {
    let nodes = function.body.as_ref();
    let mut live = vec![false; nodes.len()];
    let mut open: Vec<Id> = function.outputs.iter().map(|o| o.1).collect();
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut live[usize::from(id)], true) {
            open.extend_from_slice(nodes[usize::from(id)].children());
        }
    }
    let mut builder = Builder::new(&function.name);
    let mut places: HashMap<Id, Id> = HashMap::new();
    for input in &function.inputs {
        builder.input(&input.name, input.kind, input.ty.dtype, &input.ty.shape);
    }
    for (at, op) in nodes.iter().enumerate().filter(|(at, _)| live[*at]) {
        let made = builder.add(op.clone().map_children(|c| places[&c]));
        places.insert(Id::from(at), made);
    }
    for (name, id) in &function.outputs {
        builder.output(name, places[id]);
    }
    builder.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::text;

    fn squeezed(source: &str) -> String {
        let function = text::parse_module(source).unwrap().functions.remove(0);
        let squeezed = squeeze(&function).unwrap();
        assert_eq!(
            function.types().unwrap()[usize::from(function.outputs[0].1)],
            squeezed.types().unwrap()[usize::from(squeezed.outputs[0].1)]
        );
        text::print(&squeezed, &|_| None)
    }

    #[test]
    fn a_batch_of_one_goes() {
        let text = squeezed(
            "function f(%x: f32[1,8,4] rows, %w: f32[6,4] weight, %b: f32[6] weight) {
                h = (add (reshape (matmul (reshape %x [8,4]) (transpose %w [1,0])) [1,8,6]) %b)
                c = (sub h (mean h 2))
                q = (transpose (reshape c [1,8,2,3]) [0,2,1,3])
                return y=(matmul q (transpose q [0,1,3,2]))
            }",
        );
        let body: Vec<&str> = text.lines().map(str::trim).filter(|l| l.starts_with(['v', 'r'])).collect();
        assert_eq!(body, EXPECTED, "{text}");
    }

    const EXPECTED: &[&str] = &[
        "v0 = (transpose %w [1,0])",
        "v1 = (reshape %x [8,4])",
        "v2 = (matmul v1 v0)",
        "v3 = (add v2 %b)",
        "v4 = (mean v3 1)",
        "v5 = (sub v3 v4)",
        "v6 = (reshape v5 [8,2,3])",
        "v7 = (transpose v6 [1,0,2])",
        "v8 = (transpose v7 [0,2,1])",
        "v9 = (matmul v7 v8)",
        "v10 = (reshape v9 [1,2,8,8])",
        "return y=v10",
    ];
}
