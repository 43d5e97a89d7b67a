//! Models by name, against a hub on loopback: the shared cache, what is asked for, and what a hub or a connection that
//! fails comes to.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use lapidary::hub::cache::Kind;
use lapidary::hub::{Hub, Name, Settings};
use lapidary_tests::hub::{Hub as Server, Repo, Sent};
use tempfile::TempDir;

/// A cache and a hub.
struct Place {
    cache: TempDir,
    server: Server,
}

impl Place {
    fn new(repos: Vec<Repo>) -> Place {
        Place { cache: TempDir::new().unwrap(), server: Server::start(repos) }
    }

    fn hub(&self, token: Option<&str>, offline: bool) -> Hub {
        let endpoint = self.server.endpoint.clone();
        let (cache, token) = (self.cache.path().into(), token.map(Into::into));
        Hub::new(Settings { endpoint, cache, token, offline, certificates: None }).unwrap()
    }

    fn open(&self, name: &str) -> Result<PathBuf, String> {
        self.open_with(name, None)
    }

    fn open_with(&self, name: &str, token: Option<&str>) -> Result<PathBuf, String> {
        self.hub(token, false).open(&Name::parse(name).unwrap(), &mut |_| {}).map_err(|e| e.to_string())
    }

    fn blobs(&self, repo: &str) -> Vec<String> {
        let folder = self.cache.path().join(format!("models--{}/blobs", repo.replace('/', "--")));
        let mut names: Vec<String> = fs::read_dir(folder)
            .map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }
}

/// Bytes that no half of stands for the other.
fn weights(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as u8
        })
        .collect()
}

fn quants() -> Repo {
    let parts = ["BF16/x-BF16-00001-of-00002.gguf", "BF16/x-BF16-00002-of-00002.gguf"];
    let mut files = vec![Sent::small("README.md", b"of quants"), Sent::small("config.json", b"{}")];
    files.extend(
        ["x-Q4_K_M.gguf", "x-Q8_0.gguf"]
            .map(|name| Sent::large(name, &[&weights(300_000), name.as_bytes()].concat())),
    );
    files.extend(parts.map(|name| Sent::large(name, name.as_bytes())));
    Repo::new("owner/x-GGUF", files)
}

fn folder() -> Repo {
    let index = concat!(
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "#,
        r#""c": "model-1.safetensors"}}"#
    );
    let index = index.as_bytes();
    let files = vec![
        Sent::small("config.json", br#"{"model_type": "gemma2"}"#),
        Sent::large("tokenizer.json", b"{\"tokens\": 1}"),
        Sent::large("tokenizer.model", b"of another reader"),
        Sent::small("model.safetensors.index.json", index),
        Sent::large("model-1.safetensors", &weights(70_000)),
        Sent::large("model-2.safetensors", &weights(50_000)),
        Sent::large("consolidated.safetensors", b"the same again"),
        Sent::small("chat_template.jinja", b"{{ x }}"),
        Sent::small("images/a.png", b"png"),
    ];
    Repo::new("owner/folder", files)
}

#[test]
fn one_file_of_quants_is_fetched_and_found_again() {
    let place = Place::new(vec![quants()]);
    let path = place.open("hf.co/owner/x-GGUF:q8_0").unwrap();
    let repo = place.server.repo("owner/x-GGUF");
    assert_eq!(fs::read(&path).unwrap(), repo.files[3].bytes);
    let root = place.cache.path().join("models--owner--x-GGUF");
    assert_eq!(path, root.join(format!("snapshots/{}/x-Q8_0.gguf", repo.commit)));
    assert!(fs::read_link(&path).unwrap().starts_with("../../blobs"));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), repo.commit);
    assert_eq!(place.blobs("owner/x-GGUF").len(), 1);
    let log = place.server.log();
    assert!(log.iter().all(|l| l.contains("/api/") || l.contains("x-Q8_0.gguf")), "{log:?}");
    // From now on without the hub.
    assert_eq!(place.open("owner/x-GGUF:Q8_0").unwrap(), path);
    assert_eq!(place.server.log(), [""; 0]);
    // No tag, and parts.
    assert!(place.open("owner/x-GGUF").unwrap().ends_with("x-Q4_K_M.gguf"));
    let part = place.open("owner/x-GGUF:BF16").unwrap();
    assert!(part.ends_with("BF16/x-BF16-00001-of-00002.gguf"), "{part:?}");
    assert_eq!(fs::read(part.with_file_name("x-BF16-00002-of-00002.gguf")).unwrap(), repo.files[5].bytes);
    let error = place.open("owner/x-GGUF:Q5_0").unwrap_err();
    assert!(error.contains("\"Q5_0\"") && error.contains("BF16, Q4_K_M, Q8_0"), "{error}");
}

