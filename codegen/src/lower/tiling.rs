//! A panel of x against rows of weights by a tile microkernel: what linear and attention kernels share.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};

use lapidary_ir::DType;

use crate::emit::Emitter;
use crate::micro::{Emit, Fetched, Microkernel, Raw, Streams, Tile, TileOperands};

/// Bytes of a line of memory.
pub(super) const LINE: usize = 64;

/// A microkernel and the strides that its operands have in a kernel.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// The microkernel, one with packed x.
    pub(super) micro: &'static Microkernel,
    /// How weights are held.
    pub(super) weights: DType,
    /// Bytes from one weight row to the next.
    pub(super) weight_stride: usize,
    /// Bytes from one row of results to the next.
    pub(super) c_stride: usize,
    /// How many bytes ahead weights are fetched, if they are.
    pub(super) ahead: usize,
    /// Weight rows of a tile, if not its shape's.
    pub(super) nr: Option<usize>,
    /// Whether k lies in fours in both operands.
    pub(super) fours: bool,
    /// If x passes the first cache by: what is done meanwhile.
    pub(super) streams: Option<Streams>,
    /// Bytes of a step of a weight row as it is stored, if as much of the next block's rows is fetched meanwhile.
    pub(super) fetched: Option<usize>,
}

impl Tiling {
    /// Of weights that are held so, `weight_stride` bytes from row to row, a panel's results side by side; nothing is
    /// done meanwhile.
    pub(super) fn new(micro: &'static Microkernel, weights: DType, weight_stride: usize) -> Tiling {
        let (c_stride, ahead, nr, fours, streams, fetched) = (micro.mr * 4, 0, None, false, None, None);
        Tiling { micro, weights, weight_stride, c_stride, ahead, nr, fours, streams, fetched }
    }

    pub(super) fn tile(&self, shape: usize) -> Tile {
        let (columns, nr) = self.micro.shapes[shape];
        let lines = |bytes: usize| (nr * bytes).div_ceil(LINE) as i32;
        let fetched = |bytes| Fetched { rows: 1, stride: 0, lines: lines(bytes) };
        let fetching = self.fetched.map(|bytes| Streams { fetched: fetched(bytes), widened: None });
        Tile {
            operands: self.micro.operands,
            weights: self.weights,
            columns,
            nr: self.nr.unwrap_or(nr),
            panel: self.micro.mr,
            weight_stride: self.weight_stride as i32,
            c_stride: self.c_stride as i32,
            ahead: self.ahead as i32,
            fours: self.fours,
            streams: self.streams.or(fetching),
        }
    }

    /// The raw code that tiles of these strides call.
    pub(super) fn raw_code(&self) -> Vec<Raw> {
        let (Emit::RawTile(_) | Emit::IntegerTile(..) | Emit::ConfiguredTile(_)) = self.micro.emit else {
            return vec![];
        };
        let tiles = (0..self.micro.shapes.len()).map(|i| Raw::Tile(self.tile(i)));
        tiles.chain(self.micro.around(self.micro.mr).into_iter().flatten()).collect()
    }

    /// The most rows of weights and results beyond the last that are touched.
    pub(super) fn overhang(&self) -> usize {
        self.micro.shapes.iter().map(|s| s.1).max().unwrap_or(1) - 1
    }

    /// `width` weight rows times one panel of x, of whose columns the first `left` count.
    pub(super) fn run(&self, e: &mut Emitter<'_>, operands: &TileOperands, left: Value, width: Value) {
        self.narrowest(e, operands, left, width, self.micro.shapes.len() - 1);
    }

    /// By the narrowest of the shapes up to `shape` that holds `left` columns.
    fn narrowest(
        &self,
        e: &mut Emitter<'_>,
        operands: &TileOperands,
        left: Value,
        width: Value,
        shape: usize,
    ) {
        if shape == 0 {
            return self.rows(e, operands, width, 0);
        }
        let columns = e.i64(self.micro.shapes[shape].0 as i64);
        let fits = e.b.ins().icmp(IntCC::SignedLessThanOrEqual, left, columns);
        e.choose_path(
            fits,
            |e| self.rows(e, operands, width, shape),
            |e| self.narrowest(e, operands, left, width, shape - 1),
        );
    }

    fn rows(&self, e: &mut Emitter<'_>, operands: &TileOperands, width: Value, shape: usize) {
        let tile = self.tile(shape);
        let zero = e.i64(0);
        e.for_range(zero, width, tile.nr as i64, &[], |e, n, _| {
            let at = e.scale(n, self.weight_stride as i64);
            let weights = e.b.ins().iadd(operands.weights, at);
            let at = e.scale(n, self.c_stride as i64);
            let c = e.b.ins().iadd(operands.c, at);
            let streams = operands.streams.map(|(wanted, widened)| match self.fetched {
                // Tiles share the next block's bytes.
                Some(bytes) => {
                    let steps = e.b.ins().imul(n, operands.k);
                    let at = e.scale(steps, bytes as i64);
                    (e.b.ins().iadd(wanted, at), widened)
                }
                None => (wanted, widened),
            });
            let operands = TileOperands { weights, c, streams, ..*operands };
            if let Emit::Inline(emit) = self.micro.emit {
                emit(e, tile, &operands);
            } else if self.micro.is_packed() {
                e.call_raw(Raw::Tile(tile), &operands.values());
            } else {
                unreachable!("tiles alone read panels");
            }
            vec![]
        });
    }
}
