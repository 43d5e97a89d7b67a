//! Tokenizer, stream and chat template, on the built-in tokenizer.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "tiny")]

use std::path::Path;
use std::sync::LazyLock;

use lapidary_models::{ChatTemplate, Message, Model, SpecialTokens, Tokenizer};
use lapidary_runtime::artifact::Shared;
use proptest::prelude::*;
use serde_json::{Value, json};

const TOKENIZER: &[u8] = include_bytes!("../data/tiny-gemma2/tokenizer.json");

static TINY: LazyLock<Tokenizer> = LazyLock::new(|| Model::built_in().unwrap().tokenizer.unwrap());
static THEIRS: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_bytes(TOKENIZER).unwrap());

/// The template of the published gemma-2-2b-it.
const PUBLISHED: &str = "\
    {{ bos_token }}{% if messages[0]['role'] == 'system' %}\
    {{ raise_exception('System role not supported') }}{% endif %}\
    {% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
    {% if (message['role'] == 'assistant') %}\
    {% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
    {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &SpecialTokens::of(&[("bos_token", "<bos>"), ("eos_token", "<eos>")]))
}

fn chat() -> [Message; 3] {
    [Message::new("user", " Hello. "), Message::new("assistant", "Hi!"), Message::new("user", "Why?\n")]
}

const RENDERED: &str = "\
    <bos><start_of_turn>user\nHello.<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n\
    <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n";

#[test]
fn bos_comes_once() {
    for text in ["Call me Ishmael.", "<bos>Call me Ishmael.", "<bos><bos>Call me Ishmael."] {
        let ids = TINY.encode(text, true).unwrap();
        assert_eq!(ids, THEIRS.encode("Call me Ishmael.", true).unwrap().get_ids(), "{text}");
        assert_eq!(ids.iter().filter(|&&id| id == TINY.bos_id()).count(), 1);
    }
    assert_eq!(TINY.encode("", true).unwrap(), [2]);
    assert_eq!(TINY.encode("", false).unwrap(), [] as [u32; 0]);
    assert_eq!(TINY.encode("<bos>", false).unwrap(), [2]);
}

#[test]
fn no_bos_where_the_folder_says_so() {
    let of = |config: Value| {
        Tokenizer::from_bytes(Path::new("m"), TOKENIZER, Some(config.to_string().as_bytes())).unwrap()
    };
    let [with, without] = [true, false].map(|adds| of(json!({"add_bos_token": adds})));
    let ids = TINY.encode("Call me Ishmael.", false).unwrap();
    assert_eq!(with.encode("Call me Ishmael.", true).unwrap()[1..], ids);
    assert_eq!(without.encode("Call me Ishmael.", true).unwrap(), ids);
    // A template writes it itself, and an artifact knows as much.
    assert_eq!(without.encode("<bos>Call", true).unwrap()[0], 2);
    assert_eq!(without.encode("", true).unwrap(), [] as [u32; 0]);
    let again = of(without.special_tokens().to_json());
    assert_eq!(again.encode("Call me Ishmael.", true).unwrap(), ids);
}

