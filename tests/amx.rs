//! AMX machine code, run by the CPU or by the emulator of `src/emulator/`: tiles against loops, their bytes read back,
//! whole models against the same without AMX.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use anyhow::Result;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use lapidary::{Activations, Format, KvCache, Model, Options, Session};
use lapidary_codegen::compile;
use lapidary_codegen::micro::{MICROKERNELS, Microkernel, Raw, Shapes, Tile};
use lapidary_codegen::target::{Placement, Target};
use lapidary_models::Model as Files;
use lapidary_runtime::Rng;
use lapidary_tests::{emulator, exact, golden, golden_model, logits};
use memmap2::{Mmap, MmapMut};

#[path = "amx/linear.rs"]
mod linear;

/// The CPU whose code has tiles.
const CPU: &str = "x86-64-v4-amx";

fn rows() -> Vec<&'static Microkernel> {
    let all: Vec<_> = MICROKERNELS.iter().filter(|m| m.is_configured()).collect();
    assert!(!all.is_empty());
    all
}

fn tile(micro: &Microkernel, shape: usize, weight_stride: i32, c_stride: i32) -> Tile {
    let (columns, nr) = micro.shapes[shape];
    let (operands, weights, panel) = (micro.operands, micro.operands, micro.mr);
    Tile {
        operands,
        weights,
        columns,
        nr,
        panel,
        weight_stride,
        c_stride,
        ahead: 0,
        fours: false,
        streams: None,
    }
}

/// Makes code with tiles run here, and what of AVX-512 it uses beside them: by the CPU, or else by the emulator. False
/// on a CPU older than Cranelift's own code for such CPUs, which needs AVX2: there `tests/micro.rs` runs the tiles, by
/// the emulator alone.
fn make_ready() -> bool {
    // Asks the system for the tile registers, where there are some.
    lapidary_runtime::cpu::amx();
    assert!(emulator::install(), "the system gives no handler");
    let ready = Target::new("x86-64-v3", Placement::Jit).unwrap().lacking_here().is_none();
    if !ready {
        eprintln!("skipped: this machine lacks AVX2");
    }
    ready
}

/// A session on code that this machine may lack instructions for: the emulator has them.
fn session(files: &Arc<Files>, options: Options, threads: usize) -> Result<Session> {
    let model = Model::of(files.clone(), options.clone())?;
    let graph = model.graph()?;
    let program = compile(&graph.module, &graph.parts, &graph.compiler(&options)?)?.program;
    Ok(Session::new(program, model.weights()?, threads)?)
}

/// Raw code, executable.
fn executable(code: &[u8]) -> Mmap {
    let mut map = MmapMut::map_anon(code.len() + 64).unwrap();
    map[..code.len()].copy_from_slice(code);
    map.make_exec().unwrap()
}

