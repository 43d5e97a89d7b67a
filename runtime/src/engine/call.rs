//! Calls of functions: a frame, whose leading words change, given to the pool step by step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pool::Pool;
use crate::program::{FRAME_ROWS, FRAME_SEGMENTS, Phase, Plan, Program, Segment, Variant};

/// Times of an engine's launches, by function, variant and step: see
/// [`Engine::start_profile`](super::Engine::start_profile).
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// `[function][variant][step]`: launches, and their wall time together.
    pub steps: Vec<Vec<Vec<(u64, Duration)>>>,
}

/// A frame with its addresses.
pub(crate) struct Frame {
    pub(crate) function: usize,
    pub(crate) words: Vec<u64>,
    /// Words of slots that hold rows, and bytes from one row to the next.
    pub(crate) rows: Vec<(usize, u64)>,
}

/// What calls functions.
pub(crate) struct Caller<P = Plan> {
    pub(crate) pool: Pool,
    pub(crate) profile: Option<Profile>,
    pub(crate) program: Arc<Program<P>>,
}

impl<P> Caller<P> {
    /// Times every launch from here on; a launch more or less costs a clock's reading.
    pub(crate) fn start_profile(&mut self) {
        let steps = |v: &Variant| vec![(0, Duration::ZERO); v.steps.len()];
        let functions = self.program.functions.iter();
        let steps = functions.map(|f| f.variants.iter().map(steps).collect()).collect();
        self.profile = Some(Profile { steps });
    }

    /// Calls a function on a frame whose slots hold `rows` rows in `segments`.
    pub(crate) fn call(&mut self, frame: &mut Frame, phase: Phase, rows: usize, segments: &[Segment]) {
        if segments.len() <= 1 || self.program.functions[frame.function].batches {
            return self.launch(frame, phase, rows, segments);
        }
        for segment in segments {
            let of_segment = |(word, row): (usize, u64)| (word, segment.first * row);
            for (word, bytes) in frame.rows.iter().copied().map(of_segment) {
                frame.words[word] += bytes;
            }
            self.launch(frame, phase, segment.rows as usize, &[Segment { first: 0, ..*segment }]);
            for (word, bytes) in frame.rows.iter().copied().map(of_segment) {
                frame.words[word] -= bytes;
            }
        }
    }

    /// Launches a function's steps, in order.
    fn launch(&mut self, frame: &mut Frame, phase: Phase, rows: usize, segments: &[Segment]) {
        frame.words[FRAME_ROWS] = rows as u64;
        frame.words[FRAME_SEGMENTS] = segments.as_ptr().expose_provenance() as u64;
        let function = &self.program.functions[frame.function];
        let variant = function.variant_for(phase, rows);
        // What is profiled is launched by itself.
        let alone = self.profile.is_some();
        let mut index = 0;
        for steps in function.variants[variant].steps.chunk_by(|_, next| next.joins && !alone) {
            let start = self.profile.as_ref().map(|_| Instant::now());
            // SAFETY: the frame's addresses are of memory of the lengths that the layout declares, for `rows` rows and
            // the segments' keys, owned by the engine, its program, its weights and the sequences that it was lent, and
            // untouched by anyone else meanwhile; arena and scratch are the largest that any variant asks for.
            unsafe { self.pool.launch(steps, frame.words.as_ptr(), rows, segments) };
            if let (Some(profile), Some(start)) = (self.profile.as_mut(), start) {
                let (launches, time) = &mut profile.steps[frame.function][variant][index];
                *launches += 1;
                *time += start.elapsed();
            }
            index += steps.len();
        }
    }
}
