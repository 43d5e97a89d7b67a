//! Why a rule did not fire: the matches that its condition refused, or how far its pattern came.
//!
//! In: a saturated function, a rule. Out, as data: how often it fired; every match that a predicate refused, with the
//! values seen; and where none was refused the longest prefixes of the pattern, read left to right, that the graph has,
//! each with the place where it stopped and what is there instead. `lapidary why-not` prints it.

use std::collections::HashMap;

use egg::{ENodeOrVar, Id, Language, PatternAst, Searcher, Var};
use lapidary_ir::{Op, text};

use crate::analysis::Graph;
use crate::rules::{Class, Prepared};
use crate::saturate::Saturated;

/// Prefixes that are reported.
const NEAREST: usize = 3;
/// Attempts at a prefix from one class, after which the longest so far stands.
const MAX_ATTEMPTS: usize = 20_000;

/// What became of a rule.
#[derive(Clone, Debug)]
pub struct WhyNot {
    /// The rule.
    pub rule: String,
    /// Its group.
    pub group: String,
    /// How much it may change a result.
    pub class: Class,
    /// How often it changed the graph.
    pub fired: usize,
    /// Matches of the saturated graph that its condition admits.
    pub admitted: usize,
    /// Matches that it refuses.
    pub refused: Vec<Refused>,
    /// The longest prefixes, longest first; none where a match was refused or admitted, or the rule has no pattern.
    pub nearest: Vec<Near>,
}

/// A match that a predicate refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What matched, a statement of the source where it has one.
    pub at: String,
    /// The left side as spelled.
    pub pattern: String,
    /// What each variable was.
    pub bindings: Vec<(String, String)>,
    /// The predicate.
    pub predicate: String,
    /// The values that it saw.
    pub seen: String,
}

/// A prefix of a left side.
#[derive(Clone, Debug)]
pub struct Near {
    /// Where it begins, a statement of the source where it has one.
    pub at: String,
    /// The left side as spelled.
    pub pattern: String,
    /// Nodes of the pattern that matched.
    pub matched: usize,
    /// Nodes of the pattern.
    pub of: usize,
    /// The part of the pattern that did not match.
    pub expected: String,
    /// The value that it was held against, a statement of the source where it has one.
    pub stopped_at: String,
    /// The forms that the value has.
    pub found: Vec<String>,
    /// What the variables before it were.
    pub bindings: Vec<(String, String)>,
}

/// Answers for one rule. The graph may gain attributes, nothing else.
pub fn why_not(saturated: &mut Saturated, prepared: &Prepared) -> WhyNot {
    let fired = saturated.report.fired.iter().find(|(name, _)| *name == prepared.rule.name);
    let mut answer = WhyNot {
        rule: prepared.rule.name.clone(),
        group: prepared.group.clone(),
        class: prepared.rule.class,
        fired: fired.map_or(0, |(_, n)| *n),
        admitted: 0,
        refused: vec![],
        nearest: vec![],
    };
    for by in &prepared.alternatives {
        for m in by.pattern.search(&saturated.graph) {
            for subst in &m.substs {
                match prepared.judge(&mut saturated.graph, subst, by) {
                    Ok(_) => answer.admitted += 1,
                    Err(refusal) => {
                        let names = Names::new(saturated);
                        let bound = by.pattern.vars().into_iter().filter_map(|v| Some((v, *subst.get(v)?)));
                        answer.refused.push(Refused {
                            at: names.statement(m.eclass),
                            pattern: by.pattern.to_string(),
                            bindings: bound.map(|(v, id)| (v.to_string(), names.value(id))).collect(),
                            predicate: refusal.predicate.to_string(),
                            seen: refusal.seen,
                        });
                    }
                }
            }
        }
        if !saturated.graph.clean {
            saturated.graph.rebuild();
        }
    }
    if answer.admitted == 0 && answer.refused.is_empty() {
        answer.nearest = nearest(saturated, prepared);
    }
    answer
}

/// The longest prefixes of a rule's left sides, one a place.
fn nearest(saturated: &Saturated, prepared: &Prepared) -> Vec<Near> {
    let names = Names::new(saturated);
    let mut ids: Vec<Id> = saturated.graph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    let mut found: Vec<(Id, usize, Best)> = vec![];
    for (at, by) in prepared.alternatives.iter().enumerate() {
        let pattern = &by.pattern.ast;
        for &id in &ids {
            let mut search = Prefix { graph: &saturated.graph, pattern, best: Best::default(), attempts: 0 };
            search.extend(&[(pattern.as_ref().len() - 1, id)], &HashMap::new(), (0, 0));
            if search.best.matched > 0 {
                found.push((id, at, search.best));
            }
        }
    }
    // A stable sort: of equals the first spelling and the first class.
    found.sort_by_key(|(.., best)| std::cmp::Reverse(best.operators));
    let mut places = std::collections::HashSet::new();
    found.retain(|(id, ..)| places.insert(*id));
    found.truncate(NEAREST);
    found
        .into_iter()
        .map(|(id, at, best)| {
            let pattern = &prepared.alternatives[at].pattern;
            let mut bindings: Vec<(String, String)> =
                best.bound.iter().map(|(v, id)| (v.to_string(), names.value(*id))).collect();
            bindings.sort();
            let class = saturated.graph.find(best.stopped.1);
            Near {
                at: names.statement(id),
                pattern: pattern.to_string(),
                matched: best.matched,
                of: preorder(&pattern.ast, pattern.ast.as_ref().len() - 1),
                expected: spell(&pattern.ast, best.stopped.0),
                stopped_at: names.statement(class),
                found: saturated.graph[class].iter().map(|n| names.node(n)).collect(),
                bindings,
            }
        })
        .collect()
}

