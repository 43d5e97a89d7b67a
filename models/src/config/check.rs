//! What holds of every configuration.

use std::path::Path;

use lapidary_runtime::file;
use lapidary_runtime::file::fields::is_positive;
use serde_json::{Value, json};

use super::{Config, MAX_LAYERS, MAX_SIZE};
use crate::error::Result;
use crate::family::field;

impl Config {
    /// Checks what [`Config::from_json`] guarantees, for a configuration made or changed in Rust; `path` is what errors
    /// call it.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) naming the first field that is out of range or does not fit another.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let check = |ok: bool, field: &str, expected: &str, found: Value| {
            let error = || file::Error::Field {
                path: path.into(),
                field: field.into(),
                expected: expected.into(),
                found: found.to_string(),
            };
            if ok { Ok(()) } else { Err(error().into()) }
        };
        let c = self;
        let sizes = [
            ("vocab_size", c.vocab_size, MAX_SIZE),
            ("hidden_size", c.hidden_size, MAX_SIZE),
            ("intermediate_size", c.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", c.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", c.num_attention_heads, MAX_SIZE),
            ("num_key_value_heads", c.num_key_value_heads, MAX_SIZE),
            ("head_dim", c.head_dim, MAX_SIZE),
            ("sliding_window", c.sliding_window, MAX_SIZE),
            ("max_position_embeddings", c.max_position_embeddings, MAX_SIZE),
        ];
        for (name, size, max) in sizes {
            let ok = (1..=max).contains(&(size as u64));
            check(ok, name, &format!("an integer from 1 to {max}"), json!(size))?;
        }
        check(c.head_dim.is_multiple_of(2), "head_dim", "an even integer", json!(c.head_dim))?;
        let width = c.num_attention_heads as u64 * c.head_dim as u64;
        let expected = format!("at most {MAX_SIZE} / head_dim");
        check(width <= MAX_SIZE, "num_attention_heads", &expected, json!(c.num_attention_heads))?;
        let divides = c.num_attention_heads.is_multiple_of(c.num_key_value_heads);
        let expected = format!("a divisor of num_attention_heads {}", c.num_attention_heads);
        check(divides, "num_key_value_heads", &expected, json!(c.num_key_value_heads))?;
        let numbers = [
            ("query_pre_attn_scalar", c.query_pre_attn_scalar),
            ("rms_norm_eps", c.rms_norm_eps),
            ("rope_theta", c.rope_global.theta),
            ("rope_scaling.factor", c.rope_global.factor),
            ("rope_local_base_freq", c.rope_local.theta),
            ("rope_parameters.sliding_attention.factor", c.rope_local.factor),
            ("attn_logit_softcapping", c.attn_logit_softcapping.unwrap_or(1.0).into()),
            ("final_logit_softcapping", c.final_logit_softcapping.unwrap_or(1.0).into()),
        ];
        for (name, x) in numbers {
            check(is_positive(x), name, "a finite number above 0", json!(x))?;
        }
        let expected = format!("{} entries, one a layer", c.num_hidden_layers);
        let found = json!(format!("{} entries", c.layer_types.len()));
        check(c.layer_types.len() == c.num_hidden_layers, "layer_types", &expected, found)?;
        let family = c.family;
        let same = family.has(field::QUERY_SCALE) || c.query_pre_attn_scalar == c.head_dim as f64;
        check(same, field::QUERY_SCALE, "head_dim", json!(c.query_pre_attn_scalar))?;
        let same = family.has(field::LOCAL_ROPE) || c.rope_local == c.rope_global;
        check(same, field::LOCAL_ROPE, "what rope_theta says", json!(c.rope_local.theta))?;
        let same = family.has(field::LAYER_TYPES) || c.layer_types == family.layer_types(c.num_hidden_layers);
        check(same, field::LAYER_TYPES, "none, as the family has one kind of layer", json!("several"))?;
        let caps =
            [(field::ATTENTION_CAP, c.attn_logit_softcapping), (field::FINAL_CAP, c.final_logit_softcapping)];
        for (name, cap) in caps {
            check(cap.is_none() || family.has(name), name, "none, as the family has none", json!(cap))?;
        }
        let token = |id: u32| (id as usize) < c.vocab_size;
        let expected = format!("token ids below vocab_size {}", c.vocab_size);
        check(token(c.bos_token_id), "bos_token_id", &expected, json!(c.bos_token_id))?;
        check(c.eos_token_id.iter().all(|&id| token(id)), "eos_token_id", &expected, json!(c.eos_token_id))?;
        check(token(c.pad_token_id), "pad_token_id", &expected, json!(c.pad_token_id))
    }
}
