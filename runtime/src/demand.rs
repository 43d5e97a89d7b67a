//! What a kernel reads and computes, by the rows and keys of a call: what measured times are held against.

use serde::{Deserialize, Serialize};

/// What a kernel's products multiply in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats of 8 bits' precision.
    Bf16,
    /// 8-bit integers.
    Int8,
}

/// A sum of four terms: of a call, and of each row, each key, and each row and key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terms(pub [f64; 4]);

impl Terms {
    /// The terms of a function that is such a sum.
    pub fn of(f: impl Fn(usize, usize) -> f64) -> Terms {
        let (one, rows, keys, both) = (f(1, 1), f(2, 1), f(1, 2), f(2, 2));
        let product = both - rows - keys + one;
        let (row, key) = (rows - one - product, keys - one - product);
        Terms([one - row - key - product, row, key, product])
    }

    /// The sum for a call of so many rows that sees so many keys.
    pub fn at(&self, rows: usize, keys: usize) -> f64 {
        let (rows, keys) = (rows as f64, keys as f64);
        let [call, row, key, both] = self.0;
        call + row * rows + key * keys + both * rows * keys
    }
}

/// What one launch of a kernel reads and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// Bytes of weights and cached keys and values, read from memory.
    pub bytes: Terms,
    /// Floating-point operations.
    pub flops: Terms,
    /// What attention adds.
    pub attention: Option<Attention>,
    /// What products multiply in.
    pub unit: Unit,
}

/// What attention reads and computes: each row sees the keys up to its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Bytes of each key that a row sees.
    pub bytes: f64,
    /// Operations of each pair of a row and a key that it sees.
    pub flops: f64,
    /// The most keys that a row sees.
    pub window: Option<usize>,
}

impl Attention {
    /// Bytes that a call of `rows` rows and, with them, `keys` keys reads.
    pub fn bytes(&self, rows: usize, keys: usize) -> f64 {
        self.bytes * self.window.map_or(keys, |w| keys.min(w.saturating_add(rows))) as f64
    }

    /// Operations of such a call.
    pub fn flops(&self, rows: usize, keys: usize) -> f64 {
        let before = keys.saturating_sub(rows);
        let seen = |row: usize| (before + row + 1).min(self.window.unwrap_or(usize::MAX)) as f64;
        self.flops * (0..rows).map(seen).sum::<f64>()
    }
}

impl Demand {
    /// Bytes of weights and cached keys and values that a call of `rows` rows and, with them, `keys` keys reads.
    pub fn bytes(&self, rows: usize, keys: usize) -> f64 {
        self.bytes.at(rows, keys) + self.attention.map_or(0.0, |a| a.bytes(rows, keys))
    }

    /// Operations of such a call.
    pub fn flops(&self, rows: usize, keys: usize) -> f64 {
        self.flops.at(rows, keys) + self.attention.map_or(0.0, |a| a.flops(rows, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_the_keys_before_them_and_themselves() {
        let all = Attention { bytes: 10.0, flops: 100.0, window: None };
        // The last two of five keys are the rows' own: they see 4 and 5.
        assert_eq!((all.bytes(2, 5), all.flops(2, 5)), (50.0, 900.0));
        // With a window of 3 each sees 3; of the keys, two rows and a window are read.
        let local = Attention { window: Some(3), ..all };
        assert_eq!((local.bytes(2, 5), local.flops(2, 5)), (50.0, 600.0));
        assert_eq!((local.bytes(2, 9), local.flops(2, 9)), (50.0, 600.0));
        // Before the window is full: 1, 2, 3, 3.
        assert_eq!((local.bytes(4, 4), local.flops(4, 4)), (40.0, 900.0));
    }
}
