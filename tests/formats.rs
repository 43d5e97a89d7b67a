//! Models whose layers are each stored in another weight format: logits are those of the same weights in f32.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lapidary_codegen::{Model as Description, Options, compile};
use lapidary_ir::{DType, FormatId};
use lapidary_models::Config;
use lapidary_models::graph::{self, Storage};
use lapidary_models::layout::EMBEDDING;
use lapidary_passes::{Machine, Selection};
use lapidary_runtime::program::WeightSource;
use lapidary_runtime::{Rng, Session};

/// Rows of whole blocks of every format; layers of both kinds; heads of an odd number.
const CONFIG: &str = r#"{
    "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "vocab_size": 80, "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 14, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "max_position_embeddings": 64
}"#;

/// A model's tensors and their types.
struct Weights(BTreeMap<String, (DType, Vec<u8>)>);

// SAFETY: what the map owns does not move while it is borrowed, and nothing changes it.
unsafe impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(|(_, bytes)| bytes.as_slice())
    }
}

/// The layer's number among the formats; the table in one of 256 elements a block.
fn format_of(name: &str) -> DType {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let number = layer.map(|(number, _)| number.parse::<usize>().unwrap());
    match (number, name == EMBEDDING) {
        (_, true) => DType::from_name("q6_k").unwrap(),
        (Some(number), _) if name.ends_with("_proj.weight") => {
            // Two of a layer's matrices have the next layer's format.
            let next = usize::from(name.contains("v_proj") || name.contains("down_proj"));
            DType::Block(FormatId::all().nth((number + next) % FormatId::all().count()).unwrap())
        }
        _ => DType::F32,
    }
}

/// Random weights of about the size that keeps activations in size: as they are stored, and in f32.
fn weights(config: &Config) -> [Weights; 2] {
    let mut random = Rng::new(7);
    let mut float = move || (random.next_u64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let (mut stored, mut plain) = (BTreeMap::new(), BTreeMap::new());
    for spec in config.tensors() {
        let dtype = format_of(&spec.name);
        let elements = spec.elements() as usize;
        let mut values = vec![0.0; elements];
        if let (Some(format), &[_, k]) = (dtype.format(), spec.shape.as_slice()) {
            let mut bytes: Vec<u8> =
                (0..dtype.row_bytes(elements)).map(|_| (float() * 128.0) as i8 as u8).collect();
            let mut size = 1.0;
            // Once to see how large elements are, and once to make them as large as they should be.
            for _ in 0..2 {
                let rows = bytes.chunks_exact_mut(format.row_bytes(k)).zip(values.chunks_exact_mut(k));
                for (row, values) in rows {
                    format.set_floats(row, k, || size * (1.0 + float() / 2.0));
                    format.dequantise_row(row, values);
                }
                let mean = values.iter().map(|x| x * x).sum::<f32>() / elements as f32;
                size = (mean * k as f32).sqrt().recip();
            }
            stored.insert(spec.name.clone(), (dtype, bytes));
        } else {
            values.iter_mut().for_each(|x| *x = float() / 4.0);
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            stored.insert(spec.name.clone(), (DType::F32, bytes));
        }
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        plain.insert(spec.name, (DType::F32, bytes));
    }
    [Weights(stored), Weights(plain)]
}

/// Logits of every position, the last ones decoded one by one.
fn logits(config: &Config, weights: Weights, cpu: &str) -> Vec<f32> {
    let weight = |name: &str| weights.0[name].0;
    let module = graph::module(config, &Storage { weight: &weight, cache: DType::F32 });
    let layers = graph::layers(config, &weight);
    let description = Description { hidden: config.hidden_size, vocab: config.vocab_size, layers };
    let options = Options {
        selection: Selection::all(),
        cpu: cpu.into(),
        context: 64,
        chunk: 40,
        rounded: false,
        machine: Machine::GENERIC,
        listings: false,
    };
    let program = compile(&module, &description, &options).unwrap().program;
    let mut session = Session::new(program, Arc::new(weights), 2).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 80).collect();
    let mut all = vec![];
    session.score(&ids[..37], &mut |_, row| all.extend_from_slice(row)).unwrap();
    for &id in &ids[37..] {
        session.decode(id).unwrap();
        all.extend_from_slice(session.logits());
    }
    all
}

#[test]
fn layers_in_every_format_compute_what_they_hold() {
    let config = Config::from_json(Path::new("config.json"), CONFIG.as_bytes()).unwrap();
    for cpu in ["native", "x86-64-v2"] {
        let [got, want] = weights(&config).map(|weights| logits(&config, weights, cpu));
        let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(size > 0.1 && size.is_finite(), "{size}");
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-4 * size, "{cpu}: logit {i}: {got}, not {want}");
        }
    }
}
