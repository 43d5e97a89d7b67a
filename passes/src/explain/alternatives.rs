//! What else a kernel's value could have been made by, and what that would have cost.
//!
//! In: an extraction, a kernel. Out: for every other e-node of the classes that the kernel makes, the cheapest function that
//! takes it, and the kernels in which that differs from the chosen one.

use std::collections::HashSet;

use egg::Id;
use lapidary_ir::{Op, text};

use super::Explainer;
use super::region::{Region, enode, is_kernel};
use crate::cost::Work;
use crate::extract::{Extracted, extract_with};

/// A kernel and its price.
#[derive(Clone, Debug)]
pub struct Priced {
    /// As text.
    pub text: String,
    /// What it does.
    pub work: Work,
    /// Its predicted time in nanoseconds.
    pub nanoseconds: f64,
}

/// A form that was not chosen.
#[derive(Clone, Debug)]
pub struct Alternative {
    /// Its own node as text.
    pub text: String,
    /// Predicted time of the whole function with it, in nanoseconds.
    pub function_nanoseconds: f64,
    /// By how much that is more than the chosen one's, in nanoseconds.
    pub extra_nanoseconds: f64,
    /// The kernels that it has and the chosen form has not.
    pub added: Vec<Priced>,
    /// The kernels that the chosen form has and it has not.
    pub saved: Vec<Priced>,
}

impl Explainer<'_> {
    pub(super) fn alternatives(&self, extracted: &Extracted, node: Id, most: usize) -> Vec<Alternative> {
        if most == 0 {
            return vec![];
        }
        let saturated = self.saturated;
        let region = Region::new(saturated, extracted, &self.model, node, &Default::default());
        let chosen = self.priced(extracted);
        let mut found: Vec<Alternative> = vec![];
        for id in region.roots.iter().map(|r| r.0).chain([node]).collect::<std::collections::BTreeSet<_>>() {
            let class = extracted.classes[usize::from(id)];
            let own = enode(saturated, extracted, id);
            for other in saturated.graph[class].iter().filter(|n| **n != own) {
                let Some(form) = extract_with(saturated, &self.model, class, other) else { continue };
                let priced = self.priced(&form);
                let at = form.classes.iter().position(|c| *c == class);
                let only = |a: &[(Id, Op, Priced)], b: &[(Id, Op, Priced)]| -> Vec<Priced> {
                    let b: HashSet<(Id, &Op)> = b.iter().map(|(c, n, _)| (*c, n)).collect();
                    a.iter().filter(|(c, n, _)| !b.contains(&(*c, n))).map(|p| p.2.clone()).collect()
                };
                found.push(Alternative {
                    text: at.map_or_else(|| other.to_string(), |at| text::node(&form.function, Id::from(at))),
                    function_nanoseconds: form.nanoseconds,
                    extra_nanoseconds: form.nanoseconds - extracted.nanoseconds,
                    added: only(&priced, &chosen),
                    saved: only(&chosen, &priced),
                });
            }
        }
        found.sort_by(|a, b| a.function_nanoseconds.total_cmp(&b.function_nanoseconds));
        found.dedup_by(|a, b| a.text == b.text);
        found.truncate(most);
        found
    }

    /// The kernels of an extraction: class, e-node, price.
    fn priced(&self, extracted: &Extracted) -> Vec<(Id, Op, Priced)> {
        let (saturated, model) = (self.saturated, &self.model);
        let nodes = (0..extracted.function.body.as_ref().len()).map(Id::from);
        nodes
            .filter(|&id| is_kernel(saturated, extracted, model, id))
            .map(|id| {
                let (class, op) = (extracted.classes[usize::from(id)], enode(saturated, extracted, id));
                let priced = Priced {
                    text: text::node(&extracted.function, id),
                    work: model.work(&saturated.graph, class, &op).unwrap_or_default(),
                    nanoseconds: model.price(&saturated.graph, class, &op),
                };
                (class, op, priced)
            })
            .collect()
    }
}
