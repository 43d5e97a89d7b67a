//! A machine, as far as code is chosen by it: what it has, and what pays there.
//!
//! [`host`] is this one. All that decides takes a [`Host`], so that it can be asked about any other.

use std::sync::OnceLock;

use super::amx::{self, Amx, amx};
use super::feature::Architecture;
use super::set::Set;
use super::tuning::{Maker, Tuning};
use crate::file::error::quote;

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// What code may use there.
    pub features: Set,
    /// What pays there besides what does elsewhere.
    pub tuning: Option<&'static Tuning>,
}

/// How code suits a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit<'a> {
    /// It lacks features of these names.
    Lacks(Vec<&'a str>),
    /// It runs, and was made for machines where other things pay.
    Runs,
    /// It runs, and was made for machines like this.
    Pays,
}

impl Host {
    /// A machine that says that it has `features`, made by `maker`.
    pub fn new(features: Set, maker: Maker) -> Host {
        let features = features.usable();
        Host { features, tuning: Tuning::of(features, maker) }
    }

    /// How code that needs features of these names, and that was tuned so, suits it.
    pub fn fit<'a>(&self, needs: &'a [String], tuning: Option<&str>) -> Fit<'a> {
        let lacks = self.lacking(needs);
        match tuning {
            _ if !lacks.is_empty() => Fit::Lacks(lacks),
            Some(name) if self.tuning.is_none_or(|here| here.name != name) => Fit::Runs,
            _ => Fit::Pays,
        }
    }

    /// Those of `names` that it lacks; what is no row of the table it lacks.
    pub fn lacking<'a>(&self, names: &'a [String]) -> Vec<&'a str> {
        let has = |name: &str| {
            Set::named(self.features.architecture(), name).is_some_and(|one| self.features.has(one))
        };
        names.iter().map(String::as_str).filter(|name| !has(name)).collect()
    }

    /// What people call the features of these names, and the names that they are stored by.
    pub fn words(&self, names: &[&str]) -> String {
        let words = names.iter().map(|name| match Set::named(self.features.architecture(), name) {
            Some(one) => format!("{} ({name})", one.words()),
            None => quote(name),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// In a few words, for errors: its architecture and what it has.
    pub fn description(&self) -> String {
        let found = if self.features.is_empty() { "no vectors".into() } else { self.features.to_string() };
        format!("{} with {found}", self.features.architecture().name())
    }
}

/// This machine. What Linux gives on request alone has been asked for, and is left out where it was refused.
pub fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let features = detect();
        let features = match amx() {
            Amx::Ready => features,
            Amx::Absent | Amx::Refused(_) if Architecture::HERE == Architecture::X86_64 => {
                features.without(amx::on_request())
            }
            Amx::Absent | Amx::Refused(_) => features,
        };
        Host::new(features, Maker::here())
    })
}

fn detect() -> Set {
    #[cfg(target_arch = "x86_64")]
    return super::x86_64::here();
    #[cfg(target_arch = "aarch64")]
    return super::aarch64::here();
    #[cfg(target_arch = "riscv64")]
    return super::riscv64::here();
}
