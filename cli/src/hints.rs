//! What a prompt looks like that was meant for something else: a model's name, a model's folder, a file.

use std::path::Path;

/// A word that tells what was probably meant, if `prompt` looks like a model or a file. `given`: a model was given by
/// -m.
pub(crate) fn of_prompt(prompt: &str, given: bool) -> Option<String> {
    if prompt.is_empty() || prompt.contains(char::is_whitespace) || prompt.contains("://") {
        return None;
    }
    let path = Path::new(prompt);
    if path.is_dir() {
        return (!given).then(|| taken(prompt, "a folder is given by `-m FOLDER`"));
    }
    let model = [".lap", ".gguf", ".safetensors"].iter().any(|end| prompt.ends_with(end));
    if path.exists() {
        if !model {
            return Some(taken(prompt, "`-f FILE` reads the prompt from a file"));
        }
        return (!given).then(|| taken(prompt, "a model is given by `-m MODEL`"));
    }
    if given {
        return None;
    }
    if model || prompt.starts_with(['/', '~']) || prompt.starts_with("./") || prompt.starts_with("../") {
        return Some(taken(prompt, "a model is given by `-m MODEL`, a file with the prompt by `-f FILE`"));
    }
    let name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if let Some((owner, tag)) = prompt.split_once(':')
        && owner.split('/').all(name)
        && name(tag)
    {
        let text = "models have no tags here: `-m` takes a Hugging Face folder, or an artifact of `lapidary compile`";
        return Some(taken(prompt, text));
    }
    match prompt.split('/').collect::<Vec<_>>()[..] {
        [owner, model] if name(owner) && name(model) => {
            Some(taken(prompt, "nothing is downloaded: `-m` takes a Hugging Face folder that is here"))
        }
        [_, _, _, ..] => {
            Some(taken(prompt, "a model is given by `-m MODEL`, a file with the prompt by `-f FILE`"))
        }
        _ => None,
    }
}

/// Whether `word` can only be a model's name or place.
pub(crate) fn is_model(word: &str) -> bool {
    of_prompt(word, false).is_some()
}

fn taken(prompt: &str, instead: &str) -> String {
    format!("{} is taken as the text to continue; {instead}", lapidary_runtime::file::error::quote(prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_model_or_a_file() {
        let models = [
            "gemma2:2b",
            "gemma2",
            "google/gemma-2-2b-it",
            "hf.co/google/gemma:Q4_0",
            "x.gguf",
            "~/m",
            "/no/such",
        ];
        for (prompt, hinted) in models.iter().zip([true, false, true, true, true, true, true]) {
            assert_eq!(of_prompt(prompt, false).is_some(), hinted, "{prompt}");
            assert_eq!(of_prompt(prompt, true), None, "{prompt}");
        }
        for prompt in
            ["", "hello", "Why: because", "see http://x/y", "https://a.b/c", "what is a/b?", "10:", ":-)"]
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
