//! A toy program whose kernels are Rust functions: an embedding, layers that append to caches and look back over
//! them, and the two heads. The arithmetic is fixed per row, so any split of the work gives the same bits.
#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::sync::Arc;

use lapidary_runtime::Session;
use lapidary_runtime::program::{
    Aligned, FRAME_ARENA, FRAME_CONSTANTS, FRAME_SEGMENTS, FRAME_SLOTS, Function, KernelFn, Layer, MadeFor,
    Plan, Program, Segment, Slot, SlotKind, Step, Tiles, Variant, WeightSource,
};

pub const HIDDEN: usize = 16;
pub const VOCAB: usize = 96;
pub const CONTEXT: usize = 200;
pub const CHUNK: usize = 40;
pub const WINDOW: usize = 12;
pub const RING: usize = WINDOW + CHUNK;
pub const LAYERS: usize = 3;

/// A frame, read.
#[derive(Clone, Copy)]
struct Frame(*const u64);

impl Frame {
    fn word(self, i: usize) -> usize {
        // SAFETY: kernels read no further than their function's slots.
        unsafe { self.0.add(i).read() as usize }
    }
    /// The segment that a tile is of, where a tile is a row, and the row within it.
    fn segment(self, mut tile: usize) -> (Segment, usize) {
        let mut segment = self.word(FRAME_SEGMENTS) as *const Segment;
        loop {
            // SAFETY: tiles are of the segments that there are.
            let here = unsafe { *segment };
            if tile < here.rows as usize {
                return (here, tile);
            }
            tile -= here.rows as usize;
            segment = segment.wrapping_add(1);
        }
    }
    fn get(self, word: usize, i: usize) -> f32 {
        // SAFETY: within the buffer that the slot declares.
        unsafe { (self.word(word) as *const f32).add(i).read_unaligned() }
    }
    fn set(self, word: usize, i: usize, value: f32) {
        // SAFETY: within the buffer that the slot declares; no other tile writes it.
        unsafe { (self.word(word) as *mut f32).add(i).write(value) }
    }
    fn int(self, word: usize, i: usize) -> i32 {
        self.get(word, i).to_bits() as i32
    }
}

const S: usize = FRAME_SLOTS;

// embed: ids, embed.weight, y. A tile a row.
extern "C" fn embed(frame: *const u64, begin: u64, end: u64, _: *mut u8) {
    let f = Frame(frame);
    for t in begin as usize..end as usize {
        for h in 0..HIDDEN {
            let id = f.int(S, t) as usize;
            f.set(S + 2, t * HIDDEN + h, f.get(S + 1, id * HIDDEN + h));
        }
    }
}

// layer: x, pos, k_cache, w.weight, k_cache (again, as written), y. Tiles are rows, segment by segment.
extern "C" fn append<const ROWS: usize>(frame: *const u64, begin: u64, end: u64, scratch: *mut u8) {
    let f = Frame(frame);
    assert_eq!(scratch as usize % 64, 0);
    for tile in begin as usize..end as usize {
        let (segment, within) = f.segment(tile);
        let t = segment.first as usize + within;
        let p = f.int(S + 1, t) as usize;
        assert_eq!(p, (segment.keys - segment.rows) as usize + within);
        for h in 0..HIDDEN {
            let value = f.get(S, t * HIDDEN + h) * f.get(S + 3, h);
            // Through the arena and the scratch, to see that they are there.
            // SAFETY: both hold CHUNK * HIDDEN words or more.
            let kept = unsafe {
                scratch.cast::<f32>().add(h).write(value);
                scratch.cast::<f32>().add(h).read()
            };
            f.set(FRAME_ARENA, t * HIDDEN + h, kept);
            let at = (segment.kv as usize + f.word(S + 4)) as *mut f32;
            // SAFETY: within the cache that the slot declares; no other tile writes it.
            unsafe { at.add((p % ROWS) * HIDDEN + h).write(f.get(FRAME_ARENA, t * HIDDEN + h)) };
        }
    }
}

extern "C" fn mix<const ROWS: usize, const LOOK: usize>(frame: *const u64, begin: u64, end: u64, _: *mut u8) {
    let f = Frame(frame);
    for tile in begin as usize..end as usize {
        let (segment, within) = f.segment(tile);
        let t = segment.first as usize + within;
        let p = (segment.keys - segment.rows) as usize + within;
        let cache = (segment.kv as usize + f.word(S + 2)) as *const f32;
        for h in 0..HIDDEN {
            let mut sum = 0.0f32;
            for key in (p + 1).saturating_sub(LOOK)..=p {
                let far = 1.0 / (p - key + 1) as f32;
                // SAFETY: within the cache that the slot declares.
                sum += far * unsafe { cache.add((key % ROWS) * HIDDEN + (h + key) % HIDDEN).read() };
            }
            let scale = f.get(FRAME_CONSTANTS, 0);
            let x = f.get(S, t * HIDDEN + h);
            f.set(S + 5, t * HIDDEN + h, x * 0.5 + (sum * scale).sin());
        }
    }
}

fn logit(f: Frame, row: usize, v: usize) -> f32 {
    (0..HIDDEN).map(|h| f.get(S, row * HIDDEN + h) * f.get(S + 1, v * HIDDEN + h)).sum()
}

