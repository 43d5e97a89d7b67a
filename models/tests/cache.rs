//! The cache of converted weights against what may lie around it: checkpoints that change unseen, files damaged,
//! directories of others, writers beside.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, FileTimes, Permissions};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use lapidary_models::weight_cache::Origin;
use lapidary_models::{
    Cache, Config, Destination, Error, FormatChoice, Model, QuantFormat, Quantization, QuantizedWeights,
    WeightDType, export, synthesize,
};
use tempfile::TempDir;

const GO: fn(u64, u64) -> ControlFlow<()> = |_, _| ControlFlow::Continue(());
const UP: &str = "model.layers.1.mlp.up_proj.weight";
const NORM: &str = "model.norm.weight";

fn config() -> Config {
    let mut c = Config::preset("2b").unwrap();
    // The up projection is longer than both of its ends that are sampled.
    (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers) = (5000, 128, 1024, 2);
    (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (2, 1, 64);
    c.layer_types.truncate(2);
    c
}

/// A model's folder and a cache directory.
struct Place {
    model: TempDir,
    cache: TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { model: TempDir::new().unwrap(), cache: TempDir::new().unwrap() };
        let choice = FormatChoice::default();
        synthesize(place.model.path(), &config(), WeightDType::BF16, choice, 3, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
        place
    }

    fn weights(&self) -> PathBuf {
        self.model.path().join("model.safetensors")
    }

    fn dir(&self) -> PathBuf {
        self.cache.path().join("lapidary")
    }

    fn options(&self, limit: u64) -> Quantization {
        let format = Some(QuantFormat::Q8.into());
        let cache = Some(Cache { dir: self.dir(), limit });
        Quantization { body: format, head: format, adapters: vec![], threads: 2, cache }
    }

    fn open(&self) -> QuantizedWeights {
        let model = Arc::new(Model::open(self.model.path()).unwrap());
        QuantizedWeights::open(model, &self.options(Cache::LIMIT), &GO).unwrap()
    }

    /// What the weights are without a cache.
    fn fresh(&self) -> QuantizedWeights {
        let model = Arc::new(Model::open(self.model.path()).unwrap());
        let options = Quantization { cache: None, ..self.options(0) };
        QuantizedWeights::open(model, &options, &GO).unwrap()
    }

    /// Where a byte of a tensor lies in the weights' file.
    fn offset(&self, tensor: &str, byte: usize) -> u64 {
        let file = fs::read(self.weights()).unwrap();
        let model = Model::open(self.model.path()).unwrap();
        let bytes = model.checkpoint.tensor(tensor).unwrap().bytes;
        let at = file.windows(256).position(|w| w == &bytes[..256]).unwrap();
        (at + byte) as u64
    }

    /// Changes a byte of the weights' file, and sets its time back.
    fn change(&self, at: u64) {
        let file = File::options().read(true).write(true).open(self.weights()).unwrap();
        let times = file.metadata().unwrap().modified().unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        file.set_modified(times).unwrap();
    }
}

fn made(weights: &QuantizedWeights) -> PathBuf {
    match weights.origin() {
        Origin::Made(path) => path.clone(),
        other => panic!("{other:?}"),
    }
}

fn found(weights: &QuantizedWeights) -> bool {
    matches!(weights.origin(), Origin::Found(_))
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into()).collect();
    all.sort();
    all
}

/// A byte in the middle of a tensor, with length, time and both ends as they were: the weights are those of the new
/// bytes.
#[test]
fn every_byte_of_the_checkpoint_matters() {
    let place = Place::new();
    let first = made(&place.open());
    assert!(found(&place.open()));
    let middle = Model::open(place.model.path()).unwrap().checkpoint.tensor(UP).unwrap().bytes.len() / 2;
    assert!(middle > 80 << 10);
    // The low byte of a norm is not converted, and is the checkpoint's own.
    for (tensor, byte) in [(UP, middle + 1), (NORM, 101)] {
        place.change(place.offset(tensor, byte));
        let weights = place.open();
        assert_ne!(made(&weights), first, "{tensor}");
        assert_eq!(weights.tensor(tensor), place.fresh().tensor(tensor), "{tensor}");
        assert!(found(&place.open()));
    }
}

/// What is the same is found again though it was moved, copied within its time, or touched without a change.
#[test]
fn what_is_the_same_is_found() {
    let place = Place::new();
    let first = made(&place.open());
    // Its inode changes: permissions.
    fs::set_permissions(place.weights(), Permissions::from_mode(0o600)).unwrap();
    assert!(found(&place.open()));
    // Another inode, the same bytes and time.
    let times = fs::metadata(place.weights()).unwrap().modified().unwrap();
    let copy = place.model.path().join("copy");
    fs::copy(place.weights(), &copy).unwrap();
    File::options().write(true).open(&copy).unwrap().set_modified(times).unwrap();
    fs::rename(&copy, place.weights()).unwrap();
    let weights = place.open();
    assert!(found(&weights));
    // The file has learnt of it: the next start need not read the checkpoint.
    let bytes = fs::read(&first).unwrap();
    assert!(found(&place.open()));
    assert!(fs::read(&first).unwrap() == bytes);
    assert_eq!(names(&place.dir()).len(), 1);
}

