//! A GGUF's keys as a configuration.
//!
//! In: the keys, and the tensors' own word on the vocabulary. Out: a [`Config`] that says what llama.cpp makes of the
//! same keys, its defaults for those that are absent included. Invariants: embeddings are scaled by the root as it is,
//! norms are held as 1 + w. What a key says that no graph here can be is refused by the key's name.

use super::architecture::Architecture;
use super::keys::Keys;
use super::value::{List, Value};
use super::vocabulary;
use crate::config::{Config, EmbeddingScale, LayerType, MAX_LAYERS, MAX_SIZE, NormWeights, Rope};
use crate::error::Result;

/// Base of the rotary frequencies where a file says none.
const THETA: f64 = 10_000.0;

/// The keys of an architecture, `gemma3.block_count`.
pub(super) struct Own<'a> {
    keys: Keys<'a>,
    prefix: &'static str,
}

impl<'a> Own<'a> {
    pub(super) fn of(keys: Keys<'a>, architecture: &Architecture) -> Own<'a> {
        Own { keys, prefix: architecture.name }
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// A size that is the same for all layers: an integer, or a list of equal ones.
    fn size(&self, key: &str, max: u64) -> Result<Option<usize>> {
        let name = self.name(key);
        let expected = format!("an integer from 1 to {max}");
        let Some(Value::List(list)) = self.keys.get(&name) else {
            return Ok(self.keys.integer(&name, 1, max)?.map(|n| n as usize));
        };
        let mut values = list.values(self.keys.file);
        let first = values.next().flatten();
        match first {
            Some(Value::Integer(n)) if (1..=max.into()).contains(&n) => {
                match values.find(|value| *value != first) {
                    None => Ok(Some(n as usize)),
                    Some(_) => Err(self.keys.refuse(&name, "the same for all layers", "different ones")),
                }
            }
            _ => Err(self.keys.refuse(&name, &expected, Value::List(list.clone()).describe())),
        }
    }

    fn needed(&self, key: &str, max: u64) -> Result<usize> {
        let found = self.size(key, max)?;
        found.ok_or_else(|| self.keys.absent(&self.name(key), &format!("an integer from 1 to {max}")))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.keys.positive(&self.name(key))
    }

    /// A cap, of which 0 is none.
    fn cap(&self, key: &str, default: Option<f32>) -> Result<Option<f32>> {
        let name = self.name(key);
        match self.keys.get(&name) {
            Some(Value::Number(0.0)) => Ok(None),
            _ => Ok(self.keys.positive(&name)?.map(|x| x as f32).or(default)),
        }
    }
}

/// The configuration of a file whose embedding table has `rows`, if it has one.
pub(super) fn config(keys: Keys<'_>, architecture: &Architecture, rows: Option<usize>) -> Result<Config> {
    let own = Own::of(keys, architecture);
    let d = (architecture.family().defaults)();
    let layers = own.needed("block_count", MAX_LAYERS)?;
    let hidden_size = own.needed("embedding_length", MAX_SIZE)?;
    let heads = own.needed("attention.head_count", MAX_SIZE)?;
    let head_dim = head_dim(&own, hidden_size / heads)?;
    let vocab_size = match (vocabulary::tokens(keys)?, rows) {
        (Some(tokens), _) => tokens,
        (None, Some(rows)) => rows,
        (None, None) => return Err(vocabulary::absent(keys)),
    };
    let ids = vocabulary::ids(keys, vocab_size)?;
    let [rope_local, rope_global] = ropes(&own, architecture)?;
    let window = own.size("attention.sliding_window", MAX_SIZE);
    let window = match keys.get(&own.name("attention.sliding_window")) {
        Some(Value::Integer(0)) => None,
        _ => window?.or(architecture.window),
    };
    let eps = own.name("attention.layer_norm_rms_epsilon");
    // Without a key it is said by the number of layers alone.
    let whole_heads = architecture.whole_heads == Some(layers);
    let config = Config {
        family: architecture.family(),
        vocab_size,
        hidden_size,
        intermediate_size: own.needed("feed_forward_length", MAX_SIZE)?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: own.size("attention.head_count_kv", MAX_SIZE)?.unwrap_or(heads),
        head_dim,
        query_pre_attn_scalar: if whole_heads { (hidden_size / heads) as f64 } else { head_dim as f64 },
        rms_norm_eps: keys.positive(&eps)?.ok_or_else(|| keys.absent(&eps, "a finite number above 0"))?,
        rope_local,
        rope_global,
        sliding_window: window.unwrap_or(d.sliding_window),
        layer_types: match window {
            Some(_) => layer_types(&own, architecture, layers)?,
            None => vec![LayerType::Full; layers],
        },
        attn_logit_softcapping: match architecture.attention_cap {
            None => None,
            cap => own.cap("attn_logit_softcapping", cap)?,
        },
        final_logit_softcapping: match architecture.period {
            None => None,
            Some(_) => own.cap("final_logit_softcapping", architecture.final_cap)?,
        },
        max_position_embeddings: own.needed("context_length", MAX_SIZE)?,
        tie_word_embeddings: true,
        bos_token_id: ids.bos.unwrap_or(d.bos_token_id),
        eos_token_id: if ids.ends.is_empty() { d.eos_token_id } else { ids.ends },
        pad_token_id: ids.padding.unwrap_or(d.pad_token_id),
        embedding_scale: EmbeddingScale::Exact,
        norm_weights: NormWeights::Whole,
    };
    config.validate(keys.path)?;
    Ok(config)
}

/// The width of a head, which keys, values and RoPE must share.
fn head_dim(own: &Own<'_>, default: usize) -> Result<usize> {
    let head_dim = own.size("attention.key_length", MAX_SIZE)?.unwrap_or(default);
    for (key, default) in [("attention.value_length", default), ("rope.dimension_count", head_dim)] {
        let found = own.size(key, MAX_SIZE)?.unwrap_or(default);
        if found != head_dim {
            let expected = format!("{head_dim}, the length of a key");
            return Err(own.keys.refuse(&own.name(key), &expected, found.to_string()));
        }
    }
    Ok(head_dim)
}

/// RoPE of layers that slide, and of those that see all keys.
fn ropes(own: &Own<'_>, architecture: &Architecture) -> Result<[Rope; 2]> {
    let theta = own.positive("rope.freq_base")?.unwrap_or(THETA);
    let kind = own.name("rope.scaling.type");
    let scaled = match own.keys.get(&kind) {
        None => true,
        Some(_) => own.keys.one_of(&kind, &["linear", "none"])? == "linear",
    };
    let factor = match own.positive("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => own.positive("rope.scale_linear")?,
    };
    let global = Rope { theta, factor: factor.filter(|_| scaled).unwrap_or(1.0) };
    let local = own.positive("rope.freq_base_swa")?;
    let local = match architecture.local_theta {
        None => Rope { theta: local.unwrap_or(theta), ..global },
        Some(default) => Rope { theta: local.unwrap_or(default), factor: 1.0 },
    };
    Ok([local, global])
}

/// Which layers slide: by a period, of whose layers the last sees all keys, or by a list.
fn layer_types(own: &Own<'_>, architecture: &Architecture, layers: usize) -> Result<Vec<LayerType>> {
    let name = own.name("attention.sliding_window_pattern");
    let kind = |slides: bool| if slides { LayerType::Sliding } else { LayerType::Full };
    if let Some(Value::List(List { kind: super::value::Kind::Bool, count, .. })) = own.keys.get(&name) {
        if *count != layers {
            let expected = format!("{layers} truths, one a layer");
            return Err(own.keys.refuse(&name, &expected, format!("{count} truths")));
        }
        let Some(Value::List(list)) = own.keys.get(&name) else { return Ok(Vec::new()) };
        let all = list.values(own.keys.file).map(|v| Some(kind(v? == Value::Bool(true))));
        return all.collect::<Option<_>>().ok_or_else(|| own.keys.refuse(&name, "truths", "other bytes"));
    }
    let period = own.keys.integer(&name, 0, MAX_LAYERS)?.map(|n| n as usize);
    let period = period.or(architecture.period).unwrap_or(1);
    Ok((0..layers).map(|layer| kind(period == 0 || layer % period < period - 1)).collect())
}
