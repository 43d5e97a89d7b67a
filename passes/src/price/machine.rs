//! What kernels' prices are reckoned from: the constants of a machine, as fields, as rows of one table.
//!
//! In: nothing. Out: [`Machine`]. Figures are for all threads together; [`FIGURES`] names each for files and people.
//! Code generation has a set for each kind of CPU; [`Machine::GENERIC`] is where they start from.

use lapidary_ir::DType;

use super::measured::Measured;
use super::objective::Objective;

/// Bits a weight, scales included, that tell the two kinds of blocks apart.
const FEW_BITS: usize = 7;

/// A figure for each way to hold weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formats {
    /// Of f32.
    pub f32: f64,
    /// Of bf16 and f16.
    pub bf16: f64,
    /// Of blocks of more than seven bits a weight, scales included, as q8.
    pub q8: f64,
    /// Of other blocks, as q4.
    pub q4: f64,
}

impl Formats {
    /// The same of all.
    pub const fn all(figure: f64) -> Formats {
        Formats { f32: figure, bf16: figure, q8: figure, q4: figure }
    }

    /// The figure of an element type in memory.
    pub fn of(&self, dtype: DType) -> f64 {
        match dtype {
            DType::F32 | DType::I32 | DType::Bool => self.f32,
            DType::BF16 | DType::F16 => self.bf16,
            DType::Block(format) if format.block_bytes() * 8 > format.block * FEW_BITS => self.q8,
            DType::Block(_) => self.q4,
        }
    }
}

/// How code generation cuts kernels, as far as prices depend on it: it fills this in from its table of microkernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Weight rows of a tile of products by dot products.
    pub dot_block: usize,
    /// Weight rows of a tile of products of many rows.
    pub tile_block: usize,
    /// Rows of a tile of attention by few rows.
    pub attention_rows: usize,
    /// Keys of a part of such attention.
    pub part: usize,
    /// The most parts.
    pub parts: usize,
    /// Keys of a block of attention by many rows.
    pub key_block: usize,
    /// Queries, of all heads of a KV head, of a panel of such attention.
    pub panel: usize,
    /// The most panels of a tile.
    pub panels: usize,
    /// Tiles that the rows of the largest call make at least, before a tile has more panels than one.
    pub query_tiles: usize,
}

impl Shapes {
    /// With AVX-512 and f32.
    pub const GENERIC: Shapes = Shapes {
        dot_block: 16,
        tile_block: 48,
        attention_rows: 4,
        part: 256,
        parts: 16,
        key_block: 64,
        panel: 48,
        panels: 1,
        query_tiles: 8,
    };

    /// Rows of a panel of attention by many rows, of `repeat` query heads a KV head.
    pub fn panel_rows(&self, repeat: usize) -> usize {
        self.panel / repeat.clamp(1, self.panel)
    }

    /// Rows of a tile of it, in calls of as many rows.
    pub fn tile_rows(&self, repeat: usize, rows: usize) -> usize {
        let panel = self.panel_rows(repeat);
        panel * self.panels.min(rows / (self.query_tiles * panel)).max(1)
    }
}

/// The constants of a machine; figures are for all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Threads.
    pub threads: f64,
    /// Reads of weights from memory, bytes a nanosecond (GB/s).
    pub memory: f64,
    /// Reads of keys and values from memory by attention of few rows, bytes a nanosecond: many short streams.
    pub keys: f64,
    /// Bytes that the last cache holds.
    pub last_cache: f64,
    /// Reads and writes of activations, where weights from memory have driven them out of the caches, bytes a
    /// nanosecond.
    pub cache: f64,
    /// Reads and writes of what the last cache holds, bytes a nanosecond: activations and weights, where it holds all
    /// weights.
    pub near: f64,
    /// Weights that dot products take a nanosecond, with one row of x and the weights in cache.
    pub dot: Formats,
    /// The same with each row of x after the first, for which kernels may have the weights in registers already.
    pub dot_more: Formats,
    /// What a weight row takes beside its weights in dot products, nanoseconds.
    pub dot_row: f64,
    /// Products of 5 to 32 rows, FLOP a nanosecond (GFLOP/s).
    pub few_flops: f64,
    /// Products of more rows, FLOP a nanosecond.
    pub flops: Formats,
    /// Bringing weights into the form that products of more than 4 rows take, nanoseconds a weight.
    pub widen: Formats,
    /// Bringing x into the form that products of more than 4 rows with such weights take, nanoseconds an element.
    pub pack: Formats,
    /// What a result takes beside its sum in products of more than 32 rows, nanoseconds.
    pub store: f64,
    /// Products of two activations by tiles, which round neither, FLOP a nanosecond.
    pub product_flops: f64,
    /// Products over arbitrary strides, FLOP a nanosecond.
    pub loose_flops: f64,
    /// One element moved, converted, added, compared, nanoseconds.
    pub element: f64,
    /// One element of a sum, maximum or the like over an axis, nanoseconds.
    pub reduce: f64,
    /// One exp, tanh or the like, nanoseconds an element.
    pub transcendental: f64,
    /// One gelu in the epilogue of products of many rows, nanoseconds an element.
    pub gelu: f64,
    /// One element of a norm, nanoseconds.
    pub norm: f64,
    /// One element of a rotation, nanoseconds.
    pub rope: f64,
    /// Attention's products of calls of few rows, FLOP a nanosecond.
    pub attention_flops: f64,
    /// Attention's products of calls of many rows, FLOP a nanosecond.
    pub attention_tile_flops: f64,
    /// What attention of few rows does to a score, nanoseconds.
    pub score: f64,
    /// What attention of many rows does to a score, nanoseconds.
    pub score_tile: f64,
    /// Getting a kernel started on every thread and waiting for the last, nanoseconds.
    pub launch: f64,
    /// Calling a kernel on one thread, nanoseconds.
    pub call: f64,
    /// What a kernel takes longer where weights that come from memory have driven its code out of every cache,
    /// nanoseconds.
    pub cold: f64,
    /// The same where those weights come from the last cache, and its code stays there, nanoseconds.
    pub cool: f64,

    /// The most rows of a call whose products are dot products of one row each.
    pub dot_rows: f64,
    /// The most rows of a call whose products are dot products of several rows, and whose attention goes row by row.
    pub few_rows: f64,
    /// How kernels are cut.
    pub shapes: Shapes,
    /// Bytes of weights that a token reads: in cache from one token to the next if that holds as many.
    pub weight_bytes: f64,
    /// What is minimised.
    pub objective: Objective,
    /// Prices that were measured and go before all of these.
    pub measured: Option<&'static Measured>,
}

