//! Frames and slots of a program, described once: for the engine, which fills frames with addresses, and for objects,
//! which fill them with offsets of memory that they are given.
//!
//! In: a program's functions and plan. Out: a [`Layout`]: what every word of every frame is, which areas there are and
//! how large, which weights are read, and where each cache lies within the memory of a sequence. Invariant: a function
//! reads and writes no more of an area than [`Layout::area_bytes`], for calls of as many rows as the area holds.

#![warn(clippy::wildcard_enum_match_arm)]

mod area;
mod check;

use crate::error::Error;
use crate::program::{FRAME_ARENA, FRAME_CONSTANTS, FRAME_SLOTS, Function, Phase, Plan, Slot, SlotKind};

pub use area::Area;

use check::check;

/// The most rows that a head is called with.
pub const HEAD_ROWS: usize = 32;
/// Alignment of a cache in the memory of its sequence, in bytes.
pub const CACHE_ALIGN: usize = 64;

/// What a frame's word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Set for each call.
    Call,
    /// The address of the arena.
    Arena,
    /// The address of the program's constants.
    Constants,
    /// The address of an area, or of a row of it.
    Area(Area),
    /// The address of the weight of this index of [`Layout::weights`].
    Weight(usize),
    /// The offset of the cache of this index of [`Layout::caches`].
    Cache(usize),
}

/// A function to call, with one layer's weights and caches.
#[derive(Clone, Debug)]
pub struct Call {
    /// Index of the function.
    pub function: usize,
    /// Its frame.
    pub words: Vec<Word>,
}

/// A tensor that a frame has the address of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its name in the checkpoint.
    pub tensor: String,
    /// Its length.
    pub bytes: usize,
}

/// One cache of a sequence, `(heads, rows, row_bytes)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The layer that it belongs to.
    pub layer: usize,
    /// The slot's name.
    pub name: String,
    /// KV heads.
    pub heads: usize,
    /// Rows held a head: position `p` is row `p % rows`.
    pub rows: usize,
    /// Bytes of one head's row.
    pub row_bytes: usize,
    /// Rows that a query reads, if old ones are overwritten.
    pub window: Option<usize>,
    /// Where it starts in the memory of its sequence, in bytes.
    pub offset: usize,
}

impl Cache {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.heads * self.rows * self.row_bytes
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Embedding, then the layers in order.
    pub body: Vec<Call>,
    /// Logits of picked rows.
    pub head: Call,
    /// Tokens of picked rows.
    pub head_argmax: Call,
    /// Tensors, each once.
    pub weights: Vec<Weight>,
    /// Caches of a sequence, by rising offset.
    pub caches: Vec<Cache>,
    /// Bytes of them all.
    pub kv_bytes: usize,
    /// Bytes of temporaries of the largest call.
    pub arena_bytes: usize,
    /// Bytes of scratch of a thread.
    pub scratch_bytes: usize,
    /// The area that the last layer writes.
    pub last: Area,
    prefill_rows: usize,
    decode_rows: usize,
}

