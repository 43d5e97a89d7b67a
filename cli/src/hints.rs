//! What a prompt looks like that was meant for something else: a model's name, a model's folder, a file.

use std::path::Path;

/// What is wrong with a sole `prompt` that can only be a model, where none is given by -m.
pub(crate) fn model_as_prompt(prompt: &str) -> Option<String> {
    if prompt.is_empty() || prompt.contains(char::is_whitespace) {
        return None;
    }
    let ends = [".lap", ".gguf", ".safetensors"].iter().any(|end| prompt.ends_with(end));
    let named = hub_name(prompt) || prompt.contains("://hf.co/") || prompt.contains("://huggingface.co/");
    let tagged = tagged(prompt);
    if !(ends || named || tagged || Path::new(prompt).join("config.json").is_file()) {
        return None;
    }
    let ollama = if tagged && !prompt.contains('/') { " (ollama's names are not known)" } else { "" };
    Some(format!(
        "{} is a model's name or place, not a text to continue: expected `lapidary run -m MODEL PROMPT`, MODEL a \
         folder, a GGUF file, or a name of the Hugging Face hub such as google/gemma-2-2b-it{ollama}; `-p TEXT` \
         continues any text",
        lapidary_runtime::file::error::quote(prompt)
    ))
}

/// A word that tells what was probably meant, if `prompt` looks like a file or a folder. `given`: a model was given by
/// -m.
pub(crate) fn of_prompt(prompt: &str, given: bool) -> Option<String> {
    if prompt.is_empty() || prompt.contains(char::is_whitespace) || prompt.contains("://") {
        return None;
    }
    let path = Path::new(prompt);
    if path.is_dir() {
        return (!given).then(|| taken(prompt, "a folder is given by `-m FOLDER`"));
    }
    if path.exists() {
        return Some(taken(prompt, "`-f FILE` reads the prompt from a file"));
    }
    let is_path = prompt.starts_with(['/', '~']) || prompt.starts_with("./") || prompt.starts_with("../");
    if !given && (is_path || prompt.split('/').count() > 2) {
        return Some(taken(prompt, "a model is given by `-m MODEL`, a file with the prompt by `-f FILE`"));
    }
    None
}

/// Whether a text is `OWNER/REPO`, and nothing lies there.
fn hub_name(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| word(part)) && !Path::new(text).exists()
}

/// Whether a text is `NAME:TAG`.
fn tagged(text: &str) -> bool {
    text.split_once(':').is_some_and(|(name, tag)| name.split('/').all(word) && word(tag))
}

fn word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether `word` can only be a model's name or place.
pub(crate) fn is_model(word: &str) -> bool {
    model_as_prompt(word).or_else(|| of_prompt(word, false)).is_some()
}

fn taken(prompt: &str, instead: &str) -> String {
    format!("{} is taken as the text to continue; {instead}", lapidary_runtime::file::error::quote(prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_only_be_a_model() {
        for prompt in [
            "gemma2:2b",
            "google/gemma-2-2b-it",
            "hf.co/google/gemma:Q4_0",
            "https://huggingface.co/google/gemma-2b",
            "x.gguf",
            "../models/data/tiny-gemma2",
        ] {
            let error = model_as_prompt(prompt).unwrap_or_else(|| panic!("{prompt}"));
            assert!(error.contains("-m MODEL PROMPT") && error.contains(prompt), "{error}");
            assert_eq!(error.contains("ollama"), prompt == "gemma2:2b", "{error}");
        }
        for prompt in
            ["", "hello", "gemma2", "Why: because", "what is a/b?", "10:", ":-)", "src", "src/main.rs"]
        {
            assert_eq!(model_as_prompt(prompt), None, "{prompt}");
        }
    }

    #[test]
    fn what_looks_like_a_file() {
        for prompt in ["~/m", "/no/such", "a/b/c"] {
            assert!(of_prompt(prompt, false).is_some(), "{prompt}");
            assert_eq!(of_prompt(prompt, true), None, "{prompt}");
        }
        for prompt in ["", "hello", "Why: because", "see http://x/y", "https://a.b/c", "what is a/b?", ":-)"]
        {
            assert_eq!(of_prompt(prompt, false), None, "{prompt}");
        }
        for given in [false, true] {
            assert!(of_prompt("Cargo.toml", given).is_some_and(|h| h.contains("-f FILE")));
        }
        assert!(of_prompt("src", false).is_some_and(|h| h.contains("-m FOLDER")));
        assert_eq!(of_prompt("src", true), None);
    }
}