/// Nodes of a pattern as a tree.
fn preorder(pattern: &PatternAst<Op>, at: usize) -> usize {
    match &pattern.as_ref()[at] {
        ENodeOrVar::Var(_) => 1,
        ENodeOrVar::ENode(op) => {
            1 + op.children().iter().map(|&c| preorder(pattern, usize::from(c))).sum::<usize>()
        }
    }
}

/// A part of a pattern as text.
fn spell(pattern: &PatternAst<Op>, at: usize) -> String {
    match &pattern.as_ref()[at] {
        ENodeOrVar::Var(v) => v.to_string(),
        ENodeOrVar::ENode(op) if op.is_leaf() => op.to_string(),
        ENodeOrVar::ENode(op) => {
            let operands: Vec<String> =
                op.children().iter().map(|&c| spell(pattern, usize::from(c))).collect();
            format!("({op} {})", operands.join(" "))
        }
    }
}

#[derive(Clone, Default)]
struct Best {
    /// Nodes that matched, and of these the operators and attributes: any value matches a variable.
    matched: usize,
    operators: usize,
    /// The pattern's node and the class where it stopped.
    stopped: (usize, Id),
    bound: HashMap<Var, Id>,
}

struct Prefix<'a> {
    graph: &'a Graph,
    pattern: &'a PatternAst<Op>,
    best: Best,
    attempts: usize,
}

impl Prefix<'_> {
    /// Matches what is open, its last first; keeps the longest prefix that fails.
    fn extend(
        &mut self,
        open: &[(usize, Id)],
        bound: &HashMap<Var, Id>,
        (matched, operators): (usize, usize),
    ) {
        self.attempts += 1;
        let Some((&(at, class), rest)) = open.split_last() else { return };
        if self.attempts > MAX_ATTEMPTS {
            return;
        }
        let class = self.graph.find(class);
        match &self.pattern.as_ref()[at] {
            ENodeOrVar::Var(var) => {
                let mut bound = bound.clone();
                if *bound.entry(*var).or_insert(class) == class {
                    return self.extend(rest, &bound, (matched + 1, operators));
                }
            }
            ENodeOrVar::ENode(op) => {
                let mut any = false;
                for node in self.graph[class].iter().filter(|n| op.matches(n)) {
                    any = true;
                    let children = op.children().iter().zip(node.children()).rev();
                    let mut open = rest.to_vec();
                    open.extend(children.map(|(&p, &c)| (usize::from(p), c)));
                    self.extend(&open, bound, (matched + 1, operators + 1));
                }
                if any {
                    return;
                }
            }
        }
        if (operators, matched) > (self.best.operators, self.best.matched) {
            self.best = Best { matched, operators, stopped: (at, class), bound: bound.clone() };
        }
    }
}

/// Names of values for people: the source's, where they have one.
struct Names<'a> {
    saturated: &'a Saturated,
    sources: HashMap<Id, Id>,
}

impl<'a> Names<'a> {
    fn new(saturated: &'a Saturated) -> Names<'a> {
        let mut sources = HashMap::new();
        for (at, class) in saturated.classes.iter().enumerate() {
            sources.entry(saturated.graph.find(*class)).or_insert(Id::from(at));
        }
        Names { saturated, sources }
    }

    /// `v62 = (mul v61 0.11785113)`, or a form of the value.
    fn statement(&self, class: Id) -> String {
        match self.sources.get(&self.saturated.graph.find(class)) {
            Some(&id) => text::statement(&self.saturated.source, id),
            None => self.value(class),
        }
    }

    /// `v62`, an attribute, or a form of the value.
    fn value(&self, class: Id) -> String {
        self.value_at(class, 3)
    }

    fn value_at(&self, class: Id, depth: usize) -> String {
        let class = self.saturated.graph.find(class);
        let data = &self.saturated.graph[class];
        if let Some(leaf) = data.data.leaf.as_ref().filter(|l| l.is_leaf()) {
            return leaf.to_string();
        }
        if let Some(&id) = self.sources.get(&class) {
            if let Op::Input(input) = self.saturated.source.body[id] {
                return format!("%{}", self.saturated.source.inputs[input.0 as usize].name);
            }
            let statement = text::statement(&self.saturated.source, id);
            return statement.split(" = ").next().unwrap_or_default().to_string();
        }
        match data.nodes.first() {
            Some(node) if depth > 0 => self.node_at(node, depth - 1),
            _ => "..".into(),
        }
    }

    fn node(&self, node: &Op) -> String {
        self.node_at(node, 2)
    }

    fn node_at(&self, node: &Op, depth: usize) -> String {
        if let Op::Input(input) = node {
            return format!("%{}", self.saturated.source.inputs[input.0 as usize].name);
        }
        if node.is_leaf() {
            return node.to_string();
        }
        let operands: Vec<String> = node.children().iter().map(|&c| self.value_at(c, depth)).collect();
        format!("({node} {})", operands.join(" "))
    }
}
