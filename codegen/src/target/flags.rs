//! Cranelift's settings for a set of features.
//!
//! A setting is switched on if and only if the row that names it is in the set: what Cranelift may use is what the set
//! says. Each of its yes-or-no settings is in the table of features or in [`OTHERS`]; a test holds them against
//! Cranelift's own list.

use cranelift_codegen::isa::Builder;
use cranelift_codegen::settings::{Configurable, SetResult};
use lapidary_runtime::cpu::Set;

/// Settings that no row of the table of features names, by architecture, and why.
pub const OTHERS: &[(&str, &[&str], &str)] = &[
    (
        "aarch64",
        &["has_pauth", "sign_return_address", "sign_return_address_all", "sign_return_address_with_bkey"],
        "kernels return to where they were called from; nothing signs addresses",
    ),
    ("aarch64", &["use_bti"], "kernels are entered by calls of known addresses"),
    ("aarch64", &["use_csdb"], "kernels read no memory that a secret index chooses"),
    (
        "riscv64",
        &["has_m", "has_a", "has_f", "has_d", "has_zicsr", "has_zifencei"],
        "RV64G: Cranelift takes it for granted",
    ),
    (
        "riscv64",
        &[
            "has_zvl256b",
            "has_zvl512b",
            "has_zvl1024b",
            "has_zvl2048b",
            "has_zvl4096b",
            "has_zvl8192b",
            "has_zvl16384b",
            "has_zvl32768b",
            "has_zvl65536b",
        ],
        "kernels have vectors of 128 bits",
    ),
];

/// Switches on what `features` name.
pub(super) fn enable(builder: &mut Builder, features: Set) -> SetResult<()> {
    features.rows().filter_map(|row| row.cranelift).try_for_each(|setting| builder.enable(setting))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use cranelift_codegen::isa;
    use cranelift_codegen::settings::{self, SettingKind};
    use lapidary_runtime::cpu::Architecture;

    use super::super::table::triple;
    use super::super::{Placement, Target};
    use super::*;

    /// A setting that Cranelift has and we do not know, and the reverse, is found here and not by a user.
    #[test]
    fn every_setting_of_cranelift_is_known() {
        for architecture in Architecture::ALL {
            let builder = isa::lookup_by_name(triple(architecture)).unwrap();
            let theirs: BTreeSet<&str> =
                builder.iter().filter(|s| s.kind == SettingKind::Bool).map(|s| s.name).collect();
            let rows = architecture.features().iter().filter_map(|row| row.cranelift);
            let others = OTHERS.iter().filter(|(name, ..)| *name == architecture.name());
            let mut ours = BTreeSet::new();
            for name in rows.chain(others.flat_map(|(_, names, _)| names.iter().copied())) {
                assert!(ours.insert(name), "{name} is named twice");
            }
            assert!(theirs.len() > 5, "{architecture:?}: {theirs:?}");
            assert_eq!(ours, theirs, "{architecture:?}");
        }
    }

    /// Code for a set uses what the set has: settings that are on are the set's rows, and of others those taken for
    /// granted.
    #[test]
    fn settings_are_those_of_the_set() {
        for architecture in Architecture::ALL {
            let all = Set::all(architecture);
            let singles = all.rows().map(|row| Set::of(architecture, &[row.name]).with_needs());
            for features in singles.chain([Set::empty(architecture), all]) {
                let target = Target::make("a set", features, None, Placement::Object).unwrap();
                let on = target.isa.isa_flags().into_iter().filter(|f| f.as_bool() == Some(true));
                let on: BTreeSet<&str> = on.map(|f| f.name).collect();
                let granted = OTHERS.iter().filter(|(.., why)| why.starts_with("RV64G"));
                let granted = granted.filter(|(name, ..)| *name == architecture.name());
                let expected = features.rows().filter_map(|row| row.cranelift);
                let expected = expected.chain(granted.flat_map(|(_, names, _)| names.iter().copied()));
                assert_eq!(on, expected.collect::<BTreeSet<&str>>(), "{features:?}");
            }
        }
    }

    /// Cranelift's own look at this machine finds nothing that ours does not, but for what is never used.
    #[test]
    fn this_machine_is_seen_as_cranelift_sees_it() {
        let theirs = cranelift_native::builder().unwrap();
        let theirs = theirs.finish(settings::Flags::new(settings::builder())).unwrap();
        let on = |isa: &dyn isa::TargetIsa| -> BTreeSet<String> {
            let on = isa.isa_flags().into_iter().filter(|f| f.as_bool() == Some(true));
            let known = |name: &&str| !OTHERS.iter().any(|(_, names, _)| names.contains(name));
            on.map(|f| f.name).filter(known).map(str::to_string).collect()
        };
        let ours = Target::new("native", Placement::Object).unwrap();
        assert_eq!(on(&*ours.isa), on(&*theirs));
    }
}
