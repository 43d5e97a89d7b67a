//! `lapidary tokenize`, and what a chat template does to the commands that use it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::command::{lapidary, lapidary_with, name};
use super::folder::{self, tiny};

const TEXT: &str = "It is a truth\n universally";

/// The tokenizer's files of the built-in model alone.
fn tokenizer_alone() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny().join(file), dir.path().join(file)).expect("copied");
    }
    dir
}

fn write(dir: &Path, file: &str, text: &str) {
    fs::write(dir.join(file), text).expect("written");
}

#[test]
fn text_to_ids_and_back() {
    let found = lapidary(&["tokenize", "--json", TEXT]).json();
    assert_eq!(found.as_object().unwrap().keys().collect::<Vec<_>>(), ["prompt", "ids", "pieces"]);
    assert_eq!(found["prompt"], TEXT);
    let ids: Vec<u64> = found["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let pieces: Vec<&str> = found["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!((ids[0], pieces[0], ids.len()), (2, "<bos>", pieces.len()));
    assert_eq!(pieces[1..].concat().replace('▁', " "), TEXT);

    let bare = lapidary(&["tokenize", "--json", "--no-bos", TEXT]).json();
    assert_eq!(bare["ids"].as_array().unwrap()[..], found["ids"].as_array().unwrap()[1..]);
    assert_eq!(lapidary_with(&["tokenize", "--json", "-"], TEXT.as_bytes()).json(), found);

    let list: Vec<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(lapidary(&["tokenize", "--ids", &list.join(",")]).ok(), format!("{TEXT}\n"));
    let back = lapidary(&["tokenize", "--json", "--ids", &list.join(",")]).json();
    assert_eq!(back, found);

    // A line a token, each as JSON has it.
    let lines = lapidary(&["tokenize", TEXT]).ok();
    assert_eq!(lines.lines().count(), ids.len());
    assert!(lines.starts_with("      2  \"<bos>\"\n") && lines.contains("\"\\n\""), "{lines}");
}

#[test]
fn any_place_of_a_tokenizer() {
    let found = lapidary(&["tokenize", "--json", TEXT]).json();
    let dir = tokenizer_alone();
    let file = dir.path().join("tokenizer.json");
    let other = dir.path().join("other.json");
    fs::copy(&file, &other).expect("copied");
    for place in [dir.path(), &file, &other] {
        assert_eq!(lapidary(&["tokenize", "-m", name(place), "--json", TEXT]).json(), found, "{place:?}");
    }
    let artifact = dir.path().join("a.lap");
    lapidary(&["compile", "--emit", "artifact", "-o", name(&artifact)]).ok();
    assert_eq!(lapidary(&["tokenize", "-m", name(&artifact), "--json", TEXT]).json(), found);
    let chat = dir.path().join("chat.json");
    write(dir.path(), "chat.json", r#"[{"role": "user", "content": "Hi."}]"#);
    let prompt = lapidary(&["tokenize", "--chat", name(&chat), "--json"]).json();
    for place in [dir.path(), &file, &artifact] {
        let here = lapidary(&["tokenize", "-m", name(place), "--chat", name(&chat), "--json"]).json();
        assert_eq!(here, prompt, "{place:?}");
    }
    lapidary(&["tokenize", "-m", name(&other), "--chat", name(&chat)]).fails(&["no chat template"]);
    lapidary(&["tokenize", "-m", name(&dir.path().join("none")), "x"]).fails(&["none"]);
    let empty = TempDir::new().expect("a folder");
    lapidary(&["tokenize", "-m", name(empty.path()), "x"]).fails(&["no tokenizer.json"]);
}

#[test]
fn messages_to_a_prompt() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("chat.json");
    let chat = |value: Value| {
        fs::write(&path, value.to_string()).expect("written");
        lapidary(&["tokenize", "--chat", name(&path), "--json"])
    };
    let parts = json!([{"type": "text", "text": "Hello"}, {"type": "text", "text": " there. "}]);
    for content in [json!(" Hello there. "), parts] {
        let found = chat(json!([{ "role": "user", "content": content }])).json();
        let prompt = "<bos><start_of_turn>user\nHello there.<end_of_turn>\n<start_of_turn>model\n";
        assert_eq!(found["prompt"], prompt);
        let ids = found["ids"].as_array().unwrap();
        assert_eq!((&ids[0], &ids[1]), (&json!(2), &json!(106)));
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1);
    }
    let user = json!({"role": "user", "content": "Hi."});
    lapidary_with(&["tokenize", "--chat", "-"], json!([user]).to_string().as_bytes()).ok();
    chat(json!([])).fails(&["empty conversation"]);
    chat(json!({"role": "user"})).fails(&["chat.json", "a JSON list of messages"]);
    chat(json!([user, 7])).fails(&["chat.json", "message 1", "7"]);
    chat(json!([{"content": "x"}])).fails(&["message 0", "role"]);
    chat(json!([{"role": "user"}])).fails(&["message 0", "content"]);
    chat(json!([{"role": "user", "content": [{"type": "image"}]}])).fails(&["message 0", "image"]);
    chat(json!([{"role": "user", "content": "x", "tool_calls": []}])).fails(&["message 0", "tool_calls"]);
    chat(json!([{"role": "wizard", "content": "x"}])).fails(&["not wizard"]);
    fs::write(&path, "[{").expect("written");
    lapidary(&["tokenize", "--chat", name(&path)]).fails(&["chat.json", "malformed JSON"]);
}

