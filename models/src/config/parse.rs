//! The fields of `config.json` that are understood, where their reading takes more than a number in a range.
//!
//! In: the fields. Out: what they mean, with the precedence and the defaults of transformers, or a refusal by name.

use lapidary_ir::format::BLOCK;
use lapidary_runtime::file;
use lapidary_runtime::file::fields::{Fields, is_off, is_positive};
use serde_json::{Value, json};

use super::{
    ACTIVATION, EmbeddingScale, LayerType, MAX_LAYERS, MAX_SIZE, NormWeights, OWN, QUANT_METHOD, own,
};
use crate::error::quote;
use crate::family::{Family, field};

/// The field that holds the fields of a text half.
pub(super) const NESTED: &str = "text_config";
/// Fields that are said of a whole model, beside its `text_config`, and go before what that says.
const OF_THE_WHOLE: &[&str] = &[
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
];
/// Ends of the names of classes whose heads predict no tokens.
const OTHER_HEADS: &[&str] =
    &["Classification", "Answering", "MaskedLM", "MultipleChoice", "ConditionalGeneration", "Retrieval"];
/// Its names in transformers: the same function, written otherwise.
const ACTIVATIONS: &[&str] = &[ACTIVATION, "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"];

/// The family of a configuration, its fields, and, where they are nested, what is around them.
pub(super) fn family(mut f: Fields) -> file::Result<(&'static Family, Fields, Option<Fields>)> {
    let expected = || {
        let types = crate::MODELS.iter().flat_map(|m| [Some(m.model_type), m.wrapper]).flatten();
        types.map(|t| format!("{t:?}")).collect::<Vec<_>>().join(", ")
    };
    let value = match f.take("model_type") {
        Some(value) => value,
        None => {
            // What a hub sends in place of a file.
            if let Some(Value::String(error)) = f.take("error") {
                let found = format!("a server's error {}", quote(&error));
                return Err(file::Error::file(f.path(), "a configuration", found));
            }
            return Err(f.absent("model_type", &expected()));
        }
    };
    match value.as_str().and_then(Family::of) {
        Some(family) if value == family.model_type => Ok((family, f, None)),
        Some(family) => {
            let text = text_config(&mut f, family)?;
            Ok((family, text, Some(f)))
        }
        None => Err(f.refuse("model_type", &expected(), &value)),
    }
}

/// The nested fields of a family's text half.
fn text_config(f: &mut Fields, family: &Family) -> file::Result<Fields> {
    let mut text = match f.take(NESTED) {
        Some(Value::Object(text)) => text,
        Some(other) => return Err(f.refuse(NESTED, "an object", &other)),
        None => return Err(f.absent(NESTED, "an object")),
    };
    for &name in OF_THE_WHOLE {
        if let Some(value) = f.take(name) {
            text.insert(name.into(), value);
        }
    }
    let mut text = f.inner(NESTED, text);
    text.only("model_type", json!(family.model_type))?;
    Ok(text)
}

/// Takes the fields of which only one value is built; whether the head is said to be the embedding table.
pub(super) fn refuse_unsupported(
    f: &mut Fields,
    family: &Family,
    unknown: &mut Vec<String>,
) -> file::Result<bool> {
    architectures(f, family, unknown)?;
    activation(f, family)?;
    // Tensors state their own formats; this tells other programs that the U8 ones are rows of quants. Another program's
    // is of no account beside plain tensors, and its tensors are refused where they are read.
    let ours = |v: &Value| v["quant_method"] == QUANT_METHOD;
    match f.take("quantization_config") {
        Some(value) if ours(&value) && value["block_size"] != BLOCK => {
            let found = &value["block_size"];
            return Err(f.refuse("quantization_config.block_size", &BLOCK.to_string(), found));
        }
        _ => {}
    }
    match f.take("tie_word_embeddings") {
        None => Ok(true),
        Some(Value::String(text)) => {
            Err(f.refuse("tie_word_embeddings", "true or false", &Value::String(text)))
        }
        Some(value) => Ok(!is_off(&value)),
    }
}

