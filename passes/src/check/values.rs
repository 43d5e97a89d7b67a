//! Inputs for any function: from a seed, always the same.
//!
//! Floats are roughly normal (a matrix of weights is scaled by the root of its width) and rounded to their dtype; `pos`
//! is the last positions of the keys; other integers lie within the tables that they index. Edge values are zeros,
//! infinities, NaN, denormals and the largest numbers, among ordinary ones; large values are thousands of times as
//! large as ordinary ones.

use lapidary_ir::interp::Tensor;
use lapidary_ir::{DType, Extent, Function, InputId, InputKind, Op};

/// A small generator of 64-bit numbers (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Random(
    /// Its state.
    pub u64,
);

impl Random {
    /// The next number.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Mean 0, deviation 1: twelve uniforms, less their mean.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| (self.bits() >> 11) as f64 / (1u64 << 53) as f64).sum::<f64>() - 6.0
    }
}

/// What floats are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Roughly normal.
    Ordinary,
    /// Every other one is an edge value.
    Edge,
    /// The same without the largest numbers.
    Special,
    /// Thousands of times as large as ordinary ones.
    Large,
}

impl Values {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Values::Ordinary => "ordinary",
            Values::Edge => "edge",
            Values::Special => "special",
            Values::Large => "large",
        }
    }
}

/// How many times.
const LARGE: f64 = 3000.0;

/// Zeros, infinities, NaN, denormals, the smallest normal number, and, last, the two largest.
const EDGES: [f32; 12] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    1e-45,
    -1e-40,
    f32::MIN_POSITIVE,
    f32::MAX,
    f32::MIN,
];

/// The ordinary inputs of a function, in the order of declaration.
pub fn inputs(function: &Function, extent: Extent, seed: u64) -> Vec<Tensor> {
    draw(function, extent, seed, Values::Ordinary)
}

/// The inputs of a function, in the order of declaration.
///
/// # Panics
/// If one is quantised: nothing but a quantiser makes those.
pub fn draw(function: &Function, extent: Extent, seed: u64, values: Values) -> Vec<Tensor> {
    let mut random = Random(seed);
    function
        .inputs
        .iter()
        .enumerate()
        .map(|(at, input)| {
            let shape: Vec<usize> = input.ty.shape.iter().map(|d| d.at(extent)).collect();
            let n: usize = shape.iter().product();
            let id = InputId(at as u32);
            let data = match (input.ty.dtype, input.name.as_str()) {
                (DType::I32, name) if name.starts_with("pos") && table_rows(function, id).is_none() => {
                    (extent.keys.max(n) - n..).take(n).map(|p| p as f64).collect()
                }
                (DType::Bool, _) => (0..n).map(|_| random.below(2) as f64).collect(),
                (DType::I32, _) => {
                    let rows = table_rows(function, id).unwrap_or(10);
                    (0..n).map(|_| random.below(rows) as f64).collect()
                }
                _ => {
                    let width = shape.last().copied().unwrap_or(1) as f64;
                    let matrix = input.kind == InputKind::Weight && shape.len() > 1;
                    let scale = if matrix { width.sqrt().recip() } else { 1.0 };
                    let number = |random: &mut Random| {
                        let edges = match values {
                            Values::Edge => EDGES.len(),
                            Values::Special => EDGES.len() - 2,
                            Values::Ordinary => 0,
                            Values::Large => return random.normal() * scale * LARGE,
                        };
                        if edges > 0 && random.below(2) == 0 {
                            EDGES[random.below(edges)].into()
                        } else {
                            random.normal() * scale
                        }
                    };
                    (0..n).map(|_| number(&mut random)).collect()
                }
            };
            let exact = Tensor::new(input.ty.dtype, &shape, data);
            Tensor::from_bytes(input.ty.dtype, &shape, &exact.to_bytes())
        })
        .collect()
}

/// Rows of the table that an input indexes, if it does.
fn table_rows(function: &Function, ids: InputId) -> Option<usize> {
    let body = function.body.as_ref();
    let table = body.iter().find_map(|op| {
        let (Op::Gather([table, by]) | Op::Embedding([table, by, _])) = op else { return None };
        (function.body[*by] == Op::Input(ids)).then_some(*table)
    });
    let declared = table.and_then(|t| {
        let Op::Input(id) = function.body[t] else { return None };
        function.inputs.get(id.0 as usize)
    });
    table?;
    declared.and_then(|i| i.ty.shape.first()?.fixed()).or(Some(10))
}
