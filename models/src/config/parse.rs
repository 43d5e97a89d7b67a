//! The fields of `config.json` that are understood, where their reading takes more than a number in a range.
//!
//! In: the fields. Out: what they mean, with the precedence and the defaults of transformers, or a refusal by name.

use lapidary_runtime::file;
use lapidary_runtime::file::fields::{Fields, is_off, is_positive};
use serde_json::{Value, json};

use lapidary_ir::format::BLOCK;

use super::{ACTIVATION, ARCHITECTURE, LayerType, MAX_SIZE, MODEL_TYPE, QUANT_METHOD};
use crate::error::quote;

/// The same without a head of its own, which a tied head does not need.
const BARE_ARCHITECTURE: &str = "Gemma2Model";
/// Ends of the names of classes whose heads predict no tokens.
const OTHER_HEADS: &[&str] =
    &["Classification", "Answering", "MaskedLM", "MultipleChoice", "ConditionalGeneration", "Retrieval"];
/// Its names in transformers: the same function, written otherwise.
const ACTIVATIONS: &[&str] = &[ACTIVATION, "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"];

/// Takes the fields of which only one value is built; whether the head is said to be the embedding table.
pub(super) fn refuse_unsupported(f: &mut Fields, unknown: &mut Vec<String>) -> file::Result<bool> {
    match f.take("model_type") {
        Some(t) if t == MODEL_TYPE => {}
        Some(other) => return Err(f.refuse("model_type", &json!(MODEL_TYPE).to_string(), &other)),
        None => {
            // What a hub sends in place of a file.
            if let Some(Value::String(error)) = f.take("error") {
                let found = format!("a server's error {}", quote(&error));
                return Err(file::Error::file(f.path(), "a configuration", found));
            }
            return Err(f.absent("model_type", &json!(MODEL_TYPE).to_string()));
        }
    }
    architectures(f, unknown)?;
    activation(f)?;
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
fn architectures(f: &mut Fields, unknown: &mut Vec<String>) -> file::Result<()> {
    let Some(value) = f.take("architectures") else { return Ok(()) };
    let names: Option<Vec<&str>> = match &value {
        Value::String(name) => Some(vec![name]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let expected = json!([ARCHITECTURE]).to_string();
    let Some(names) = names else { return Err(f.refuse("architectures", &expected, &value)) };
    if names.is_empty() || names.iter().any(|n| n.starts_with(ARCHITECTURE) || *n == BARE_ARCHITECTURE) {
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
fn activation(f: &mut Fields) -> file::Result<()> {
    let stated = f.take_nullable("hidden_activation");
    let older = f.take("hidden_act");
    let known = |v: &Value| ACTIVATIONS.iter().any(|name| v == name);
    let (name, value) = match (&stated, &older) {
        (Some(v), _) if !v.is_null() => ("hidden_activation", v),
        (None, Some(v)) if v == "gelu" => return Ok(()),
        (_, Some(v)) => ("hidden_act", v),
        (_, None) => return Ok(()),
    };
    if known(value) { Ok(()) } else { Err(f.refuse(name, &json!(ACTIVATION).to_string(), value)) }
}

/// The rotary base: `rope_theta`, or the newer dialect's `rope_parameters`, which may be given for each kind of layer.
pub(super) fn rope_theta(f: &mut Fields, default: f64, unknown: &mut Vec<String>) -> file::Result<f64> {
    let mut found: Option<(String, f64)> = None;
    let mut hold = |f: &Fields, name: &str, theta: Option<f64>| {
        let Some(theta) = theta else { return Ok(()) };
        match &found {
            Some((first, other)) if *other != theta => {
                Err(f.refuse(name, &format!("{other}, as `{first}` says"), &json!(theta)))
            }
            Some(_) => Ok(()),
            None => {
                found = Some((name.into(), theta));
                Ok(())
            }
        }
    };
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(value) = f.take(name).filter(|v| !is_off(v)) else { continue };
        let Value::Object(map) = value else { return Err(f.refuse(name, "an object or null", &value)) };
        let mut all = f.inner(name, map);
        for kind in [LayerType::Sliding, LayerType::Full] {
            if let Some(mut one) = all.object(kind.name())? {
                let theta = rope(&mut one)?;
                hold(f, &format!("{name}.{}.rope_theta", kind.name()), theta)?;
                unknown.extend(one.rest().filter(|(_, v)| !v.is_null()).map(|(name, _)| name));
            }
        }
        let theta = rope(&mut all)?;
        hold(f, &format!("{name}.rope_theta"), theta)?;
        unknown.extend(all.rest().filter(|(_, v)| !v.is_null()).map(|(name, _)| name));
    }
    let theta = f.optional_positive("rope_theta")?;
    hold(f, "rope_theta", theta)?;
    Ok(found.map_or(default, |(_, theta)| theta))
}

/// Takes the fields of one description of RoPE, which must be the plain one; its base, where it says so.
fn rope(f: &mut Fields) -> file::Result<Option<f64>> {
    let mut plain = false;
    let mut linear = false;
    for name in ["rope_type", "type"] {
        match f.take(name) {
            None => {}
            Some(kind) if kind == "default" => plain = true,
            Some(kind) if kind == "linear" => linear = true,
            Some(other) => return Err(f.refuse(name, "\"default\"", &other)),
        }
    }
    // Positions divided by 1 are the positions.
    let factor = f.take("factor");
    if linear && factor.is_none() {
        return Err(f.absent("factor", "1, for another scales positions"));
    }
    let ones = [
        ("factor", factor),
        ("partial_rotary_factor", f.take("partial_rotary_factor")),
        ("attention_factor", f.take("attention_factor")),
    ];
    for (name, value) in ones {
        if let Some(value) = value.filter(|v| v.as_f64() != Some(1.0)) {
            return Err(f.refuse(name, "1", &value));
        }
    }
    // Of types that are refused.
    for name in [
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "low_freq_factor",
        "high_freq_factor",
        "finetuned",
    ] {
        if plain || linear {
            f.take(name);
        }
    }
    f.optional_positive("rope_theta")
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

/// `layer_types`, or the published alternation where the file does not say.
pub(super) fn layer_types(f: &mut Fields, layers: usize) -> file::Result<Vec<LayerType>> {
    let Some(value) = f.take("layer_types") else {
        return Ok((0..layers).map(LayerType::published).collect());
    };
    let kind = |v: &Value| [LayerType::Sliding, LayerType::Full].into_iter().find(|t| v == t.name());
    let kinds: Option<Vec<LayerType>> = value.as_array().and_then(|l| l.iter().map(kind).collect());
    kinds.filter(|k| k.len() == layers).ok_or_else(|| {
        let expected = format!("{layers} of \"sliding_attention\" and \"full_attention\", one a layer");
        f.refuse("layer_types", &expected, &value)
    })
}

/// A softcap: null switches it off, and a file that does not name it means the default.
pub(super) fn cap(f: &mut Fields, name: &str, default: Option<f32>) -> file::Result<Option<f32>> {
    match f.take_nullable(name) {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|x| is_positive(*x)) {
            Some(x) => Ok(Some(x as f32)),
            None => Err(f.refuse(name, "a finite number above 0, or null", &value)),
        },
    }
}