/// Any byte of a cache file.
#[test]
fn a_damaged_body_is_made_anew() {
    let place = Place::new();
    let path = made(&place.open());
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let body = whole.len() - header;
    for at in [header, header + body / 3, header + body / 2 + 1, whole.len() - 1, 9, header / 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let weights = place.open();
        assert_eq!(made(&weights), path, "byte {at} of {}", whole.len());
        assert!(fs::read(&path).unwrap() == whole);
        assert_eq!(weights.tensor(UP), place.fresh().tensor(UP));
    }
    // Half of it never reached the disk.
    let mut bytes = whole.clone();
    bytes[header + body / 2..].fill(0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(made(&place.open()), path);
    assert!(found(&place.open()));
}

/// A cache file that is a pipe, a link to a device or a folder is no cache file.
#[test]
fn what_is_no_cache_file_is_not_read() {
    let place = Place::new();
    let path = made(&place.open());
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    let weights = place.open();
    assert!(!found(&weights));
    assert_eq!(weights.tensor(UP), place.fresh().tensor(UP));
}

/// A directory, or a file in it, that others may write to or own.
#[test]
fn what_others_may_write_is_not_used() {
    let place = Place::new();
    let path = made(&place.open());
    for mode in [0o720, 0o702, 0o777, 0o1777] {
        fs::set_permissions(place.dir(), Permissions::from_mode(mode)).unwrap();
        let weights = place.open();
        let Origin::Memory(Some(reason)) = weights.origin() else {
            panic!("{mode:o}: {:?}", weights.origin())
        };
        let reason = reason.to_string();
        assert!(reason.contains("alone may write") && reason.contains(&format!("{mode:o}")), "{reason}");
        assert_eq!(weights.tensor(UP), place.fresh().tensor(UP));
    }
    fs::set_permissions(place.dir(), Permissions::from_mode(0o755)).unwrap();
    assert!(found(&place.open()));
    // A file of it.
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(made(&place.open()), path);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o022, 0);
    // Another's: who is not root cannot give a file away, and has the system's to look at.
    let root = std::os::unix::fs::chown(place.dir(), Some(54_321), None).is_ok();
    let theirs = if root { place.dir() } else { PathBuf::from("/usr") };
    let error = Cache { dir: theirs, limit: 0 }.check().unwrap_err().to_string();
    assert!(error.contains("owned by user"), "{error}");
}

/// Files that others write count towards the limit with all their bytes, and stay; so does one's own.
#[test]
fn partials_count() {
    let place = Place::new();
    let path = made(&place.open());
    let length = fs::metadata(&path).unwrap().len();
    let partial = place.dir().join(format!(".{:032x}.safetensors.aBcD12.partial", 7));
    File::create(&partial).unwrap().set_len(length).unwrap();
    let other = Place { model: Place::new().model, cache: TempDir::new().unwrap() };
    other.change(other.offset(UP, 300));
    let open = |limit: u64| {
        let model = Arc::new(Model::open(other.model.path()).unwrap());
        QuantizedWeights::open(model, &place.options(limit), &GO).unwrap()
    };
    // Room for one beside the one that is being written: what is whole gives way.
    let weights = open(2 * length);
    let second = made(&weights);
    assert!(!path.exists() && partial.exists() && second.exists());
    // Not even that: nothing is removed.
    fs::remove_file(&second).unwrap();
    let weights = open(2 * length - 1);
    let Origin::Memory(Some(reason)) = weights.origin() else { panic!("{:?}", weights.origin()) };
    assert!(reason.to_string().contains("being written beside"), "{reason}");
    assert_eq!(names(&place.dir()), [partial.file_name().unwrap().to_str().unwrap()]);
    // One that was abandoned counts no more.
    let long_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(7200));
    File::options().write(true).open(&partial).unwrap().set_times(long_ago).unwrap();
    made(&open(length));
    assert!(!partial.exists());
}

/// While it is made, the file has the length it will have.
#[test]
fn a_partial_is_as_long_as_the_whole() {
    let place = Place::new();
    let seen = std::cell::Cell::new(0);
    let model = Arc::new(Model::open(place.model.path()).unwrap());
    let progress = |_, _| {
        let lengths =
            names(&place.dir()).into_iter().map(|n| fs::metadata(place.dir().join(n)).unwrap().len());
        seen.set(lengths.sum::<u64>());
        ControlFlow::Continue(())
    };
    let weights = QuantizedWeights::open(model, &place.options(Cache::LIMIT), &progress).unwrap();
    assert_eq!(seen.get(), fs::metadata(made(&weights)).unwrap().len());
}

/// Several that make the same file at once.
#[test]
fn writers_at_once() {
    let place = Place::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| place.open())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap().tensor(UP), place.fresh().tensor(UP));
        }
    });
    assert_eq!(names(&place.dir()).len(), 1);
}

/// A folder that two write at once without leave to replace is one's; with it, the last one's. Never a mixture.
#[test]
fn two_folders_at_once() {
    let source = Place::new();
    let model = Model::open(source.model.path()).unwrap();
    for replace in [false, true] {
        let out = TempDir::new().unwrap();
        let dir = out.path().join("made");
        let write = |format: QuantFormat| {
            let choice = FormatChoice { body: Some(format.into()), head: Some(format.into()) };
            export(&model, Destination { dir: &dir, replace }, choice, 1, &mut |_, _| {
                ControlFlow::Continue(())
            })
        };
        let results = thread::scope(|scope| {
            let threads = [QuantFormat::Q8, QuantFormat::Q4].map(|format| scope.spawn(move || write(format)));
            threads.map(|thread| thread.join().unwrap())
        });
        let done = results.iter().filter(|r| r.is_ok()).count();
        assert!(done == 2 || (!replace && done == 1), "{results:?}");
        assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(Error::Occupied { .. }))), "{results:?}");
        let whole = Model::open(&dir).unwrap();
        assert_eq!(whole.checkpoint.format_of(UP), whole.checkpoint.format_of("model.embed_tokens.weight"));
        assert!(names(&dir).iter().all(|n| !n.starts_with('.')), "{:?}", names(&dir));
    }
}
