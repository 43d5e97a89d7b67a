//! Templates that `tests/tokenizers/make_references.py` rendered with transformers' own environment.

use std::path::Path;

use lapidary_models::{ChatTemplate, Message, SpecialTokens};
use serde_json::{Value, json};

/// Messages and special tokens as in `make_references.py`.
fn render(source: &str) -> Result<String, String> {
    let mut special =
        json!({ "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>" });
    special["additional_special_tokens"] = json!(["<start_of_turn>", "<end_of_turn>"]);
    let special = SpecialTokens::parse(Path::new("m"), special.to_string().as_bytes()).unwrap();
    let messages =
        [Message::new("user", "  Hello, \"World\"! <b>é</b> \n"), Message::new("assistant", "Hi.")];
    ChatTemplate::new(source, &special).render(&messages, true).map_err(|e| e.to_string())
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../tokenizers/templates.json")).unwrap();
    assert!(cases.len() > 40, "{} templates", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let source = case["template"].as_str().unwrap();
        // Line ends of Windows are line ends.
        for source in [source.to_string(), source.replace('\n', "\r\n")] {
            match (render(&source), case["output"].as_str(), case["error"].as_str()) {
                (Ok(ours), Some(theirs), _) if ours == theirs => {}
                (Err(ours), None, Some(theirs)) if ours.contains(theirs) || theirs.contains("undefined") => {}
                (ours, theirs, error) => {
                    wrong.push(format!("{source}\n  ours   {ours:?}\n  theirs {:?}", theirs.or(error)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_date_is_todays() {
    let year: i32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!((2024..2200).contains(&year), "{year}");
    assert_eq!(render("{{ strftime_now('%d %b %Y') | length }}").unwrap(), "11");
    assert!(render("{{ strftime_now('\0') }}").is_err());
}
