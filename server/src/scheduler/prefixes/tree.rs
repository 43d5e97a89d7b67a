//! A radix tree over token ids: texts that begin alike hold what they have in common once.
//!
//! In: texts, each with a maker of the rows of some of its positions. Out: for a text, the longest beginning of it
//! whose next token finds all rows that it reads: those of caches of the whole context of every position, and those of
//! sliding windows of the last `window - 1`. Invariants: children of a node begin with different tokens; a node's
//! positions are all prefilled or all decoded, and have the rows of windows all or none; a node's own rows are those of
//! its tokens after the path to it.

use std::ops::Range;

/// Rows of some positions.
pub(super) trait Rows: Sized {
    /// Why they cannot be had.
    type Error;
    /// Takes the positions from `at` on out of them.
    fn split_off(&mut self, at: usize) -> Result<Self, Self::Error>;
    /// Bytes of memory.
    fn bytes(&self) -> usize;
}

/// A text to be kept.
pub(super) struct Text<'a> {
    pub(super) tokens: &'a [u32],
    /// Tokens from the start on that were prefilled.
    pub(super) prefilled: usize,
    /// The first position that it has the rows of windows of.
    pub(super) windows_from: usize,
}

/// What there is of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Tokens that can be had.
    pub(super) usable: usize,
    /// Tokens that are the same.
    pub(super) common: usize,
}

struct Node<R> {
    tokens: Vec<u32>,
    /// None of the root alone.
    rows: Option<R>,
    decoded: bool,
    windows: bool,
    used: u64,
    parent: usize,
    children: Vec<usize>,
}

/// See the module's documentation.
pub(super) struct Tree<R> {
    /// The root first; those of `free` are none.
    nodes: Vec<Node<R>>,
    free: Vec<usize>,
    /// Positions that a token's query reads, its own too; 0 where all are read.
    window: usize,
    bytes: usize,
}

const ROOT: usize = 0;

impl<R: Rows> Tree<R> {
    pub(super) fn new(window: usize) -> Tree<R> {
        let root = Node {
            tokens: vec![],
            rows: None,
            decoded: false,
            windows: true,
            used: 0,
            parent: ROOT,
            children: vec![],
        };
        Tree { nodes: vec![root], free: vec![], window, bytes: 0 }
    }

