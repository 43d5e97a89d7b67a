//! Sets of features of one architecture.
//!
//! A set is a bit for each row of the architecture's table. Sets of names that are no rows do not compile ([`Set::of`]
//! in a constant), or are refused ([`Set::named`]).

use std::fmt;

use super::feature::{Architecture, Feature, same};

/// Some of an architecture's features.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Set {
    architecture: Architecture,
    /// Bit `i`: row `i`.
    bits: u64,
}

impl Set {
    /// None.
    pub const fn empty(architecture: Architecture) -> Set {
        Set { architecture, bits: 0 }
    }

    /// All.
    pub const fn all(architecture: Architecture) -> Set {
        let rows = architecture.features().len();
        assert!(rows < 64, "a set has a bit for each row");
        Set { architecture, bits: (1 << rows) - 1 }
    }

    /// Those of these names.
    ///
    /// # Panics
    /// If a name is no row: in a constant, it does not compile.
    pub const fn of(architecture: Architecture, names: &[&str]) -> Set {
        let mut bits = 0;
        let mut i = 0;
        while i < names.len() {
            match row(architecture, names[i]) {
                Some(at) => bits |= 1 << at,
                None => panic!("no row of the table of features has this name"),
            }
            i += 1;
        }
        Set { architecture, bits }
    }

    /// The one of this name, if there is such a row.
    pub const fn named(architecture: Architecture, name: &str) -> Option<Set> {
        match row(architecture, name) {
            Some(at) => Some(Set { architecture, bits: 1 << at }),
            None => None,
        }
    }

    /// Whose they are.
    pub const fn architecture(self) -> Architecture {
        self.architecture
    }

    /// These and those; both of one architecture.
    pub const fn and(self, other: Set) -> Set {
        Set { bits: self.bits | other.bits, ..self }
    }

    /// These without those.
    pub const fn without(self, other: Set) -> Set {
        Set { bits: self.bits & !other.bits, ..self }
    }

    /// Whether all of those are among these: never, if they are another architecture's.
    pub const fn has(self, other: Set) -> bool {
        self.architecture as u8 == other.architecture as u8 && self.bits & other.bits == other.bits
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// How many.
    pub const fn len(self) -> u32 {
        self.bits.count_ones()
    }

    /// The rows, in the table's order.
    pub fn rows(self) -> impl Iterator<Item = &'static Feature> {
        let rows = self.architecture.features().iter().enumerate();
        rows.filter(move |(at, _)| self.bits >> at & 1 == 1).map(|(_, row)| row)
    }

    /// The names.
    pub fn names(self) -> Vec<&'static str> {
        self.rows().map(|row| row.name).collect()
    }

    /// Those whose needs are among them too: a hypervisor may hide a feature and show what builds on it.
    pub fn usable(self) -> Set {
        self.architecture.features().iter().fold(Set::empty(self.architecture), |usable, row| {
            let one = Set::of(self.architecture, &[row.name]);
            match self.has(one) && usable.has(Set::of(self.architecture, row.needs)) {
                true => usable.and(one),
                false => usable,
            }
        })
    }

    /// These and all that they build on.
    pub fn with_needs(self) -> Set {
        let rows = self.architecture.features().iter().rev();
        rows.fold(self, |all, row| match all.has(Set::of(self.architecture, &[row.name])) {
            true => all.and(Set::of(self.architecture, row.needs)),
            false => all,
        })
    }

    /// What people call them.
    pub fn words(self) -> String {
        let words: Vec<&str> = self.rows().map(|row| row.words).collect();
        match words.split_last() {
            None => "nothing".into(),
            Some((last, [])) => (*last).into(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
        }
    }
}

/// The names, separated by commas.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.architecture.name())
    }
}

const fn row(architecture: Architecture, name: &str) -> Option<usize> {
    let rows = architecture.features();
    let mut at = 0;
    while at < rows.len() {
        if same(rows[at].name, name) {
            return Some(at);
        }
        at += 1;
    }
    None
}
