//! What the page shows of a function, as JSON: `page/main.js` reads exactly these fields.
//!
//! In: a compiled function and its saturated e-graph. Out: the source graph, saturation round by round, and for each
//! row regime the extracted graph, kernels with their work and prices, and the memory plan. Nodes are rows of arrays,
//! listings indices of one table, for the page is to stay small.

use std::collections::HashMap;

use lapidary_codegen::compile::{FunctionReport, Lowered};
use lapidary_codegen::price::work::work;
use lapidary_codegen::view::{Base, Capacity, View};
use lapidary_ir::{Extent, Function, Id, InputKind, Op, text};
use lapidary_passes::price::Work;
use lapidary_passes::{CostModel, Machine, Saturated};
use serde_json::{Value, json};

use super::cover::{Cover, is_computed};
use crate::opt;

/// Texts by index, equal ones once.
#[derive(Default)]
pub(crate) struct Listings {
    /// The texts.
    pub(crate) texts: Vec<String>,
    known: HashMap<String, usize>,
}

impl Listings {
    fn add(&mut self, text: &str) -> usize {
        if let Some(&at) = self.known.get(text) {
            return at;
        }
        self.texts.push(text.to_string());
        self.known.insert(text.to_string(), self.texts.len() - 1);
        self.texts.len() - 1
    }
}

/// A function in every row regime. `machine` is what times are predicted for, `extent` what prices were taken for, by
/// the regime's rows; `explained` are each regime's proofs and forms not chosen, by group.
pub(crate) fn function(
    report: &FunctionReport,
    saturated: &Saturated,
    machine: Machine,
    extent: &dyn Fn(usize) -> Extent,
    listings: &mut Listings,
    explained: Vec<(Vec<Value>, Vec<Value>)>,
) -> Value {
    let s = &report.saturation;
    let rounds: Vec<Value> = s
        .rounds
        .iter()
        .map(|r| json!({ "nodes": r.nodes, "classes": r.classes, "fired": r.fired }))
        .collect();
    let variants: Vec<Value> = report
        .variants
        .iter()
        .zip(explained)
        .map(|(lowered, (proofs, alternatives))| {
            let mut variant = variant(report, lowered, saturated, machine, extent(lowered.rows), listings);
            variant["proofs"] = json!(proofs);
            variant["alternatives"] = json!(alternatives);
            variant
        })
        .collect();
    json!({
        "name": report.source.name,
        "source": graph(&report.source),
        "stop": s.stop.to_string(),
        "nodes": s.nodes,
        "classes": s.classes,
        "us": s.time.as_micros() as u64,
        "fired": s.fired,
        "rounds": rounds,
        "variants": variants,
    })
}

/// A graph as rows `[id, operator, operands, attributes, type, text]`, attributes folded into their users; its outputs.
pub(crate) fn graph(function: &Function) -> Value {
    let types = function.types().unwrap_or_default();
    let mut nodes = vec![];
    for (at, op) in function.body.as_ref().iter().enumerate() {
        let id = Id::from(at);
        let ty = types.get(at).map_or_else(String::new, ToString::to_string);
        match op {
            Op::Input(input) => {
                let Some(input) = function.inputs.get(input.0 as usize) else { continue };
                let kind = match input.kind {
                    InputKind::Rows => "rows",
                    InputKind::Weight => "weight",
                    InputKind::Cache { .. } => "cache",
                };
                nodes.push(json!([at, kind, [], "", ty, input.name]));
            }
            Op::Weights(_) => {}
            op if is_computed(op) => {
                let mut operands = vec![];
                let mut attributes = vec![];
                for &o in egg::Language::children(op) {
                    match &function.body[o] {
                        Op::Weights(list) => operands.extend(list.iter().map(|&w| usize::from(w))),
                        Op::Input(_) => operands.push(usize::from(o)),
                        other if is_computed(other) => operands.push(usize::from(o)),
                        _ => attributes.push(text::node(function, o)),
                    }
                }
                nodes.push(json!([
                    at,
                    op.name(),
                    operands,
                    attributes.join(" "),
                    ty,
                    text::node(function, id)
                ]));
            }
            _ => {}
        }
    }
    let outputs: Vec<Value> =
        function.outputs.iter().map(|(name, id)| json!([name, usize::from(*id)])).collect();
    json!({ "nodes": nodes, "outputs": outputs })
}

/// Groups by node as rows `[id, groups]`, of nodes that have any.
fn groups(of: &[Vec<usize>]) -> Vec<Value> {
    of.iter().enumerate().filter(|(_, g)| !g.is_empty()).map(|(at, g)| json!([at, g])).collect()
}