#[test]
fn of_a_folder_only_what_is_needed_is_fetched() {
    let place = Place::new(vec![folder()]);
    let path = place.open("owner/folder").unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        "chat_template.jinja",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    place.server.log();
    // A shard that is missing is fetched, and nothing else.
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    let blobs = place.blobs("owner/folder");
    assert_eq!(place.open("owner/folder").unwrap(), path);
    assert!(path.join("model-2.safetensors").exists());
    assert_eq!(place.blobs("owner/folder"), blobs);
    let log = place.server.log();
    assert!(
        log.iter().all(|l| l.contains("/api/") || l.starts_with("HEAD") && l.contains("model-2")),
        "{log:?}"
    );
}

#[test]
fn offline_what_is_here_is_used() {
    let place = Place::new(vec![folder(), quants()]);
    let offline = |name: &str| place.hub(None, true).open(&Name::parse(name).unwrap(), &mut |_| {});
    let error = offline("owner/folder").unwrap_err().to_string();
    assert!(error.contains("owner/folder is not in") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let path = place.open("owner/folder").unwrap();
    // As `transformers` leaves it that was asked for the model alone: its reader says what is missing.
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    place.server.log();
    assert_eq!(offline("owner/folder").unwrap(), path);
    let fetch = place.hub(None, true).fetch(&Name::parse("owner/folder").unwrap(), &mut |_| {});
    assert!(fetch.is_err());
    assert_eq!(place.server.log(), [""; 0]);
    // No branch is named, as in a cache that was copied by hand.
    fs::remove_file(place.cache.path().join("models--owner--folder/refs/main")).unwrap();
    assert_eq!(offline("owner/folder").unwrap(), path);
    assert!(offline("owner/x-GGUF:Q8_0").is_err());
}

#[test]
fn a_connection_that_breaks_off_is_gone_on_with() {
    let repo = quants();
    repo.files[3].cuts.store(4, std::sync::atomic::Ordering::SeqCst);
    let place = Place::new(vec![repo]);
    let mut seen = Vec::new();
    let name = Name::parse("owner/x-GGUF:Q8_0").unwrap();
    let path = place.hub(None, false).open(&name, &mut |p| seen.push((p.done, p.total))).unwrap();
    let repo = place.server.repo("owner/x-GGUF");
    let file = &repo.files[3];
    assert_eq!(fs::read(path).unwrap(), file.bytes);
    let all = file.bytes.len() as u64;
    assert_eq!((seen[0], *seen.last().unwrap()), ((0, all), (all, all)));
    assert!(seen.is_sorted(), "{seen:?}");
    let log = place.server.log();
    let ranges: Vec<&String> =
        log.iter().filter(|l| l.contains("/store/") && l.contains(" range ")).collect();
    assert_eq!(ranges.len(), 4, "{log:?}");
    assert!(ranges[0].ends_with(&format!("range {}", all / 2)), "{log:?}");
}

#[test]
fn what_a_program_left_is_gone_on_with() {
    let place = Place::new(vec![quants()]);
    let repo = place.server.repo("owner/x-GGUF");
    let (bytes, blobs) = (&repo.files[2].bytes, place.cache.path().join("models--owner--x-GGUF/blobs"));
    let path = place.open("owner/x-GGUF").unwrap();
    let blob = path.canonicalize().unwrap();
    let part = blobs.join(format!("{}.incomplete", blob.file_name().unwrap().to_str().unwrap()));
    for (left, from) in [(&bytes[..1000], "range 1000"), (&b"other bytes"[..], "range 11")] {
        fs::remove_file(&blob).unwrap();
        fs::write(&part, left).unwrap();
        place.server.log();
        assert_eq!(place.open("owner/x-GGUF").unwrap(), path);
        assert_eq!(&fs::read(&path).unwrap(), bytes);
        let log = place.server.log();
        assert!(log.iter().any(|l| l.ends_with(from)), "{log:?}");
        assert!(!part.exists());
    }
}

#[test]
fn a_server_without_parts_begins_anew_and_ends() {
    let mut repo = quants();
    repo.files[3].ranges = false;
    repo.files[3].cuts.store(2, std::sync::atomic::Ordering::SeqCst);
    let place = Place::new(vec![repo]);
    let path = place.open("owner/x-GGUF:Q8_0").unwrap();
    assert_eq!(fs::read(path).unwrap(), place.server.repo("owner/x-GGUF").files[3].bytes);
    // One that never comes to its end is an error, and what came is kept.
    let repo = quants();
    repo.files[3].cuts.store(1000, std::sync::atomic::Ordering::SeqCst);
    repo.instead.lock().unwrap_or_else(PoisonError::into_inner).replace(weights(1000));
    let place = Place::new(vec![repo]);
    let error = place.open("owner/x-GGUF:Q8_0").unwrap_err();
    assert!(error.contains("as the hub says, found 1000"), "{error}");
}

#[test]
fn lies_are_found_out() {
    // Other bytes of the same length.
    let repo = quants();
    let mut other = repo.files[3].bytes.clone();
    other[1000] ^= 1;
    repo.instead.lock().unwrap_or_else(PoisonError::into_inner).replace(other);
    let place = Place::new(vec![repo]);
    let error = place.open("owner/x-GGUF:Q8_0").unwrap_err();
    assert!(error.contains("x-Q8_0.gguf is not as the hub says: expected SHA-256"), "{error}");
    assert_eq!(place.blobs("owner/x-GGUF"), [""; 0]);
    // A length that is not so, of a file apart and of a small one.
    for (file, says) in [(3, 1000), (3, 1 << 40), (1, 1), (1, 3)] {
        let mut repo = quants();
        repo.files[file].says = Some(says);
        if file == 1 {
            repo.files.extend([Sent::large("model.safetensors", b"x")]);
        }
        let place = Place::new(vec![repo]);
        let name = if file == 1 { "owner/x-GGUF" } else { "owner/x-GGUF:Q8_0" };
        let error = place.open(name).unwrap_err();
        assert!(error.contains(&format!("expected {says} bytes, as the hub says, found")), "{error}");
        assert!(place.open(name).is_err());
    }
    // A file that would lie elsewhere.
    let repo = Repo::new("owner/x", vec![Sent::small("../../x.gguf", b"x")]);
    let error = Place::new(vec![repo]).open("owner/x").unwrap_err();
    assert!(error.contains("a path within the repository"), "{error}");
}

#[test]
fn gated_models_say_what_to_do() {
    let mut repo = folder();
    repo.gated = Some("hf_right".into());
    let place = Place::new(vec![repo]);
    let page = format!("accept its terms at {}/owner/folder, and set HF_TOKEN", place.server.endpoint);
    for token in [None, Some("hf_wrong")] {
        let error = place.open_with("owner/folder", token).unwrap_err();
        assert!(error.contains("owner/folder is a gated model") && error.contains(&page), "{error}");
        assert!(!error.contains("hf_wrong"), "{error}");
    }
    place.server.log();
    place.open_with("owner/folder", Some("hf_right")).unwrap();
    // The token goes to the hub, and not where bytes are stored.
    for line in place.server.log() {
        assert_eq!(line.ends_with(" token"), !line.contains("/store/"), "{line}");
    }
    let error = place.open("owner/none").unwrap_err();
    assert!(error.contains("owner/none: the hub has no model of this name"), "{error}");
}

#[test]
fn a_repository_that_was_renamed_is_found() {
    let mut repo = quants();
    repo.was = Some("old/name".into());
    let place = Place::new(vec![repo]);
    assert!(place.open("old/name:Q8_0").unwrap().ends_with("x-Q8_0.gguf"));
}

#[test]
fn nobody_answers() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cache = TempDir::new().unwrap();
    let endpoint = format!("http://127.0.0.1:{port}");
    let settings =
        Settings { endpoint, cache: cache.path().into(), token: None, offline: false, certificates: None };
    let name = Name::parse("owner/x").unwrap();
    let error = Hub::new(settings).unwrap().open(&name, &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("cannot fetch http://127.0.0.1"), "{error}");
}

