//! One call by the emulator, and by the CPU where it can: results against what they must be, and against each other.

use anyhow::{Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use lapidary_codegen::micro::{Microkernel, Raw};
use lapidary_tests::emulator::{Argument, Cpu};

use crate::cases::{Case, Operand, Want};
use crate::operands::Values;

/// How a case ran.
pub(crate) struct Ran {
    pub(crate) natively: bool,
}

/// A microkernel's code, with what comes before and after it.
pub(crate) fn code(micro: &Microkernel, raw: Raw) -> Vec<Vec<u8>> {
    let rows = if let Raw::Lanes(lanes) = raw { lanes.rows } else { 1 };
    let raws = match micro.around(rows) {
        Some([configure, release]) => vec![configure, raw, release],
        None => vec![raw],
    };
    raws.into_iter().map(|raw| micro.assemble(raw).unwrap()).collect()
}

/// Checks a case.
pub(crate) fn check(micro: &Microkernel, case: &Case, values: Values) -> Result<Ran> {
    let at = format!("{}, {:?}, {values:?}", micro.name, case.raw);
    let code = code(micro, case.raw);
    let emulated = emulate(&code, case).map_err(|e| e.context(at.clone()))?;
    compare(case, &emulated, values).map_err(|e| e.context(format!("{at}, emulated")))?;
    let natively = code.iter().all(|code| native::runs(code));
    if natively {
        let found = native::run(&code, case);
        compare(case, &found, values).map_err(|e| e.context(format!("{at}, by this CPU")))?;
        // The order and rounding of sums of products of bf16 are the CPU's own: Intel and AMD differ.
        let is_loose = code.iter().any(|code| mnemonics(code).any(|(m, _)| is_bf16_product(m)));
        if !is_loose || values == Values::Small {
            let differs = found.chunks(4).zip(emulated.chunks(4)).position(|(a, b)| a != b);
            ensure!(differs.is_none(), "{at}: dword {differs:?} of this CPU is not the emulator's");
        }
    }
    Ok(Ran { natively })
}

fn is_bf16_product(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Vdpbf16ps | Mnemonic::Tdpbf16ps)
}

/// How an instruction is encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Legacy,
    Vex,
    Evex,
}

/// Instructions up to the return; tables may follow.
fn mnemonics(code: &[u8]) -> impl Iterator<Item = (Mnemonic, Encoding)> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        // In 64-bit code these first bytes are nothing else.
        let encoding = match code.get(decoder.position()) {
            Some(0x62) => Encoding::Evex,
            Some(0xc4 | 0xc5) => Encoding::Vex,
            _ => Encoding::Legacy,
        };
        let i = decoder.decode();
        done = i.mnemonic() == Mnemonic::Ret;
        Some((i.mnemonic(), encoding))
    })
}

/// Results after a call of each function in turn; the last but one of three has the operands.
fn emulate(code: &[Vec<u8>], case: &Case) -> Result<Vec<u8>> {
    let mut cpu = Cpu::new();
    let mut result = None;
    for part in code {
        let is_main = code.len() == 1 || !std::ptr::eq(part, &code[0]) && !std::ptr::eq(part, &code[2]);
        let mut out = case.operands.clone();
        let mut arguments: Vec<Argument<'_>> = vec![];
        for operand in out.iter_mut().filter(|_| is_main) {
            arguments.push(match operand {
                Operand::In(bytes) => Argument::In(bytes),
                Operand::Out(bytes) | Operand::Work(bytes) => Argument::Out(bytes),
                Operand::Within(operand, at) => Argument::Within(*operand, *at),
                Operand::Number(number) => Argument::Number(*number),
            });
        }
        if let Err(fault) = cpu.call(part, &mut arguments) {
            bail!("{fault}");
        }
        drop(arguments);
        if is_main {
            result =
                out.into_iter().find_map(|o| if let Operand::Out(bytes) = o { Some(bytes) } else { None });
        }
    }
    Ok(result.expect("a result"))
}

