//! Calibrations: a machine's constants for the cost model, as files.
//!
//! In: `--calibration`, the CPU that code is made for. Out: the machine that kernels are priced for. A file is JSON, in
//! the user's cache directory under a hash of the CPU, its threads, the code's CPU and this version; docs/benchmarks.md
//! lists its fields. Invariants: a file is replaced whole; what is wrong with it is one line that names the field.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lapidary::Activations;
use lapidary_models::weight_cache::Cache;
use lapidary_passes::price::{FIGURES, Machine};
use lapidary_runtime::cpu::Cores;
use lapidary_runtime::file::whole::Output;
use serde_json::{Map, Value, json};

use crate::model::read_text;
use crate::output;

/// The version of the files.
const VERSION: u64 = 5;
/// The field that tells a calibration, and its version.
const MAGIC: &str = "lapidary_calibration";

/// What `--calibration` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// This machine's, if there is one.
    Auto,
    /// The built-in constants.
    None,
    /// A file.
    File(PathBuf),
}

impl FromStr for Which {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Which, Self::Err> {
        Ok(match text {
            "auto" => Which::Auto,
            "none" => Which::None,
            path => Which::File(path.into()),
        })
    }
}

/// A machine calibrated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Calibration {
    /// What the system calls the CPU.
    pub(crate) cpu: String,
    /// Threads.
    pub(crate) threads: usize,
    /// What code was made for.
    pub(crate) code: String,
    /// With activations as fast as the CPU can.
    pub(crate) auto: Machine,
    /// With activations in 32-bit floats.
    pub(crate) f32: Machine,
}

impl Calibration {
    /// Where this machine's is, for so many threads, if there is a place for it.
    pub(crate) fn path(code: &str, threads: usize) -> Option<PathBuf> {
        let key = format!("{} {threads} {code} {} {VERSION}", cpu_name(), env!("CARGO_PKG_VERSION"));
        let hash = key
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Cache::of_user().map(|c| c.dir.join(format!("calibration-{hash:016x}.json")))
    }

    /// The constants for activations of a kind.
    pub(crate) fn machine(&self, activations: Activations) -> Machine {
        match activations {
            Activations::Auto => self.auto,
            Activations::F32 => self.f32,
        }
    }

