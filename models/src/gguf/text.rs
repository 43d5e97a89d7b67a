//! A model's text apart from its weights: a GGUF of the keys of the tokenizer alone, as folders that are made of GGUFs
//! hold it.

use super::container::MAGIC;
use super::keys::Keys;
use super::value::{Kind, Value};

/// The file of a folder that has no `tokenizer.json`.
pub(crate) const TOKENIZER: &str = "tokenizer.gguf";
/// What such keys begin with.
const PREFIX: &str = "tokenizer.";
/// The version that is written.
const VERSION: u32 = 3;
/// The number of the type of lists.
const LIST: u32 = 9;

/// The bytes of a GGUF that has those of the keys that are about text, and no tensors.
pub(crate) fn text_only(keys: Keys<'_>) -> Vec<u8> {
    let mut own: Vec<(&String, &Value)> =
        keys.header.keys.iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
    own.sort_unstable_by_key(|(key, _)| *key);
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend((own.len() as u64).to_le_bytes());
    for (key, value) in own {
        text(&mut out, key.as_bytes());
        write(&mut out, value, keys.file);
    }
    out
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// A value's type and bytes; an integer in the type that it fits and readers expect.
fn write(out: &mut Vec<u8>, value: &Value, file: &[u8]) {
    let kind = |out: &mut Vec<u8>, kind: Kind| out.extend(number(kind).to_le_bytes());
    match value {
        Value::Integer(n) => match (u32::try_from(*n), u64::try_from(*n)) {
            (Ok(n), _) => {
                kind(out, Kind::Unsigned(4));
                out.extend(n.to_le_bytes());
            }
            (_, Ok(n)) => {
                kind(out, Kind::Unsigned(8));
                out.extend(n.to_le_bytes());
            }
            _ => {
                kind(out, Kind::Signed(8));
                out.extend((*n as i64).to_le_bytes());
            }
        },
        Value::Number(x) => {
            kind(out, Kind::F64);
            out.extend(x.to_le_bytes());
        }
        Value::Bool(truth) => {
            kind(out, Kind::Bool);
            out.push(u8::from(*truth));
        }
        Value::Text(range) => {
            kind(out, Kind::Text);
            text(out, &file[range.clone()]);
        }
        Value::List(list) => {
            out.extend(LIST.to_le_bytes());
            kind(out, list.kind);
            out.extend((list.count as u64).to_le_bytes());
            out.extend(&file[list.bytes.clone()]);
        }
    }
}

/// The number of a kind in a file.
fn number(kind: Kind) -> u32 {
    Kind::ALL
        .iter()
        .find(|(_, k)| *k == kind)
        .map_or_else(|| unreachable!("{kind:?} is one of all"), |(n, _)| *n)
}
