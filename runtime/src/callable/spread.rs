//! Operands between where they lie dense and where they are held with room for more rows and keys than a call has.

use crate::program::{Aligned, Counts, Operand};

/// From dense to held.
pub(super) fn scatter(operand: &Operand, counts: Counts, room: Counts, dense: &[u8], held: &mut Aligned) {
    let held = held.as_mut_slice();
    runs(operand, counts, room, |from, to, bytes| {
        held[to..to + bytes].copy_from_slice(&dense[from..from + bytes]);
    });
}

/// From held to dense.
pub(super) fn gather(operand: &Operand, counts: Counts, room: Counts, held: &[u8], dense: &mut [u8]) {
    runs(operand, counts, room, |to, from, bytes| {
        dense[to..to + bytes].copy_from_slice(&held[from..from + bytes]);
    });
}

/// Calls `each(dense, held, bytes)` for every run of bytes that is one on both sides, in order.
fn runs(operand: &Operand, counts: Counts, room: Counts, mut each: impl FnMut(usize, usize, usize)) {
    let (lengths, held) = (operand.shape_at(counts), operand.shape_at(room));
    // The innermost axis that differs, with what lies within it, is a run.
    let Some(axis) = (0..lengths.len()).rev().find(|&axis| lengths[axis] != held[axis]) else {
        return each(0, 0, operand.bytes(counts));
    };
    let bytes = operand.element.bytes(lengths[axis..].iter().product());
    let step = operand.element.bytes(held[axis..].iter().product());
    let outer: usize = lengths[..axis].iter().product();
    for run in 0..outer {
        let (mut index, mut at, mut stride) = (run, 0, step);
        for (&n, &room) in lengths[..axis].iter().zip(&held[..axis]).rev() {
            at += index % n * stride;
            index /= n;
            stride *= room;
        }
        each(run * bytes, at, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Element, Length, Role};

    #[test]
    fn what_is_scattered_is_gathered() {
        let (counts, room) = (Counts { rows: 2, keys: 3 }, Counts { rows: 3, keys: 5 });
        for shape in [
            &[Length::Fixed(2), Length::Rows, Length::Fixed(2)][..],
            &[Length::Rows, Length::Keys],
            &[Length::Fixed(2), Length::Rows, Length::Fixed(1), Length::Rows],
            &[Length::Rows, Length::Fixed(4)],
            &[],
        ] {
            let operand = Operand {
                name: "x".into(),
                element: Element::BF16,
                shape: shape.to_vec(),
                role: Role::Input,
            };
            let dense: Vec<u8> = (1..).take(operand.bytes(counts)).collect();
            let mut held = Aligned::zeroed(operand.bytes(room));
            scatter(&operand, counts, room, &dense, &mut held);
            let mut back = vec![0; dense.len()];
            gather(&operand, counts, room, held.as_slice(), &mut back);
            assert_eq!(back, dense, "{operand}");
            // Each element where row-major order with the room's steps has it.
            let lengths = (operand.shape_at(counts), operand.shape_at(room));
            for element in 0..dense.len() / 2 {
                let (mut index, mut at, mut stride) = (element, 0, 1);
                for (n, room) in lengths.0.iter().zip(&lengths.1).rev() {
                    at += index % n * stride;
                    index /= n;
                    stride *= room;
                }
                assert_eq!(held.as_slice()[at * 2], dense[element * 2], "{operand} {element}");
            }
        }
    }
}
