//! Binding a program's functions to a session's memory: checks that functions fit the plan, makes the buffers, the
//! caches and the frames.
//!
//! In: a program, a weight source, a session's buffers. Out: one [`Call`] a function and layer, whose frames are complete but for the two
//! leading words (and, for the heads, the address of `x`). Invariant: each slot's word is the address of at least the
//! bytes that the slot declares, for calls of as many rows as [`check_plan`] asks for.

use crate::error::Error;
use crate::kv::Cache;
use crate::program::{
    Aligned, FRAME_ARENA, FRAME_CONSTANTS, FRAME_SLOTS, Function, Program, Slot, SlotKind, WeightSource,
};

/// The most rows of logits that [`Session::score`](crate::Session::score) holds at once.
pub(crate) const SCORE_ROWS: usize = 32;

/// A function to call, with the frame to call it with.
pub(crate) struct Call {
    pub(crate) function: usize,
    pub(crate) frame: Vec<u64>,
    /// Index of the frame word of slot `x`, for functions that have it.
    pub(crate) x: usize,
}

/// What the slots other than weights and caches point to.
pub(crate) struct Buffers {
    pub(crate) ids: Aligned,
    pub(crate) pos: Aligned,
    pub(crate) residual: [Aligned; 2],
    pub(crate) logits: Aligned,
    pub(crate) token: Aligned,
    /// Empty until the first [`Session::score`](crate::Session::score).
    pub(crate) score: Aligned,
}

/// The address of a buffer, for a frame.
pub(crate) fn address(buffer: &mut Aligned) -> u64 {
    buffer.as_mut_ptr().expose_provenance() as u64
}

/// Fills frames.
pub(crate) struct Binder<'a> {
    pub(crate) program: &'a Program,
    pub(crate) weights: &'a dyn WeightSource,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) arena: u64,
    pub(crate) caches: Vec<Cache>,
    /// Address and length of each tensor bound.
    pub(crate) tensors: Vec<(usize, usize)>,
}

impl Binder<'_> {
    /// A call of a function with `prefix` before its weights' names, reading the residual buffer `x` and writing
    /// the other.
    pub(crate) fn bind(&mut self, index: usize, prefix: &str, x: usize) -> Result<Call, Error> {
        let program = self.program;
        let function = &program.functions[index];
        let mut frame = vec![0; FRAME_SLOTS + function.slots.len()];
        frame[FRAME_ARENA] = self.arena;
        frame[FRAME_CONSTANTS] = program.constants.as_ptr().expose_provenance() as u64;
        let own = self.caches.len();
        for (word, slot) in frame[FRAME_SLOTS..].iter_mut().zip(&function.slots) {
            *word = match slot.kind {
                SlotKind::Input { .. } | SlotKind::Output { .. } => self.activation(slot, x),
                SlotKind::Weight { bytes } => self.weight(prefix, &slot.name, bytes)?,
                SlotKind::Cache { .. } => self.cache(own, slot)?,
            };
        }
        let x = FRAME_SLOTS + function.slot("x").unwrap_or(0);
        Ok(Call { function: index, frame, x })
    }

    /// Slots were checked to be one of these.
    fn activation(&mut self, slot: &Slot, x: usize) -> u64 {
        let b = &mut *self.buffers;
        match slot.name.as_str() {
            "ids" => address(&mut b.ids),
            "pos" => address(&mut b.pos),
            "x" => address(&mut b.residual[x]),
            "y" => address(&mut b.residual[1 - x]),
            "token" => address(&mut b.token),
            _ => address(&mut b.logits),
        }
    }

    fn weight(&mut self, prefix: &str, name: &str, expected: usize) -> Result<u64, Error> {
        let tensor = format!("{prefix}{name}");
        let Some(bytes) = self.weights.tensor(&tensor) else {
            return Err(Error::MissingWeight { tensor, expected });
        };
        if bytes.len() != expected {
            return Err(Error::WeightLength { tensor, expected, found: bytes.len() });
        }
        let address = bytes.as_ptr().expose_provenance();
        self.tensors.push((address, expected));
        Ok(address as u64)
    }

    /// The cache of this name among those from `own` on, made if need be: a function may have it in two slots, as
    /// what it reads and as what it writes.
    fn cache(&mut self, own: usize, slot: &Slot) -> Result<u64, Error> {
        if let Some(cache) = self.caches[own..].iter().find(|c| c.name() == slot.name) {
            return Ok(cache.address());
        }
        let Some(cache) = Cache::new(&slot.name, slot.kind)? else { return Ok(0) };
        let address = cache.address();
        self.caches.push(cache);
        Ok(address)
    }
}

