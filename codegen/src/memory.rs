//! The memory plan: every temporary of a function at an offset of one arena, reusing what is no longer alive.

use crate::schedule::Buffer;

/// Offsets of the buffers, and how much arena they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Byte offset of each buffer, 64-byte aligned.
    pub offsets: Vec<usize>,
    /// Bytes of arena.
    pub bytes: usize,
    /// Bytes of the buffers alive at the worst moment: no plan can need less.
    pub peak: usize,
}

/// Places buffers, the largest first, each at the lowest offset where it overlaps none that is alive with it.
pub fn plan(buffers: &[Buffer]) -> MemoryPlan {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&b| (std::cmp::Reverse(buffers[b].bytes), buffers[b].first, b));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = vec![];
    for b in order {
        let alive =
            |o: &&usize| buffers[**o].first <= buffers[b].last && buffers[b].first <= buffers[**o].last;
        let mut taken: Vec<(usize, usize)> =
            placed.iter().filter(alive).map(|&o| (offsets[o], offsets[o] + size(&buffers[o]))).collect();
        taken.sort_unstable();
        let mut at = 0;
        for (from, to) in taken {
            if at + size(&buffers[b]) <= from {
                break;
            }
            at = at.max(to);
        }
        offsets[b] = at;
        placed.push(b);
    }
    let bytes = (0..buffers.len()).map(|b| offsets[b] + size(&buffers[b])).max().unwrap_or(0);
    let last = buffers.iter().map(|b| b.last).max().unwrap_or(0);
    let alive_at = |step: usize| buffers.iter().filter(|b| b.first <= step && step <= b.last).map(size).sum();
    let peak = (0..=last).map(alive_at).max().unwrap_or(0);
    MemoryPlan { offsets, bytes, peak }
}

fn size(buffer: &Buffer) -> usize {
    buffer.bytes.next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_buffers_are_reused_and_live_ones_kept_apart() {
        let buffer = |bytes, first, last| Buffer { bytes, first, last };
        let buffers = [buffer(100, 0, 1), buffer(100, 1, 2), buffer(100, 2, 3), buffer(30, 0, 3)];
        let plan = plan(&buffers);
        for a in 0..buffers.len() {
            for b in 0..a {
                let together = buffers[a].first <= buffers[b].last && buffers[b].first <= buffers[a].last;
                let apart = plan.offsets[a] + size(&buffers[a]) <= plan.offsets[b]
                    || plan.offsets[b] + size(&buffers[b]) <= plan.offsets[a];
                assert!(!together || apart, "{a} and {b}");
            }
        }
        assert_eq!((plan.bytes, plan.peak), (128 + 128 + 64, 128 + 128 + 64));
    }
}