fn bits(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

fn value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[test]
fn tiles_match_a_loop() {
    make_ready();
    let mut random = Rng::new(3);
    let mut next = || (random.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    for micro in rows() {
        let configure = executable(&micro.assemble(Raw::Configure(Shapes::Whole)).unwrap());
        let release = executable(&micro.assemble(Raw::Release).unwrap());
        for shape in 0..micro.shapes.len() {
            for (k, pad, accumulate) in [(32, 0, 0u64), (64, 16, 1), (96, 0, 1), (512, 32, 0), (1024, 32, 1)]
            {
                let (columns, nr) = micro.shapes[shape];
                let (row, c_row) = (k + pad, micro.mr + pad);
                let tile = tile(micro, shape, row as i32 * 2, c_row as i32 * 4);
                let code = executable(&micro.assemble(Raw::Tile(tile)).unwrap());
                let weights: Vec<u16> = (0..nr * row).map(|_| bits(next())).collect();
                let x: Vec<u16> = (0..k * micro.mr).map(|_| bits(next())).collect();
                let mut c: Vec<f32> = (0..nr * c_row).map(|_| next()).collect();
                let before = c.clone();
                // SAFETY: the code was assembled for these operands, and is called as its contract says.
                unsafe {
                    let plain = |map: &Mmap| std::mem::transmute::<*const u8, extern "C" fn()>(map.as_ptr());
                    type Run = extern "C" fn(*const u16, *const u16, *mut f32, u64, u64);
                    let run = std::mem::transmute::<*const u8, Run>(code.as_ptr());
                    plain(&configure)();
                    run(x.as_ptr(), weights.as_ptr(), c.as_mut_ptr(), k as u64 / 2, accumulate);
                    plain(&release)();
                }
                for n in 0..nr {
                    for t in 0..c_row {
                        let (found, old) = (c[n * c_row + t], before[n * c_row + t]);
                        if t >= columns {
                            assert_eq!(found.to_bits(), old.to_bits(), "written beside the tile");
                            continue;
                        }
                        let start = if accumulate == 0 { 0.0 } else { f64::from(old) };
                        let sum: f64 = (0..k)
                            .map(|i| {
                                let x = x[(i / 2 * micro.mr + t) * 2 + i % 2];
                                f64::from(value(weights[n * row + i])) * f64::from(value(x))
                            })
                            .sum();
                        let error = (f64::from(found) - (start + sum)).abs();
                        assert!(error <= 1e-6 * k as f64, "{}: {columns} {k}: {error}", micro.name);
                    }
                }
            }
        }
    }
}

#[test]
fn code_reads_back() {
    for micro in rows() {
        for shape in 0..micro.shapes.len() {
            let code = micro.assemble(Raw::Tile(tile(micro, shape, 4096, 128))).unwrap();
            let all: Vec<_> = Decoder::new(64, &code, DecoderOptions::NONE).into_iter().collect();
            assert!(all.iter().all(|i| !i.is_invalid()), "{}", micro.name);
            let count = |m: Mnemonic| all.iter().filter(|i| i.mnemonic() == m).count();
            let halves = micro.shapes[shape].0 / 16;
            assert_eq!(count(Mnemonic::Tdpbf16ps), 2 * halves);
            assert_eq!(count(Mnemonic::Tilestored), 2 * halves);
            assert_eq!(count(Mnemonic::Tilezero), 2 * halves);
            // Sums, and a step's operands.
            assert_eq!(count(Mnemonic::Tileloadd), 2 * halves + 2 + halves);
            assert_eq!(count(Mnemonic::Ret), 1);
        }
        let first = |raw| Decoder::new(64, &micro.assemble(raw).unwrap(), 0).decode().mnemonic();
        assert_eq!(first(Raw::Configure(Shapes::Whole)), Mnemonic::Ldtilecfg);
        assert_eq!(first(Raw::Release), Mnemonic::Tilerelease);
    }
}

#[test]
fn other_cpus_take_none() {
    for cpu in ["x86-64-v2", "x86-64-v3", "x86-64-v4", "znver4"] {
        let features = Target::new(cpu, Placement::Object).unwrap().features;
        assert!(rows().iter().all(|m| !(m.runs_on)(&features)), "{cpu}");
    }
}

/// Mean Kullback-Leibler divergence of next-token distributions, nats.
fn divergence(reference: &[f32], other: &[f32], vocab: usize) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let highest = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = row.iter().map(|&x| f64::from(x - highest).exp()).sum();
        row.iter().map(|&x| f64::from(x - highest) - total.ln()).collect()
    };
    let rows = reference.chunks(vocab).zip(other.chunks(vocab)).map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    rows.sum::<f64>() / (reference.len() / vocab) as f64
}

#[test]
fn a_model_in_bf16_stays_close() -> Result<()> {
    if !make_ready() {
        return Ok(());
    }
    let model = golden_model("tiny-short")?;
    let ids = golden("tiny-short")?.ids;
    let plain = logits(&mut session(&model, exact(), 2)?, &ids)?;
    let tiled = || exact().cpu(CPU).activations(Activations::Auto).kv_cache(KvCache::F32);
    let tiles = logits(&mut session(&model, tiled(), 2)?, &ids)?;
    assert_ne!(plain, tiles, "no product was rounded");
    let divergence = divergence(&plain, &tiles, model.config.vocab_size);
    assert!(divergence <= 1e-4, "mean KL {divergence}");
    // Threads and chunks: the same bits, the same within rounding.
    let one = logits(&mut session(&model, tiled(), 1)?, &ids)?;
    assert!(one.iter().zip(&tiles).all(|(a, b)| a.to_bits() == b.to_bits()));
    Ok(())
}

#[test]
fn f32_activations_hold_the_tolerance() -> Result<()> {
    if !make_ready() {
        return Ok(());
    }
    for case in ["tiny-short", "gqa-4", "odd-27b"] {
        let mut session = session(&golden_model(case)?, exact().cpu(CPU), 2)?;
        let worst = lapidary_tests::worst_difference(&mut session, &golden(case)?)?;
        assert!(worst <= 1e-3, "{case}: off by {worst}");
    }
    Ok(())
}

#[test]
fn quantised_weights_unpack() -> Result<()> {
    if !make_ready() {
        return Ok(());
    }
    let model = golden_model("tiny-short")?;
    let ids = golden("tiny-short")?.ids;
    for format in [Format::Q8, Format::Q4] {
        let of = |options: Options| -> Result<Vec<f32>> {
            logits(&mut session(&model, options.weights(format).cache(false), 2)?, &ids)
        };
        let rounded = exact().activations(Activations::Auto).kv_cache(KvCache::F32).cpu(CPU);
        // Token by token a row meets weight rows far from each other, in 8 bits.
        let (reference, by_one) = (of(exact())?, rounded.clone().chunk(1));
        for (options, most) in [(rounded, 1e-4), (by_one, 1e-3)] {
            let divergence = divergence(&reference, &of(options)?, model.config.vocab_size);
            assert!(divergence > 0.0 && divergence <= most, "{format:?}: mean KL {divergence}");
        }
    }
    Ok(())
}
