//! CPUs as sets of features: for real machines and random ones, what `native` makes there loads there, a file with
//! code for every step gives the best that runs and pays, and code holds no instruction that its CPU need not have.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use lapidary::{Activations, Artifact, Graph, Options};
use lapidary_codegen::compile_image_for;
use lapidary_codegen::target::{CPUS, Placement, TARGETS, Target, least, row, rows, triple};
use lapidary_ir::DType;
use lapidary_models::Model;
use lapidary_runtime::artifact::write::{About, Part, Variant, write};
use lapidary_runtime::cpu::{Architecture, Fit, Host, Maker, Set};
use lapidary_runtime::program::Image;
use proptest::prelude::*;

#[path = "cpus/decode.rs"]
mod decode;
#[path = "cpus/hosts.rs"]
mod hosts;

use hosts::MACHINES;

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::built_in().unwrap())
}

/// The built-in model with matrices held so, compiled for a target.
fn compile(target: &Target, weights: DType, activations: Activations) -> Image {
    let weight = |name: &str| match name.ends_with("_proj.weight") {
        true => weights,
        false => DType::BF16,
    };
    let options = Options::new().cpu(&target.name).context(512).chunk(128).activations(activations);
    let graph = Graph::of(&model().config, &options, &weight).unwrap();
    let compiler = graph.compiler(&options).unwrap();
    compile_image_for(target.clone(), &graph.module, &graph.parts, &compiler).unwrap().image
}

fn step(name: &str) -> Target {
    Target::new(name, Placement::Object).unwrap()
}

/// A file of an architecture with code for all of its steps, in the table's order, and no weights.
fn fat(architecture: Architecture) -> &'static Artifact {
    static FILES: OnceLock<(tempfile::TempDir, BTreeMap<&'static str, Artifact>)> = OnceLock::new();
    let (_, files) = FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = |architecture: Architecture| {
            let steps = TARGETS.iter().filter(|t| t.triple == triple(architecture));
            let targets: Vec<Target> = steps.map(|t| step(t.name)).collect();
            let path = dir.path().join(format!("{}.lap", architecture.name()));
            (architecture.name(), build(&path, &targets, DType::Q4))
        };
        let files = Architecture::ALL.map(file).into_iter().collect();
        (dir, files)
    });
    &files[architecture.name()]
}

fn build(path: &PathBuf, targets: &[Target], weights: DType) -> Artifact {
    let images: Vec<Image> =
        targets.iter().map(|target| compile(target, weights, Activations::Auto)).collect();
    let features: Vec<Vec<String>> = targets.iter().map(Target::required).collect();
    let variants = targets.iter().zip(&images).zip(&features).map(|((target, image), features)| Variant {
        cpu: &target.name,
        features,
        tuning: target.tuning.map(|t| t.name),
        image,
    });
    let parts = Part::images(&variants.collect::<Vec<_>>());
    let cpus: Vec<String> = targets.iter().map(|t| t.name.clone()).collect();
    let target = triple(targets[0].set.architecture());
    let about =
        About { target, cpus: &cpus, weights: weights.name(), function: None, compiler: "test", key: None };
    write(path, &about, &parts, &mut |_, _| {}).unwrap();
    let artifact = Artifact::open(path).unwrap();
    artifact.verify().unwrap();
    artifact
}

/// What must hold of every machine, real or not: gives the CPU whose code of the fat file it takes.
fn check(name: &str, host: &Host) -> Option<String> {
    // What `native` makes there loads there; it is refused where code of no kind would run.
    match Target::native(host, Placement::Jit) {
        Ok(native) => {
            assert_eq!(native.lacking_on(host), None, "{name}");
            assert!(host.lacking(&native.required()).is_empty(), "{name}: {:?}", native.required());
            assert_eq!(host.fit(&native.required(), native.tuning.map(|t| t.name)), Fit::Pays, "{name}");
        }
        Err(error) => {
            let lacks = least(host.features.architecture()).without(host.features);
            let text = error.to_string();
            assert!(!lacks.is_empty() && text.contains(&lacks.words()), "{name}: {text}");
        }
    }
    // What is lacking for a CPU is named, or it runs.
    for row in rows() {
        let target = step(row.name);
        let expected = host.features.has(row.features);
        assert_eq!(target.lacking_on(host).is_none(), expected, "{name}: {}", row.name);
    }
    // Of a file that has all, the best that runs and pays.
    let file = fat(host.features.architecture());
    let Ok(chosen) = file.choose(host, None) else {
        let runs = |row: &str| host.features.has(step(row).set);
        assert!(!TARGETS.iter().any(|t| runs(t.name)), "{name}: {}", host.description());
        let reason = file.choose(host, None).unwrap_err().to_string();
        assert!(reason.contains("its oldest, needs") && !reason.contains('\n'), "{name}: {reason}");
        return None;
    };
    assert!(host.lacking(&chosen.features).is_empty(), "{name}: {}", chosen.cpu);
    let best = step(&chosen.cpu);
    for other in file.cpus() {
        let listing = file.listing(other).unwrap();
        let fits = host.fit(&listing.features, listing.tuning.as_deref()) == Fit::Pays;
        assert!(!fits || step(other).rank() <= best.rank(), "{name} takes {}, not {other}", chosen.cpu);
        // By name, exactly what runs is given.
        match file.choose(host, Some(other)) {
            Ok(listing) => assert!(host.lacking(&listing.features).is_empty(), "{name}: {other}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("which this machine"), "{text}");
                for lacks in host.lacking(&listing.features) {
                    assert!(text.contains(&format!("({lacks})")), "{name}: {text}");
                }
            }
        }
    }
    Some(chosen.cpu)
}

