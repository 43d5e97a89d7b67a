//! Products of two activations: what the two ways to compute them take, and which is taken.

use super::cost::CostModel;
use super::machine::Machine;
use crate::analysis::Data;

/// Matrices (rows, inner) times matrices (inner, columns).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// How many results there are.
    pub matrices: f64,
    /// How many right operands: fewer where several left ones meet one.
    pub packed: f64,
    /// Rows of a result.
    pub rows: f64,
    /// Columns of a result.
    pub columns: f64,
    /// Length of the sums.
    pub inner: f64,
}

impl Product {
    fn results(self) -> f64 {
        self.matrices * self.rows * self.columns
    }
}

impl Machine {
    /// Whether tiles over packed columns are cheaper than rows one by one, a launch more included.
    pub fn prefers_tiles(&self, product: Product) -> bool {
        let tiled = self.tiled(product) + self.packing(product) + self.launch;
        product.rows > self.dot_rows && tiled < self.loose(product)
    }

    /// Rows one by one, nanoseconds of all threads: a sum takes no less to end than a dot product's.
    pub(crate) fn loose(&self, product: Product) -> f64 {
        product.results() * (2.0 * product.inner / self.loose_flops + self.dot_row)
    }

    /// Tiles, nanoseconds of all threads.
    pub(crate) fn tiled(&self, product: Product) -> f64 {
        product.results() * (2.0 * product.inner / self.product_flops + self.store)
    }

    /// Bringing columns into panels, nanoseconds of all threads.
    pub(crate) fn packing(&self, product: Product) -> f64 {
        product.packed * product.inner * product.columns * self.pack.f32
    }
}

impl CostModel {
    /// The product of these operands.
    pub(crate) fn product(&self, result: &Data, a: &Data, b: &Data) -> Product {
        let axis = |data: &Data, back: usize| {
            let dim = data.ty.tensor().and_then(|t| t.shape.iter().rev().nth(back));
            dim.map_or(1, |d| d.at(self.extent)) as f64
        };
        let (rows, columns, inner) = (axis(result, 1), axis(result, 0), axis(a, 0));
        let count = |data: &Data| self.elements(data);
        Product {
            matrices: count(result) / (rows * columns).max(1.0),
            packed: count(b) / (inner * columns).max(1.0),
            rows,
            columns,
            inner,
        }
    }
}
