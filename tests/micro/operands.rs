//! Operands of microkernels: values, how they lie in memory, and what they are worth.

use lapidary_codegen::micro;
use lapidary_ir::{BLOCK, DType};
use lapidary_runtime::Rng;

/// What operands hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Anything: results are near the loop's.
    Any,
    /// Small integers, whose products and sums are exact in any order: results are the loop's.
    Small,
}

/// A fixed sequence of operands.
pub(crate) struct Source {
    random: Rng,
    pub(crate) values: Values,
}

/// Elements as they lie, and what they are worth.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f64>,
}

impl Source {
    pub(crate) fn new(seed: u64, values: Values) -> Source {
        Source { random: Rng::new(seed), values }
    }

    pub(crate) fn integer(&mut self, low: i64, high: i64) -> i64 {
        low + (self.random.next_u64() % (high - low + 1) as u64) as i64
    }

    /// A quant within these bounds, or a small one.
    pub(crate) fn quant(&mut self, low: i64, high: i64) -> i64 {
        match self.values {
            Values::Any => self.integer(low, high),
            Values::Small => self.integer(low.max(-15), high.min(15)),
        }
    }

    pub(crate) fn float(&mut self) -> f32 {
        match self.values {
            Values::Any => self.integer(-(1 << 23), 1 << 23) as f32 / (1u64 << 23) as f32,
            Values::Small => self.integer(-8, 8) as f32,
        }
    }

    /// A float that is a bf16; a block's scale.
    pub(crate) fn scale(&mut self) -> f32 {
        match self.values {
            Values::Any => f32::from_bits(self.float().to_bits() & 0xffff_0000),
            Values::Small => [1.0, 2.0, -1.0][self.integer(0, 2) as usize],
        }
    }

    /// One element of no quantised type.
    fn element(&mut self, dtype: DType, row: &mut Row) {
        let x = self.float();
        match dtype {
            DType::BF16 => {
                let bits = (x.to_bits() >> 16) as u16;
                row.bytes.extend(bits.to_le_bytes());
                row.values.push(f32::from_bits(u32::from(bits) << 16).into());
            }
            DType::F16 => {
                let (bits, value) = match self.values {
                    Values::Any => self.any_f16(),
                    Values::Small => (small_f16(x), f64::from(x)),
                };
                row.bytes.extend(bits.to_le_bytes());
                row.values.push(value);
            }
            _ => {
                row.bytes.extend(x.to_le_bytes());
                row.values.push(x.into());
            }
        }
    }

    /// Any finite f16 below 2, denormals with them.
    fn any_f16(&mut self) -> (u16, f64) {
        let (sign, exponent, fraction) =
            (self.integer(0, 1), self.integer(0, 15), self.integer(0, (1 << 10) - 1));
        let magnitude = match exponent {
            0 => fraction as f64 * 2f64.powi(-24),
            _ => (1.0 + fraction as f64 / 1024.0) * 2f64.powi(exponent as i32 - 15),
        };
        let bits = (sign << 15 | exponent << 10 | fraction) as u16;
        (bits, if sign == 1 { -magnitude } else { magnitude })
    }

    /// `k` elements as a row of a weight, of keys or of values.
    pub(crate) fn row(&mut self, dtype: DType, k: usize) -> Row {
        let mut row = Row::default();
        if !dtype.is_quantised() {
            (0..k).for_each(|_| self.element(dtype, &mut row));
            return row;
        }
        if let (Some(format), false) = (dtype.format(), micro::raw_reads(dtype)) {
            row.bytes = (0..dtype.row_bytes(k)).map(|_| self.integer(0, 255) as u8).collect();
            format.set_floats(&mut row.bytes, k, || self.scale());
            let mut values = vec![0.0; k];
            format.dequantise_row(&row.bytes, &mut values);
            row.values = values.into_iter().map(f64::from).collect();
            return row;
        }
        let (low, high) = if dtype == DType::Q4 { (-8, 7) } else { (-127, 127) };
        let quants: Vec<i64> = (0..k).map(|_| self.quant(low, high)).collect();
        let scales: Vec<f32> = (0..k / BLOCK).map(|_| self.scale()).collect();
        row.bytes = quant_bytes(dtype, &quants);
        scales.iter().for_each(|s| row.bytes.extend(((s.to_bits() >> 16) as u16).to_le_bytes()));
        row.values =
            quants.iter().enumerate().map(|(i, &q)| q as f64 * f64::from(scales[i / BLOCK])).collect();
        assert_eq!(row.bytes.len(), dtype.row_bytes(k));
        row
    }

    /// `n` rows that follow one another, and `pad` bytes of NaN behind each.
    pub(crate) fn rows(&mut self, dtype: DType, n: usize, k: usize, pad: usize) -> (Vec<u8>, Vec<Vec<f64>>) {
        let (mut bytes, mut values) = (vec![], vec![]);
        for _ in 0..n {
            let row = self.row(dtype, k);
            bytes.extend(row.bytes);
            bytes.resize(bytes.len() + pad, 0xff);
            values.push(row.values);
        }
        (bytes, values)
    }
}

/// Quants as they lie: of 4 bits plus 8, a block's second half in the upper nibbles.
fn quant_bytes(dtype: DType, quants: &[i64]) -> Vec<u8> {
    match dtype {
        DType::Q4 => {
            let nibbles = |(a, b): (&i64, &i64)| (a + 8) as u8 | ((b + 8) as u8) << 4;
            quants
                .chunks(BLOCK)
                .flat_map(|b| b[..BLOCK / 2].iter().zip(&b[BLOCK / 2..]).map(nibbles))
                .collect()
        }
        _ => quants.iter().map(|&q| q as i8 as u8).collect(),
    }
}

/// An integer below 2048 as an f16.
fn small_f16(x: f32) -> u16 {
    if x == 0.0 {
        return 0;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 23 & 0xff) + 15 - 127;
    (bits >> 31 << 15 | exponent << 10 | bits >> 13 & 0x3ff) as u16
}

/// Floats as they lie.
pub(crate) fn float_bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|f| f.to_le_bytes()).collect()
}
