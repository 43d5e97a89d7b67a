//! Equality saturation of one function.
//!
//! In: a function, the rules to use. Out: an e-graph that holds every form that the rules reach, and a report. Limits
//! are counts (iterations, nodes), never time, so the same input always gives the same graph; meeting one is reported,
//! not hidden. Rules are applied in the order of their table, so a merge of unlike types names the rule that made it.

use std::time::{Duration, Instant};

use egg::{Id, Language, Searcher};
use lapidary_ir::Function;

use crate::Error;
use crate::analysis::{Facts, Graph};
use crate::rules::{Rule, RuleSet, Search};

/// Counts at which saturation gives up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rounds of searching and applying every rule.
    pub iterations: usize,
    /// E-nodes.
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { iterations: 32, nodes: 20_000 }
    }
}

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// No rule had anything to add.
    Saturated,
    /// The iteration limit: some form may be missing.
    IterationLimit,
    /// The node limit: some form may be missing.
    NodeLimit,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StopReason::Saturated => "saturated",
            StopReason::IterationLimit => "iteration limit",
            StopReason::NodeLimit => "node limit",
        })
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Report {
    /// The function's name.
    pub function: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Rounds.
    pub iterations: usize,
    /// E-nodes at the end.
    pub nodes: usize,
    /// E-classes at the end.
    pub classes: usize,
    /// Wall time.
    pub time: Duration,
    /// How often each rule changed the graph, in the rules' order; only those that did.
    pub fired: Vec<(String, usize)>,
    /// The same round by round: how the graph grew. The last round changes nothing unless a limit was met.
    pub rounds: Vec<Round>,
}

/// One round of searching and applying every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// E-nodes after it.
    pub nodes: usize,
    /// E-classes after it.
    pub classes: usize,
    /// How often each rule changed the graph in it, in the rules' order; only those that did.
    pub fired: Vec<(String, usize)>,
}

impl Report {
    /// A line to show the user when a limit was met.
    pub fn warning(&self) -> Option<String> {
        match self.stop {
            StopReason::Saturated => None,
            StopReason::IterationLimit | StopReason::NodeLimit => Some(format!(
                "fusion of `{}` met its {} ({} nodes after {} iterations): some fusions may be missing",
                self.function, self.stop, self.nodes, self.iterations
            )),
        }
    }
}

/// A saturated function.
pub struct Saturated {
    /// Every form found.
    pub graph: Graph,
    /// The function's outputs: names and classes.
    pub outputs: Vec<(String, Id)>,
    /// The class of each node of the function that went in.
    pub classes: Vec<Id>,
    /// The function that went in.
    pub source: Function,
    /// What happened.
    pub report: Report,
}

/// Saturates a function with those of the rules that `enabled` admits.
///
/// # Errors
/// [`Error::Unsound`] if a rule builds an ill-typed node or merges unlike types: a bug of the rule, named.
pub fn saturate(
    function: &Function,
    rules: &RuleSet,
    enabled: &dyn Fn(&Rule) -> bool,
    limits: Limits,
) -> Result<Saturated, Error> {
    let start = Instant::now();
    let mut graph = Graph::new(Facts { inputs: function.inputs.clone(), ..Facts::default() });
    let mut classes: Vec<Id> = Vec::with_capacity(function.body.as_ref().len());
    for node in function.body.as_ref() {
        let node = node.clone().map_children(|c| classes[usize::from(c)]);
        let class = graph.add(node.clone());
        graph.analysis.uses.extend(node.children().iter().map(|&c| (c, Some(class))));
        classes.push(class);
    }
    graph.analysis.uses.extend(function.outputs.iter().map(|(_, id)| (classes[usize::from(*id)], None)));
    graph.rebuild();
    check(&graph, function, "the graph itself", rules)?;

    let prepared: Vec<_> = rules.prepared().iter().filter(|p| enabled(&p.rule)).collect();
    let mut fired = vec![0usize; prepared.len()];
    let named = |counts: &[usize]| -> Vec<(String, usize)> {
        let changed = prepared.iter().zip(counts).filter(|(_, n)| **n > 0);
        changed.map(|(p, n)| (p.rule.name.clone(), *n)).collect()
    };
    let is_late = |rule: &Rule| matches!(rule.search, Search::Native(native) if native.late);
    let mut order: Vec<usize> = (0..prepared.len()).collect();
    order.sort_by_key(|&at| is_late(&prepared[at].rule));
    let mut late = false;
    let mut rounds = Vec::new();
    let mut iterations = 0;
    let stop = loop {
        if iterations == limits.iterations {
            break StopReason::IterationLimit;
        }
        iterations += 1;
        let found: Vec<Vec<_>> = prepared
            .iter()
            .map(|p| p.alternatives.iter().map(|a| a.pattern.search(&graph)).collect())
            .collect();
        let before_round = fired.clone();
        let mut met_limit = false;
        for &at in &order {
            let (rule, found) = (prepared[at], &found[at]);
            // Late rules have their first turn once the others are through.
            late |= is_late(&rule.rule) && fired == before_round;
            if is_late(&rule.rule) && !late {
                break;
            }
            for (by, matches) in rule.alternatives.iter().zip(found) {
                for m in matches {
                    for subst in &m.substs {
                        fired[at] += usize::from(rule.apply(&mut graph, m.eclass, subst, by));
                    }
                }
            }
            if let Search::Native(native) = &rule.rule.search {
                for (a, b) in (native.search)(&mut graph) {
                    fired[at] += usize::from(graph.union_trusted(a, b, rule.rule.name.as_str()));
                }
            }
            // A condition may have added an attribute even where nothing fired.
            if !graph.clean {
                graph.rebuild();
            }
            check(&graph, function, &rule.rule.name, rules)?;
            met_limit = graph.total_number_of_nodes() > limits.nodes;
            if met_limit {
                break;
            }
        }
        let in_round: Vec<usize> =
            fired.iter().zip(&before_round).map(|(all, before)| all - before).collect();
        let fired = named(&in_round);
        let changed = !fired.is_empty();
        rounds.push(Round {
            nodes: graph.total_number_of_nodes(),
            classes: graph.number_of_classes(),
            fired,
        });
        if met_limit {
            break StopReason::NodeLimit;
        }
        if !changed {
            break StopReason::Saturated;
        }
    };
    let report = Report {
        function: function.name.clone(),
        stop,
        iterations,
        nodes: graph.total_number_of_nodes(),
        classes: graph.number_of_classes(),
        time: start.elapsed(),
        fired: named(&fired),
        rounds,
    };
    let outputs = function
        .outputs
        .iter()
        .map(|(name, id)| (name.clone(), graph.find(classes[usize::from(*id)])))
        .collect();
    for class in &mut classes {
        *class = graph.find(*class);
    }
    Ok(Saturated { graph, outputs, classes, source: function.clone(), report })
}

fn check(graph: &Graph, function: &Function, rule: &str, rules: &RuleSet) -> Result<(), Error> {
    match &graph.analysis.error {
        None => Ok(()),
        Some(reason) => Err(Error::Unsound {
            function: function.name.clone(),
            rule: rule.into(),
            place: rules.place(rule).map(String::from),
            reason: reason.clone(),
        }),
    }
}
