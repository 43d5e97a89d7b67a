//! The guard of an object: machine code that asks, before anything else runs, for what the object's code needs of a
//! CPU.
//!
//! In: the target. Out: the function `supported`, and the code before `init`'s own, which answers [`Status::Cpu`] where
//! something lacks. `init` itself is compiled for the target, so the guard must be code of every CPU of the
//! architecture: no vectors, no extension, no library. What it asks is what the rows of [`lapidary_runtime::cpu`] say,
//! all of [`Target::set`]; a row that it cannot ask for is an error when the object is made.

mod linux;
mod x86_64;

use lapidary_runtime::cpu::{Architecture, Feature, Probe, Set};
use lapidary_runtime::program::CODE_ALIGN;

use super::driver::DriverFunction;
use super::{Status, refuse};
use crate::Error;
use crate::target::Target;

/// The state that Linux gives a process on request: tile data (`Documentation/arch/x86/xstate.rst`).
const XTILEDATA: u32 = 18;

/// What the guard ends in.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// Returns 1 where all is there, else 0.
    Answer,
    /// Goes on behind its own end where all is there, else returns this status.
    Continue(Status),
}

impl Ending {
    /// What is returned where something lacks.
    fn refusal(self) -> u32 {
        match self {
            Ending::Answer => 0,
            Ending::Continue(status) => status.code() as u32,
        }
    }
}

/// `supported()`: 1 if the CPU has what the code needs, else 0.
///
/// # Errors
/// [`Error::Object`] for a feature that cannot be asked for.
pub fn supported(target: &Target) -> Result<DriverFunction, Error> {
    let code = code(target.set, Ending::Answer)?;
    Ok(DriverFunction { name: "supported".into(), public: true, code, references: vec![] })
}

/// Puts the guard before a function of at most six words that returns a status.
///
/// # Errors
/// As [`supported`].
pub fn put_before(target: &Target, function: &mut DriverFunction) -> Result<(), Error> {
    let mut code = code(target.set, Ending::Continue(Status::Cpu))?;
    let nop: &[u8] = match target.set.architecture() {
        Architecture::X86_64 => &[0x90],
        Architecture::Aarch64 => &[0x1f, 0x20, 0x03, 0xd5],
        Architecture::Riscv64 => &[0x13, 0, 0, 0],
    };
    // What lies in the function keeps its alignment.
    while code.len() % CODE_ALIGN != 0 {
        code.extend_from_slice(nop);
    }
    let by = code.len() as u32;
    for reference in &mut function.references {
        reference.shift(by);
    }
    code.append(&mut function.code);
    function.code = code;
    Ok(())
}

/// What C callers are told that the CPU must have.
pub fn needs(target: &Target) -> String {
    if target.set.is_empty() {
        "nothing beyond the architecture's base".into()
    } else {
        target.set.to_string()
    }
}

fn code(set: Set, ending: Ending) -> Result<Vec<u8>, Error> {
    match set.architecture() {
        Architecture::X86_64 => x86_64::assemble(&x86_64_needs(set)?, ending).map_err(refuse),
        Architecture::Aarch64 => Ok(linux::aarch64::assemble(aarch64_needs(set)?, ending)),
        Architecture::Riscv64 => Ok(linux::riscv64::assemble(riscv64_needs(set)?, ending)),
    }
}

fn no_question(row: &Feature) -> Error {
    refuse(format!("there is no way to ask a CPU for {}", row.words))
}

fn x86_64_needs(set: Set) -> Result<x86_64::Needs, Error> {
    let mut needs = x86_64::Needs::default();
    for row in set.rows() {
        let Probe::Cpuid(probe) = row.probe else { return Err(no_question(row)) };
        needs.answers.push(x86_64::Answer {
            leaf: probe.leaf,
            subleaf: probe.subleaf,
            register: probe.register,
            bits: 1 << probe.bit,
        });
        needs.saved |= u32::try_from(probe.saved).map_err(|_| no_question(row))?;
        if probe.on_request {
            needs.requested = Some(XTILEDATA);
        }
    }
    Ok(needs)
}

fn aarch64_needs(set: Set) -> Result<linux::Needs, Error> {
    let mut needs = linux::Needs::default();
    for row in set.rows() {
        let Probe::Hwcap(probe) = row.probe else { return Err(no_question(row)) };
        needs.hwcap |= u32::try_from(probe.first).map_err(|_| no_question(row))?;
        needs.hwcap2 |= u32::try_from(probe.second).map_err(|_| no_question(row))?;
    }
    Ok(needs)
}

fn riscv64_needs(set: Set) -> Result<linux::Needs, Error> {
    let mut needs = linux::Needs::default();
    for row in set.rows() {
        let Probe::RiscV(probe) = row.probe else { return Err(no_question(row)) };
        match (probe.letter, probe.hwprobe, probe.vector_bits) {
            (Some(letter), ..) => needs.hwcap |= 1 << (letter - b'a'),
            (None, Some(bit), _) => needs.hwprobe |= 1 << bit,
            (None, None, Some(bits)) => needs.vector_bytes = needs.vector_bytes.max(bits / 8),
            (None, None, None) => return Err(no_question(row)),
        }
    }
    Ok(needs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lapidary_runtime::cpu::{Host, Maker};

    use super::*;
    use crate::target::Placement;

    /// Each feature that a target may have can be asked for, and each adds to what is asked.
    #[test]
    fn every_row_of_the_table_is_asked_for() {
        for architecture in Architecture::ALL {
            let all = Set::all(architecture);
            let whole = code(all, Ending::Answer).unwrap();
            for row in all.rows() {
                let without = all.without(Set::of(architecture, &[row.name]));
                // Some rows are the same question.
                let same = all.rows().any(|other| other.name != row.name && other.probe == row.probe);
                let letter = |row: &Feature| match row.probe {
                    Probe::RiscV(probe) => {
                        probe.letter.is_some() || probe.vector_bits.is_some_and(|b| b < 128)
                    }
                    Probe::Cpuid(_) | Probe::Hwcap(_) => false,
                };
                let shared = same || (letter(row) && row.name != "v");
                let changed = code(without, Ending::Answer).unwrap() != whole;
                assert!(changed || shared, "{}", row.name);
            }
        }
    }

    #[test]
    fn what_follows_keeps_its_place() {
        for architecture in Architecture::ALL {
            let host = Host::new(Set::all(architecture), Maker::NONE);
            let target = Target::native(&host, Placement::Jit).unwrap();
            let body = vec![0xaa; 12];
            let mut function =
                DriverFunction { name: "f".into(), public: true, code: body.clone(), references: vec![] };
            put_before(&target, &mut function).unwrap();
            let before = function.code.len() - body.len();
            assert!(before > 0 && before.is_multiple_of(CODE_ALIGN) && function.code.ends_with(&body));
        }
    }
}