/// Holds `architectures` against what is built. transformers itself goes by `model_type`, so a class that is not known
/// says nothing, but a head of another kind does.
fn architectures(f: &mut Fields, family: &Family, unknown: &mut Vec<String>) -> file::Result<()> {
    let Some(value) = f.take("architectures") else { return Ok(()) };
    let names: Option<Vec<&str>> = match &value {
        Value::String(name) => Some(vec![name]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let class = family.architectures[0];
    let expected = json!([class]).to_string();
    let Some(names) = names else { return Err(f.refuse("architectures", &expected, &value)) };
    // Trainers put more after the name of the class.
    if names.is_empty() || names.iter().any(|n| n.starts_with(class) || family.architectures.contains(n)) {
        return Ok(());
    }
    if names.iter().any(|n| OTHER_HEADS.iter().any(|head| n.ends_with(head))) {
        return Err(f.refuse("architectures", &expected, &value));
    }
    unknown.push("architectures".into());
    Ok(())
}

/// Holds the activation against the one that is built. As in transformers, `hidden_activation` goes before
/// `hidden_act`, of which Gemma's `gelu` has always meant the form with tanh.
fn activation(f: &mut Fields, family: &Family) -> file::Result<()> {
    let stated = f.take_nullable("hidden_activation");
    let older = f.take("hidden_act");
    let known = |v: &Value| ACTIVATIONS.iter().any(|name| v == name);
    let (name, value) = match (&stated, &older) {
        (Some(v), _) if !v.is_null() => ("hidden_activation", v),
        (None, Some(v)) if v == "gelu" => return Ok(()),
        (Some(_), Some(v)) if v == "gelu" && family.has(field::OLD_ACTIVATION) => return Ok(()),
        (_, Some(v)) => ("hidden_act", v),
        (_, None) => return Ok(()),
    };
    if known(value) { Ok(()) } else { Err(f.refuse(name, &json!(ACTIVATION).to_string(), value)) }
}

/// A size; the default where the file does not name it.
pub(super) fn size(f: &mut Fields, name: &str, default: usize, max: u64) -> file::Result<usize> {
    if f.is_null(name) {
        return Err(f.refuse(name, &format!("an integer from 1 to {max}"), &Value::Null));
    }
    Ok(f.optional_integer(name, 1, max)?.map_or(default, |n| n as usize))
}

/// A number above zero; the default where the file does not name it.
pub(super) fn scalar(f: &mut Fields, name: &str, default: f64) -> file::Result<f64> {
    if f.is_null(name) {
        return Err(f.refuse(name, "a finite number above 0", &Value::Null));
    }
    Ok(f.optional_positive(name)?.unwrap_or(default))
}

/// The window; null where no layer slides, which then has the default, unused.
pub(super) fn sliding_window(f: &mut Fields, layers: &[LayerType], default: usize) -> file::Result<usize> {
    let slides = layers.contains(&LayerType::Sliding);
    if f.is_null("sliding_window") && slides {
        let expected = format!("an integer from 1 to {MAX_SIZE}, for layers that slide");
        return Err(f.refuse("sliding_window", &expected, &Value::Null));
    }
    if f.is_null("sliding_window") {
        f.take("sliding_window");
        // Its twin says as much.
        f.take("sliding_window_size");
        return Ok(default);
    }
    size(f, "sliding_window", default, MAX_SIZE)
}

/// The padding token, if there is one: it is never produced, so one outside of the vocabulary is none.
pub(super) fn pad(f: &mut Fields, largest_id: u64) -> file::Result<Option<u32>> {
    let Some(value) = f.take("pad_token_id") else { return Ok(None) };
    match value.as_f64() {
        Some(id) if (0.0..=largest_id as f64).contains(&id) && id.fract() == 0.0 => Ok(Some(id as u32)),
        Some(id) if id.fract() == 0.0 => Ok(None),
        _ => Err(f.refuse("pad_token_id", "a token id", &value)),
    }
}

/// `layer_types`; else, by the period of full layers, where the family has such a field, or by the published one.
pub(super) fn layer_types(f: &mut Fields, family: &Family, layers: usize) -> file::Result<Vec<LayerType>> {
    let listed = if family.has(field::LAYER_TYPES) { f.take(field::LAYER_TYPES) } else { None };
    // Beside a list, transformers passes over a period, and writes one that is none of the list's.
    let period = if family.has(field::PATTERN) { period(f, listed.is_some())? } else { None };
    let Some(value) = listed else {
        let period = period.unwrap_or(family.period);
        return Ok((0..layers).map(|layer| LayerType::of(layer, period)).collect());
    };
    let kind = |v: &Value| [LayerType::Sliding, LayerType::Full].into_iter().find(|t| v == t.name());
    let kinds: Option<Vec<LayerType>> = value.as_array().and_then(|l| l.iter().map(kind).collect());
    kinds.filter(|k| k.len() == layers).ok_or_else(|| {
        let expected = format!("{layers} of \"sliding_attention\" and \"full_attention\", one a layer");
        f.refuse(field::LAYER_TYPES, &expected, &value)
    })
}

/// The period of full layers, under the names that versions of transformers have for it, which agree if they count.
fn period(f: &mut Fields, passed_over: bool) -> file::Result<Option<usize>> {
    let first = f.optional_integer(field::PATTERN, 1, MAX_LAYERS)?;
    let name = format!("_{}", field::PATTERN);
    let second = f.optional_integer(&name, 1, MAX_LAYERS)?;
    match (first, second) {
        (Some(a), Some(b)) if a != b && !passed_over => {
            Err(f.refuse(&name, &format!("{a}, as `{}` says", field::PATTERN), &json!(b)))
        }
        _ => Ok(first.or(second).map(|n| n as usize)),
    }
}

/// A softcap, where the family has it: null switches it off, and a file that does not name it means the default.
pub(super) fn cap(
    f: &mut Fields,
    family: &Family,
    name: &str,
    default: Option<f32>,
) -> file::Result<Option<f32>> {
    if !family.has(name) {
        return Ok(None);
    }
    match f.take_nullable(name) {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|x| is_positive(*x)) {
            Some(x) => Ok(Some(x as f32)),
            None => Err(f.refuse(name, "a finite number above 0, or null", &value)),
        },
    }
}

/// What only our own files say; the defaults are those of every folder.
pub(super) fn own_fields(f: &mut Fields) -> file::Result<(EmbeddingScale, NormWeights)> {
    let mut found = (EmbeddingScale::Rounded, NormWeights::LessOne);
    let Some(mut own) = f.object(OWN)? else { return Ok(found) };
    let mut says = |name: &str, only: &str| -> file::Result<bool> {
        match own.take(name) {
            None => Ok(false),
            Some(value) if value == only => Ok(true),
            Some(other) => Err(own.refuse(name, &json!(only).to_string(), &other)),
        }
    };
    if says(own::EMBEDDING_SCALE, own::EXACT)? {
        found.0 = EmbeddingScale::Exact;
    }
    if says(own::NORM_WEIGHTS, own::WHOLE)? {
        found.1 = NormWeights::Whole;
    }
    Ok(found)
}
