//! What would change on another machine: the kernels of two extractions of one function, side by side.
//!
//! In: a saturated function, a machine, another, a call's extent. Out: predicted times, and for each kernel its price
//! on both machines and which of the two plans has it.

use std::collections::HashMap;

use egg::Id;
use lapidary_ir::{Extent, Op, text};

use crate::extract::Extracted;
use crate::price::{CostModel, Machine};
use crate::saturate::Saturated;
use crate::{Error, select};

/// A kernel of either plan.
#[derive(Clone, Debug)]
pub struct Changed {
    /// As text of its function.
    pub text: String,
    /// Whether the first plan has it.
    pub before: bool,
    /// Whether the other plan has it.
    pub after: bool,
    /// Its price on the first machine, in nanoseconds.
    pub before_nanoseconds: f64,
    /// Its price on the other, in nanoseconds.
    pub after_nanoseconds: f64,
}

/// Two plans of one function.
#[derive(Clone, Debug)]
pub struct WhatIf {
    /// Predicted time of the first plan on the first machine, in nanoseconds.
    pub before_nanoseconds: f64,
    /// Predicted time of the first plan on the other machine, in nanoseconds.
    pub kept_nanoseconds: f64,
    /// Predicted time of the other plan on the other machine, in nanoseconds.
    pub after_nanoseconds: f64,
    /// The kernels of either, operands first; those that only the other plan has come last.
    pub kernels: Vec<Changed>,
}

/// Compares the plans for two machines.
///
/// # Errors
/// As [`select`].
pub fn what_if(
    saturated: &Saturated,
    machine: Machine,
    other: Machine,
    extent: Extent,
) -> Result<WhatIf, Error> {
    let models = [machine, other].map(|machine| CostModel { machine, extent });
    let (first, second) = (select(saturated, machine, extent)?, select(saturated, other, extent)?);
    let has: [HashMap<(Id, Op), Id>; 2] =
        [&first, &second].map(|e| nodes(saturated, e).into_iter().collect());
    let mut kernels = vec![];
    let mut kept_nanoseconds = 0.0;
    for (plan, extracted) in [&first, &second].into_iter().enumerate() {
        for ((class, op), id) in nodes(saturated, extracted) {
            let price = |model: &CostModel| model.price(&saturated.graph, class, &op);
            if plan == 0 {
                kept_nanoseconds += price(&models[1]);
            }
            let is_kernel = models[0].work(&saturated.graph, class, &op).is_some();
            let key = (class, op.clone());
            if !is_kernel || (plan == 1 && has[0].contains_key(&key)) {
                continue;
            }
            kernels.push(Changed {
                text: text::node(&extracted.function, id),
                before: plan == 0,
                after: has[1].contains_key(&key),
                before_nanoseconds: price(&models[0]),
                after_nanoseconds: price(&models[1]),
            });
        }
    }
    Ok(WhatIf {
        before_nanoseconds: first.nanoseconds,
        kept_nanoseconds,
        after_nanoseconds: second.nanoseconds,
        kernels,
    })
}

/// The nodes of an extraction, each with its class and e-node.
fn nodes(saturated: &Saturated, extracted: &Extracted) -> Vec<((Id, Op), Id)> {
    let graph = &saturated.graph;
    let class = |id: Id| graph.find(extracted.classes[usize::from(id)]);
    let body = extracted.function.body.as_ref().iter().enumerate();
    body.map(|(at, op)| {
        let op = egg::Language::map_children(op.clone(), class);
        ((class(Id::from(at)), op), Id::from(at))
    })
    .collect()
}