#[test]
fn a_tokenizer_without_bos_is_refused() {
    let mut value: Value = serde_json::from_slice(TOKENIZER).unwrap();
    let named = json!({"bos_token": {"content": "<s>"}}).to_string();
    let refused =
        |t: &[u8], c: Option<&[u8]>| Tokenizer::from_bytes(Path::new("m"), t, c).err().unwrap().to_string();
    let expected = "m/tokenizer.json: expected the BOS token \"<s>\", found no such token";
    assert_eq!(refused(TOKENIZER, Some(named.as_bytes())), expected);
    value["added_tokens"][2]["content"] = json!("<b>");
    let vocab = value["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("<bos>");
    vocab.insert("<b>".into(), json!(2));
    value["post_processor"] = Value::Null;
    let found = refused(value.to_string().as_bytes(), None);
    assert_eq!(found, "m/tokenizer.json: expected the BOS token \"<bos>\", found no such token");
    value["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    assert!(refused(value.to_string().as_bytes(), None).contains("field `decoder`"));
    assert!(refused(b"{}", None).contains("field `decoder`"));
    assert!(refused(b"nonsense", None).contains("malformed JSON"));
}

#[test]
fn ids_outside_the_vocabulary_have_no_text() {
    let ids = TINY.encode("Call me", false).unwrap();
    let wide: Vec<u32> = ids.iter().flat_map(|&id| [200_000, id, u32::MAX]).collect();
    assert_eq!(TINY.decode(&wide), "Call me");
}

#[test]
fn pieces_end_between_characters() {
    let ids = TINY.encode("é漢🙂", false).unwrap();
    let mut stream = TINY.detokenizer();
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(ids.len() > 6, "bytes, not words: {ids:?}");
    assert_eq!(pieces.iter().filter(|p| !p.is_empty()).count(), 3, "{pieces:?}");
    let byte = TINY.id("<0xE6>").unwrap();
    assert_eq!(
        (stream.push(byte), stream.finish(), stream.finish()),
        ("".into(), "\u{FFFD}".into(), "".into())
    );
}

#[test]
fn the_published_template() {
    let template = template(PUBLISHED);
    let text = template.render(&chat(), true).unwrap();
    assert_eq!(text, RENDERED);
    let ids = TINY.encode(&text, true).unwrap();
    assert_eq!(ids[..3], [2, 106, TINY.id("user").unwrap_or(ids[2])]);
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1);
    assert_eq!(ids.iter().filter(|&&id| id == 107).count(), 3);
    let system = template.render(&[Message::new("system", "Be brief.")], true);
    assert_eq!(system.unwrap_err().to_string(), "chat template: System role not supported");
    let twice = [Message::new("user", "a"), Message::new("user", "b")];
    assert!(template.render(&twice, false).unwrap_err().to_string().contains("must alternate"));
}

#[test]
fn the_built_in_template() {
    let model = Model::built_in().unwrap();
    let template = model.chat_template.as_ref().unwrap();
    assert_eq!(template.render(&chat(), true).unwrap(), RENDERED);
    assert!(
        template.render(&[Message::new("system", "x")], true).unwrap_err().to_string().contains("not system")
    );
    assert_eq!(model.stop_tokens, [1, 107]);
    assert!(!model.is_instruction_tuned());
}

#[test]
fn templates_in_the_manner_of_python() {
    let render = |source: &str| {
        let made = template(source);
        made.render(&[Message::new("user", "  a-b \n")], false).map_err(|e| e.to_string())
    };
    let first = |rest: &str| render(&format!("{{{{ messages[0]{rest} }}}}")).unwrap();
    assert_eq!(first(".content.strip()"), "a-b");
    assert_eq!(first("['content'].rstrip().lstrip(' a')"), "-b");
    assert_eq!(first(".content.strip().upper().split('-')[1]"), "B");
    assert_eq!(first(".get('role')"), "user");
    assert_eq!(first(".get('name', 'nobody')"), "nobody");
    assert_eq!(first(".content.strip().startswith('a')").to_lowercase(), "true");
    assert_eq!(first(".content.strip().replace('-', '<') | trim"), "a<b");
    assert_eq!(
        render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n").unwrap(),
        "x\n"
    );
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(render(endless).unwrap_err().starts_with("chat template: "));
    let broken = template("{% if %}").check().unwrap_err().to_string();
    assert!(broken.contains("expected a chat template that compiles") && !broken.contains('\n'), "{broken}");
}

#[test]
fn a_list_of_templates_has_a_default() {
    let parse = |v: Value| {
        ChatTemplate::from_config(Path::new("m"), v.to_string().as_bytes(), &SpecialTokens::default())
    };
    let list =
        json!({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]});
    assert_eq!(parse(list).unwrap().unwrap().render(&chat(), false).unwrap(), "d");
    assert!(parse(json!({})).unwrap().is_none());
    let none = parse(json!({"chat_template": [1]})).unwrap().unwrap();
    assert!(none.check().unwrap_err().to_string().contains("`chat_template`"));
}

