//! Names that users give: of targets and of CPUs, checked, and what to say of one that there is not.

use lapidary_runtime::cpu::Architecture;

use super::table::{rows, triple, triple_of};
use crate::Error;

/// How alike two names must be for one to be meant by the other, of 1.
const ALIKE: f64 = 0.84;

/// The names of a target's CPUs, steps first.
pub fn known(triple: &str) -> Vec<&'static str> {
    rows().filter(|row| row.triple == triple).map(|row| row.name).collect()
}

/// What to say of a CPU that there is not, where one of `target` was expected.
pub fn unknown_cpu(name: &str, target: &str) -> Error {
    let names = known(target);
    let spelling = name.to_ascii_lowercase().replace('_', "-");
    let likeness = |other: &str| strsim::jaro_winkler(&spelling, other);
    let everywhere = rows().map(|row| row.name);
    let meant = everywhere.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let meant = meant.filter(|meant| likeness(meant) >= ALIKE);
    let hint = meant.map_or(String::new(), |meant| format!(" (did you mean `{meant}`?)"));
    Error::UnknownCpu { name: name.into(), hint, target: target.into(), known: names.join(", ") }
}

/// The CPU that code for a triple is made for: `cpu`, if it is one of that target's; its oldest, if none is named.
///
/// # Errors
/// [`Error::UnknownTarget`] lists what there is.
pub fn cpu_of_target<'a>(target: &str, cpu: Option<&'a str>) -> Result<&'a str, Error> {
    let target = triple_of(target);
    let Some(oldest) = known(target).first().copied() else {
        let triples = Architecture::ALL.map(triple).join(", ");
        return Err(Error::UnknownTarget(format!("unknown target `{target}`: expected {triples}")));
    };
    match cpu {
        None => Ok(oldest),
        Some(cpu) if known(target).contains(&cpu) => Ok(cpu),
        Some(cpu) => match super::row(cpu) {
            None => Err(unknown_cpu(cpu, target)),
            Some(other) => Err(Error::UnknownTarget(format!(
                "CPU `{cpu}` is one of {}, none of {target}: expected {}",
                other.triple,
                known(target).join(", ")
            ))),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(name: &str) -> String {
        unknown_cpu(name, triple(Architecture::X86_64)).to_string()
    }

    #[test]
    fn a_name_that_is_close_is_offered() {
        for (given, meant) in [
            ("znver44", "znver4"),
            ("Zn_ver4", "znver4"),
            ("icelake", "icelake-server"),
            ("sapphire-rapids", "sapphirerapids"),
            ("SapphireRapids", "sapphirerapids"),
            ("x86_64_v3", "x86-64-v3"),
            ("cortex-a78c", "cortex-a78"),
            ("neoverse_n1", "neoverse-n1"),
            ("applem1", "apple-m1"),
        ] {
            let text = message(given);
            assert!(text.contains(&format!("did you mean `{meant}`?")), "{text}");
        }
        assert!(!message("z80").contains("did you mean"), "{}", message("z80"));
    }

    #[test]
    fn names_are_those_of_the_target() {
        let text = message("pentium");
        assert!(text.contains("native, x86-64-v2, ") && text.contains("znver4"), "{text}");
        assert!(!text.contains("cortex") && !text.contains("rv64") && !text.contains('\n'), "{text}");
        let arm = triple(Architecture::Aarch64);
        let text = cpu_of_target(arm, Some("cortex-a99")).unwrap_err().to_string();
        assert!(text.contains("cortex-a76") && !text.contains("x86-64-v2"), "{text}");
        let text = cpu_of_target(arm, Some("znver4")).unwrap_err().to_string();
        assert!(text.contains("CPU `znver4` is one of x86_64-unknown-linux-gnu"), "{text}");
        assert_eq!(cpu_of_target(arm, Some("cortex-a76")).unwrap(), "cortex-a76");
        assert_eq!(cpu_of_target("riscv64gc-unknown-linux-gnu", None).unwrap(), "rv64gcv");
        let text = cpu_of_target("sparc-sun-solaris", None).unwrap_err().to_string();
        assert!(text.contains("expected x86_64-unknown-linux-gnu, aarch64"), "{text}");
    }

    #[test]
    fn names_are_unique_and_steps_rise() {
        use crate::target::{Placement, TARGETS, Target};
        let names: Vec<&str> = rows().map(|row| row.name).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
        }
        for row in rows() {
            assert_eq!(row.features, row.features.usable(), "{}", row.name);
            assert!(row.features.has(super::super::least(row.features.architecture())), "{}", row.name);
            assert!(row.tuning.is_none_or(|t| lapidary_runtime::cpu::Tuning::named(t).is_some()));
        }
        let rank = |name: &str| Target::new(name, Placement::Object).unwrap().rank();
        for pair in TARGETS.windows(2).filter(|pair| pair[0].triple == pair[1].triple) {
            assert!(rank(pair[0].name) < rank(pair[1].name), "{} {}", pair[0].name, pair[1].name);
        }
        // What has more stands higher.
        for (low, high) in rows().flat_map(|low| rows().map(move |high| (low, high))) {
            if high.features != low.features && high.features.has(low.features) && low.tuning.is_none() {
                assert!(rank(low.name) < rank(high.name), "{} {}", low.name, high.name);
            }
        }
    }
}
