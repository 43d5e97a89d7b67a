//! Whether a program's functions fit its plan.

use super::{HEAD_ROWS, ring_rows};
use crate::error::Error;
use crate::program::{Function, Plan, SlotKind};

/// Whether the functions fit the plan, as far as can be seen: what is relied on when frames are filled.
pub(super) fn check<E>(functions: &[Function<E>], plan: &Plan) -> Result<(), Error> {
    let malformed = |text: String| Err(Error::Program(text));
    if plan.chunk == 0 || plan.hidden == 0 || plan.vocab == 0 || plan.context == 0 {
        return malformed("chunk, hidden, vocab and context must not be 0".into());
    }
    if plan.vocab > i32::MAX as usize || plan.context > i32::MAX as usize {
        return malformed("vocab and context must fit 32 bits".into());
    }
    let heads = HEAD_ROWS.min(plan.chunk);
    let layers = plan.layers.iter().map(|layer| (layer.function, plan.chunk, ["x", "y"]));
    let all = [(plan.embed, plan.chunk, ["ids", "y"])].into_iter().chain(layers);
    for (index, rows, needs) in
        all.chain([(plan.head, heads, ["x", "logits"]), (plan.head_argmax, heads, ["x", "token"])])
    {
        let Some(function) = functions.get(index) else {
            return malformed(format!("the plan names function {index}, which there is not"));
        };
        check_function(function, plan, rows, needs)?;
    }
    Ok(())
}

/// Whether a function serves calls of `rows` rows, reading and writing what it `needs`.
fn check_function<E>(
    function: &Function<E>,
    plan: &Plan,
    rows: usize,
    needs: [&str; 2],
) -> Result<(), Error> {
    let malformed = |text: String| Err(Error::Program(format!("`{}` {text}", function.name)));
    if function.variants.last().is_none_or(|v| v.rows < rows) {
        return malformed(format!("does not serve calls of {rows} rows"));
    }
    if let Some(slot) = needs.iter().find(|slot| function.slot(slot).is_none()) {
        return malformed(format!("has no slot `{slot}`"));
    }
    let word = size_of::<f32>();
    for slot in &function.slots {
        let fits = match slot.kind {
            SlotKind::Weight { .. } => continue,
            SlotKind::Cache { rows, window, .. } => {
                let ring = window.is_some_and(|w| w > 0 && rows >= ring_rows(w, plan.chunk));
                if rows < plan.context && !ring {
                    return malformed(format!("has a cache `{}` of only {rows} rows", slot.name));
                }
                continue;
            }
            SlotKind::Input { bytes_per_row } => {
                let row = if slot.name == "x" { plan.hidden * word } else { word };
                (slot.name == needs[0] || slot.name == "pos") && bytes_per_row == row
            }
            SlotKind::Output { fixed_bytes, bytes_per_row } => {
                let row = match needs[1] {
                    "y" => plan.hidden * word,
                    "logits" => plan.vocab * word,
                    _ => word,
                };
                slot.name == needs[1] && (fixed_bytes, bytes_per_row) == (0, row)
            }
        };
        if !fits {
            return malformed(format!("has a slot `{}` that nothing fills: {:?}", slot.name, slot.kind));
        }
    }
    Ok(())
}
