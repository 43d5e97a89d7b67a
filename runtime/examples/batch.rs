//! What a step of N sequences costs: `batch MODEL.lap [THREADS]`. Beside each N stands the longer of one row's time and
//! of N rows' at the rate of a prompt, which is what it could cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapidary_runtime::{Artifact, Engine, Phase, Sequence, Want, Work};

/// Positions before the steps.
const DEPTH: usize = 64;
/// Steps that the fastest is of.
const STEPS: usize = 31;

/// Appends a token to each sequence.
fn step(
    engine: &mut Engine,
    sequences: &mut [Sequence],
    token: u32,
) -> Result<Duration, lapidary_runtime::Error> {
    let start = Instant::now();
    let token = [token];
    let work = |sequence| Work { sequence, tokens: &token, phase: Phase::Decode, want: Want::Argmax };
    let mut works: Vec<Work<'_>> = sequences.iter_mut().map(work).collect();
    engine.step(&mut works)?;
    Ok(start.elapsed())
}

/// The fastest, in milliseconds: what the machine does when nothing else does.
fn fastest(times: &[Duration]) -> f64 {
    times.iter().min().map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: batch MODEL.lap [THREADS]")?;
    let threads = args.next().map_or(Ok(2), |n| n.parse())?;
    let artifact = Arc::new(Artifact::open(&path)?);
    let mut engine = Engine::new(Arc::new(artifact.program(None)?), artifact, threads)?;
    let chunk = engine.program().plan.chunk.min(engine.program().plan.context);
    let vocab = engine.program().plan.vocab as u32;
    let ids: Vec<u32> = (0..chunk as u32).map(|i| (i * 97 + 2) % vocab).collect();
    let mut times = vec![];
    for _ in 0..5 {
        let mut sequence = engine.sequence()?;
        let start = Instant::now();
        let (sequence, tokens) = (&mut sequence, &ids[..]);
        engine.step(&mut [Work { sequence, tokens, phase: Phase::Prefill, want: Want::Nothing }])?;
        times.push(start.elapsed());
    }
    let row = fastest(&times) / chunk as f64;
    println!("prefill: {chunk} rows, {row:.4} ms a row");
    println!("{:>4} {:>10} {:>10} {:>12}", "N", "ms a step", "could be", "tokens/s");
    let mut one = None;
    for n in [1, 2, 4, 8, 16] {
        let mut sequences = (0..n).map(|_| engine.sequence()).collect::<Result<Vec<_>, _>>()?;
        for sequence in &mut sequences {
            let tokens = &ids[..DEPTH.min(chunk)];
            engine.step(&mut [Work { sequence, tokens, phase: Phase::Prefill, want: Want::Nothing }])?;
        }
        let mut times = vec![];
        for at in 0..STEPS {
            times.push(step(&mut engine, &mut sequences, ids[at % chunk])?);
        }
        let ms = fastest(&times);
        let one = *one.get_or_insert(ms);
        println!("{n:>4} {ms:>10.3} {:>10.3} {:>12.1}", one.max(n as f64 * row), n as f64 / ms * 1e3);
    }
    Ok(())
}