impl Layout {
    /// Lays a program's calls out.
    ///
    /// # Errors
    /// [`Error::Program`] if the functions do not fit the plan, [`Error::Memory`] for caches beyond any memory.
    pub fn new<E>(functions: &[Function<E>], plan: &Plan) -> Result<Layout, Error> {
        check(functions, plan)?;
        let mut layout = Layout {
            body: vec![],
            head: Call { function: plan.head, words: vec![] },
            head_argmax: Call { function: plan.head_argmax, words: vec![] },
            weights: vec![],
            caches: vec![],
            kv_bytes: 0,
            arena_bytes: 0,
            scratch_bytes: 0,
            last: residual(plan.layers.len()),
            prefill_rows: 0,
            decode_rows: 0,
        };
        let embed = layout.call(functions, plan.embed, None, "", (Area::Ids, Area::Even))?;
        layout.body.push(embed);
        for (index, layer) in plan.layers.iter().enumerate() {
            let stream = (residual(index), residual(index + 1));
            let call = layout.call(functions, layer.function, Some(index), &layer.prefix, stream)?;
            layout.body.push(call);
        }
        layout.head = layout.call(functions, plan.head, None, "", (Area::Picked, Area::Logits))?;
        layout.head_argmax =
            layout.call(functions, plan.head_argmax, None, "", (Area::Picked, Area::Tokens))?;
        let calls = layout.body.iter().chain([&layout.head, &layout.head_argmax]);
        let called = calls.map(|call| &functions[call.function]);
        let rows = called.clone().map(|f| f.most_rows(Phase::Decode)).min();
        layout.decode_rows = rows.unwrap_or(0).min(plan.chunk);
        layout.prefill_rows = plan.chunk;
        let variants = called.flat_map(|f| &f.variants);
        let (arena, scratch) = variants
            .fold((0, 0), |(arena, scratch), v| (arena.max(v.arena_bytes), scratch.max(v.scratch_bytes)));
        (layout.arena_bytes, layout.scratch_bytes) = (arena, scratch);
        Ok(layout)
    }

    /// The most rows of a call of a phase.
    pub fn most_rows(&self, phase: Phase) -> usize {
        match phase {
            Phase::Prefill => self.prefill_rows,
            Phase::Decode => self.decode_rows,
        }
    }

    /// Rows that an area holds: `head_rows` are predicted from at a time.
    pub fn area_rows(area: Area, plan: &Plan, head_rows: usize) -> usize {
        match area {
            Area::Ids | Area::Positions | Area::Even | Area::Odd => plan.chunk,
            Area::Picked | Area::Logits | Area::Tokens => head_rows.min(plan.chunk),
        }
    }

    /// An area's length in bytes.
    pub fn area_bytes(area: Area, plan: &Plan, head_rows: usize) -> usize {
        Layout::area_rows(area, plan, head_rows).saturating_mul(area.row_bytes(plan))
    }

    /// A call of a function that reads and writes these areas, with `prefix` before its weights' names.
    fn call<E>(
        &mut self,
        functions: &[Function<E>],
        index: usize,
        layer: Option<usize>,
        prefix: &str,
        (reads, writes): (Area, Area),
    ) -> Result<Call, Error> {
        let function = &functions[index];
        let mut words = vec![Word::Call; FRAME_SLOTS];
        words[FRAME_ARENA] = Word::Arena;
        words[FRAME_CONSTANTS] = Word::Constants;
        let own = self.caches.len();
        for slot in &function.slots {
            words.push(match slot.kind {
                SlotKind::Input { .. } => {
                    Word::Area(if slot.name == "pos" { Area::Positions } else { reads })
                }
                SlotKind::Output { .. } => Word::Area(writes),
                SlotKind::Weight { bytes } => {
                    Word::Weight(self.weight(format!("{prefix}{}", slot.name), bytes))
                }
                SlotKind::Cache { .. } => Word::Cache(self.cache(own, layer.unwrap_or(0), slot)?),
            });
        }
        Ok(Call { function: index, words })
    }

    fn weight(&mut self, tensor: String, bytes: usize) -> usize {
        let weight = Weight { tensor, bytes };
        let known = self.weights.iter().position(|w| *w == weight);
        known.unwrap_or_else(|| {
            self.weights.push(weight);
            self.weights.len() - 1
        })
    }

    /// The cache of this slot among those from `own` on, made if need be: a function may have it in two slots, as what
    /// it reads and as what it writes.
    fn cache(&mut self, own: usize, layer: usize, slot: &Slot) -> Result<usize, Error> {
        let SlotKind::Cache { heads, rows, row_bytes, window } = slot.kind else { return Ok(0) };
        if let Some(known) = self.caches[own..].iter().position(|c| c.name == slot.name) {
            return Ok(own + known);
        }
        let offset = self.kv_bytes;
        let bytes = heads.checked_mul(rows).and_then(|n| n.checked_mul(row_bytes));
        let end = bytes.and_then(|n| offset.checked_add(n)?.checked_next_multiple_of(CACHE_ALIGN));
        let end = end.filter(|&end| end <= isize::MAX as usize);
        let what = || format!("cache `{}`", slot.name);
        self.kv_bytes = end.ok_or_else(|| Error::Memory { what: what(), bytes: usize::MAX })?;
        self.caches.push(Cache { layer, name: slot.name.clone(), heads, rows, row_bytes, window, offset });
        Ok(self.caches.len() - 1)
    }
}

