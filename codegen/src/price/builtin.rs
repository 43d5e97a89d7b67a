//! What kernels are priced by where nothing was measured: constants for each kind of CPU.

use lapidary_passes::price::{Formats, Machine};

use super::shapes;
use crate::target::Target;

impl Target {
    /// The built-in constants that kernels are priced by; `rounded` says whether products may round their activations.
    pub fn machine(&self, rounded: bool) -> Machine {
        let f = self.features;
        let formats = |f32, bf16, q8, q4| Formats { f32, bf16, q8, q4 };
        // Measured by `lapidary calibrate --cpu` on two cores of a Zen 4 server, but for AMX: two cores' peak, of
        // which its kernels are taken to reach a third, and Arm, taken for a CPU of 128-bit vectors. `gelu`, and
        // products in 8 bits of AVX2, are a Zen 3's, by what they take there beside `transcendental` and products in
        // f32.
        let wide = Machine { flops: Formats::all(228.0), few_flops: 228.0, ..Machine::GENERIC };
        let dot =
            |rounded| if rounded { formats(35.0, 60.0, 71.0, 63.0) } else { formats(35.0, 60.0, 50.0, 48.0) };
        // Quantised weights in halves of 4 bits.
        let halves = if rounded { formats(228.0, 228.0, 320.0, 550.0) } else { wide.flops };
        let machine = match (f.avx512, f.avx2 && f.fma) {
            (true, _) if rounded && f.amx => {
                Machine { flops: Formats::all(2000.0), dot: formats(35.0, 60.0, 80.0, 75.0), ..wide }
            }
            (true, _) if rounded && f.bf16 => Machine::GENERIC,
            // As the row above where weights are quantised, as the row below where they are not.
            (true, _) if rounded && f.vnni => Machine {
                dot: Machine::GENERIC.dot,
                flops: Formats { q8: Machine::GENERIC.flops.q8, q4: Machine::GENERIC.flops.q4, ..wide.flops },
                attention_tile_flops: 160.0,
                ..wide
            },
            (true, _) => Machine { dot: dot(rounded), flops: halves, attention_tile_flops: 160.0, ..wide },
            (false, true) => {
                let (attention_flops, attention_tile_flops) = (122.0, 126.0);
                // By what they take on a Zen 5 beside halves.
                let flops = if rounded && f.avxvnni { formats(228.0, 228.0, 740.0, 750.0) } else { halves };
                Machine { dot: dot(rounded), flops, attention_flops, attention_tile_flops, ..wide }
            }
            (false, false) => Machine {
                dot: formats(19.0, 16.0, 8.3, 6.1),
                few_flops: 52.0,
                flops: Formats::all(52.0),
                product_flops: 42.0,
                widen: formats(0.04, 0.05, 0.14, 0.23),
                transcendental: 1.2,
                gelu: 1.8,
                // 4.5 was measured; dearer than its parts, attention would not be fused, and local caches be no rings.
                attention_flops: 42.0,
                attention_tile_flops: 42.0,
                ..Machine::GENERIC
            },
        };
        let machine = if f.neon { self.arm(rounded, machine) } else { machine };
        let dot_more = match (f.avx512, f.avx2 && f.fma) {
            // A Zen 3's, by what four rows take there beside one.
            (false, true) if rounded => Formats { q8: 116.0, q4: 133.0, ..machine.dot },
            _ => machine.dot,
        };
        Machine { shapes: shapes(&f, rounded), dot_more, ..machine }
    }

    /// What AArch64's own kernels take on two cores of 2.5 GHz, by LLVM's models of a Cortex-A72, a Neoverse N1 and an
    /// N2 (`tests/peers/loops.py`); the rest is as it is elsewhere.
    fn arm(&self, rounded: bool, other: Machine) -> Machine {
        let f = self.features;
        let formats = |f32, bf16, q8, q4| Formats { f32, bf16, q8, q4 };
        let (dot, few_flops) = match rounded {
            true if f.dotprod => (formats(19.0, 19.0, 49.0, 43.0), 115.0),
            true => (formats(13.0, 13.0, 31.0, 30.0), 70.0),
            // Weights of q8 and q4 are widened to f32 in registers.
            false => (formats(19.0, 19.0, 10.0, 9.0), 40.0),
        };
        let (floats, tile) = match f.dotprod {
            _ if rounded && f.bfmmla => (300.0, 150.0),
            true => (80.0, 70.0),
            false => (40.0, 42.0),
        };
        let integers = match (f.i8mm, f.dotprod) {
            (true, _) if rounded => 300.0,
            (_, true) if rounded => 205.0,
            _ => floats,
        };
        Machine {
            dot,
            few_flops,
            flops: formats(floats, floats, integers, integers),
            product_flops: if f.dotprod { 70.0 } else { 36.0 },
            attention_flops: if f.dotprod { 50.0 } else { 42.0 },
            attention_tile_flops: tile,
            ..other
        }
    }
}
