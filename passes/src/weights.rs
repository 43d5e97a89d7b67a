//! Terms of weights alone, taken out of a function: a function of their own, to be computed once.
//!
//! In: a typed function. Out: it with such terms as weights, and the function that computes them. What merely moves a
//! weight's elements, or widens them, stays, for kernels read those where they lie.

use std::collections::HashMap;

use egg::Language;
use lapidary_ir::function::Builder;
use lapidary_ir::{Extent, Function, Id, InputKind, Op, TensorType};

/// Bytes of terms that are never too many: else there are at most as many as of weights.
const LEAST_BYTES: usize = 1 << 20;

/// A function in two.
#[derive(Clone, Debug)]
pub struct Split {
    /// The function: weights that nothing else reads are gone, new ones come last.
    pub function: Function,
    /// From weights to the new ones, by their names, in their order.
    pub terms: Function,
}

/// Whether an operator only says where elements lie.
fn moves(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_))
}

/// What a node is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Of constants.
    Constants,
    /// Of weights, and of constants.
    Weights,
    /// Of what a call brings.
    Call,
}

/// The function without its terms of weights, if it has any.
///
/// # Errors
/// As [`Function::types`].
pub fn split(function: &Function) -> Result<Option<Split>, lapidary_ir::Error> {
    let types = function.types()?;
    let nodes = function.body.as_ref();
    let tensor = |at: usize| types[at].tensor();
    let fixed = |at: usize| tensor(at).is_none_or(|t| t.shape.iter().all(|d| d.fixed().is_some()));
    let mut made: Vec<Made> = Vec::with_capacity(nodes.len());
    for (at, op) in nodes.iter().enumerate() {
        let operands = op.children().iter().map(|c| made[usize::from(*c)]);
        let of = if let Op::Input(id) = op {
            let input = &function.inputs[id.0 as usize];
            let is_plain = input.kind == InputKind::Weight && !input.ty.dtype.is_quantised();
            if is_plain { Made::Weights } else { Made::Call }
        } else if !fixed(at)
            || operands.clone().any(|m| m == Made::Call)
            || op.is_fused() && tensor(at).is_none()
        {
            Made::Call
        } else if operands.clone().any(|m| m == Made::Weights) {
            Made::Weights
        } else {
            Made::Constants
        };
        made.push(of);
    }
    // The terms that calls read, each below what moves its elements.
    let mut points: Vec<Id> = vec![];
    let mut point = |id: Id| {
        let mut at = id;
        while moves(&nodes[usize::from(at)]) {
            at = nodes[usize::from(at)].children()[0];
        }
        let computed = !matches!(nodes[usize::from(at)], Op::Input(_)) && tensor(usize::from(at)).is_some();
        if made[usize::from(id)] == Made::Weights && made[usize::from(at)] == Made::Weights && computed {
            points.push(at);
        }
    };
    for (op, _) in nodes.iter().zip(&made).filter(|(_, made)| **made == Made::Call) {
        op.children().iter().for_each(|&c| point(c));
    }
    function.outputs.iter().for_each(|(_, id)| point(*id));
    points.sort_unstable();
    points.dedup();
    let bytes = |ty: &TensorType| ty.bytes(Extent { rows: 1, keys: 1 });
    let weights = function.inputs.iter().filter(|i| i.kind == InputKind::Weight);
    let mut room = weights.map(|i| bytes(&i.ty)).sum::<usize>().max(LEAST_BYTES);
    points.retain(|&id| {
        // Casts that widen are read as they lie.
        let widened = matches!(nodes[usize::from(id)], Op::Cast(_));
        let size = tensor(usize::from(id)).map_or(usize::MAX, bytes);
        let fits = !widened && size <= room;
        room -= if fits { size } else { 0 };
        fits
    });
    if points.is_empty() {
        return Ok(None);
    }
    let name = |at: usize| format!("folded.{at}");
    let free = |name: &String| function.inputs.iter().all(|i| i.name != *name);
    if !(0..points.len()).map(name).all(|n| free(&n)) {
        return Ok(None);
    }
    let mut terms = Copied::new(function);
    for (at, &id) in points.iter().enumerate() {
        let id = terms.node(id);
        terms.builder.output(&name(at), id);
    }
    let mut main = Copied::new(function);
    // Weights that are read no more stay undeclared; what a call brings keeps its place.
    let replaced: HashMap<Id, String> = points.iter().enumerate().map(|(at, &id)| (id, name(at))).collect();
    for (at, input) in function.inputs.iter().enumerate() {
        if input.kind != InputKind::Weight || is_read(function, at, &replaced) {
            main.input(at);
        }
    }
    for (at, &id) in points.iter().enumerate() {
        let Some(ty) = tensor(usize::from(id)) else { continue };
        let made = main.builder.input(&name(at), InputKind::Weight, ty.dtype, &ty.shape);
        main.places.insert(id, made);
    }
    for (name, id) in &function.outputs {
        let id = main.node(*id);
        main.builder.output(name, id);
    }
    Ok(Some(Split { function: main.builder.finish(), terms: terms.builder.finish() }))
}

