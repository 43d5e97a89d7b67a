//! Which files of a repository a model needs: of a folder its JSON files and its weights, of a repository of GGUFs the
//! one of a tag, or its parts.
//!
//! In: the names of files. Out: a [`Selection`]. A tag is what a file is told by, at the end of its name: `Q4_K_M` of
//! `gemma-2-2b-it-Q4_K_M.gguf`, or of a split one's `gemma-2-2b-it-Q4_K_M-00001-of-00002.gguf`, in any case; a file's
//! whole name does as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lapidary_runtime::file::error::{line, quote};
use serde_json::Value;

use crate::error::{Error, Result, disk};
use crate::name::Name;

/// The tag of a name without one.
pub const TAG: &str = "Q4_K_M";
/// What a folder cannot be without.
pub(crate) const CONFIG: &str = "config.json";
/// What turns text into ids.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Small files that a model's reader looks at, where there are any.
const SMALL: [&str; 6] = [
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What makes a repository a LoRA adapter, and its weights.
pub(crate) const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// A GGUF; of one that is split all parts, in order.
    Files(Vec<String>),
    /// A folder.
    Folder {
        /// Files of a few MiB, its configuration first.
        small: Vec<String>,
        /// The file that names the shards.
        index: Option<String>,
        /// The weights, where no index names them.
        weights: Vec<String>,
    },
}

/// The files that a name means.
///
/// # Errors
/// [`Error::Tag`] for a tag that no file has, [`Error::NoModel`] for a repository of something else.
pub fn wanted(name: &Name, files: &[String]) -> Result<Selection> {
    let has = |file: &str| files.iter().any(|f| f == file);
    if name.tag.is_none() && ADAPTER.iter().all(|file| has(file)) && !has(WEIGHTS) && !has(INDEX) {
        let [config, weights] = ADAPTER.map(String::from);
        return Ok(Selection::Folder { small: vec![config], index: None, weights: vec![weights] });
    }
    if name.tag.is_none() && has(CONFIG) && (has(INDEX) || has(WEIGHTS)) {
        let small = [CONFIG].into_iter().chain(SMALL).filter(|file| has(file)).map(Into::into).collect();
        let index = has(INDEX).then(|| INDEX.to_string());
        let weights = if index.is_some() { vec![] } else { vec![WEIGHTS.to_string()] };
        return Ok(Selection::Folder { small, index, weights });
    }
    let models = models(files);
    if models.is_empty() {
        return Err(no_model(name, files));
    }
    let tag = name.tag.as_deref().unwrap_or(TAG);
    let found: Vec<&Gguf> = models.iter().filter(|model| model.has(tag)).collect();
    let refuse = |what: String, models: &[&Gguf]| {
        let known: BTreeSet<&str> = models.iter().map(|m| m.tag()).collect();
        // Where tags do not tell files apart, their names do.
        let known: Vec<&str> = match known.len() == models.len() {
            true => known.into_iter().collect(),
            false => models.iter().map(|m| m.files[0].as_str()).collect(),
        };
        Err(Error::Tag { name: name.repository(), what, known: line(known.join(", ")) })
    };
    match (&found[..], &name.tag) {
        ([one], _) => match one.files.len() == one.parts {
            true => Ok(Selection::Files(one.files.clone())),
            false => Err(Error::NoModel {
                name: name.to_string(),
                expected: format!("{} parts of {}", one.parts, quote(&one.stem)),
                found: one.files.len().to_string(),
            }),
        },
        ([], None) => refuse(
            format!("has no {TAG}, which a name without a tag means"),
            &models.iter().collect::<Vec<_>>(),
        ),
        ([], Some(tag)) => refuse(format!("has no {}", quote(tag)), &models.iter().collect::<Vec<_>>()),
        (several, _) => refuse(format!("has {} files of the tag {}", several.len(), quote(tag)), several),
    }
}

/// The shards that an index names, each of which the repository must have.
pub(crate) fn shards(name: &Name, index: &Path, files: &[String]) -> Result<Vec<String>> {
    let shards = shards_of(index)?;
    match shards.iter().find(|shard| !files.contains(shard)) {
        None => Ok(shards),
        Some(absent) => Err(Error::NoModel {
            name: name.to_string(),
            expected: format!("{}, a shard that {INDEX} names", quote(absent)),
            found: "no such file".into(),
        }),
    }
}

