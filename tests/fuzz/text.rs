//! The same for what text is made by: chat templates, `tokenizer.json`, tables in artifacts, messages; and for the
//! cache of weights.

use std::sync::LazyLock;

use lapidary_models::Tokenizer;
use lapidary_tests::fuzz::{cache_file, good_cache_file, messages, settled, tables, template, tokenizer};
use proptest::prelude::*;

use super::{cases, edited, edits};

/// Templates of every kind.
static TEMPLATES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let all = include_str!("../tokenizers/templates.jinja").split("\n=====\n");
    all.chain([include_str!("../tokenizers/gemma2-it.jinja")]).collect()
});

/// What templates trip over.
const WORDS: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    "for",
    "endfor",
    "if",
    "else",
    "elif",
    "endif",
    "set",
    "endset",
    "macro",
    "endmacro",
    "raw",
    "endraw",
    "generation",
    "endgeneration",
    "break",
    "continue",
    "with",
    "endwith",
    "filter",
    "endfilter",
    "call",
    "x",
    "ns",
    "ns.x",
    "=",
    "messages",
    "content",
    "namespace()",
    "range(99999)",
    "loop",
    "loop.index",
    "caller()",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "|",
    ".",
    "~",
    "+",
    "*",
    "**",
    "'a'",
    "\"",
    "'",
    "\\",
    "1",
    "9999999999",
    "0.5",
    "is",
    "in",
    "not",
    "and",
    "recursive",
    "tojson",
    "indent=9",
    "replace('a', 'bb')",
    ".replace('', x)",
    "join",
    "list",
    "sort",
    "\n",
    "\r\n",
    " ",
    "é",
    "strftime_now('%Y')",
    "raise_exception('x')",
    "true",
    "none",
];

/// A small tokenizer of every option.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
{"id":2,"content":"<bos>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
{"id":4,"content":"<start_of_turn>","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,"special":true},
{"id":18,"content":"far out","single_word":true,"lstrip":false,"rstrip":true,"normalized":true,"special":false}],
"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},
"pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":false},
"post_processor":null,
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
{"type":"ByteFallback"},{"type":"Fuse"}]},
"model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":true,"byte_fallback":true,"ignore_merges":false,
"vocab":{"<pad>":0,"<eos>":1,"<bos>":2,"<unk>":3,"<start_of_turn>":4,"I":5,"t":6,"▁":7,"i":8,"s":9,"a":10,
"It":11,"is":12,"▁is":13,
"▁a":14,"<0xC3>":15,"<0xAF>":16,"<0x00>":17},"merges":[["I","t"],["i","s"],["▁","is"],["▁","a"]]}}"#;

const CHAT: &str =
    r#"[{"role":"user","content":"Hi"},{"role":"assistant","content":[{"type":"text","text":"é\u0000"}]}]"#;

#[test]
fn valid_text_is_accepted() {
    assert!(settled(Tokenizer::from_bytes("m".as_ref(), TOKENIZER.as_bytes(), None)).is_some());
    assert!(Tokenizer::tables(TOKENIZER.as_bytes()).is_some());
    tokenizer(TOKENIZER.as_bytes());
    messages(CHAT.as_bytes());
    TEMPLATES.iter().for_each(|t| template(t));
    cache_file(&good_cache_file());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(600), ..ProptestConfig::default() })]

    #[test]
    fn templates(
        which in any::<prop::sample::Index>(),
        edits in edits(),
        words in prop::collection::vec(prop::sample::select(WORDS), 0..40),
        between in prop::sample::select(&["", " "][..]),
    ) {
        let valid = which.get(&TEMPLATES[..]);
        template(&String::from_utf8_lossy(&edited(valid.as_bytes(), &edits)));
        template(&words.join(between));
        template(&format!("{{{{ {} }}}}", words.join(between)));
        let words = words.join(" ");
        template(&format!("{{% set ns = namespace(x='a') %}}{{% for x in range(9) %}}{{% {words} %}}{{% endfor %}}"));
    }

    #[test]
    fn tokenizers(edits in edits(), bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        tokenizer(&edited(TOKENIZER.as_bytes(), &edits));
        tokenizer(&bytes);
    }

    #[test]
    fn tables_of_tokenizers(edits in edits()) {
        static TABLES: LazyLock<Vec<u8>> = LazyLock::new(|| Tokenizer::tables(TOKENIZER.as_bytes()).unwrap());
        tables(&edited(&TABLES, &edits));
    }

    #[test]
    fn chats(edits in edits()) {
        messages(&edited(CHAT.as_bytes(), &edits));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(60), ..ProptestConfig::default() })]

    #[test]
    fn cache_files(edits in edits(), body in any::<bool>(), at in any::<prop::sample::Index>()) {
        let mut bytes = good_cache_file();
        if body {
            // One bit, so that length and header stay right.
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
        } else {
            bytes = edited(&bytes, &edits);
        }
        cache_file(&bytes);
    }
}