/// Rows of a cache that holds a sliding window alone: a call appends all of its rows, up to a chunk's, before its first
/// one looks back.
pub fn ring_rows(window: usize, chunk: usize) -> usize {
    window.saturating_add(chunk)
}

/// The residual stream before layer `index`, or after all.
fn residual(index: usize) -> Area {
    if index.is_multiple_of(2) { Area::Even } else { Area::Odd }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::program::{Layer, Variant};

    fn function(name: &str, slots: &[(&str, SlotKind)]) -> Function<u64> {
        let slots = slots.iter().map(|&(name, kind)| Slot { name: name.into(), kind }).collect();
        let variants = vec![Variant { rows: 4, arena_bytes: 10, scratch_bytes: 20, steps: vec![] }];
        Function { name: name.into(), slots, batches: true, variants }
    }

    #[test]
    fn layers_alternate_and_have_caches_of_their_own() {
        let (x, y) =
            (SlotKind::Input { bytes_per_row: 8 }, SlotKind::Output { fixed_bytes: 0, bytes_per_row: 8 });
        let one = SlotKind::Output { fixed_bytes: 0, bytes_per_row: 4 };
        let logits = SlotKind::Output { fixed_bytes: 0, bytes_per_row: 12 };
        let id = SlotKind::Input { bytes_per_row: 4 };
        let cache = SlotKind::Cache { heads: 2, rows: 7, row_bytes: 12, window: None };
        let weight = SlotKind::Weight { bytes: 6 };
        let functions = [
            function("embed", &[("ids", id), ("t", weight), ("y", y)]),
            function("layer", &[("x", x), ("pos", id), ("k", cache), ("w", weight), ("k", cache), ("y", y)]),
            function("head", &[("x", x), ("t", weight), ("logits", logits)]),
            function("head_argmax", &[("x", x), ("t", weight), ("token", one)]),
        ];
        let layer = |prefix: &str| Layer { function: 1, prefix: prefix.into() };
        let plan = Plan {
            hidden: 2,
            vocab: 3,
            context: 7,
            chunk: 4,
            kv: "f32".into(),
            embed: 0,
            layers: vec![layer("a."), layer("b."), layer("c.")],
            head: 2,
            head_argmax: 3,
        };
        let layout = Layout::new(&functions, &plan).unwrap();
        let names: Vec<&str> = layout.weights.iter().map(|w| w.tensor.as_str()).collect();
        assert_eq!(names, ["t", "a.w", "b.w", "c.w"]);
        assert_eq!(layout.caches.len(), 3);
        assert_eq!((layout.caches[1].offset, layout.caches[1].layer), (192, 1));
        assert_eq!(layout.kv_bytes, 3 * 192);
        let slots = |call: &Call| call.words[FRAME_SLOTS..].to_vec();
        let (positions, weight) = (Word::Area(Area::Positions), Word::Weight(2));
        let second = [Word::Area(Area::Odd), positions, Word::Cache(1), weight, Word::Cache(1)];
        assert_eq!(slots(&layout.body[2]), [&second[..], &[Word::Area(Area::Even)]].concat());
        assert_eq!(layout.last, Area::Odd);
        assert_eq!((layout.arena_bytes, layout.scratch_bytes), (10, 20));

        let mut short = plan.clone();
        short.context = 8;
        assert!(matches!(Layout::new(&functions, &short), Err(Error::Program(_))));
    }
}
