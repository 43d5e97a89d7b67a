//! Rewrite rules as data: one entry each, in files of the rule language by what they are about.
//!
//! A rule has a name, a class, its algebra in words, left sides, a right side, and a condition: a list of predicates
//! over e-class data ([`predicate`]). Left sides match up to the commutativity of `add`, `mul` and `and`: the pattern
//! is expanded, the graph never is. The law: directional, never worse under the cost model, no blanket commutativity or
//! associativity. The built-in rules are the `.rules` files of this folder; a user's are read by the same parser
//! ([`text`]) and join the group `user`.

mod fuse;
mod judge;
mod native;
pub mod predicate;
mod term;
pub mod text;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use egg::{Applier, Id, Pattern, Subst, Symbol, Var};
use lapidary_ir::Op;

use crate::analysis::Graph;
use judge::Match;
pub use native::{NATIVE, Native};
pub use predicate::Predicate;
pub use term::{Node, Term};
pub use text::RuleError;

/// How much a rule may change a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Bit for bit the same value wherever it is finite.
    Exact,
    /// The same real number by another order or association of roundings.
    Reassociating,
    /// Another real number, within this relative bound.
    Approximate(f32),
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Class::Exact => f.write_str("exact"),
            Class::Reassociating => f.write_str("reassociating"),
            Class::Approximate(bound) => write!(f, "approximate({bound:e})"),
        }
    }
}

/// How a rule finds what it rewrites.
#[derive(Clone, Debug, PartialEq)]
pub enum Search {
    /// Any of these patterns, each up to commutativity, becomes the right side.
    Patterns {
        /// Left sides.
        lhs: Vec<Term>,
        /// Right side.
        rhs: Term,
        /// Holds for a match to be rewritten, taken in order.
        when: Vec<Predicate>,
    },
    /// A search over the whole graph, for what one pattern cannot say.
    Native(Native),
}

/// A rewrite rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Name, unique.
    pub name: String,
    /// How much it may change a result.
    pub class: Class,
    /// Its algebra and what it is for, one line.
    pub algebra: String,
    /// What it matches and makes.
    pub search: Search,
}

/// A group of rules about one thing, what `--passes` names.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name, unique.
    pub name: String,
    /// Its rules.
    pub rules: Vec<Arc<Rule>>,
}

/// The built-in groups' sources, in the order in which rules are tried. Add a group here, a rule in its file.
const SOURCES: &[(&str, &str)] = &[
    ("algebra", include_str!("algebra.rules")),
    ("norm", include_str!("norm.rules")),
    ("linear", include_str!("linear.rules")),
    ("attention", include_str!("attention.rules")),
    ("head", include_str!("head.rules")),
    ("fuse", include_str!("fuse.rules")),
];

/// The group of rules that a user loads.
pub const USER: &str = "user";

/// Rules by groups, their patterns parsed.
#[derive(Debug)]
pub struct RuleSet {
    groups: Vec<Group>,
    prepared: Vec<Prepared>,
    /// Where a file's rules stand, by name.
    places: HashMap<String, String>,
}

impl RuleSet {
    fn new(groups: Vec<Group>) -> RuleSet {
        let prepared = groups
            .iter()
            .flat_map(|g| g.rules.iter().map(|r| Prepared::new(&g.name, Arc::clone(r))))
            .collect();
        RuleSet { groups, prepared, places: HashMap::new() }
    }

    /// The built-in rules.
    pub fn builtin() -> &'static Arc<RuleSet> {
        static BUILTIN: OnceLock<Arc<RuleSet>> = OnceLock::new();
        BUILTIN.get_or_init(|| {
            let group = |&(name, source): &(&str, &str)| {
                let rules = text::parse(source).unwrap_or_else(|e| unreachable!("{name}.rules: {e}"));
                Group { name: name.into(), rules: rules.into_iter().map(Arc::new).collect() }
            };
            Arc::new(RuleSet::new(SOURCES.iter().map(group).collect()))
        })
    }

    /// The built-in rules and a user's, in the group [`USER`]. A rule of a built-in's name takes its place.
    pub fn with_user(rules: Vec<Rule>) -> RuleSet {
        let mut groups = RuleSet::builtin().groups.clone();
        for group in &mut groups {
            group.rules.retain(|r| rules.iter().all(|u| u.name != r.name));
        }
        groups.push(Group { name: USER.into(), rules: rules.into_iter().map(Arc::new).collect() });
        RuleSet::new(groups)
    }

    /// The same, of a file: what goes wrong with a rule names the file and the line that the rule begins in.
    pub fn with_file(file: &str, rules: Vec<(Rule, usize)>) -> RuleSet {
        let places = rules.iter().map(|(r, line)| (r.name.clone(), format!("{file}, line {line}"))).collect();
        let rules = rules.into_iter().map(|(rule, _)| rule).collect();
        RuleSet { places, ..RuleSet::with_user(rules) }
    }

    /// The file and the line of a rule, if it came from a file.
    pub fn place(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(String::as_str)
    }

    /// Every group, in the order in which rules are tried.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Every rule, in order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.prepared.iter().map(|p| &*p.rule)
    }

    /// The rule of this name.
    pub fn find(&self, name: &str) -> Option<&Rule> {
        self.rules().find(|r| r.name == name)
    }

    /// Every rule with its patterns, in order.
    pub fn prepared(&self) -> &[Prepared] {
        &self.prepared
    }
}

