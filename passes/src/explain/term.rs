//! A term under rewriting: a DAG of cells, each tagged with its e-class.
//!
//! A rewrite overwrites a cell in place, and with it every equal cell, so it stands for the replacement of every
//! occurrence of one subterm. Two cells may be of one class and hold different forms.

use std::collections::{BTreeSet, HashMap, HashSet};

use egg::{Id, Language};
use lapidary_ir::{Builder, Function, Input, InputId, Op, text};

/// A node of the term.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    /// Its class, canonical.
    pub(super) class: Id,
    /// The e-node: its children are classes.
    pub(super) node: Op,
    /// The operands' cells.
    pub(super) operands: Vec<usize>,
}

/// A term with several roots.
#[derive(Clone, Debug, Default)]
pub(super) struct Term {
    /// Every cell ever made; those under the roots are the term.
    pub(super) cells: Vec<Cell>,
    /// Names of results and their cells.
    pub(super) roots: Vec<(String, usize)>,
}

impl Term {
    /// Adds a cell.
    pub(super) fn add(&mut self, class: Id, node: Op, operands: Vec<usize>) -> usize {
        self.cells.push(Cell { class, node, operands });
        self.cells.len() - 1
    }

    /// Whether two cells hold the same term.
    pub(super) fn same(&self, a: usize, b: usize) -> bool {
        self.same_but(a, b, &mut HashSet::new())
    }

    fn same_but(&self, a: usize, b: usize, seen: &mut HashSet<(usize, usize)>) -> bool {
        if a == b || !seen.insert((a, b)) {
            return true;
        }
        let (x, y) = (&self.cells[a], &self.cells[b]);
        x.node == y.node && x.operands.iter().zip(&y.operands).all(|(&i, &j)| self.same_but(i, j, seen))
    }

    /// Overwrites a cell and its equals.
    pub(super) fn overwrite(&mut self, at: usize, node: Op, operands: Vec<usize>) {
        let equal: Vec<usize> = (0..self.cells.len()).filter(|&c| self.same(c, at)).collect();
        for cell in equal {
            self.cells[cell].node = node.clone();
            self.cells[cell].operands = operands.clone();
        }
    }

    /// The cells under the roots, by index.
    fn live(&self) -> Vec<usize> {
        let mut seen = vec![false; self.cells.len()];
        let mut open: Vec<usize> = self.roots.iter().map(|r| r.1).collect();
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut seen[at], true) {
                open.extend(&self.cells[at].operands);
            }
        }
        (0..seen.len()).filter(|&at| seen[at]).collect()
    }

    /// A cell of this class, if the term has one.
    pub(super) fn find(&self, class: Id) -> Option<usize> {
        self.live().into_iter().find(|&at| self.cells[at].class == class)
    }

    /// The inputs that the term reads, by index.
    pub(super) fn inputs(&self) -> Vec<usize> {
        let input =
            |at: usize| if let Op::Input(id) = self.cells[at].node { Some(id.0 as usize) } else { None };
        let found: BTreeSet<usize> = self.live().into_iter().filter_map(input).collect();
        found.into_iter().collect()
    }

    /// The term as a function of these of the inputs, and the nodes of its cells.
    pub(super) fn function(&self, name: &str, inputs: &[Input], used: &[usize]) -> (Function, Placement) {
        let mut builder = Builder::new(name);
        let mut placement = Placement::default();
        for &at in used {
            let input = &inputs[at];
            let id = builder.input(&input.name, input.kind, input.ty.dtype, &input.ty.shape);
            placement.inputs.insert(InputId(at as u32), id);
        }
        for (name, root) in &self.roots {
            let id = self.build(*root, &mut builder, &mut placement);
            builder.output(name, id);
        }
        let built = builder.finish();
        // Numbered as the text is, so that what is printed parses back node for node.
        let Ok(parsed) = text::parse_module(&built.to_string()) else { return (built, placement) };
        let Some(function) = parsed.functions.into_iter().next() else { return (built, placement) };
        let mut moved = HashMap::new();
        for ((_, from), (_, to)) in built.outputs.iter().zip(&function.outputs) {
            pair(&built, *from, &function, *to, &mut moved);
        }
        placement.cells.retain(|_, id| moved.get(id).map(|to| *id = *to).is_some());
        (function, placement)
    }

    fn build(&self, at: usize, builder: &mut Builder, placement: &mut Placement) -> Id {
        if let Some(&id) = placement.cells.get(&at) {
            return id;
        }
        let cell = &self.cells[at];
        let id = if let Op::Input(id) = &cell.node {
            placement.inputs[id]
        } else {
            let ids: Vec<Id> = cell.operands.iter().map(|&o| self.build(o, builder, placement)).collect();
            let mut ids = ids.into_iter();
            builder.add(cell.node.clone().map_children(|c| ids.next().unwrap_or(c)))
        };
        placement.cells.insert(at, id);
        id
    }
}

/// Pairs the nodes of two functions that are the same term.
fn pair(a: &Function, from: Id, b: &Function, to: Id, pairs: &mut HashMap<Id, Id>) {
    if pairs.insert(from, to).is_none() {
        for (&x, &y) in a.body[from].children().iter().zip(b.body[to].children()) {
            pair(a, x, b, y, pairs);
        }
    }
}

/// Where a term's cells are in its function.
#[derive(Default)]
pub(super) struct Placement {
    inputs: HashMap<InputId, Id>,
    /// The node of each cell.
    pub(super) cells: HashMap<usize, Id>,
}
