//! What is checked of a function that is no model's before anything relies on it: that its signature and its slots say
//! the same.

use super::program::{Fault, MOST, product};
use crate::file::error::line;
use crate::program::{Element, Function, Length, Operand, Role, Signature, SlotKind};

/// What is wrong, if anything: what was expected, what is there.
pub(super) fn fault(signature: &Signature, functions: &[Function<u64>]) -> Fault {
    let wrong = |expected: &str, found: String| Some((expected.to_string(), found));
    let [function] = functions else { return wrong("one function", functions.len().to_string()) };
    let most = signature.most;
    for (name, n) in [("T", most.rows), ("S", most.keys)] {
        if n == 0 || n > MOST {
            return wrong(&format!("{name} from 1 to {MOST}"), n.to_string());
        }
    }
    if function.variants.last().is_none_or(|variant| variant.rows < most.rows) {
        return wrong("code for calls of T rows", most.rows.to_string());
    }
    let operands = &signature.operands;
    if operands.len() != function.slots.len() {
        return wrong(
            &format!("{} slots, as there are operands", operands.len()),
            function.slots.len().to_string(),
        );
    }
    for (operand, slot) in operands.iter().zip(&function.slots) {
        if operand.name != slot.name || !fits(operand, slot.kind, signature) {
            let expected = format!("a slot for `{}`, {operand}", line(&operand.name));
            return wrong(&expected, format!("`{}`: {:?}", line(&slot.name), slot.kind));
        }
    }
    let is_returned = |role: Role| matches!(role, Role::Cache | Role::Output);
    if signature.returns.iter().any(|&at| operands.get(at).is_none_or(|o| !is_returned(o.role))) {
        return wrong("returns that are outputs or caches", format!("{:?}", signature.returns));
    }
    let are_ids = |at: usize| {
        operands
            .get(at)
            .is_some_and(|o| o.element == Element::I32 && matches!(o.role, Role::Weight | Role::Input))
    };
    if let Some(lookup) = signature.lookups.iter().find(|lookup| !are_ids(lookup.ids)) {
        return wrong("ids that are i32", format!("{lookup:?}"));
    }
    None
}

/// Whether an operand of the most rows and keys can be had, and is what the slot says.
fn fits(operand: &Operand, slot: SlotKind, signature: &Signature) -> bool {
    let lengths = operand.shape_at(signature.most);
    let Some(elements) = product(&lengths) else { return false };
    if operand.element.is_block() && operand.role != Role::Weight || product(&[elements, 4]).is_none() {
        return false;
    }
    let fixed: usize = operand.shape.iter().filter_map(|length| known(*length)).product();
    let bytes = operand.element.bytes(fixed);
    let has_rows = operand.shape.contains(&Length::Rows);
    match (operand.role, slot) {
        (Role::Weight, SlotKind::Weight { bytes: held }) => {
            held == bytes && operand.shape.iter().all(|length| known(*length).is_some())
        }
        (Role::Input, SlotKind::Input { bytes_per_row }) => bytes_per_row == bytes,
        (Role::Output, SlotKind::Output { fixed_bytes, bytes_per_row }) => {
            (fixed_bytes, bytes_per_row) == if has_rows { (0, bytes) } else { (bytes, 0) }
        }
        (Role::Cache, SlotKind::Cache { heads, rows, row_bytes, window }) => {
            window.is_none()
                && matches!(operand.shape[..], [Length::Fixed(h), Length::Keys, Length::Fixed(row)]
                    if h == heads && rows == signature.most.keys && operand.element.bytes(row) == row_bytes)
        }
        (Role::Weight | Role::Input | Role::Output | Role::Cache, _) => false,
    }
}

fn known(length: Length) -> Option<usize> {
    match length {
        Length::Fixed(n) => Some(n),
        Length::Rows | Length::Keys => None,
    }
}