#[test]
fn what_is_held_is_listed_and_removed() {
    let place = Place::new(vec![folder(), quants()]);
    for name in ["owner/folder", "owner/x-GGUF:Q8_0", "owner/x-GGUF:Q4_K_M"] {
        place.open(name).unwrap();
    }
    let hub = place.hub(None, true);
    let held = || -> Vec<(String, Kind)> {
        hub.cache().models().unwrap().into_iter().map(|h| (h.name.to_string(), h.kind)).collect()
    };
    let folder = ("owner/folder".to_string(), Kind::Folder("gemma2".into()));
    let gguf = |tag: &str| (format!("owner/x-GGUF:{tag}"), Kind::Gguf);
    assert_eq!(held(), [folder.clone(), gguf("Q4_K_M"), gguf("Q8_0")]);
    let bytes = hub.cache().held(&Name::parse("owner/x-GGUF:q8_0").unwrap()).unwrap();
    assert_eq!(bytes[0].bytes, place.server.repo("owner/x-GGUF").files[3].bytes.len() as u64);
    hub.cache().remove(&Name::parse("owner/x-GGUF:Q8_0").unwrap()).unwrap();
    assert_eq!(held(), [folder.clone(), gguf("Q4_K_M")]);
    assert_eq!(place.blobs("owner/x-GGUF").len(), 1);
    hub.cache().remove(&Name::parse("owner/x-GGUF:Q4_K_M").unwrap()).unwrap();
    assert_eq!(held(), [folder]);
    assert!(!place.cache.path().join("models--owner--x-GGUF").exists());
    hub.cache().remove(&Name::parse("owner/folder").unwrap()).unwrap();
    assert!(held().is_empty() && !Path::new(place.cache.path()).join("models--owner--folder").exists());
}