/// Text without what stands for something else: special tokens, and the sign for a space.
fn plain() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,40}", "[ a-zA-Z0-9\n\t.,]{0,60}", ".{0,40}"]
        .prop_map(|s| s.replace(['<', '▁'], "").replace("[@BOS@]", ""))
}

/// What the ids stand for, before it is made text.
fn bytes(ids: &[u32]) -> Vec<u8> {
    let added = THEIRS.get_added_tokens_decoder();
    let token = |id: &u32| THEIRS.id_to_token(*id).filter(|_| !added.get(id).is_some_and(|t| t.special));
    let bytes = |token: String| match token.strip_prefix("<0x") {
        Some(digits) => vec![u8::from_str_radix(&digits[..2], 16).unwrap()],
        None => token.replace('▁', " ").into_bytes(),
    };
    ids.iter().filter_map(token).flat_map(bytes).collect()
}

proptest! {
    #[test]
    fn text_round_trips(text in plain()) {
        let ids = TINY.encode(&text, true).unwrap();
        prop_assert_eq!(TINY.decode(&ids), text.clone());
        let theirs = THEIRS.encode(text, true).unwrap();
        prop_assert_eq!(ids, theirs.get_ids());
    }

    #[test]
    fn a_stream_is_the_whole(ids in prop::collection::vec(prop_oneof![0..4096u32, 185..460u32], 0..60)) {
        let mut stream = TINY.detokenizer();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text += &stream.finish();
        prop_assert_eq!(&text, &TINY.decode(&ids));
        prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes(&ids)).into_owned());
        let theirs = THEIRS.decode(&ids, true).unwrap();
        // Theirs spoils a whole run of bytes if one is bad.
        prop_assert!(text == theirs || theirs.contains(char::REPLACEMENT_CHARACTER));
    }
}

/// The tokenizer as tables, of this JSON.
fn mapped(json: &[u8]) -> Tokenizer {
    let tables = Tokenizer::tables(json).expect("the tables give the same tokens");
    Tokenizer::from_tables(Path::new("m"), Shared::from_vec(tables), None).unwrap()
}

#[test]
fn tables_know_what_the_file_knows() {
    let mapped = mapped(TOKENIZER);
    assert_eq!(mapped.vocab_size(), TINY.vocab_size());
    assert_eq!((mapped.bos_id(), mapped.eos_id()), (TINY.bos_id(), TINY.eos_id()));
    assert_eq!(mapped.end_of_turn_id(), TINY.end_of_turn_id());
    let ids = 0..TINY.vocab_size() as u32 + 3;
    assert!(ids.into_iter().all(|id| mapped.decode(&[id]) == TINY.decode(&[id])));
    for text in ["", " ", "  a  b", RENDERED, "naïve\u{200d}👩‍👩‍👧 café", "日本語\0\r\n\t", "<unused0><0x41>▁▁"]
    {
        assert_eq!(mapped.encode(text, true).unwrap(), TINY.encode(text, true).unwrap(), "{text:?}");
    }
    let long = "It is a truth universally acknowledged, that a single man. ".repeat(2000);
    assert_eq!(mapped.encode(&long, true).unwrap(), TINY.encode(&long, true).unwrap());
}