#[test]
fn real_machines_take_the_code_that_suits_them() {
    for machine in MACHINES {
        let host = machine.host();
        assert_eq!(check(machine.name, &host).as_deref(), Some(machine.step), "{}", machine.name);
        assert_eq!(step(machine.cpu).lacking_on(&host), None, "{} is a {}", machine.name, machine.cpu);
        let native = Target::native(&host, Placement::Object).unwrap();
        assert_eq!(native.step().map(|s| s.name), Some(machine.step), "{}", machine.name);
    }
}

/// Each name says of its CPU what a machine with that CPU has, no more and no less.
#[test]
fn names_have_what_their_machines_have() {
    for machine in MACHINES.iter().filter(|m| !m.name.contains("hypervisor")) {
        let (named, host) = (row(machine.cpu).unwrap(), machine.host());
        assert_eq!(named.features, host.features, "{}", machine.name);
        assert_eq!(named.tuning, host.tuning.map(|t| t.name), "{}", machine.name);
    }
    assert!(CPUS.iter().filter(|cpu| MACHINES.iter().any(|m| m.cpu == cpu.name)).count() > 25);
}

/// A vendor is no reason to be refused: what lacks is named.
#[test]
fn refusals_name_features() {
    let named = |name: &str| MACHINES.iter().find(|m| m.name == name).unwrap().host();
    let why = |cpu: &str, host: &str| step(cpu).lacking_on(&named(host));
    assert_eq!(
        why("znver4", "Cascade Lake").unwrap(),
        "it needs AVX-512 VBMI, AVX-512 BITALG and AVX-512 BF16, which this machine lacks"
    );
    assert_eq!(why("znver4", "Sapphire Rapids"), None);
    assert_eq!(why("cascadelake", "Zen 4"), None);
    assert_eq!(
        why("sapphirerapids", "Sapphire Rapids whose hypervisor hides AMX").unwrap(),
        "it needs AMX, AMX BF16 and AMX INT8, which this machine lacks"
    );
    let other = why("cortex-a76", "Zen 4").unwrap();
    assert_eq!(other, "its code is for aarch64, this machine is x86_64");
}

/// A file for a CPU whose tuning does not pay here still runs here, where it is all there is.
#[test]
fn what_does_not_pay_runs_where_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = build(&dir.path().join("zen.lap"), &[step("znver4")], DType::BF16);
    let host = MACHINES.iter().find(|m| m.name == "Sapphire Rapids").unwrap().host();
    assert_eq!(file.choose(&host, None).unwrap().cpu, "znver4");
}

/// Equal code is stored once, and runs as that of each CPU.
#[test]
fn equal_code_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    // Of CPUs with the same features, and of a step whose instructions no kernel of f32 weights has a use for.
    let names = ["haswell", "znver3", "x86-64-v4", "x86-64-v4-vnni"];
    let file = build(&dir.path().join("same.lap"), &names.map(step), DType::F32);
    let codes: Vec<&str> = file.sections().iter().filter_map(|s| s.name.strip_prefix("code.")).collect();
    assert_eq!(codes, ["haswell", "x86-64-v4"]);
    for (name, code) in names.iter().zip(["haswell", "haswell", "x86-64-v4", "x86-64-v4"]) {
        let listing = file.listing(name).unwrap();
        assert_eq!((listing.cpu.as_str(), listing.code.as_str()), (*name, code));
    }
    // Quantised weights have a use for every step's.
    let fat = fat(Architecture::X86_64);
    for cpu in fat.cpus() {
        assert_eq!(fat.listing(cpu).unwrap().code, *cpu);
    }
}