    /// As the file has it.
    pub(crate) fn to_json(&self) -> Value {
        let figures = |machine: &Machine| -> Value {
            let all = FIGURES.iter().map(|f| (f.name.to_string(), json!(f.get(machine))));
            Value::Object(all.collect::<Map<_, _>>())
        };
        json!({
            MAGIC: VERSION, "cpu": self.cpu, "threads": self.threads, "code": self.code,
            "auto": figures(&self.auto), "f32": figures(&self.f32),
        })
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Calibration> {
        Calibration::parse(&read_text(path)?).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Calibration> {
        let all: Value = serde_json::from_str(text).context("expected a calibration in JSON")?;
        let version = all.get(MAGIC).and_then(Value::as_u64);
        let version = version.ok_or_else(|| anyhow!("expected a calibration: it has no `{MAGIC}`"))?;
        ensure!(version == VERSION, "`{MAGIC}` is {version}: expected {VERSION}; calibrate again");
        let text = |field: &str| {
            let value = all.get(field).and_then(Value::as_str);
            value.map(str::to_string).ok_or_else(|| anyhow!("`{field}`: expected a text"))
        };
        let threads = all.get("threads").and_then(Value::as_u64).filter(|n| *n > 0);
        let threads = threads.ok_or_else(|| anyhow!("`threads`: expected a number above 0"))? as usize;
        let machine = |set: &str| -> Result<Machine> {
            let fields = all.get(set).and_then(Value::as_object);
            let fields = fields.ok_or_else(|| anyhow!("`{set}`: expected an object"))?;
            let mut machine = Machine { threads: threads as f64, ..Machine::GENERIC };
            for figure in FIGURES {
                let value = fields.get(figure.name).and_then(Value::as_f64);
                let value = value.filter(|v| v.is_finite() && *v >= 0.0);
                let above = value.filter(|v| *v > 0.0 || figure.name == "cold");
                *(figure.of)(&mut machine) = above
                    .ok_or_else(|| anyhow!("`{set}.{}`: expected {} above 0", figure.name, figure.unit))?;
            }
            if let Some(other) = fields.keys().find(|name| FIGURES.iter().all(|f| f.name != **name)) {
                bail!("`{set}.{other}`: expected one of the figures of a calibration");
            }
            Ok(machine)
        };
        Ok(Calibration {
            cpu: text("cpu")?,
            threads,
            code: text("code")?,
            auto: machine("auto")?,
            f32: machine("f32")?,
        })
    }

    /// Writes a file.
    pub(crate) fn write(&self, mut file: Output) -> io::Result<()> {
        writeln!(file, "{:#}", self.to_json())?;
        file.finish().map(drop)
    }
}

/// This machine's calibration for so many threads, if there is one; one that cannot be used is a warning.
pub(crate) fn of_this_machine(code: &str, threads: usize) -> Option<Calibration> {
    static WARNING: Once = Once::new();
    let path = Calibration::path(code, threads).filter(|p| p.exists())?;
    let trusted = || Cache::of_user().map_or(Ok(()), |cache| cache.check());
    let usable = |c: Calibration| {
        let here = (cpu_name(), threads, code.to_string());
        ensure!((c.cpu.clone(), c.threads, c.code.clone()) == here, "{}: another machine's", path.display());
        Ok(c)
    };
    match trusted().map_err(Into::into).and_then(|()| Calibration::read(&path)).and_then(usable) {
        Ok(calibration) => Some(calibration),
        Err(error) => {
            let why = output::one_line(&error);
            WARNING.call_once(|| {
                output::note(
                    "warning",
                    &format!("{why}: prices are the built-in ones (`lapidary calibrate` makes it anew)"),
                );
            });
            None
        }
    }
}

/// The calibration that prices are reckoned from, if one is.
///
/// Prices are for all of the machine's threads, however many run: the plan, and so the results' bits, depend on them no
/// more than on the threads.
pub(crate) fn chosen(which: &Which, code: &str) -> Result<Option<Calibration>> {
    match which {
        Which::None => Ok(None),
        Which::Auto => Ok(of_this_machine(code, Cores::here().threads())),
        Which::File(path) => Calibration::read(path).map(Some).context("--calibration"),
    }
}

/// What the system calls this machine's CPU.
pub(crate) fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split(':').nth(1))
        .map_or_else(|| std::env::consts::ARCH.into(), |name| name.trim().into())
}

/// Bytes of the last cache, as the system tells.
pub(crate) fn last_cache() -> Option<usize> {
    let of = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        let (number, unit) = text.trim().split_at(text.trim().len() - 1);
        let scale = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        Some(number.parse::<usize>().ok()? * scale)
    };
    (0..8).filter_map(of).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration() -> Calibration {
        let auto = Machine { few_flops: 123.5, threads: 3.0, cool: 90.0, ..Machine::GENERIC };
        let (cpu, code) = ("a CPU".into(), "native".into());
        Calibration { cpu, threads: 3, code, auto, f32: Machine { few_flops: 50.0, ..auto } }
    }

    #[test]
    fn a_file_comes_back_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("c.json");
        let file = Output::create(&path).expect("it is created");
        calibration().write(file).expect("it is written");
        assert_eq!(Calibration::read(&path).expect("it is read"), calibration());
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn what_is_damaged_is_named() {
        let good = calibration().to_json();
        let with = |set: &dyn Fn(&mut Value)| {
            let mut value = good.clone();
            set(&mut value);
            let error = Calibration::parse(&value.to_string()).expect_err("it is damaged");
            output::one_line(&error)
        };
        assert!(with(&|v| v[MAGIC] = json!(9)).contains(&format!("is 9: expected {VERSION}")));
        assert!(with(&|v| *v = json!([])).contains(MAGIC));
        assert!(with(&|v| v["threads"] = json!(0)).contains("`threads`"));
        assert!(
            with(&|v| v["auto"]["memory"] = json!(-1.0)).contains("`auto.memory`: expected GB/s above 0")
        );
        assert!(with(&|v| v["f32"]["launch"] = json!("x")).contains("`f32.launch`"));
        assert!(with(&|v| v["f32"]["luck"] = json!(1.0)).contains("`f32.luck`"));
        assert!(with(&|v| v["cpu"] = Value::Null).contains("`cpu`"));
        assert!(Calibration::parse("{").is_err());
    }
}
