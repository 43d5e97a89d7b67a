//! The cache of converted weights: found again, made anew when broken, of a limited size, and done without.

use std::fs::{self, File, FileTimes};
use std::time::{Duration, SystemTime};

use lapidary_models::weight_cache::Origin;
use lapidary_models::{Cache, QuantFormat, Quantization};
use tempfile::TempDir;

use crate::{NORM, O, Place, UP, assert_right, found, made};

#[test]
fn the_second_start_is_a_map() {
    let place = Place::new();
    let first = place.open(&place.options());
    let path = made(&first).to_path_buf();
    assert_eq!(place.files(), std::slice::from_ref(&path));
    // A time to come: no system replaces it by itself.
    let ahead = SystemTime::now() + Duration::from_secs(7200);
    let old = FileTimes::new().set_accessed(ahead).set_modified(SystemTime::UNIX_EPOCH);
    File::options().write(true).open(&path).unwrap().set_times(old).unwrap();
    let second = place.open(&place.options());
    assert!(found(&second), "{:?}", second.origin());
    assert_right(&place, &second, &place.options());
    let data = fs::metadata(&path).unwrap();
    assert_eq!(data.modified().unwrap(), SystemTime::UNIX_EPOCH, "it was written again");
    let limit = SystemTime::now() + Duration::from_secs(60);
    assert!(data.accessed().unwrap() < limit, "it was not marked as used");
}

#[test]
fn a_cache_file_is_a_safetensors_file() {
    let place = Place::new();
    let weights = place.open(&place.options());
    let file = fs::read(made(&weights)).unwrap();
    let (length, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!((length + 8) % 64, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "lapidary-q4");
    assert_eq!(metadata.metadata().as_ref().unwrap()["head"], "q8");
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let up = tensors.tensor(UP).unwrap();
    assert_eq!((up.dtype(), up.shape()), (safetensors::Dtype::U8, &[96, 36][..]));
    assert_eq!(up.data(), weights.tensor(UP).unwrap());
    assert!(tensors.tensor(O).is_err());
    assert!(tensors.tensor(NORM).is_err());
}

#[test]
fn a_broken_cache_file_is_made_anew() {
    let place = Place::new();
    let path = made(&place.open(&place.options())).to_path_buf();
    let whole = fs::read(&path).unwrap();
    let changed = |f: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        f(&mut bytes);
        bytes
    };
    let broken = [
        vec![],
        changed(&|b| b.truncate(whole.len() - 1)),
        changed(&|b| b.push(0)),
        changed(&|b| b[0] ^= 1),
        changed(&|b| b[40] ^= 1),
        vec![0; whole.len()],
    ];
    for bytes in broken {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let weights = place.open(&place.options());
        assert_eq!(made(&weights), path);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(place.files(), std::slice::from_ref(&path));
    }
    assert!(found(&place.open(&place.options())));
}

#[test]
fn what_the_bytes_depend_on_is_in_the_name() {
    let place = Place::new();
    let first = made(&place.open(&place.options())).to_path_buf();
    let q8 = Quantization { body: Some(QuantFormat::Q8.into()), ..place.options() };
    assert_ne!(made(&place.open(&q8)), first);
    let swapped = Quantization { head: Some(QuantFormat::Q4.into()), ..q8 };
    assert_ne!(made(&place.open(&swapped)), first);

    // A model that is moved keeps its cache.
    let moved = TempDir::new().unwrap();
    for entry in fs::read_dir(place.model.path()).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), moved.path().join(entry.file_name())).unwrap();
    }
    let place = Place { model: moved, ..place };
    assert!(found(&place.open(&place.options())));

    // Equal length and time, one byte at the end of the embedding table.
    let times = fs::metadata(place.weights()).unwrap().modified().unwrap();
    let mut bytes = fs::read(place.weights()).unwrap();
    let end = 70_000 * 64 * 2 + 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    bytes[end - 1] ^= 1;
    fs::write(place.weights(), &bytes).unwrap();
    File::options().write(true).open(place.weights()).unwrap().set_modified(times).unwrap();
    assert_ne!(made(&place.open(&place.options())), first);

    // Equal bytes, another time.
    File::options()
        .write(true)
        .open(place.weights())
        .unwrap()
        .set_modified(times + Duration::from_secs(1))
        .unwrap();
    assert!(!found(&place.open(&place.options())));
}

