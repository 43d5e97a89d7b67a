//! The value of every node of an e-graph, held against its class.
//!
//! Extraction picks the cheapest form, which may hide what a rule made. So the whole e-graph is checked: every node of
//! every class is evaluated over one value for each of its operands' classes, and must give its class's value.

use std::collections::HashMap;

use egg::{AstDepth, Extractor, Id, Language};
use lapidary_ir::interp::{Precision, Tensor, Value, evaluate_all};
use lapidary_ir::{Extent, Function, Op, text};

use super::values;
use crate::Saturated;
use crate::analysis::Graph;

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Difference {
    /// In words: where, what was found, what was expected.
    pub reason: String,
    /// Whether what was found is no finite number.
    pub lost: bool,
}

impl Difference {
    /// One of which nothing more is known.
    pub fn new(reason: String) -> Difference {
        Difference { reason, lost: false }
    }

    /// The same, said in a larger context.
    pub fn within(self, say: impl FnOnce(&str) -> String) -> Difference {
        Difference { reason: say(&self.reason), ..self }
    }
}

/// Whether two numbers agree: relative to them, or to 1 if they are smaller.
pub fn near(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
}

/// Says where two tensors differ.
///
/// # Errors
/// The first place.
pub fn compare(found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<(), Difference> {
    compare_where(found, expected, tolerance, |_, _| true)
}

/// Says where two tensors differ, among the elements that are to be judged, by their index and expected value.
///
/// # Errors
/// The first place.
pub fn compare_where(
    found: &Tensor,
    expected: &Tensor,
    tolerance: f64,
    judged: impl Fn(usize, f64) -> bool,
) -> Result<(), Difference> {
    if found.dtype != expected.dtype || found.shape != expected.shape {
        return Err(Difference::new(format!(
            "{} {:?} is not {} {:?}",
            found.dtype, found.shape, expected.dtype, expected.shape
        )));
    }
    for (at, (&a, &b)) in found.data.iter().zip(&expected.data).enumerate() {
        if judged(at, b) && !near(a, b, tolerance) {
            let shape = &found.shape;
            let reason = format!("element {at} of {shape:?} is {a:e}, expected {b:e} within {tolerance:e}");
            return Err(Difference { reason, lost: !a.is_finite() });
        }
    }
    Ok(())
}

/// A graph as one function: a term for each class, then every other node over these terms.
pub struct Flat {
    /// The terms, without outputs.
    pub function: Function,
    /// Each other node, and the term of its class.
    pub pairs: Vec<(Id, Id)>,
    /// The term of each class.
    pub terms: HashMap<Id, Id>,
}

/// Lays a graph out.
pub fn flatten(saturated: &Saturated) -> Flat {
    let graph = &saturated.graph;
    // By depth: a choice without cycles, whose number does not grow with sharing.
    let extractor = Extractor::new(graph, AstDepth);
    let mut classes: Vec<Id> = graph.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    let mut function = Function { body: Default::default(), outputs: vec![], ..saturated.source.clone() };
    let mut terms: HashMap<Id, Id> = HashMap::new();
    fn place(
        class: Id,
        graph: &Graph,
        pick: &dyn Fn(Id) -> Op,
        f: &mut Function,
        terms: &mut HashMap<Id, Id>,
    ) -> Id {
        if let Some(&term) = terms.get(&class) {
            return term;
        }
        let node = pick(class).map_children(|c| place(graph.find(c), graph, pick, f, terms));
        let term = f.body.add(node);
        terms.insert(class, term);
        term
    }
    let pick = |class: Id| extractor.find_best_node(class).clone();
    for &class in &classes {
        place(class, graph, &pick, &mut function, &mut terms);
    }
    let mut pairs = vec![];
    for class in classes {
        for node in &graph[class].nodes {
            let node = node.clone().map_children(|c| terms[&graph.find(c)]);
            if node != function.body[terms[&class]] {
                pairs.push((function.body.add(node), terms[&class]));
            }
        }
    }
    Flat { function, pairs, terms }
}

/// Every node of the graph gives the value of its class, on ordinary inputs.
///
/// # Errors
/// The first node that does not.
pub fn check_graph(
    flat: &Flat,
    extents: &[Extent],
    precision: Precision,
    tolerance: f64,
) -> Result<(), Difference> {
    for (seed, &extent) in (1..).zip(extents) {
        let inputs = values::inputs(&flat.function, extent, seed);
        check_call(flat, &inputs, extent, precision, &|found, expected| compare(found, expected, tolerance))?;
    }
    Ok(())
}

/// What judges a value: found, expected.
pub type Judge<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<(), Difference>;

/// Every node of the graph gives the value of its class in one call.
///
/// # Errors
/// The first node that does not.
pub fn check_call(
    flat: &Flat,
    inputs: &[Tensor],
    extent: Extent,
    precision: Precision,
    judge: Judge<'_>,
) -> Result<(), Difference> {
    let fail = |e: lapidary_ir::Error| Difference::new(e.to_string());
    let all = evaluate_all(&flat.function, inputs, extent, precision).map_err(fail)?;
    for &(node, term) in &flat.pairs {
        let same = match (&all[usize::from(node)], &all[usize::from(term)]) {
            (Value::None, Value::None) => Ok(()),
            (Value::Tensor(found), Value::Tensor(expected)) => judge(found, expected),
            (Value::Tuple(found), Value::Tuple(expected)) => {
                found.iter().zip(expected).try_for_each(|(f, e)| judge(f, e))
            }
            (found, expected) => Err(Difference::new(format!("{found:?} is not {expected:?}"))),
        };
        let line = |id| text::statement(&flat.function, id);
        same.map_err(|d| {
            let (node, term, Extent { rows, keys }) = (line(node), line(term), extent);
            d.within(|reason| {
                format!("`{node}` is not `{term}` in a call of {rows} rows and {keys} keys: {reason}")
            })
        })?;
    }
    Ok(())
}

/// The forms of each output's class that the function itself does not have: the outputs' indices and the nodes.
pub fn new_forms(flat: &Flat, saturated: &Saturated) -> Vec<(usize, Id)> {
    let (graph, source) = (&saturated.graph, &saturated.source);
    let mut classes: Vec<Id> = vec![];
    for node in source.body.as_ref() {
        let node = node.clone().map_children(|c| classes[usize::from(c)]);
        let Some(class) = graph.lookup(node) else { return vec![] };
        classes.push(graph.find(class));
    }
    let mut forms = vec![];
    for (at, (_, id)) in source.outputs.iter().enumerate() {
        let term = flat.terms[&classes[usize::from(*id)]];
        let written = source.body[*id].clone().map_children(|c| flat.terms[&classes[usize::from(c)]]);
        let others = flat.pairs.iter().filter(|(_, t)| *t == term).map(|(node, _)| *node);
        let new = [term].into_iter().chain(others).filter(|&id| flat.function.body[id] != written);
        forms.extend(new.map(|id| (at, id)));
    }
    forms
}

/// Every new form of an output gives what the function gives in one call.
///
/// # Errors
/// The first that does not.
pub fn check_outputs(
    flat: &Flat,
    forms: &[(usize, Id)],
    expected: &[Tensor],
    inputs: &[Tensor],
    extent: Extent,
    precision: Precision,
    judge: Judge<'_>,
) -> Result<(), Difference> {
    let all = evaluate_all(&flat.function, inputs, extent, precision)
        .map_err(|e| Difference::new(e.to_string()))?;
    for &(at, id) in forms {
        let Value::Tensor(found) = &all[usize::from(id)] else { continue };
        judge(found, &expected[at]).map_err(|d| {
            let line = text::statement(&flat.function, id);
            let Extent { rows, keys } = extent;
            d.within(|reason| format!("`{line}`: {reason}, in a call of {rows} rows and {keys} keys"))
        })?;
    }
    Ok(())
}
