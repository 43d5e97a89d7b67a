//! Products of two activations: by rows, or by tiles over packed columns where that is cheaper.

use lapidary_ir::{Dim, Id};
use lapidary_passes::price::Product as Priced;

use super::{Done, Scheduler};
use crate::kernel::{Body, Product};
use crate::lower::matmul_tiles;
use crate::micro;
use crate::view::View;

/// Keys that a product is priced for, however many there may be.
const KEYS: usize = 512;

impl Scheduler<'_> {
    /// a (.., M, K) x b (.., K, N).
    pub(super) fn matmul(&mut self, id: Id, a: Id, b: Id) -> Done {
        let (dtype, dims) = self.tensor_type(id);
        let (a, b) = (self.stored(a)?, self.stored(b)?);
        if a.ring.is_some() || b.ring.is_some() {
            return Err(self.unsupported(id, "only attention may read a cache that wraps"));
        }
        let output = self.result(id, dtype, &dims);
        let leading = &dims[..dims.len() - 2];
        let whole = |view: &View| -> Vec<Dim> {
            let tail = view.axes.len() - 2;
            leading.iter().copied().chain(view.axes[tail..].iter().map(|a| a.dim)).collect()
        };
        let a = a.stretched(&whole(&a));
        // b's own matrices, columns as rows, under as many axes as the result has.
        let mut own = vec![Dim::Fixed(1); dims.len() - b.axes.len()];
        own.extend(b.dims());
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.swap(dims.len() - 2, dims.len() - 1);
        let columns = b.stretched(&own).transposed(&order);
        if !self.tiled(id, (&a, &columns), &output, (1.0, None, 1)) {
            self.push_rows(id, Body::Matmul, vec![a, b.stretched(&whole(&b))], output.clone());
        }
        self.set(id, output);
        Ok(())
    }

    /// q (H, T, D) x k (G, S, D) transposed, scaled and capped.
    pub(super) fn scores(&mut self, id: Id, [q, k]: [Id; 2], scale: f32, cap: Option<f32>) -> Done {
        let (q, k) = (self.stored(q)?, self.stored(k)?);
        if q.ring.is_some() || k.ring.is_some() {
            return Err(self.unsupported(id, "only attention may read a cache that wraps"));
        }
        let (dtype, dims) = self.tensor_type(id);
        let output = self.result(id, dtype, &dims);
        let of = |view: &View| self.setting.capacity.of(view.axes[0].dim);
        let repeat = of(&q) / of(&k);
        if !self.tiled(id, (&q, &k), &output, (scale, cap, repeat)) {
            self.push_rows(id, Body::Scores { scale, cap }, vec![q, k], output.clone());
        }
        self.set(id, output);
        Ok(())
    }

    /// Schedules a (.., M, K) against b (.., N, K) by tiles, if that pays; every `repeat` matrices of a meet one of b.
    fn tiled(
        &mut self,
        id: Id,
        (a, b): (&View, &View),
        output: &View,
        (scale, cap, repeat): (f32, Option<f32>, usize),
    ) -> bool {
        let capacity = self.setting.capacity;
        let tail = output.axes.len() - 2;
        let is_fixed = |view: &View| view.axes[..tail].iter().all(|a| a.dim.fixed().is_some());
        let walks = output.axes[tail].dim != Dim::Keys;
        if !is_fixed(output) || !is_fixed(b) || !walks {
            return false;
        }
        let length = |dim: Dim| match dim {
            Dim::Fixed(n) => n as f64,
            Dim::Rows => self.setting.regime as f64,
            Dim::Keys => KEYS as f64,
        };
        let matrices = |view: &View| view.axes[..tail].iter().map(|a| length(a.dim)).product::<f64>();
        let priced = Priced {
            matrices: matrices(output),
            packed: matrices(b),
            rows: length(output.axes[tail].dim),
            columns: length(output.axes[tail + 1].dim),
            inner: length(a.axes[tail + 1].dim),
        };
        if !self.setting.machine.prefers_tiles(priced) {
            return false;
        }
        let k = capacity.of(a.axes[tail + 1].dim);
        let micro = micro::select(usize::MAX, k, lapidary_ir::DType::F32, &self.setting.features);
        let form = matmul_tiles::packed(b, capacity, micro);
        let dims = form.dims();
        let order: Vec<usize> = (0..dims.len()).collect();
        let ready = self.temporary(form.dtype, &dims, &order);
        let tiles = matmul_tiles::pack_tiles(b, capacity, micro);
        self.push(id, Body::PackColumns(micro), vec![b.clone()], vec![ready.clone()], tiles);
        // Matrices of b that several of a meet do not move.
        let mut met: Vec<Dim> = output.axes[..tail].iter().map(|a| a.dim).collect();
        met.extend_from_slice(&dims[tail..]);
        let ready = if repeat == 1 { ready.stretched(&met) } else { ready };
        let tiles = matmul_tiles::product_tiles(a, capacity, micro);
        let body = Body::Product(Product { scale, cap, repeat, micro });
        self.push(id, body, vec![a.clone(), ready], vec![output.clone()], tiles);
        true
    }
}