#[test]
fn mistakes_in_the_arguments() {
    for args in [
        &["tokenize"][..],
        &["tokenize", "x", "--ids", "1"],
        &["tokenize", "--ids", "1,x"],
        &["tokenize", "--ids", "-1"],
    ] {
        assert_eq!(lapidary(args).code, Some(2), "{args:?}");
    }
    lapidary(&["tokenize", "--ids", "2,4096"]).fails(&["ids below 4096", "4096"]);
    lapidary_with(&["tokenize", "-"], b"\xff").fails(&["UTF-8"]);
}

/// A folder whose chat template is this file.
fn with_template(file: &str, text: &str) -> TempDir {
    let dir = folder::small();
    // Nothing says that it is a base model.
    write(dir.path(), "tokenizer_config.json", "{}");
    if let Some(parent) = Path::new(file).parent() {
        fs::create_dir_all(dir.path().join(parent)).expect("a folder");
    }
    write(dir.path(), file, text);
    dir
}

fn prompt_of(dir: &TempDir) -> String {
    let chat = dir.path().join("chat.json");
    fs::write(&chat, r#"[{"role": "user", "content": "Hi."}]"#).expect("written");
    let found = lapidary(&["tokenize", "-m", name(dir.path()), "--chat", name(&chat), "--json"]).json();
    found["prompt"].as_str().expect("a text").into()
}

#[test]
fn every_place_of_a_template() {
    let source = "{{ messages[0].content }}";
    let json = |value: Value| value.to_string();
    let list = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": source}]);
    for (file, text) in [
        ("chat_template.jinja", source.to_string()),
        ("additional_chat_templates/default.jinja", source.to_string()),
        ("tokenizer_config.json", json(json!({ "chat_template": source }))),
        ("tokenizer_config.json", json(json!({ "chat_template": list }))),
        ("chat_template.json", json(json!({ "chat_template": source }))),
    ] {
        assert_eq!(prompt_of(&with_template(file, &text)), "Hi.", "{file}");
    }
    // What lies in a file of its own comes first.
    let dir = with_template("chat_template.jinja", source);
    write(dir.path(), "tokenizer_config.json", &json(json!({ "chat_template": "other" })));
    write(dir.path(), "chat_template.json", &json(json!({ "chat_template": "other" })));
    fs::create_dir(dir.path().join("additional_chat_templates")).expect("a folder");
    write(dir.path(), "additional_chat_templates/tool_use.jinja", "other");
    assert_eq!(prompt_of(&dir), "Hi.");
}

#[test]
fn special_tokens_come_from_either_file() {
    let dir = with_template(
        "chat_template.jinja",
        "{{ sep_token }}{{ boi_token }}{{ pad_token }}{{ additional_special_tokens[0] }}",
    );
    let config = json!({"extra_special_tokens": {"boi_token": "<i>"}, "pad_token": {"content": "<p>"}});
    write(dir.path(), "tokenizer_config.json", &config.to_string());
    let map =
        json!({"sep_token": "<s>", "pad_token": "<no>", "additional_special_tokens": [{"content": "<a>"}]});
    write(dir.path(), "special_tokens_map.json", &map.to_string());
    assert_eq!(prompt_of(&dir), "<s><i><p><a>");
}

#[test]
fn a_broken_template_harms_what_uses_it() {
    for text in ["{% if %}", "{{ 'a", "{% unheard_of %}", &"{% if 1 %}".repeat(5_000)] {
        let dir = with_template("chat_template.jinja", text);
        let model = name(dir.path());
        lapidary(&["run", "-m", model, "-n", "1", "hi"]).fails(&["chat_template.jinja", "chat template"]);
        lapidary(&["run", "-m", model, "-n", "1", "--raw", "hi"]).ok();
        lapidary(&["tokenize", "-m", model, "hi"]).ok();
        let out = dir.path().join("out.safetensors");
        lapidary(&["logits", "-m", model, "--ids", "2,3", "-o", name(&out)]).ok();
        let artifact = dir.path().join("a.lap");
        lapidary(&["compile", "-m", model, "--emit", "artifact", "-o", name(&artifact)]).ok();
        lapidary(&["run", "-m", name(&artifact), "-n", "1", "--raw", "hi"]).ok();
        lapidary(&["run", "-m", name(&artifact), "-n", "1", "hi"]).fails(&["chat template"]);
    }
    let dir = with_template("tokenizer_config.json", r#"{"chat_template": 7}"#);
    lapidary(&["run", "-m", name(dir.path()), "-n", "1", "hi"])
        .fails(&["tokenizer_config.json", "`chat_template`"]);
    lapidary(&["run", "-m", name(dir.path()), "-n", "1", "--raw", "hi"]).ok();
}

#[test]
fn hostile_templates_end() {
    let doubling = "{% set ns = namespace(s='ab') %}{% for i in range(64) %}\
        {% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    let within = "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}";
    let printed = "{% set s = 'x' * 10000 %}{% for i in range(100000) %}{{ s }}{% endfor %}";
    for source in [doubling, within, printed] {
        let dir = with_template("chat_template.jinja", source);
        let artifact = dir.path().join("a.lap");
        lapidary(&["compile", "-m", name(dir.path()), "--emit", "artifact", "-o", name(&artifact)]).ok();
        for model in [dir.path(), &artifact] {
            lapidary(&["run", "-m", name(model), "-n", "1", "hi"]).fails(&["chat template"]);
        }
    }
}

/// Instruction-tuned is what has a template and `<end_of_turn>`, and does not say otherwise; what ends a text is the
/// union.
#[test]
fn instruction_tuned_folders() {
    use lapidary_models::Model;
    let open = |dir: &TempDir| Model::open(dir.path()).expect("a model");
    let dir = with_template("chat_template.jinja", "{{ messages[0].content }}");
    write(dir.path(), "generation_config.json", r#"{"eos_token_id": [7, 1]}"#);
    let model = open(&dir);
    assert!(model.is_instruction_tuned());
    assert_eq!(model.stop_tokens, [1, 7, 107]);
    write(dir.path(), "tokenizer_config.json", r#"{"instruction_tuned": false, "eos_token": "<mask>"}"#);
    let model = open(&dir);
    assert!(!model.is_instruction_tuned());
    assert_eq!(model.stop_tokens, [1, 4, 7, 107]);
    fs::remove_file(dir.path().join("chat_template.jinja")).expect("removed");
    write(dir.path(), "tokenizer_config.json", "{}");
    assert!(!open(&dir).is_instruction_tuned());
    assert!(!Model::built_in().expect("the model").is_instruction_tuned());
}