/// Whether the functions fit the plan, as far as can be seen: what sessions rely on when they bind buffers.
pub(crate) fn check_plan(program: &Program) -> Result<(), Error> {
    let plan = &program.plan;
    let malformed = |text: String| Err(Error::Program(text));
    if plan.chunk == 0 || plan.hidden == 0 || plan.vocab == 0 || plan.context == 0 {
        return malformed("chunk, hidden, vocab and context must not be 0".into());
    }
    if plan.vocab > i32::MAX as usize || plan.context > i32::MAX as usize {
        return malformed("vocab and context must fit 32 bits".into());
    }
    let score = SCORE_ROWS.min(plan.chunk);
    let heads = [(plan.head, 1), (plan.head_all, score), (plan.head_argmax, 1)];
    let needs =
        [(plan.head, ["x", "logits"]), (plan.head_all, ["x", "logits"]), (plan.head_argmax, ["x", "token"])];
    let layers = plan.layers.iter().map(|layer| layer.function);
    let body = std::iter::once(plan.embed).chain(layers.clone()).map(|f| (f, plan.chunk));
    for (index, rows) in body.chain(heads) {
        let Some(function) = program.functions.get(index) else {
            return malformed(format!("the plan names function {index}, which there is not"));
        };
        check_function(program, function, rows)?;
    }
    let needs = needs.into_iter().chain([(plan.embed, ["ids", "y"])]);
    for (index, slots) in needs.chain(layers.map(|f| (f, ["x", "y"]))) {
        let function = &program.functions[index];
        if let Some(slot) = slots.iter().find(|slot| function.slot(slot).is_none()) {
            return malformed(format!("`{}` has no slot `{slot}`", function.name));
        }
    }
    Ok(())
}

/// Whether a function serves calls of `rows` rows with the buffers that a session has.
fn check_function(program: &Program, function: &Function, rows: usize) -> Result<(), Error> {
    let plan = &program.plan;
    let name = &function.name;
    let malformed = |text: String| Err(Error::Program(format!("`{name}` {text}")));
    if function.variants.last().is_none_or(|v| v.rows < rows) {
        return malformed(format!("does not serve calls of {rows} rows"));
    }
    let word = size_of::<f32>();
    for slot in &function.slots {
        let (per_row, fixed) = match slot.kind {
            SlotKind::Input { bytes_per_row } => (bytes_per_row, 0),
            SlotKind::Output { fixed_bytes, bytes_per_row } => (bytes_per_row, fixed_bytes),
            SlotKind::Weight { .. } => continue,
            SlotKind::Cache { rows, window, .. } => {
                let whole = rows >= plan.context;
                // A call appends its rows before its first row looks back.
                let ring = window.is_some_and(|w| w > 0 && rows + 1 >= w + plan.chunk);
                if !whole && !ring {
                    return malformed(format!("has a cache `{}` of only {rows} rows", slot.name));
                }
                continue;
            }
        };
        let input = matches!(slot.kind, SlotKind::Input { .. });
        let logits = plan.vocab * word;
        let fits = match (slot.name.as_str(), input) {
            ("ids" | "pos", true) => per_row == word && fixed == 0,
            ("x", true) | ("y", false) => per_row == plan.hidden * word && fixed == 0,
            ("token", false) => (per_row, fixed) == (0, word),
            ("logits", false) => {
                let all = program.functions.get(plan.head_all).is_some_and(|f| std::ptr::eq(function, f));
                (per_row, fixed) == if all { (logits, 0) } else { (0, logits) }
            }
            _ => false,
        };
        if !fits {
            let (slot, kind) = (&slot.name, slot.kind);
            return malformed(format!("has a slot `{slot}` that a session cannot fill: {kind:?}"));
        }
    }
    Ok(())
}
