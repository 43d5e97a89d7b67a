//! Launches: which kernels of a schedule run together.
//!
//! A kernel joins the launch of the one before it if it shares no memory with any kernel of that launch that either of
//! the two writes. Kernels keep their order, so that a launch is a run of neighbours.

use crate::schedule::{Buffer, Schedule};
use crate::view::Base;

/// For each kernel, whether it joins the launch of the one before; and no buffer of a launch gives its memory to
/// another: each is alive as long as the launches of its first and last kernels.
pub fn share(schedule: &mut Schedule) {
    let kernels = &schedule.kernels;
    let conflict = |a: usize, b: usize| {
        let (a, b) = (&kernels[a], &kernels[b]);
        let meet = |base: Base| b.inputs.iter().chain(&b.outputs).any(|view| same_memory(view.base, base));
        let written = |base: Base| b.outputs.iter().any(|view| same_memory(view.base, base));
        a.outputs.iter().any(|view| meet(view.base)) || a.inputs.iter().any(|view| written(view.base))
    };
    // The first kernel of each one's launch.
    let mut first: Vec<usize> = Vec::with_capacity(kernels.len());
    for at in 0..kernels.len() {
        let before = first.last().copied().unwrap_or(at);
        let joins = at > 0 && (before..at).all(|other| !conflict(other, at));
        first.push(if joins { before } else { at });
    }
    schedule.joins = first.iter().enumerate().map(|(at, &first)| first != at).collect();
    let last = |of: usize| (of..first.len()).take_while(|&at| first[at] == first[of]).last().unwrap_or(of);
    for Buffer { first: from, last: to, .. } in &mut schedule.buffers {
        if *from <= *to {
            (*from, *to) = (first[*from], last(*to));
        }
    }
}

/// Whether two bases are one buffer or operand of the caller, which kernels write.
fn same_memory(a: Base, b: Base) -> bool {
    match a {
        Base::Arena(_) | Base::Slot(_) | Base::Cache(_) => a == b,
        Base::Constant(_) | Base::Number(_) | Base::Integer(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use lapidary_ir::{DType, Dim, Id};
    use lapidary_runtime::program::Tiles;

    use super::*;
    use crate::kernel::{Body, Elementwise, Kernel};
    use crate::view::{BufferId, Capacity, View};

    #[test]
    fn kernels_join_where_no_memory_is_shared() {
        let capacity = Capacity { rows: 1, keys: 1 };
        let copy = |from: Base, to: Base| {
            let view = |base| View::contiguous(base, DType::F32, &[Dim::Fixed(16)], capacity);
            Kernel {
                name: String::new(),
                node: Id::from(0),
                body: Body::Elementwise(Elementwise::Copy),
                inputs: vec![view(from)],
                outputs: vec![view(to)],
                tiles: Tiles { fixed: 1, rows: 0 },
                by_segment: false,
                regime: 1,
                capacity,
            }
        };
        let (arena, slot) = (|n| Base::Arena(BufferId(n)), Base::Slot);
        let kernels = vec![
            copy(slot(0), arena(0)),
            copy(slot(0), arena(1)),
            // Reads what was written.
            copy(arena(0), arena(2)),
            copy(arena(1), slot(1)),
            // Writes what was written.
            copy(Base::Constant(0), slot(1)),
            copy(Base::Constant(0), arena(3)),
            // Writes what was read, but not by the launch's first kernel.
            copy(arena(3), slot(2)),
            copy(slot(3), arena(4)),
            copy(slot(4), slot(3)),
        ];
        let buffer = |first, last| Buffer { bytes: 64, first, last };
        let buffers = vec![buffer(0, 2), buffer(1, 3), buffer(2, 2), buffer(5, 6), buffer(7, 7)];
        let mut schedule = Schedule { kernels, buffers, ..Schedule::default() };
        share(&mut schedule);
        assert_eq!(schedule.joins, [false, true, false, true, false, true, false, true, false]);
        let alive: Vec<_> = schedule.buffers.iter().map(|b| (b.first, b.last)).collect();
        assert_eq!(alive, [(0, 3), (0, 3), (2, 3), (4, 7), (6, 7)]);
    }
}