/// The shards that an index names.
pub(crate) fn shards_of(index: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(index).map_err(disk("read", index))?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let map = value["weight_map"].as_object();
    let shards: Option<BTreeSet<&str>> = map.and_then(|map| map.values().map(Value::as_str).collect());
    let plain = |shard: &&str| !shard.contains(['/', '\\']) && shard.ends_with(".safetensors");
    match shards.filter(|shards| !shards.is_empty() && shards.iter().all(plain)) {
        Some(shards) => Ok(shards.into_iter().map(Into::into).collect()),
        None => Err(Error::Answer {
            url: index.display().to_string(),
            expected: "weight_map, an object of tensors and the names of files".into(),
            found: line(value["weight_map"].to_string()),
        }),
    }
}

fn no_model(name: &Name, files: &[String]) -> Error {
    const OTHERS: [&str; 5] = [".bin", ".pt", ".pth", ".h5", ".onnx"];
    let other = files.iter().find(|f| OTHERS.iter().any(|end| f.ends_with(end)));
    let found = match other.or(files.first()) {
        None => "no files".into(),
        Some(file) if files.len() == 1 => quote(file),
        Some(file) => format!("{} and {} more files", quote(file), files.len() - 1),
    };
    let expected = match name.tag {
        Some(_) => "GGUF files, which tags are of".into(),
        None => format!("{CONFIG} with {WEIGHTS} or its shards, or GGUF files"),
    };
    Error::NoModel { name: name.to_string(), expected, found }
}

/// A model in a repository of GGUFs: one file, or its parts in order.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) files: Vec<String>,
    /// The name without its end, and without what numbers parts.
    stem: String,
    /// How many there should be.
    parts: usize,
}

impl Gguf {
    /// What it is told by: `Q4_K_M`.
    pub(crate) fn tag(&self) -> &str {
        tag_of(&self.stem)
    }

    /// Whether all parts are here.
    pub(crate) fn is_whole(&self) -> bool {
        self.files.len() == self.parts
    }

    /// Whether a tag means it.
    pub(crate) fn has(&self, tag: &str) -> bool {
        if self.files.iter().any(|file| file == tag || last(file) == tag) {
            return true;
        }
        let (stem, tag) = (last(&self.stem).to_ascii_lowercase(), tag.to_ascii_lowercase());
        stem.strip_suffix(&tag).is_some_and(|rest| {
            // `Q4_K_XL` is not what `UD-Q4_K_XL` is called.
            rest.is_empty() || rest.ends_with(['-', '.', '_']) && !rest.ends_with("ud-")
        })
    }
}

/// The models among files: no projections of images, no statistics.
pub(crate) fn models(files: &[String]) -> Vec<Gguf> {
    let mut models: Vec<Gguf> = Vec::new();
    let mut sorted: Vec<&String> = files.iter().collect();
    sorted.sort();
    for file in sorted {
        let name = last(file).to_ascii_lowercase();
        let Some(whole) = file.get(..file.len().saturating_sub(".gguf".len())) else { continue };
        if !name.ends_with(".gguf") || name.contains("mmproj") || name.contains("imatrix") {
            continue;
        }
        let (stem, parts) = split(whole);
        match models.iter_mut().find(|m| m.stem == stem && m.parts == parts && parts > 1) {
            Some(model) => model.files.push(file.clone()),
            None => models.push(Gguf { files: vec![file.clone()], stem: stem.into(), parts }),
        }
    }
    models
}

