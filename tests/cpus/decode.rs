//! What compiled x86-64 code asks of a CPU, read from its bytes.
//!
//! In: an image. Out: the features of all instructions that can be reached, by the names of the table. Tables that lie
//! between functions are not reached: every function is walked from its entry along its branches,
//! those to an address that it takes included.

use std::collections::{BTreeMap, HashSet};

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction};
use lapidary_runtime::program::Image;

/// The features that the code needs, each with an instruction that does, and how many instructions there are.
pub(crate) fn features(image: &Image) -> (BTreeMap<&'static str, String>, usize) {
    let mut found = BTreeMap::new();
    let mut seen = HashSet::new();
    for symbol in &image.symbols {
        let range = symbol.offset..symbol.offset + symbol.bytes;
        let mut starts = vec![symbol.offset];
        let mut leads = vec![];
        while let Some(start) = starts.pop() {
            let mut decoder =
                Decoder::with_ip(64, &image.code[start as usize..], start, DecoderOptions::NONE);
            loop {
                let i = decoder.decode();
                assert!(range.contains(&i.ip()) && !i.is_invalid(), "{}: {:#x}: {i:?}", symbol.name, i.ip());
                if !seen.insert(i.ip()) {
                    break;
                }
                for &feature in i.cpuid_features() {
                    if let Some(name) = name(feature, &i) {
                        found.entry(name).or_insert_with(|| format!("{:?} in {}", i.code(), symbol.name));
                    }
                }
                if i.code() == Code::Lea_r64_m && i.is_ip_rel_memory_operand() {
                    leads.push(i.ip_rel_memory_address());
                }
                match i.flow_control() {
                    FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                    FlowControl::ConditionalBranch => starts.push(i.near_branch_target()),
                    FlowControl::UnconditionalBranch => {
                        starts.push(i.near_branch_target());
                        break;
                    }
                    // To an address that was taken before.
                    FlowControl::IndirectBranch => {
                        starts.append(&mut leads);
                        break;
                    }
                    FlowControl::Return | FlowControl::Exception => break,
                    other => panic!("{}: {other:?}: {:?}", symbol.name, i.code()),
                }
            }
        }
    }
    (found, seen.len())
}

/// A feature's name in the table; none of what every x86-64 CPU has.
fn name(feature: CpuidFeature, i: &Instruction) -> Option<&'static str> {
    use CpuidFeature as F;
    Some(match feature {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV | F::SSE | F::SSE2
        // Memory hints do nothing on CPUs that do not know them.
        | F::PREFETCHW | F::MULTIBYTENOP => return None,
        F::SSE3 => "sse3",
        F::SSSE3 => "ssse3",
        F::SSE4_1 => "sse4.1",
        F::SSE4_2 => "sse4.2",
        F::POPCNT => "popcnt",
        F::LZCNT => "lzcnt",
        F::CMPXCHG16B => "cmpxchg16b",
        F::BMI1 => "bmi1",
        F::BMI2 => "bmi2",
        F::AVX => "avx",
        F::AVX2 => "avx2",
        F::F16C => "f16c",
        F::FMA => "fma",
        F::AVX_VNNI => "avxvnni",
        F::AVX512F => "avx512f",
        F::AVX512BW => "avx512bw",
        F::AVX512DQ => "avx512dq",
        F::AVX512VL => "avx512vl",
        F::AVX512_VBMI => "avx512vbmi",
        F::AVX512_BITALG => "avx512bitalg",
        F::AVX512_VNNI => "avx512vnni",
        F::AVX512_BF16 => "avx512bf16",
        F::AMX_TILE => "amx-tile",
        F::AMX_BF16 => "amx-bf16",
        F::AMX_INT8 => "amx-int8",
        other => panic!("{other:?} has no row: {:?}", i.code()),
    })
}