/// Every built-in rule, in order.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    RuleSet::builtin().rules()
}

/// The built-in groups.
pub fn groups() -> &'static [Group] {
    RuleSet::builtin().groups()
}

/// The built-in rule of this name.
pub fn find(name: &str) -> Option<&'static Rule> {
    RuleSet::builtin().find(name)
}

/// A rule, its patterns parsed.
#[derive(Debug)]
pub struct Prepared {
    /// The rule.
    pub rule: Arc<Rule>,
    /// Its group's name.
    pub group: String,
    /// Every spelling of every left side; none of a native rule.
    pub alternatives: Vec<Alternative>,
    /// The right side; none of a native rule.
    pub rhs: Option<Pattern<Op>>,
}

/// A spelling of a left side.
#[derive(Debug)]
pub struct Alternative {
    /// Which left side of the rule it spells.
    pub lhs: usize,
    /// The pattern.
    pub pattern: Pattern<Op>,
    /// The predicates that this left side is subject to, by index: those whose variables it has.
    pub when: Vec<usize>,
}

/// Why a match was not rewritten.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The predicate that failed.
    pub predicate: Predicate,
    /// Its index in the rule's condition.
    pub index: usize,
    /// The values that it saw.
    pub seen: String,
}

impl Prepared {
    fn new(group: &str, rule: Arc<Rule>) -> Prepared {
        let (alternatives, rhs) = match &rule.search {
            Search::Patterns { lhs, rhs, when } => {
                let alternatives = lhs.iter().enumerate().flat_map(|(at, side)| {
                    let subject = applicable(&side.vars(), when).when;
                    side.commuted().into_iter().map(move |spelling| Alternative {
                        lhs: at,
                        pattern: spelling.pattern(),
                        when: subject.clone(),
                    })
                });
                (alternatives.collect(), Some(rhs.pattern()))
            }
            Search::Native(_) => (vec![], None),
        };
        Prepared { rule, group: group.into(), alternatives, rhs }
    }

    fn condition(&self) -> &[Predicate] {
        match &self.rule.search {
            Search::Patterns { when, .. } => when,
            Search::Native(_) => &[],
        }
    }

    /// Applies the rule to one match of an alternative; whether the graph changed.
    pub(crate) fn apply(&self, graph: &mut Graph, class: Id, subst: &Subst, by: &Alternative) -> bool {
        let Some(rhs) = &self.rhs else { unreachable!("only pattern rules have matches") };
        let when = self.condition();
        let subst = if by.when.is_empty() {
            subst.clone()
        } else {
            let mut judged = Match::new(graph, subst);
            if judged.admit(by.when.iter().map(|&at| (at, &when[at]))).is_err() {
                return false;
            }
            judged.into_subst()
        };
        let name = Symbol::from(&self.rule.name);
        !rhs.apply_one(graph, class, &subst, Some(&by.pattern.ast), name).is_empty()
    }

    /// Judges one match of an alternative: its variables, those that predicates bound included, or the predicate that
    /// failed. The graph may gain attributes, nothing else.
    ///
    /// # Errors
    /// The first predicate that fails.
    pub fn judge(&self, graph: &mut Graph, subst: &Subst, by: &Alternative) -> Result<Subst, Refusal> {
        let when = self.condition();
        let mut judged = Match::new(graph, subst);
        match judged.admit(by.when.iter().map(|&at| (at, &when[at]))) {
            Ok(()) => Ok(judged.into_subst()),
            Err(index) => {
                let predicate = when[index].clone();
                Err(Refusal { seen: judged.seen(&predicate), predicate, index })
            }
        }
    }
}

/// Which predicates a left side with these variables is subject to, and what is bound once they hold.
struct Applicable {
    when: Vec<usize>,
    vars: Vec<Var>,
}

fn applicable(vars: &[Var], when: &[Predicate]) -> Applicable {
    let (mut vars, mut names) = (vars.to_vec(), Vec::<String>::new());
    let mut subject = Vec::new();
    for (at, predicate) in when.iter().enumerate() {
        let terms = predicate.terms();
        let bound =
            terms.vars.iter().all(|v| vars.contains(v)) && terms.names.iter().all(|n| names.contains(n));
        if bound {
            subject.push(at);
            vars.extend(terms.bound_vars);
            names.extend(terms.bound_names);
        }
    }
    Applicable { when: subject, vars }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rules_print_as_they_parse() {
        let mut names = std::collections::HashSet::new();
        for rule in all() {
            assert!(names.insert(&rule.name), "{} twice", rule.name);
            let printed = rule.to_string();
            let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            assert_eq!(&parsed[..], std::slice::from_ref(rule), "{printed}");
            assert_eq!(parsed[0].to_string(), printed);
        }
        assert_eq!(names.len(), 43);
    }
}
