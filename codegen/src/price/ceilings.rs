//! The ceilings of this machine: read bandwidth and products a second of each unit, measured by a model's own kind of
//! kernels.

use std::time::Instant;

use lapidary_ir::DType;
use lapidary_runtime::Pool;
use lapidary_runtime::program::{FRAME_SLOTS, KernelFn, Step, Tiles};
use memmap2::MmapMut;

use crate::Error;
use crate::emit::Features;
use crate::image::ImageBuilder;
use crate::jit::{self, Code};
use crate::micro::probe::{self, Probe, READ_TILE};
use crate::target::{Placement, Target};

/// Bytes that one measurement of bandwidth reads: far beyond any cache.
pub const READ_BYTES: usize = 512 << 20;
/// Tiles of one measurement of products.
const MULTIPLY_TILES: u32 = 256;

/// The probes, ready to run on a number of threads.
pub struct Ceilings {
    pool: Pool,
    features: Features,
    read: Step,
    /// By unit.
    multiply: Vec<(DType, Step)>,
    buffer: MmapMut,
    _code: Code,
}

impl Ceilings {
    /// Probes for a CPU (a name of [`crate::target::TARGETS`] or `native`) on `threads` threads.
    ///
    /// # Errors
    /// An unknown CPU, or one that this machine is not; threads that cannot be had.
    pub fn new(cpu: &str, threads: usize) -> Result<Ceilings, Error> {
        let target = Target::new(cpu, Placement::Jit)?;
        let features = target.features;
        let mut image = ImageBuilder::new(target);
        image.define_probe(Probe::Read)?;
        let units: Vec<DType> =
            [DType::F32, DType::BF16, DType::Q8].into_iter().filter(|&u| features.unit(u) == u).collect();
        for &unit in &units {
            image.define_probe(Probe::Multiply(unit))?;
        }
        let (image, _) = image.finish()?;
        let code = jit::map(&image)?;
        // SAFETY: these are the image's entries; the code lives in the machine beside them.
        let entries: Vec<KernelFn> = image.entries.iter().map(|&at| unsafe { code.entry(at) }).collect();
        let step = |name: &str, kernel: KernelFn, tiles: u32| Step {
            by_segment: false,
            name: name.into(),
            kernel,
            tiles: Tiles { fixed: tiles, rows: 0 },
            tile_ns: 50_000,
            resumes: false,
            joins: false,
            demand: Default::default(),
        };
        let refuse = |reason: String| Error::Kernel { kernel: "probe".into(), reason };
        let mut buffer = MmapMut::map_anon(READ_BYTES + 4096).map_err(|e| refuse(e.to_string()))?;
        #[cfg(target_os = "linux")]
        let _ = buffer.advise(memmap2::Advice::HugePage);
        // Pages of zeros that were never written may all be one.
        buffer.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let pool = Pool::new(threads, 4096).map_err(|e| refuse(e.to_string()))?;
        let read = step("read", entries[0], (READ_BYTES / READ_TILE) as u32);
        let multiply = units.iter().zip(&entries[1..]);
        let multiply =
            multiply.map(|(&unit, &entry)| (unit, step("multiply", entry, MULTIPLY_TILES))).collect();
        Ok(Ceilings { pool, features, read, multiply, buffer, _code: code })
    }

    /// Bytes read a second, now.
    pub fn read_bandwidth(&mut self) -> f64 {
        READ_BYTES as f64 / self.read_time()
    }

    /// Seconds that [`READ_BYTES`] take to read, now.
    pub fn read_time(&mut self) -> f64 {
        self.time(Probe::Read)
    }

    /// Operations a second in registers alone, now, of a unit: f32, bf16 or q8; none of one that the CPU lacks.
    pub fn multiply_peak(&mut self, unit: DType) -> Option<f64> {
        self.multiply.iter().find(|(u, _)| *u == unit)?;
        let flops = probe::flops(&self.features, unit);
        Some(flops * f64::from(MULTIPLY_TILES) / self.time(Probe::Multiply(unit)))
    }

    /// Seconds of one launch.
    fn time(&mut self, probe: Probe) -> f64 {
        let mut frame = [0u64; FRAME_SLOTS + 1];
        frame[FRAME_SLOTS] = self.buffer.as_ptr().expose_provenance() as u64;
        let step = match probe {
            Probe::Read => &self.read,
            Probe::Multiply(unit) => match self.multiply.iter().find(|(u, _)| *u == unit) {
                Some((_, step)) => step,
                None => unreachable!("units that the CPU lacks are not asked for"),
            },
        };
        let start = Instant::now();
        // SAFETY: the frame's one slot is a buffer of as many bytes as the tiles read; scratch is a page.
        unsafe { self.pool.launch(std::slice::from_ref(step), frame.as_ptr(), 1, &[]) };
        start.elapsed().as_secs_f64()
    }
}