pub(crate) fn compare(case: &Case, found: &[u8], values: Values) -> Result<()> {
    let before =
        case.operands.iter().find_map(|o| if let Operand::Out(bytes) = o { Some(bytes) } else { None });
    let before = before.expect("a result");
    match &case.want {
        Want::Bytes(want) => {
            let at = want.iter().zip(found).position(|(a, b)| a != b);
            ensure!(want.len() == found.len() && at.is_none(), "byte {at:?} differs");
        }
        Want::Shares { shares, state } => {
            let (halves, floats) = found.split_at(2 * shares.len());
            for (n, (want, half)) in shares.iter().zip(halves.as_chunks().0).enumerate() {
                let found = f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16));
                ensure!((found - want).abs() <= want / 250.0 + 1e-30, "share {n}: {found} instead of {want}");
            }
            for (n, (want, float)) in state.iter().zip(floats.as_chunks().0).enumerate() {
                let found = f64::from(f32::from_le_bytes(*float));
                let near = (found - want).abs() <= 2e-5 * want.abs().max(1.0);
                ensure!(near, "state {n}: {found} instead of {want}");
            }
        }
        Want::Floats(want) => {
            for (n, want) in want.iter().enumerate() {
                let word = |bytes: &[u8]| u32::from_le_bytes(bytes[4 * n..4 * n + 4].try_into().unwrap());
                let Some((want, size)) = want else {
                    ensure!(word(found) == word(before), "written beside the results, element {n}");
                    continue;
                };
                let found = f64::from(f32::from_bits(word(found)));
                let tolerance = if values == Values::Small { 0.0 } else { 2e-6 * size };
                ensure!((found - want).abs() <= tolerance, "element {n}: {found} instead of {want}");
            }
        }
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod native {
    //! The CPU itself.

    use std::arch::is_x86_feature_detected as has;

    use iced_x86::Mnemonic;
    use lapidary_runtime::cpu;
    use memmap2::{Mmap, MmapMut};

    use super::{Encoding, mnemonics};
    use crate::cases::{Case, Operand};

    /// Whether this machine's CPU has every instruction of a function.
    pub(crate) fn runs(code: &[u8]) -> bool {
        mnemonics(code).all(|(mnemonic, encoding)| match (mnemonic, encoding) {
            (
                Mnemonic::Ldtilecfg
                | Mnemonic::Tilerelease
                | Mnemonic::Tilezero
                | Mnemonic::Tileloadd
                | Mnemonic::Tilestored
                | Mnemonic::Tdpbf16ps,
                _,
            ) => cpu::has("amx"),
            (Mnemonic::Vdpbf16ps | Mnemonic::Vcvtne2ps2bf16, _) => has!("avx512bf16") && has!("avx512vl"),
            (Mnemonic::Vpdpbusd, Encoding::Evex) => has!("avx512vnni") && has!("avx512vl"),
            (Mnemonic::Vpdpbusd, _) => has!("avxvnni"),
            (Mnemonic::Kmovb | Mnemonic::Kmovw | Mnemonic::Kmovd | Mnemonic::Kmovq, _)
            | (_, Encoding::Evex) => {
                has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
            }
            (Mnemonic::Vfmadd231ps | Mnemonic::Vfmadd213ps | Mnemonic::Vfmadd231ss, _) => has!("fma"),
            (Mnemonic::Vcvtph2ps, _) => has!("f16c"),
            (_, Encoding::Vex) => has!("avx2"),
            (_, Encoding::Legacy) => true,
        })
    }

    /// Raw code, executable.
    pub(crate) fn executable(code: &[u8]) -> Mmap {
        let mut map = MmapMut::map_anon(code.len() + 64).unwrap();
        map[..code.len()].copy_from_slice(code);
        map.make_exec().unwrap()
    }

    /// Results, with guards around them looked at.
    pub(crate) fn run(code: &[Vec<u8>], case: &Case) -> Vec<u8> {
        const GUARD: usize = 64;
        let mut buffers: Vec<Vec<u8>> = vec![];
        let mut words: Vec<u64> = vec![];
        let mut result = (0, 0);
        for operand in &case.operands {
            words.push(match operand {
                Operand::In(bytes) | Operand::Out(bytes) | Operand::Work(bytes) => {
                    let mut guarded = vec![0xa5; bytes.len() + 2 * GUARD];
                    guarded[GUARD..GUARD + bytes.len()].copy_from_slice(bytes);
                    let start = guarded.as_mut_ptr() as u64 + GUARD as u64;
                    if matches!(operand, Operand::Out(_)) {
                        result = (buffers.len(), bytes.len());
                    }
                    buffers.push(guarded);
                    start
                }
                Operand::Within(before, at) => words[*before] + *at as u64,
                Operand::Number(number) => *number,
            });
        }
        words.resize(10, 0);
        type Function = extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64);
        let maps: Vec<Mmap> = code.iter().map(|code| executable(code)).collect();
        for map in &maps {
            // SAFETY: the code is a function of at most ten words in the System V convention, made for these operands;
            // what shapes tiles takes none. The buffers it writes were borrowed mutably for the addresses.
            unsafe {
                let function = std::mem::transmute::<*const u8, Function>(map.as_ptr());
                let [a, b, c, d, e, f, g, h, i, j] = words[..] else { unreachable!("ten words") };
                function(a, b, c, d, e, f, g, h, i, j);
            }
        }
        let (at, bytes) = result;
        let guarded = &buffers[at];
        let guards = guarded[..GUARD].iter().chain(&guarded[GUARD + bytes..]);
        assert!(guards.into_iter().all(|&b| b == 0xa5), "{:?}: written beside the results", case.raw);
        guarded[GUARD..GUARD + bytes].to_vec()
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod native {
    use crate::cases::Case;

    pub(crate) fn runs(_: &[u8]) -> bool {
        false
    }

    pub(crate) fn run(_: &[Vec<u8>], _: &Case) -> Vec<u8> {
        unreachable!("nothing of x86-64 runs here")
    }
}