    /// Bytes that its rows take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.free.len() - 1
    }

    /// The nodes that a text goes through, with how many tokens of each are the same.
    fn walk(&self, tokens: &[u32]) -> Vec<(usize, usize)> {
        let (mut at, mut rest, mut path) = (ROOT, tokens, vec![]);
        while let Some(next) = self.child(at, rest) {
            let same = common(&self.nodes[next].tokens, rest);
            path.push((next, same));
            if same < self.nodes[next].tokens.len() {
                break;
            }
            (at, rest) = (next, &rest[same..]);
        }
        path
    }

    fn child(&self, at: usize, rest: &[u32]) -> Option<usize> {
        let first = rest.first()?;
        self.nodes[at].children.iter().copied().find(|&child| self.nodes[child].tokens.first() == Some(first))
    }

    /// What there is of a text.
    pub(super) fn reach(&self, tokens: &[u32]) -> Reach {
        let (mut reach, mut hole) = (Reach::default(), 0);
        for (node, same) in self.walk(tokens) {
            reach.common += same;
            if !self.nodes[node].windows {
                hole = reach.common;
            }
            if hole == 0 || hole + self.window <= reach.common + 1 {
                reach.usable = reach.common;
            }
        }
        reach
    }

    /// The rows of a text that is there whole, and how many of its tokens from the start on were prefilled.
    pub(super) fn rows(&self, tokens: &[u32]) -> (Vec<&R>, usize) {
        let path = self.walk(tokens);
        let made = path.iter().take_while(|(node, _)| !self.nodes[*node].decoded);
        let prefilled = made.map(|(_, same)| same).sum();
        (path.iter().filter_map(|&(node, _)| self.nodes[node].rows.as_ref()).collect(), prefilled)
    }

    /// Says that a text was used.
    pub(super) fn touch(&mut self, tokens: &[u32], now: u64) {
        for (node, _) in self.walk(tokens) {
            self.nodes[node].used = self.nodes[node].used.max(now);
        }
    }

    /// Keeps a text: `make` makes the rows of positions that are not there, with those of windows or without.
    ///
    /// # Errors
    /// The maker's; then what was made before is kept.
    pub(super) fn insert(
        &mut self,
        text: &Text<'_>,
        now: u64,
        mut make: impl FnMut(Range<usize>, bool) -> Result<R, R::Error>,
    ) -> Result<(), R::Error> {
        let (mut at, mut position) = (ROOT, 0);
        while position < text.tokens.len() {
            let rest = &text.tokens[position..];
            let (end, windows) = (text.stretch(position), position >= text.windows_from);
            let decoded = position >= text.prefilled;
            let Some(node) = self.child(at, rest) else {
                let rows = make(position..end, windows)?;
                let tokens = text.tokens[position..end].to_vec();
                at = self.add(at, tokens, rows, decoded, windows, now);
                position = end;
                continue;
            };
            let same = common(&self.nodes[node].tokens, rest);
            // Up to where this text is the better one, or stops being so.
            let known = (self.nodes[node].windows, !self.nodes[node].decoded);
            let better = |at: usize| {
                let new = (at >= text.windows_from, at < text.prefilled);
                new.0 >= known.0 && new.1 >= known.1 && new != known
            };
            let mut cut = text.stretch(position).min(position + same);
            while cut < position + same && !better(position) && !better(cut) {
                cut = text.stretch(cut).min(position + same);
            }
            let (count, replaced) = (cut - position, better(position));
            // A text that ends within a node is there.
            if count < self.nodes[node].tokens.len() && (replaced || cut < text.tokens.len()) {
                self.split(node, count)?;
            }
            if replaced {
                let rows = make(position..cut, windows)?;
                let node = &mut self.nodes[node];
                (node.decoded, node.windows) = (decoded, windows);
                self.bytes += rows.bytes();
                self.bytes -= node.rows.replace(rows).map_or(0, |old| old.bytes());
            }
            self.nodes[node].used = self.nodes[node].used.max(now);
            (at, position) = (node, cut);
        }
        Ok(())
    }

    fn add(
        &mut self,
        parent: usize,
        tokens: Vec<u32>,
        rows: R,
        decoded: bool,
        windows: bool,
        used: u64,
    ) -> usize {
        self.bytes += rows.bytes();
        let node = Node { tokens, rows: Some(rows), decoded, windows, used, parent, children: vec![] };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.nodes[parent].children.push(index);
        index
    }

    /// Makes two nodes of one: it keeps its first tokens, a child gets the others.
    fn split(&mut self, node: usize, at: usize) -> Result<(), R::Error> {
        let upper = &mut self.nodes[node];
        let Some(rows) = &mut upper.rows else { return Ok(()) };
        let before = rows.bytes();
        let rest = rows.split_off(at)?;
        self.bytes = self.bytes + rows.bytes() - before;
        let tokens = upper.tokens.split_off(at);
        let (decoded, windows, used) = (upper.decoded, upper.windows, upper.used);
        let children = std::mem::take(&mut upper.children);
        let lower = self.add(node, tokens, rest, decoded, windows, used);
        for &child in &children {
            self.nodes[child].parent = lower;
        }
        self.nodes[lower].children = children;
        Ok(())
    }

    /// When the leaf that was used longest ago was used.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.oldest_leaf().map(|leaf| self.nodes[leaf].used)
    }

    fn oldest_leaf(&self) -> Option<usize> {
        let leaf = |&node: &usize| self.nodes[node].rows.is_some() && self.nodes[node].children.is_empty();
        (0..self.nodes.len()).filter(leaf).min_by_key(|&node| self.nodes[node].used)
    }

    /// Forgets the leaf that was used longest ago.
    pub(super) fn forget_oldest(&mut self) {
        if let Some(leaf) = self.oldest_leaf() {
            self.remove(leaf);
        }
    }

    /// Forgets of a text what no other goes on from: whether there was anything.
    pub(super) fn forget(&mut self, tokens: &[u32]) -> bool {
        let mut forgot = false;
        for (node, _) in self.walk(tokens).into_iter().rev() {
            if !self.nodes[node].children.is_empty() {
                break;
            }
            self.remove(node);
            forgot = true;
        }
        forgot
    }

    fn remove(&mut self, node: usize) {
        let parent = self.nodes[node].parent;
        self.nodes[parent].children.retain(|&child| child != node);
        self.nodes[node].tokens = vec![];
        self.bytes -= self.nodes[node].rows.take().map_or(0, |rows| rows.bytes());
        self.free.push(node);
    }
}

impl Text<'_> {
    /// Where the stretch of a position ends that is all prefilled or all decoded, with windows or without.
    fn stretch(&self, position: usize) -> usize {
        let cuts = [self.prefilled, self.windows_from].into_iter().filter(|&cut| cut > position);
        cuts.min().unwrap_or(usize::MAX).min(self.tokens.len())
    }
}

/// Tokens that both begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