/// Whether an input is read by what is left.
fn is_read(function: &Function, input: usize, replaced: &HashMap<Id, String>) -> bool {
    let mut open: Vec<Id> = function.outputs.iter().map(|o| o.1).collect();
    let mut seen = vec![false; function.body.as_ref().len()];
    while let Some(id) = open.pop() {
        if replaced.contains_key(&id) || std::mem::replace(&mut seen[usize::from(id)], true) {
            continue;
        }
        let op = &function.body[id];
        if matches!(op, Op::Input(i) if i.0 as usize == input) {
            return true;
        }
        open.extend_from_slice(op.children());
    }
    false
}

/// Nodes of a function in another one.
struct Copied<'a> {
    function: &'a Function,
    builder: Builder,
    places: HashMap<Id, Id>,
}

impl<'a> Copied<'a> {
    fn new(function: &'a Function) -> Copied<'a> {
        Copied { function, builder: Builder::new(&function.name), places: HashMap::new() }
    }

    fn input(&mut self, at: usize) -> Id {
        let input = &self.function.inputs[at];
        self.builder.input(&input.name, input.kind, input.ty.dtype, &input.ty.shape)
    }

    /// A node and what it is made of; inputs are declared as they come up.
    fn node(&mut self, id: Id) -> Id {
        if let Some(&place) = self.places.get(&id) {
            return place;
        }
        let op = self.function.body[id].clone();
        let place = if let Op::Input(input) = op {
            let name = &self.function.inputs[input.0 as usize].name;
            let declared = self.builder.function().inputs.iter().position(|i| i.name == *name);
            match declared {
                Some(at) => self.builder.add(Op::Input(lapidary_ir::InputId(at as u32))),
                None => self.input(input.0 as usize),
            }
        } else {
            let op = op.map_children(|c| self.node(c));
            self.builder.add(op)
        };
        self.places.insert(id, place);
        place
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lapidary_ir::text;

    use super::*;

    fn of(body: &str) -> Option<Split> {
        let source = format!(
            "function f(%x: f32[T,4] rows, %w: f32[8,4] weight, %s: f32[4] weight, %b: bf16[8] weight) {{ {body} }}"
        );
        split(&text::parse_module(&source).unwrap().functions.remove(0)).unwrap()
    }

    #[test]
    fn what_is_computed_of_weights_is_a_weight() {
        let split = of("return y=(matmul %x (transpose (mul %w (exp %s)) [1,0])), z=(add %x %s)").unwrap();
        let names = |f: &Function| f.inputs.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&split.function), ["x", "s", "folded.0"]);
        assert_eq!(names(&split.terms), ["w", "s"]);
        assert_eq!(split.terms.outputs.len(), 1);
        let main = split.function.to_string();
        assert!(main.contains("(transpose %folded.0 [1,0])") && !main.contains("exp"), "{main}");
    }

    #[test]
    fn what_is_moved_or_widened_or_depends_on_a_call_stays() {
        assert!(of("return y=(matmul %x (transpose %w [1,0]))").is_none());
        assert!(of("return y=(add (matmul %x (transpose %w [1,0])) (cast %b f32))").is_none());
        assert!(of("return y=(mul %x (add %s %x))").is_none());
    }

    #[test]
    fn terms_much_larger_than_the_weights_stay() {
        let wide = "(mul (broadcast (reshape %s [1,4]) [524288,4]) 2.0)";
        assert!(of(&format!("return y=(add (sum (sum {wide} 0) 1) (sum %x 1))")).is_some_and(|split| {
            // The sum is small, what it is made of is not.
            split.terms.outputs.len() == 1
        }));
        assert!(of(&format!("return y=(matmul %x (transpose {wide} [1,0]))")).is_none());
    }
}
