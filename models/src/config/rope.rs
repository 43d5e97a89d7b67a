//! RoPE as configurations describe it: one for all layers, or one for each kind.
//!
//! In: `rope_theta`, `rope_local_base_freq` and `rope_scaling` of the older dialect, `rope_parameters` of the newer
//! one, flat or by kinds of layers. Out: a [`Rope`] for each kind. What several fields say must agree. A factor counts
//! under
//! `rope_type` and under its older name `type`, which transformers 5.0.0 passes over.

use lapidary_runtime::file;
use lapidary_runtime::file::fields::{Fields, is_off};
use serde_json::{Value, json};

use super::{Config, LayerType};
use crate::family::field;

/// Rotary position embedding of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// What positions are divided by; 1 but for long contexts.
    pub factor: f64,
}

/// A number and the field that said it first.
type Said = Option<(String, f64)>;

/// What fields say of one RoPE.
#[derive(Default)]
struct Found {
    theta: Said,
    factor: Said,
}

/// RoPE of layers that slide, and of those that see all keys; `d` is for what is absent.
pub(super) fn ropes(f: &mut Fields, d: &Config, unknown: &mut Vec<String>) -> file::Result<[Rope; 2]> {
    let by_kind = d.family.has(field::LOCAL_ROPE);
    let slot = |kind| usize::from(!by_kind || kind == LayerType::Full);
    let mut found = [Found::default(), Found::default()];
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(value) = f.take(name).filter(|v| !is_off(v)) else { continue };
        let Value::Object(map) = value else { return Err(f.refuse(name, "an object or null", &value)) };
        let mut all = f.inner(name, map);
        for kind in [LayerType::Sliding, LayerType::Full] {
            if let Some(one) = all.object(kind.name())? {
                let place = format!("{name}.{}", kind.name());
                take(f, one, &place, &mut found[slot(kind)], unknown)?;
            }
        }
        // What is not said of a kind is said of the layers that see all keys.
        take(f, all, name, &mut found[slot(LayerType::Full)], unknown)?;
    }
    let global = f.optional_positive("rope_theta")?;
    say(f, &mut found[slot(LayerType::Full)].theta, "rope_theta", global)?;
    if by_kind {
        let local = f.optional_positive(field::LOCAL_ROPE)?;
        say(f, &mut found[slot(LayerType::Sliding)].theta, field::LOCAL_ROPE, local)?;
    }
    Ok([LayerType::Sliding, LayerType::Full].map(|kind| {
        let (default, found) = (d.rope(kind), &found[slot(kind)]);
        let of = |said: &Said, default| said.as_ref().map_or(default, |(_, x)| *x);
        Rope { theta: of(&found.theta, default.theta), factor: of(&found.factor, default.factor) }
    }))
}

/// Notes what a field says; an error if another said otherwise.
fn say(f: &Fields, said: &mut Said, name: &str, value: Option<f64>) -> file::Result<()> {
    let Some(value) = value else { return Ok(()) };
    match said {
        Some((first, other)) if *other != value => {
            Err(f.refuse(name, &format!("{other}, as `{first}` says"), &json!(value)))
        }
        Some(_) => Ok(()),
        None => {
            *said = Some((name.into(), value));
            Ok(())
        }
    }
}

/// Takes one description of RoPE, which must be the plain or the linear one, and notes what it says.
fn take(
    f: &Fields,
    mut one: Fields,
    place: &str,
    found: &mut Found,
    unknown: &mut Vec<String>,
) -> file::Result<()> {
    let (mut plain, mut linear) = (None, None);
    for name in ["rope_type", "type"] {
        match one.take(name) {
            None => {}
            Some(kind) if kind == "default" => plain = Some(name),
            Some(kind) if kind == "linear" => linear = Some(name),
            Some(other) => return Err(one.refuse(name, "\"default\" or \"linear\"", &other)),
        }
    }
    if let (Some(name), Some(_)) = (linear, plain) {
        return Err(one.refuse(name, "\"default\", as its other name says", &json!("linear")));
    }
    if linear.is_some() {
        match one.optional_positive("factor")? {
            None => return Err(one.absent("factor", "what positions are divided by")),
            factor => say(f, &mut found.factor, &format!("{place}.factor"), factor)?,
        }
    } else if let Some(name) = plain {
        say(f, &mut found.factor, &format!("{place}.{name}"), Some(1.0))?;
    }
    for name in ["factor", "partial_rotary_factor", "attention_factor"] {
        if let Some(value) = one.take(name).filter(|v| v.as_f64() != Some(1.0)) {
            return Err(one.refuse(name, "1", &value));
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
        if plain.is_some() || linear.is_some() {
            one.take(name);
        }
    }
    let theta = one.optional_positive("rope_theta")?;
    say(f, &mut found.theta, &format!("{place}.rope_theta"), theta)?;
    unknown.extend(one.rest().filter(|(_, v)| !v.is_null()).map(|(name, _)| name));
    Ok(())
}
