//! CPUs: what they have, by the names that artifacts and messages use, and what this one has.
//!
//! [`Architecture::features`] is the list: a row a feature, with all that anything asks about it. [`Set`]s of rows say
//! what code needs and what a machine has. [`host`] is this machine; AMX needs more than being there ([`amx()`]).
//! [`Cores`] are what this process may use of it.

pub mod aarch64;
mod amx;
mod cores;
mod feature;
mod host;
pub mod riscv64;
mod set;
mod tuning;
pub mod x86_64;

pub use amx::{Amx, amx};
pub use cores::Cores;
pub use feature::{Architecture, Cpuid, Feature, Hwcap, IdRegister, Probe, Register, RiscV};
pub use host::{Fit, Host, host};
pub use set::Set;
pub use tuning::{Maker, TUNINGS, Tuning};

/// This machine's architecture, as target triples name it.
pub const ARCHITECTURE: &str = Architecture::HERE.name();

/// Whether this machine has a feature; a name that is in no table it does not have.
pub fn has(name: &str) -> bool {
    Set::named(Architecture::HERE, name).is_some_and(|one| host().features.has(one))
}

/// Those of `names` that this machine lacks.
pub fn lacking(names: &[String]) -> Vec<&str> {
    host().lacking(names)
}

/// This machine in a few words, for errors: its architecture and what it has.
pub fn description() -> String {
    host().description()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sound() {
        for architecture in Architecture::ALL {
            let rows = architecture.features();
            for (at, row) in rows.iter().enumerate() {
                assert!(rows[..at].iter().all(|other| other.name != row.name), "{}", row.name);
                assert!(
                    rows[..at]
                        .iter()
                        .all(|other| other.cranelift.is_none() || other.cranelift != row.cranelift),
                    "{}",
                    row.name
                );
                for need in row.needs {
                    assert!(rows[..at].iter().any(|other| other.name == *need), "{} needs {need}", row.name);
                }
                let fits = match row.probe {
                    Probe::Cpuid(probe) => architecture == Architecture::X86_64 && probe.bit < 32,
                    Probe::Hwcap(probe) => {
                        architecture == Architecture::Aarch64 && probe.first | probe.second != 0
                    }
                    Probe::RiscV(_) => architecture == Architecture::Riscv64,
                };
                assert!(fits, "{}", row.name);
            }
            assert_eq!(Set::all(architecture).usable(), Set::all(architecture));
        }
        assert!(!has("no such feature"));
    }

    #[test]
    fn amx_is_asked_for_once() {
        assert_eq!(amx(), amx());
        assert!(!has("amx-tile") || amx() == Amx::Ready);
    }

    /// The standard library looks on its own.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn this_machine_has_what_the_standard_library_finds() {
        macro_rules! found {
            ($($name:tt)*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*] };
        }
        let found = found! {
            "cmpxchg16b" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "lzcnt" "bmi1" "bmi2" "avx" "f16c" "fma" "avx2"
            "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi" "avx512bitalg" "avx512vnni" "avx512bf16"
        };
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        let on_request = ["amx-tile", "amx-bf16", "amx-int8"];
        assert_eq!(Set::all(Architecture::X86_64).names(), [&names[..], &on_request].concat());
        for (name, present) in found {
            assert_eq!(has(name), present, "{name}");
        }
    }

    #[test]
    fn registers_that_the_system_does_not_save_are_not_there() {
        let everything = |leaf: u32, _: u32| [leaf | 0xffff, u32::MAX, u32::MAX, u32::MAX];
        let seen = |xcr0: u64| x86_64::decode(everything, || xcr0);
        let has = |set: Set, name: &str| set.has(Set::named(Architecture::X86_64, name).unwrap());
        assert_eq!(seen(u64::MAX), Set::all(Architecture::X86_64));
        for (xcr0, avx, avx512, amx) in [
            (0b11, false, false, false),
            (0b111, true, false, false),
            (0xe7, true, true, false),
            (0x600e7, true, true, true),
            (0x400e7, true, true, false),
        ] {
            let found = seen(xcr0);
            assert!(has(found, "sse4.2"));
            assert_eq!(
                (has(found, "avx2"), has(found, "avx512vnni"), has(found, "amx-bf16")),
                (avx, avx512, amx)
            );
        }
        // No leaf 7, no extended leaves, no XSAVE.
        let old = |leaf: u32, _: u32| {
            if leaf == 1 { [0, 0, !(1 << 27), 0] } else { [1, u32::MAX, u32::MAX, u32::MAX] }
        };
        let found = x86_64::decode(old, || unreachable!("there is no XCR0"));
        assert!(has(found, "sse4.2") && !has(found, "avx") && !has(found, "bmi2") && !has(found, "lzcnt"));
    }

    #[test]
    fn arm_and_risc_v_are_told_by_words() {
        // Of a Raspberry Pi 5: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc
        // dcpop asimddp.
        assert_eq!(aarch64::decode(0x119fff, 0).to_string(), "neon, lse, fp16, dotprod");
        // Of a Raspberry Pi 4: fp asimd evtstrm crc32 cpuid.
        assert_eq!(aarch64::decode(0x887, 0).to_string(), "neon");
        let isa = "rv64imafdcv_zicbom_zicboz_zicond_zicsr_zifencei_zba_zbb_zbc_zbs_zfh_zfhmin_zvfh_zvfhmin";
        let k1 = riscv64::decode(0, 0, isa, 256);
        assert_eq!(
            k1.usable().to_string(),
            "zca, zcd, zba, zbb, zbs, zbc, zicond, zfhmin, zfh, v, zvl32b, zvl64b, zvl128b, zvfh"
        );
        let letters = |text: &str| text.bytes().fold(0u64, |bits, letter| bits | 1 << (letter - b'a'));
        assert_eq!(
            riscv64::decode(letters("imafdc"), 1 << 3 | 1 << 4, "", 0).to_string(),
            "zca, zcd, zba, zbb"
        );
        assert_eq!(riscv64::decode(0, 0, "not a line", 0), Set::empty(Architecture::Riscv64));
    }

    #[test]
    fn what_hangs_in_the_air_is_not_usable() {
        let x86 = |names: &[&str]| Set::of(Architecture::X86_64, names);
        assert_eq!(x86(&["avx512vnni", "sse3", "amx-bf16"]).usable(), x86(&["sse3"]));
        assert!(x86(&["avx512vnni"]).with_needs().has(x86(&["avx512f", "avx2", "sse3"])));
        assert!(!Set::empty(Architecture::Aarch64).has(Set::empty(Architecture::X86_64)));
    }

    #[test]
    fn code_fits_by_features_and_pays_by_tuning() {
        let x86 = |names: &[&str]| Set::of(Architecture::X86_64, names).with_needs();
        let features = x86(&["avx512bf16", "avx512vnni"]);
        let (zen, intel) = (Host::new(features, Maker::amd(0x19)), Host::new(features, Maker::INTEL));
        let needs: Vec<String> = ["avx512bf16".into()].into();
        assert_eq!(zen.fit(&needs, Some("bf16")), Fit::Pays);
        assert_eq!(intel.fit(&needs, Some("bf16")), Fit::Runs);
        assert_eq!(intel.fit(&needs, None), Fit::Pays);
        let more: Vec<String> = ["avx512vnni", "amx-bf16", "avx10.2"].map(str::to_string).into();
        let lacks = vec!["amx-bf16", "avx10.2"];
        assert_eq!(zen.words(&lacks), "AMX BF16 (amx-bf16), \"avx10.2\"");
        assert_eq!(zen.fit(&more, None), Fit::Lacks(lacks));
        // Without the products there is nothing to tune for.
        assert_eq!(Host::new(x86(&["avx2"]), Maker::amd(0x19)).tuning, None);
    }
}