// head: x, embed.weight, logits. A tile a row.
extern "C" fn head(frame: *const u64, begin: u64, end: u64, _: *mut u8) {
    let f = Frame(frame);
    for t in begin as usize..end as usize {
        for v in 0..VOCAB {
            f.set(S + 2, t * VOCAB + v, logit(f, t, v));
        }
    }
}

extern "C" fn head_argmax(frame: *const u64, begin: u64, end: u64, _: *mut u8) {
    let f = Frame(frame);
    for t in begin as usize..end as usize {
        let best = (1..VOCAB).fold(0, |best, v| if logit(f, t, v) > logit(f, t, best) { v } else { best });
        f.set(S + 2, t, f32::from_bits(best as u32));
    }
}

fn slot(name: &str, kind: SlotKind) -> Slot {
    Slot { name: name.into(), kind }
}

fn step(name: &str, kernel: KernelFn, fixed: u32, rows: u32) -> Step {
    let (name, tiles, demand) = (name.into(), Tiles { fixed, rows }, Default::default());
    Step { name, kernel, tiles, by_segment: false, tile_ns: 10_000, resumes: false, joins: false, demand }
}

fn by_segment(step: Step) -> Step {
    Step { by_segment: true, ..step }
}

fn function(name: &str, slots: Vec<Slot>, steps: Vec<Step>) -> Function {
    let variants = [1, 8, CHUNK].map(|rows| Variant {
        rows,
        arena_bytes: rows * HIDDEN * 4,
        scratch_bytes: HIDDEN * 4,
        steps: steps.clone(),
    });
    Function { name: name.into(), slots, batches: true, variants: variants.into() }
}

const TABLE: SlotKind = SlotKind::Weight { bytes: VOCAB * HIDDEN * 4 };
const X: SlotKind = SlotKind::Input { bytes_per_row: HIDDEN * 4 };
const Y: SlotKind = SlotKind::Output { fixed_bytes: 0, bytes_per_row: HIDDEN * 4 };
const ID: SlotKind = SlotKind::Input { bytes_per_row: 4 };

fn layer(name: &str, rows: usize, window: Option<usize>, steps: Vec<Step>) -> Function {
    let cache = SlotKind::Cache { heads: 1, rows, row_bytes: HIDDEN * 4, window };
    let weight = SlotKind::Weight { bytes: HIDDEN * 4 };
    let slots =
        [("x", X), ("pos", ID), ("k_cache", cache), ("w.weight", weight), ("k_cache", cache), ("y", Y)];
    function(name, slots.map(|(n, k)| slot(n, k)).into(), steps)
}

/// The toy, whose chunk (for the plan) is `chunk` rows, at most [`CHUNK`].
pub fn program(chunk: usize) -> Program {
    let head_slots = |out, kind| vec![slot("x", X), slot("embed.weight", TABLE), slot(out, kind)];
    let row = VOCAB * 4;
    let rows = |bytes| SlotKind::Output { fixed_bytes: 0, bytes_per_row: bytes };
    let functions = vec![
        function(
            "embed",
            vec![slot("ids", ID), slot("embed.weight", TABLE), slot("y", Y)],
            vec![step("embed", embed, 1, 1)],
        ),
        layer(
            "layer_local",
            RING,
            Some(WINDOW),
            [step("append", append::<RING>, 1, 1), step("mix", mix::<RING, WINDOW>, 1, 1)]
                .map(by_segment)
                .into(),
        ),
        layer(
            "layer_global",
            CONTEXT,
            None,
            [step("append", append::<CONTEXT>, 1, 1), step("mix", mix::<CONTEXT, CONTEXT>, 1, 1)]
                .map(by_segment)
                .into(),
        ),
        function("head", head_slots("logits", rows(row)), vec![step("all", head, 1, 1)]),
        function("head_argmax", head_slots("token", rows(4)), vec![step("max", head_argmax, 1, 1)]),
    ];
    let layers = (0..LAYERS).map(|i| Layer { function: 1 + i % 2, prefix: format!("layers.{i}.") });
    Program {
        functions,
        constants: Aligned::from_bytes(&0.7f32.to_ne_bytes()),
        plan: Plan {
            hidden: HIDDEN,
            vocab: VOCAB,
            context: CONTEXT,
            chunk,
            kv: "f32".into(),
            embed: 0,
            layers: layers.collect(),
            head: 3,
            head_argmax: 4,
        },
        made_for: MadeFor::default(),
        code: Box::new(()),
    }
}

/// Tensors by name.
pub struct Weights(pub HashMap<String, Vec<u8>>);

// SAFETY: a shared map is not changed, and its vectors stay where they are.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// Numbers in [-1, 1), the same every time.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut rng = lapidary_runtime::Rng::new(seed);
    (0..n).flat_map(|_| ((rng.unit() * 2.0 - 1.0) as f32).to_ne_bytes()).collect()
}

pub fn weights() -> Weights {
    let mut map = HashMap::from([("embed.weight".into(), noise(VOCAB * HIDDEN, 1))]);
    for i in 0..LAYERS {
        map.insert(format!("layers.{i}.w.weight"), noise(HIDDEN, 2 + i as u64));
    }
    Weights(map)
}

pub fn session(threads: usize, chunk: usize) -> Session {
    Session::new(Arc::new(program(chunk)), Arc::new(weights()), threads).expect("a session")
}

/// Some text.
pub fn text(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 37 + i * i * 11) % VOCAB) as u32).collect()
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}