/// A row of the table of constants.
pub struct Figure {
    /// Its name in files.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// How more threads change it.
    pub scaling: Scaling,
    /// Where a machine has it.
    pub of: fn(&mut Machine) -> &mut f64,
}

impl Figure {
    /// Its value.
    pub fn get(&self, machine: &Machine) -> f64 {
        *(self.of)(&mut machine.clone())
    }
}

/// How a figure depends on the number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// Not at all.
    Fixed,
    /// More threads, more of it: a rate.
    Rate,
    /// More threads, less of it: a time.
    Time,
}

use Scaling::{Fixed, Rate, Time};

/// Every constant that a calibration measures.
pub const FIGURES: &[Figure] = &[
    Figure { name: "memory", unit: "GB/s", scaling: Fixed, of: |m| &mut m.memory },
    Figure { name: "keys", unit: "GB/s", scaling: Fixed, of: |m| &mut m.keys },
    Figure { name: "last_cache", unit: "bytes", scaling: Fixed, of: |m| &mut m.last_cache },
    Figure { name: "cache", unit: "GB/s", scaling: Rate, of: |m| &mut m.cache },
    Figure { name: "near", unit: "GB/s", scaling: Rate, of: |m| &mut m.near },
    Figure { name: "dot_f32", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot.f32 },
    Figure { name: "dot_bf16", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot.bf16 },
    Figure { name: "dot_q8", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot.q8 },
    Figure { name: "dot_q4", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot.q4 },
    Figure { name: "dot_more_f32", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot_more.f32 },
    Figure { name: "dot_more_bf16", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot_more.bf16 },
    Figure { name: "dot_more_q8", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot_more.q8 },
    Figure { name: "dot_more_q4", unit: "weights/ns", scaling: Rate, of: |m| &mut m.dot_more.q4 },
    Figure { name: "dot_row", unit: "ns/row", scaling: Time, of: |m| &mut m.dot_row },
    Figure { name: "few_flops", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.few_flops },
    Figure { name: "flops_f32", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.flops.f32 },
    Figure { name: "flops_bf16", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.flops.bf16 },
    Figure { name: "flops_q8", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.flops.q8 },
    Figure { name: "flops_q4", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.flops.q4 },
    Figure { name: "widen_f32", unit: "ns/weight", scaling: Time, of: |m| &mut m.widen.f32 },
    Figure { name: "widen_bf16", unit: "ns/weight", scaling: Time, of: |m| &mut m.widen.bf16 },
    Figure { name: "widen_q8", unit: "ns/weight", scaling: Time, of: |m| &mut m.widen.q8 },
    Figure { name: "widen_q4", unit: "ns/weight", scaling: Time, of: |m| &mut m.widen.q4 },
    Figure { name: "pack_f32", unit: "ns/element", scaling: Time, of: |m| &mut m.pack.f32 },
    Figure { name: "pack_bf16", unit: "ns/element", scaling: Time, of: |m| &mut m.pack.bf16 },
    Figure { name: "pack_q8", unit: "ns/element", scaling: Time, of: |m| &mut m.pack.q8 },
    Figure { name: "pack_q4", unit: "ns/element", scaling: Time, of: |m| &mut m.pack.q4 },
    Figure { name: "store", unit: "ns/element", scaling: Time, of: |m| &mut m.store },
    Figure { name: "product_flops", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.product_flops },
    Figure { name: "loose_flops", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.loose_flops },
    Figure { name: "element", unit: "ns/element", scaling: Time, of: |m| &mut m.element },
    Figure { name: "reduce", unit: "ns/element", scaling: Time, of: |m| &mut m.reduce },
    Figure { name: "transcendental", unit: "ns/element", scaling: Time, of: |m| &mut m.transcendental },
    Figure { name: "gelu", unit: "ns/element", scaling: Time, of: |m| &mut m.gelu },
    Figure { name: "norm", unit: "ns/element", scaling: Time, of: |m| &mut m.norm },
    Figure { name: "rope", unit: "ns/element", scaling: Time, of: |m| &mut m.rope },
    Figure { name: "attention_flops", unit: "GFLOP/s", scaling: Rate, of: |m| &mut m.attention_flops },
    Figure {
        name: "attention_tile_flops",
        unit: "GFLOP/s",
        scaling: Rate,
        of: |m| &mut m.attention_tile_flops,
    },
    Figure { name: "score", unit: "ns/score", scaling: Time, of: |m| &mut m.score },
    Figure { name: "score_tile", unit: "ns/score", scaling: Time, of: |m| &mut m.score_tile },
    Figure { name: "launch", unit: "ns", scaling: Fixed, of: |m| &mut m.launch },
    Figure { name: "call", unit: "ns", scaling: Fixed, of: |m| &mut m.call },
    Figure { name: "cold", unit: "ns", scaling: Fixed, of: |m| &mut m.cold },
    Figure { name: "cool", unit: "ns", scaling: Fixed, of: |m| &mut m.cool },
];

