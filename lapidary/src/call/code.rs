//! Machine code for calls of one length, its threads and its memory.

use lapidary_codegen::compile::{FunctionReport, Loose, compile_functions};
use lapidary_ir::{Extent, Function, Module};
use lapidary_runtime::Pool;
use lapidary_runtime::program::{
    Aligned, FRAME_ARENA, FRAME_CONSTANTS, FRAME_ROWS, FRAME_SEGMENTS, FRAME_SLOTS, Segment,
};

use crate::error::Result;
use crate::graph::Graph;
use crate::options::Options;

/// Code for calls of one length, in which every operand is dense.
pub(super) struct OneLength {
    extent: Extent,
    loose: Loose,
    pool: Pool,
    arena: Aligned,
    frame: Vec<u64>,
}

impl OneLength {
    pub(super) fn new(function: &Function, extent: Extent, options: &Options) -> Result<OneLength> {
        let graph = Graph::loose(Module { functions: vec![function.clone()] }, extent.keys);
        let options = options.clone().chunk(extent.rows);
        options.runs_here()?;
        let compiler = graph.compiler(&options)?;
        let loose = compile_functions(&graph.module.functions, &compiler)?;
        let variant = loose.functions[0].variant(extent.rows);
        let pool = Pool::new(options.threads, variant.scratch_bytes)?;
        let bytes = variant.arena_bytes;
        let arena = Aligned::try_zeroed(bytes)
            .ok_or(lapidary_runtime::Error::Memory { what: "a call's temporaries".into(), bytes })?;
        Ok(OneLength { extent, loose, pool, arena, frame: Vec::new() })
    }

    /// How the code came about.
    pub(super) fn report(&self) -> &FunctionReport {
        &self.loose.reports[0]
    }

    /// Runs the code; slots are the addresses of inputs, then of outputs that are no caches.
    ///
    /// # Safety
    /// Each slot is as long as its type in the code's lengths, those that are written to are nobody else's meanwhile,
    /// and ids lie in what they count.
    pub(super) unsafe fn launch(&mut self, slots: &[u64]) {
        let OneLength { extent, loose, pool, arena, frame } = self;
        let variant = loose.functions[0].variant(extent.rows);
        let segments = [Segment { first: 0, rows: extent.rows as u64, keys: extent.keys as u64, kv: 0 }];
        frame.clear();
        frame.resize(FRAME_SLOTS, 0);
        frame[FRAME_ROWS] = extent.rows as u64;
        frame[FRAME_SEGMENTS] = segments.as_ptr().expose_provenance() as u64;
        frame[FRAME_ARENA] = arena.as_mut_ptr().expose_provenance() as u64;
        frame[FRAME_CONSTANTS] = loose.constants.as_ptr().expose_provenance() as u64;
        frame.extend_from_slice(slots);
        for steps in variant.launches() {
            // SAFETY: slots are the caller's promise; arena and scratch are as long as the variant says.
            unsafe { pool.launch(steps, frame.as_ptr(), extent.rows, &segments) };
        }
    }
}