/// Features that a machine might have: most machines have most of them.
fn subset(architecture: Architecture) -> impl Strategy<Value = Set> {
    let names: Vec<&str> = Set::all(architecture).names();
    proptest::collection::vec(prop::bool::weighted(0.85), names.len()).prop_map(move |keep| {
        let kept = names.iter().zip(keep).filter(|(_, keep)| *keep);
        kept.fold(Set::empty(architecture), |set, (name, _)| set.and(Set::of(architecture, &[name])))
    })
}

fn makers() -> impl Strategy<Value = Maker> {
    prop::sample::select(vec![
        Maker::INTEL,
        Maker::NONE,
        Maker::amd(0x17),
        Maker::amd(0x19),
        Maker::amd(0x1b),
    ])
}

/// Cases of random sets; `LAPIDARY_FUZZ_CASES=N` tries N times as many.
fn cases(few: u32) -> ProptestConfig {
    let times = std::env::var("LAPIDARY_FUZZ_CASES").ok().and_then(|n| n.parse::<u32>().ok());
    let cases = few.saturating_mul(times.unwrap_or(1));
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn random_machines_take_what_they_can_run() {
    for architecture in Architecture::ALL {
        let set = (subset(architecture), makers());
        proptest!(cases(128), |((features, maker) in set)| {
            check("a random machine", &Host::new(features, maker));
        });
    }
}

/// Fails if code has an instruction that the target's features do not give.
fn check_code(target: &Target, weights: DType, activations: Activations) -> Set {
    let image = compile(target, weights, activations);
    let (needs, instructions) = decode::features(&image);
    assert!(instructions > 1000, "{}: {instructions} instructions", target.name);
    let mut used = Set::empty(Architecture::X86_64);
    for (name, place) in needs {
        let one = Set::of(Architecture::X86_64, &[name]);
        assert!(target.set.has(one), "{} of {:?} needs {name}: {place}", target.name, target.set);
        used = used.and(one);
    }
    used
}

const WEIGHTS: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8, DType::Q4];

/// Every instruction is of a feature that the target asks for, and what sets a step apart is used.
#[test]
fn code_for_a_step_needs_what_it_says() {
    for row in TARGETS.iter().filter(|t| t.triple == triple(Architecture::X86_64)) {
        let target = step(row.name);
        let mut used = Set::empty(Architecture::X86_64);
        let exact = [DType::BF16, DType::Q4].map(|weights| (weights, Activations::F32));
        for (weights, activations) in
            WEIGHTS.map(|weights| (weights, Activations::Auto)).into_iter().chain(exact)
        {
            used = used.and(check_code(&target, weights, activations));
        }
        let apart: &[&str] = match row.name {
            "x86-64-v2" => &["sse4.1"],
            "x86-64-v3" => &["avx2", "fma"],
            "x86-64-v3-vnni" => &["avxvnni"],
            "x86-64-v4" => &["avx512f"],
            "x86-64-v4-vnni" => &["avx512vnni"],
            "x86-64-v4-bf16" => &["avx512bf16"],
            "x86-64-v4-amx" => &["amx-tile", "amx-bf16", "amx-int8"],
            other => panic!("{other}: what sets it apart?"),
        };
        assert!(used.has(Set::of(Architecture::X86_64, apart)), "{} uses {used:?}", row.name);
    }
}

/// The same of what `native` makes on real machines and on random ones.
#[test]
fn native_code_needs_what_the_machine_has() {
    for machine in MACHINES {
        let host = machine.host();
        if host.features.architecture() == Architecture::X86_64 {
            check_code(&Target::native(&host, Placement::Object).unwrap(), DType::Q4, Activations::Auto);
        }
    }
    let barely = Host::new(least(Architecture::X86_64), Maker::NONE);
    check_code(&Target::native(&barely, Placement::Object).unwrap(), DType::Q4, Activations::Auto);
    let weights = prop::sample::select(WEIGHTS.to_vec());
    let machine = (subset(Architecture::X86_64), makers(), weights);
    proptest!(cases(24), |((features, maker, weights) in machine)| {
        let host = Host::new(features.and(least(Architecture::X86_64)), maker);
        check_code(&Target::native(&host, Placement::Object).unwrap(), weights, Activations::Auto);
    });
}