/// A name without `-00001-of-00002`, and the number of parts.
fn split(whole: &str) -> (&str, usize) {
    let parts = || {
        let (rest, of) = whole.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let digits = |n: &str| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit());
        let count = of.parse().ok()?;
        (digits(part) && digits(of) && count > 0).then_some((stem, count))
    };
    parts().unwrap_or((whole, 1))
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What a file is told by: from where a format's name begins, else the last word.
fn tag_of(stem: &str) -> &str {
    let name = last(stem);
    let starts = |at: &usize| {
        let rest = name[*at..].to_ascii_uppercase();
        let digit =
            |word: &str| rest.strip_prefix(word).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        ["F16", "F32", "BF16", "UD-", "MXFP4"].iter().any(|word| rest.starts_with(word))
            || ["Q", "IQ", "TQ"].iter().any(|word| digit(word))
    };
    let after = |separators: &'static [char]| name.match_indices(separators).map(|(at, s)| at + s.len());
    let known = std::iter::once(0).chain(after(&['-', '.', '_'])).find(starts);
    &name[known.or_else(|| after(&['-', '.']).next_back()).unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str, files: &[&str]) -> std::result::Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|f| f.to_string()).collect();
        match wanted(&Name::parse(name).expect("a name"), &files) {
            Ok(Selection::Files(files)) => Ok(files),
            Ok(Selection::Folder { small, index, weights }) => {
                Ok([small, index.into_iter().collect(), weights].concat())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    const QUANTS: [&str; 9] = [
        "README.md",
        "config.json",
        "gemma-it-Q4_K_M.gguf",
        "gemma-it-Q4_K_L.gguf",
        "gemma-it-UD-Q4_K_XL.gguf",
        "BF16/gemma-it-BF16-00002-of-00002.gguf",
        "BF16/gemma-it-BF16-00001-of-00002.gguf",
        "gemma-it-f16.gguf",
        "mmproj-F16.gguf",
    ];

    #[test]
    fn a_tag_means_a_file_or_its_parts() {
        let one = |name: &str| files(name, &QUANTS);
        for name in ["a/b", "a/b:Q4_K_M", "a/b:q4_k_m", "a/b:gemma-it-Q4_K_M.gguf"] {
            assert_eq!(one(name), Ok(vec!["gemma-it-Q4_K_M.gguf".into()]), "{name}");
        }
        assert_eq!(one("a/b:F16"), Ok(vec!["gemma-it-f16.gguf".into()]));
        assert_eq!(one("a/b:UD-Q4_K_XL"), Ok(vec!["gemma-it-UD-Q4_K_XL.gguf".into()]));
        let parts = ["BF16/gemma-it-BF16-00001-of-00002.gguf", "BF16/gemma-it-BF16-00002-of-00002.gguf"];
        assert_eq!(one("a/b:BF16"), Ok(parts.map(String::from).to_vec()));
        let part = files("a/b:BF16", &QUANTS[..6]).expect_err("a part is missing");
        assert!(part.contains("2 parts") && part.ends_with("found 1"), "{part}");
    }

    #[test]
    fn tags_that_there_are_are_listed() {
        let known = "expected a tag of BF16, Q4_K_L, Q4_K_M, UD-Q4_K_XL, f16";
        for (name, what) in [("a/b:Q9_K", "a/b has no \"Q9_K\""), ("a/b:Q4_K", "a/b has no \"Q4_K\"")] {
            assert_eq!(files(name, &QUANTS), Err(format!("{what}: {known}")));
        }
        let error = files("a/b", &["x-Q8_0.gguf", "x-Q4_0.gguf"]).expect_err("no Q4_K_M");
        assert_eq!(
            error,
            "a/b has no Q4_K_M, which a name without a tag means: expected a tag of Q4_0, Q8_0"
        );
        let error = files("a/b:Q8_0", &["x-Q8_0.gguf", "y-Q8_0.gguf"]).expect_err("two");
        assert!(
            error.ends_with("has 2 files of the tag \"Q8_0\": expected a tag of x-Q8_0.gguf, y-Q8_0.gguf"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_is_what_its_reader_looks_at() {
        let all =
            ["config.json", "tokenizer.json", "tokenizer.model", "README.md", WEIGHTS, "x.gguf", "model.bin"];
        assert_eq!(
            files("a/b", &all),
            Ok(["config.json", "tokenizer.json", WEIGHTS].map(String::from).to_vec())
        );
        assert_eq!(files("a/b:x.gguf", &all), Ok(vec!["x.gguf".into()]));
        let adapter = ["adapter_config.json", "adapter_model.safetensors", "README.md"];
        assert_eq!(files("a/b", &adapter), Ok(adapter[..2].iter().map(|f| f.to_string()).collect()));
        let error = files("a/b", &["config.json", "pytorch_model.bin"]).expect_err("no weights");
        assert!(error.ends_with("or GGUF files, found \"pytorch_model.bin\" and 1 more files"), "{error}");
        assert!(
            files("a/b:Q8_0", &["config.json", WEIGHTS]).expect_err("no GGUF").contains("which tags are of")
        );
    }

    #[test]
    fn tags_of_names() {
        for (stem, tag) in [
            ("gemma-2-2b-it-Q4_K_M", "Q4_K_M"),
            ("gemma2.q8_0", "q8_0"),
            ("gemma_2b_IQ4_XS", "IQ4_XS"),
            ("dir/x-UD-Q2_K_XL", "UD-Q2_K_XL"),
            ("gemma-2b", "2b"),
            ("model", "model"),
        ] {
            assert_eq!(tag_of(stem), tag);
        }
    }
}
