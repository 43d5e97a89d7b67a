//! What fusion did, as pattern rules: the operators that a program stands for become its node.

use egg::{Id, Language, Subst, Var};
use lapidary_ir::{Op, Program};

use super::Mode;
use crate::analysis::Graph;
use crate::rules::Term;
use crate::rules::native::Instance;

/// Every program of a mode in a graph: the operators one by one, and the node that they became.
pub(super) fn instances(graph: &Graph, mode: Mode) -> Vec<Instance> {
    let mut found = vec![];
    let mut classes: Vec<Id> = graph.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    for node in classes.iter().flat_map(|&class| graph[class].iter()) {
        if let Op::Map(operands) = node {
            found.extend(written_out(graph, operands, None, mode));
        } else if let Op::Linear([x, weights, epilogue]) = node
            && let Some(Op::Then(operands)) = &graph[*epilogue].data.leaf
            && mode == Mode::Epilogues
        {
            found.extend(written_out(graph, operands, Some((*x, *weights)), mode));
        }
    }
    found
}

fn written_out(graph: &Graph, operands: &[Id], linear: Option<(Id, Id)>, mode: Mode) -> Option<Instance> {
    let Some(Op::Program(program)) = &graph[operands[0]].data.leaf else { return None };
    let reduces = program.nodes().iter().any(Program::reduces);
    if linear.is_none() && (mode == Mode::Rows) != reduces {
        return None;
    }
    let var = |name: &str| -> Var { name.parse().unwrap_or_else(|_| unreachable!("{name} is a variable")) };
    let mut subst = Subst::default();
    let mut bind = |name: String, class: Id| {
        subst.insert(var(&name), class);
        Term::var(var(&name))
    };
    let none = Id::from(0);
    let mut inputs: Vec<Term> = vec![];
    let mut sums = None;
    if let Some((x, weights)) = linear {
        let x = bind("?x".into(), x);
        let of_list = |n: &Op| if let Op::Weights(ws) = n { Some(ws.clone()) } else { None };
        let list = graph[weights].nodes.iter().find_map(of_list)?;
        let ws: Vec<Term> = list.iter().enumerate().map(|(i, &w)| bind(format!("?w{i}"), w)).collect();
        let of = |list: &[Term], epilogue: Term| {
            let weights = Term::new(&Op::Weights(vec![none; list.len()].into()), list);
            Term::new(&Op::Linear([none; 3]), &[x.clone(), weights, epilogue])
        };
        let store = Term::new(&Op::Store, &[]);
        inputs.extend(ws.iter().map(|w| of(std::slice::from_ref(w), store.clone())));
        sums = Some((ws.clone(), x.clone()));
    }
    let rest: Vec<Term> =
        operands[1..].iter().enumerate().map(|(i, &operand)| bind(format!("?a{i}"), operand)).collect();
    inputs.extend(rest.iter().cloned());
    let mut terms: Vec<Term> = vec![];
    for op in program.nodes() {
        terms.push(if let Op::Input(id) = op {
            inputs.get(id.0 as usize)?.clone()
        } else {
            let operands: Vec<Term> = op.children().iter().map(|&c| terms[usize::from(c)].clone()).collect();
            Term::new(op, &operands)
        });
    }
    let mut list = vec![Term::new(&Op::Program(program.clone()), &[])];
    list.extend(rest);
    let many = vec![none; list.len()].into();
    let rhs = match sums {
        None => Term::new(&Op::Map(many), &list),
        Some((ws, x)) => {
            let then = Term::new(&Op::Then(many), &list);
            let weights = Term::new(&Op::Weights(vec![none; ws.len()].into()), &ws);
            Term::new(&Op::Linear([none; 3]), &[x, weights, then])
        }
    };
    Some(Instance { lhs: terms.pop()?, rhs, subst })
}