#[test]
fn the_oldest_makes_room() {
    let place = Place::new();
    let mut paths = Vec::new();
    let formats = [Some(QuantFormat::Q4.into()), Some(QuantFormat::Q8.into())];
    for (body, age) in [(formats[0], 100), (formats[1], 300), (None, 200)] {
        let path = made(&place.open(&Quantization { body, ..place.options() })).to_path_buf();
        let then = SystemTime::now() - Duration::from_secs(age);
        let times = FileTimes::new().set_accessed(then).set_modified(then);
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        paths.push(path);
    }
    let dir = paths[0].parent().unwrap();
    let foreign = [dir.join("model.safetensors"), dir.join(".x.partial")];
    foreign.iter().for_each(|f| fs::write(f, "mine").unwrap());
    let abandoned = dir.join(format!(".{:032x}.7.0.partial", 7));
    let fresh = dir.join(format!(".{:032x}.8.0.partial", 7));
    [&abandoned, &fresh].iter().for_each(|f| fs::write(f, "").unwrap());
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(&abandoned).unwrap().set_modified(long_ago).unwrap();

    // The one of 200 seconds is used again; then what is needed is just less than the one of 300.
    assert!(found(&place.open(&Quantization { body: None, ..place.options() })));
    let total: u64 = paths.iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    let head = Some(QuantFormat::Q4.into());
    let cache = place.cache(total);
    let new = Quantization { head, cache, ..place.options() };
    let new = made(&place.open(&new)).to_path_buf();
    assert!(!paths[1].exists(), "the oldest is there");
    assert!(paths[0].exists() && paths[2].exists() && new.exists());
    assert!(foreign.iter().all(|f| f.exists()), "a file of another's was removed");
    assert!(!abandoned.exists() && fresh.exists());

    // No room at all: nothing is removed, memory does.
    let small = Quantization {
        head,
        cache: place.cache(1000),
        body: Some(QuantFormat::Q8.into()),
        adapters: vec![],
        threads: 1,
    };
    let weights = place.open(&small);
    let Origin::Memory(Some(reason)) = weights.origin() else { panic!("{:?}", weights.origin()) };
    assert!(reason.to_string().contains("a limit of 1000 bytes"), "{reason}");
    assert_right(&place, &weights, &small);
    assert!(new.exists());
}

#[test]
fn a_cache_that_cannot_be_written_costs_nothing_but_time() {
    let place = Place::new();
    let dir = place.cache.path().join("file");
    fs::write(&dir, "").unwrap();
    let cache = Some(Cache { dir: dir.clone(), limit: Cache::LIMIT });
    let options = Quantization { cache, ..place.options() };
    let weights = place.open(&options);
    let Origin::Memory(Some(reason)) = weights.origin() else { panic!("{:?}", weights.origin()) };
    assert!(reason.to_string().contains(&dir.display().to_string()), "{reason}");
    assert_right(&place, &weights, &options);
}

#[test]
fn the_users_cache() {
    let dir = |xdg: Option<&str>, home: Option<&str>| {
        Cache::of_variables(xdg.map(Into::into), home.map(Into::into)).map(|c| c.dir)
    };
    assert_eq!(dir(Some("/x"), Some("/h")), Some("/x/lapidary".into()));
    assert_eq!(dir(Some(""), Some("/h")), Some("/h/.cache/lapidary".into()));
    assert_eq!(dir(Some("relative"), Some("/h")), Some("/h/.cache/lapidary".into()));
    assert_eq!(dir(None, None), None);
    assert_eq!(dir(None, Some("")), None);
}
