//! Where a function's operands lie: slots, the arena, views.

use std::fmt::Write;

use anyhow::Result;
use lapidary_codegen::compile::{FunctionReport, Lowered};
use lapidary_codegen::view::{Base, View};
use lapidary_runtime::program::{SlotKind, Tiles};

use super::stages::title;

/// The caller's operands, the arena, the caches.
pub(super) fn plan(report: &FunctionReport, lowered: &Lowered) -> Result<String> {
    let (schedule, memory) = (&lowered.schedule, &lowered.memory);
    let mut out = String::new();
    writeln!(out, "{}: arena {} bytes, {} alive at most", title(report, lowered), memory.bytes, memory.peak)?;
    writeln!(out, "slots:")?;
    let width = schedule.slots.iter().map(|s| s.name.len()).max().unwrap_or(0);
    for (at, slot) in schedule.slots.iter().enumerate() {
        writeln!(out, "  {at:>3}  {:width$}  {}", slot.name, slot_text(slot.kind))?;
    }
    writeln!(out, "buffers:")?;
    for (at, (buffer, offset)) in schedule.buffers.iter().zip(&memory.offsets).enumerate() {
        let name = |k: usize| schedule.kernels.get(k).map_or("?", |k| k.name.as_str());
        writeln!(
            out,
            "  {at:>3}  at {offset:>10}  {:>10} bytes  {} .. {}",
            buffer.bytes,
            name(buffer.first),
            name(buffer.last)
        )?;
    }
    writeln!(out, "constants: {} bytes", schedule.constants.len())?;
    Ok(out)
}

fn slot_text(kind: SlotKind) -> String {
    match kind {
        SlotKind::Input { bytes_per_row } => format!("input   {bytes_per_row} bytes a row"),
        SlotKind::Output { fixed_bytes, bytes_per_row: 0 } => format!("output  {fixed_bytes} bytes"),
        SlotKind::Output { fixed_bytes: 0, bytes_per_row } => format!("output  {bytes_per_row} bytes a row"),
        SlotKind::Output { fixed_bytes, bytes_per_row } => {
            format!("output  {fixed_bytes} bytes and {bytes_per_row} a row")
        }
        SlotKind::Weight { bytes } => format!("weight  {bytes} bytes"),
        SlotKind::Cache { heads, rows, row_bytes, window } => {
            let all = heads * rows * row_bytes;
            let held = match window {
                Some(window) => format!("ring of {rows} rows, window {window}"),
                None => format!("{rows} rows"),
            };
            format!("cache   {all} bytes: {heads} heads, {held}, {row_bytes} bytes a row")
        }
    }
}

/// `64*ceil(T/4)`.
pub(crate) fn tiles(tiles: Tiles) -> String {
    match (tiles.fixed, tiles.rows) {
        (fixed, 0) => fixed.to_string(),
        (1, 1) => "T".into(),
        (fixed, 1) => format!("{fixed}*T"),
        (1, rows) => format!("ceil(T/{rows})"),
        (fixed, rows) => format!("{fixed}*ceil(T/{rows})"),
    }
}

pub(super) fn views(views: &[View], lowered: &Lowered) -> String {
    views.iter().map(|v| view(v, lowered)).collect::<Vec<_>>().join(", ")
}

/// `bf16[T,64]@arena+1024`: dtype, dims, and where it lies.
pub(crate) fn view(view: &View, lowered: &Lowered) -> String {
    let dims: Vec<String> = view.dims().iter().map(ToString::to_string).collect();
    let place = match view.base {
        Base::Arena(id) => {
            format!("arena+{}", lowered.memory.offsets.get(id.0).copied().unwrap_or_default())
        }
        Base::Slot(at) | Base::Cache(at) => {
            lowered.schedule.slots.get(at).map_or_else(|| "?".into(), |s| s.name.clone())
        }
        Base::Constant(at) => format!("constant+{at}"),
        Base::Number(x) => return format!("{x:?}"),
        Base::Integer(x) => return x.to_string(),
    };
    let mut text = format!("{}[{}]@{place}", view.dtype, dims.join(","));
    if view.offset != 0 {
        text.push_str(&format!("+{}", view.bytes_of(view.offset)));
    }
    if let Some(ring) = view.ring {
        text.push_str(&format!("%{ring}"));
    }
    text
}