fn variant(
    report: &FunctionReport,
    lowered: &Lowered,
    saturated: &Saturated,
    machine: Machine,
    extent: Extent,
    listings: &mut Listings,
) -> Value {
    let cover = Cover::new(&saturated.graph, &report.source, lowered);
    let costs = costs(lowered, saturated, &cover, machine, extent);
    let capacity = Capacity { rows: extent.rows, keys: extent.keys };
    let kernels: Vec<Value> = lowered
        .schedule
        .kernels
        .iter()
        .zip(&lowered.compiled)
        .zip(&cover.of_kernel)
        .map(|((kernel, compiled), group)| {
            let w = work(kernel, capacity);
            let views =
                |views: &[View]| -> Vec<String> { views.iter().map(|v| opt::view(v, lowered)).collect() };
            let mut listing = |text: &Option<String>| text.as_deref().map(|t| listings.add(t.trim_end()));
            json!({
                "name": kernel.name,
                "kind": kernel.body.name(),
                "group": group,
                "node": text::statement(&lowered.function, kernel.node),
                "tiles": opt::tiles(kernel.tiles),
                "tile_count": kernel.tiles.count(extent.rows),
                "in": views(&kernel.inputs),
                "out": views(&kernel.outputs),
                "reads": buffers(&kernel.inputs),
                "writes": buffers(&kernel.outputs),
                "scratch": compiled.scratch_bytes,
                "code": compiled.code_bytes,
                "memory_bytes": w.memory_bytes,
                "cache_bytes": w.cache_bytes,
                "flops": w.flops,
                "clif": listing(&compiled.clif),
                "asm": listing(&compiled.asm),
            })
        })
        .collect();
    let placed = lowered.schedule.buffers.iter().zip(&lowered.memory.offsets);
    let buffers: Vec<Value> = placed.map(|(b, at)| json!([at, b.bytes, b.first, b.last])).collect();
    json!({
        "rows": lowered.rows,
        "extent": [extent.rows, extent.keys],
        "ns": costs.iter().filter_map(|c| c["ns"].as_f64()).sum::<f64>(),
        "objective": lowered.nanoseconds,
        "graph": graph(&lowered.function),
        "groups": cover.groups.iter().map(|&g| usize::from(g)).collect::<Vec<_>>(),
        "fused_groups": groups(&cover.fused),
        "source_groups": groups(&cover.source),
        "costs": costs,
        "kernels": kernels,
        "buffers": buffers,
        "arena": lowered.memory.bytes,
        "peak": lowered.memory.peak,
        "constants": lowered.schedule.constants.len(),
    })
}

/// Arena buffers among views, each once.
fn buffers(views: &[View]) -> Vec<usize> {
    let mut ids: Vec<usize> =
        views.iter().filter_map(|v| if let Base::Arena(id) = v.base { Some(id.0) } else { None }).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The price of each group: its nodes' prices, each node's in the first group that computes it.
fn costs(
    lowered: &Lowered,
    saturated: &Saturated,
    cover: &Cover,
    machine: Machine,
    extent: Extent,
) -> Vec<Value> {
    let model = CostModel { machine, extent };
    let mut rows = vec![(0.0, Work::default()); cover.groups.len()];
    for (at, op) in lowered.function.body.as_ref().iter().enumerate() {
        let (Some(&group), Some(class)) = (cover.fused[at].first(), cover.classes[at]) else { continue };
        let node = egg::Language::map_children(op.clone(), |o| cover.classes[usize::from(o)].unwrap_or(o));
        let (ns, total) = &mut rows[group];
        *ns += model.price(&saturated.graph, class, &node);
        if let Some(w) = model.work(&saturated.graph, class, &node) {
            total.memory_bytes += w.memory_bytes;
            total.cache_bytes += w.cache_bytes;
            total.flops += w.flops;
            total.loose_flops += w.loose_flops;
            total.transcendentals += w.transcendentals;
            total.launches += w.launches;
            total.busy += w.busy + w.before + w.after;
        }
    }
    rows.into_iter()
        .map(|(ns, w)| {
            json!({
                "ns": ns,
                "memory_bytes": w.memory_bytes,
                "cache_bytes": w.cache_bytes,
                "flops": w.flops,
                "loose_flops": w.loose_flops,
                "transcendentals": w.transcendentals,
                "launches": w.launches,
                "computing": w.busy / machine.threads,
            })
        })
        .collect()
}

/// The predicted time of each group at another extent, in nanoseconds.
pub(crate) fn predicted(
    report: &FunctionReport,
    lowered: &Lowered,
    saturated: &Saturated,
    machine: Machine,
    extent: Extent,
) -> Vec<f64> {
    let cover = Cover::new(&saturated.graph, &report.source, lowered);
    costs(lowered, saturated, &cover, machine, extent)
        .iter()
        .map(|c| c["ns"].as_f64().unwrap_or(0.0))
        .collect()
}
