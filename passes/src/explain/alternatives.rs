//! What else a kernel's value could have been made by, and what that would have cost.
//!
//! In: an extraction, a kernel. Out: for every other e-node of the classes that the kernel makes, the cheapest function
//! that takes it, and the kernels in which that differs from the chosen one.

use std::collections::HashMap;

use egg::Id;
use lapidary_ir::{Op, text};

use super::Explainer;
use super::region::{Region, enode};
use crate::extract::{Extracted, extract_with};
use crate::price::Work;

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

/// Kernels by class and e-node.
type Launched = HashMap<(Id, Op), Id>;

impl Explainer<'_> {
    pub(super) fn alternatives(&self, extracted: &Extracted, node: Id, most: usize) -> Vec<Alternative> {
        if most == 0 {
            return vec![];
        }
        let saturated = self.saturated;
        let region = Region::new(saturated, extracted, &self.model, node, &Default::default());
        let chosen = self.launched(extracted);
        let mut found: Vec<Alternative> = vec![];
        for id in region.roots.iter().map(|r| r.0).chain([node]).collect::<std::collections::BTreeSet<_>>() {
            let class = extracted.classes[usize::from(id)];
            let own = enode(saturated, extracted, id);
            for other in saturated.graph[class].iter().filter(|n| **n != own) {
                let Some(form) = extract_with(saturated, &self.model, class, other) else { continue };
                let launched = self.launched(&form);
                let at = form.classes.iter().position(|c| *c == class);
                found.push(Alternative {
                    text: at.map_or_else(|| other.to_string(), |at| text::node(&form.function, Id::from(at))),
                    function_nanoseconds: form.nanoseconds,
                    extra_nanoseconds: form.nanoseconds - extracted.nanoseconds,
                    added: self.priced(&form, &launched, &chosen),
                    saved: self.priced(extracted, &chosen, &launched),
                });
            }
        }
        found.sort_by(|a, b| a.function_nanoseconds.total_cmp(&b.function_nanoseconds));
        found.dedup_by(|a, b| a.text == b.text);
        found.truncate(most);
        found
    }

    /// The kernels of an extraction, each by its class and e-node.
    fn launched(&self, extracted: &Extracted) -> Launched {
        let kernels = self.kernels(extracted).into_iter();
        kernels
            .map(|id| ((extracted.classes[usize::from(id)], enode(self.saturated, extracted, id)), id))
            .collect()
    }

    /// The kernels of an extraction that another has not, in order. A text is made only of these, for that takes as
    /// long as the function is large.
    fn priced(&self, extracted: &Extracted, own: &Launched, other: &Launched) -> Vec<Priced> {
        let mut only: Vec<_> = own.iter().filter(|(key, _)| !other.contains_key(*key)).collect();
        only.sort_unstable_by_key(|(_, id)| **id);
        let graph = &self.saturated.graph;
        only.into_iter()
            .map(|((class, op), &id)| Priced {
                text: text::node(&extracted.function, id),
                work: self.model.work(graph, *class, op).unwrap_or_default(),
                nanoseconds: self.model.price(graph, *class, op),
            })
            .collect()
    }
}