/// Options that a byte-pair tokenizer may have, on the same vocabulary.
#[test]
fn tables_obey_options_or_are_none() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(TOKENIZER).unwrap();
        change(&mut value["model"]);
        value.to_string().into_bytes()
    };
    let bytes = |model: &mut Value| {
        let vocab = model["vocab"].as_object_mut().unwrap();
        vocab.remove("<0xE2>");
    };
    let options: [&dyn Fn(&mut Value); 5] = [
        &|model| model["ignore_merges"] = json!(true),
        &|model| model["byte_fallback"] = json!(false),
        &|model| (model["byte_fallback"], model["fuse_unk"]) = (json!(false), json!(false)),
        &|model| (model["byte_fallback"], model["unk_token"]) = (json!(false), Value::Null),
        &bytes,
    ];
    for (i, option) in options.iter().enumerate() {
        let json = with(*option);
        let (ours, theirs) = (mapped(&json), Tokenizer::from_bytes(Path::new("m"), &json, None).unwrap());
        for text in ["plain text", "日本 語é語", "a†b†††c", "€", "†é†日", "it is"] {
            assert_eq!(ours.encode(text, true).unwrap(), theirs.encode(text, true).unwrap(), "{i}: {text}");
        }
    }
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
        assert!(Tokenizer::tables(&with(&|model| model[name] = json!("##"))).is_none(), "{name}");
    }
    assert!(Tokenizer::tables(&with(&|model| model["dropout"] = json!(0.5))).is_none());
    assert!(Tokenizer::tables(&with(&|model| model["vocab"]["again"] = json!(7))).is_none());
    assert!(Tokenizer::tables(b"nonsense").is_none());
}

/// A bit that is another is met when it is read, and not passed over.
#[test]
fn damage_is_met_when_it_is_read() {
    let good = Tokenizer::tables(TOKENIZER).unwrap();
    let text = "It is a truth universally acknowledged, that a single man. 漢字 <0x41>\n".repeat(20);
    let ids = TINY.encode(&text, true).unwrap();
    let (mut failed, mut same) = (0, 0);
    for at in (40..good.len()).step_by(4099) {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        let opened = Tokenizer::from_tables(Path::new("m"), Shared::from_vec(bytes), None);
        let encoded = opened.and_then(|t| Ok((t.encode(&text, true)?, t.decode(&ids))));
        match encoded {
            Ok((found, back)) => {
                assert_eq!(found, ids, "byte {at}");
                assert!(back == TINY.decode(&ids) || back.contains('\u{FFFD}'), "byte {at}");
                same += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("damaged"), "byte {at}: {error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 10, "{failed} failed, {same} not read");
}

/// Damaged tables are refused, or give other tokens: never a panic.
#[test]
fn damaged_tables_do_no_harm() {
    let good = Tokenizer::tables(TOKENIZER).unwrap();
    let mut seed = 0x9e37_79b9u32;
    let mut next = |n: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 4) as usize % n
    };
    let (mut refused, mut taken) = (0, 0);
    for case in 0..400 {
        let mut bytes = good.clone();
        match case % 4 {
            0 => bytes.truncate(next(good.len())),
            1 => bytes[next(32)] ^= 1 << next(8),
            _ => (0..=next(3)).for_each(|_| bytes[next(good.len())] = next(256) as u8),
        }
        if case % 8 > 3 {
            Tokenizer::seal(&mut bytes);
        }
        match Tokenizer::from_tables(Path::new("m"), Shared::from_vec(bytes), None) {
            Ok(tokenizer) => {
                taken += 1;
                if let Ok(ids) = tokenizer.encode(RENDERED, true) {
                    tokenizer.decode(&ids);
                }
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
    assert!(refused > 100 && taken > 20, "{refused} refused, {taken} taken");
}

proptest! {
    #[test]
    fn tables_give_the_same_tokens(text in "(\\PC|[a-z ▁\n]|the|<bos>){0,60}") {
        static MAPPED: LazyLock<Tokenizer> = LazyLock::new(|| mapped(TOKENIZER));
        let (ours, theirs) = (MAPPED.encode(&text, false).unwrap(), TINY.encode(&text, false).unwrap());
        prop_assert_eq!(MAPPED.decode(&ours), TINY.decode(&theirs));
        prop_assert_eq!(ours, theirs);
    }
}