impl Machine {
    /// Two cores of a current x86-64 server with AVX-512 (VNNI, BF16): what prices are reckoned from where nothing else
    /// is said.
    pub const GENERIC: Machine = Machine {
        threads: 2.0,
        memory: 32.0,
        // No machine with these vectors was at hand to measure this, `near` and `cool` on.
        keys: 32.0,
        last_cache: 32e6,
        cache: 60.0,
        near: 60.0,
        dot: Formats { f32: 35.0, bf16: 60.0, q8: 80.0, q4: 75.0 },
        dot_more: Formats { f32: 35.0, bf16: 60.0, q8: 80.0, q4: 75.0 },
        dot_row: 0.7,
        few_flops: 450.0,
        flops: Formats::all(430.0),
        widen: Formats { f32: 0.04, bf16: 0.04, q8: 0.03, q4: 0.03 },
        pack: Formats::all(0.26),
        store: 0.3,
        product_flops: 160.0,
        loose_flops: 15.0,
        element: 0.26,
        reduce: 0.3,
        transcendental: 0.8,
        gelu: 0.8,
        norm: 0.6,
        rope: 0.75,
        attention_flops: 140.0,
        attention_tile_flops: 190.0,
        score: 2.5,
        score_tile: 1.1,
        launch: 650.0,
        call: 100.0,
        cold: 1000.0,
        cool: 0.0,
        dot_rows: 4.0,
        few_rows: 32.0,
        shapes: Shapes::GENERIC,
        weight_bytes: f64::INFINITY,
        objective: Objective::Roofline,
        measured: None,
    };

    /// The same for calls that go by the kernels of `regime` rows, however many rows they have.
    #[must_use]
    pub fn of_regime(self, regime: usize) -> Machine {
        let most = |rows: f64| if regime as f64 <= rows { f64::INFINITY } else { 0.0 };
        Machine { dot_rows: most(self.dot_rows), few_rows: most(self.few_rows), ..self }
    }

    /// The same with another number of threads, if all but memory and launches scale.
    pub fn on(self, threads: f64) -> Machine {
        let times = threads / self.threads;
        let mut other = Machine { threads, ..self };
        for figure in FIGURES {
            let value = (figure.of)(&mut other);
            match figure.scaling {
                Fixed => {}
                Rate => *value *= times,
                Time => *value /= times,
            }
        }
        other
    }

    /// Whether weights are in cache from one token to the next.
    pub fn is_resident(&self) -> bool {
        self.weight_bytes <= self.last_cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_what_it_sets() {
        let mut machine = Machine::GENERIC;
        for (at, figure) in FIGURES.iter().enumerate() {
            *(figure.of)(&mut machine) = at as f64 + 1.0;
        }
        for (at, figure) in FIGURES.iter().enumerate() {
            assert_eq!(figure.get(&machine), at as f64 + 1.0, "{}", figure.name);
        }
    }

    #[test]
    fn threads_scale_rates_and_times_but_no_memory() {
        let four = Machine::GENERIC.on(4.0);
        assert_eq!(four.flops.q4, 2.0 * Machine::GENERIC.flops.q4);
        assert_eq!(four.norm, Machine::GENERIC.norm / 2.0);
        assert_eq!((four.memory, four.launch), (Machine::GENERIC.memory, Machine::GENERIC.launch));
        assert_eq!(four.on(2.0), Machine::GENERIC);
    }
}
