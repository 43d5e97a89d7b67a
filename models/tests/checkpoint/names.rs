//! Tensors under other names, twice, or beside those of the model: what passes, and what is refused by name.

use std::fs;

use lapidary_models::Checkpoint;
use tempfile::TempDir;

use crate::{Parts, UP, message, offsets, small};

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The embedding table's values.
fn table(parts: &mut Parts) -> Vec<f32> {
    let place = offsets(parts.entry(EMBEDDING));
    let chunks = parts.data[place[0]..place[1]].as_chunks().0.to_vec();
    chunks.into_iter().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()
}

/// Values in a dtype of safetensors.
fn encoded(values: &[f32], dtype: &str) -> Vec<u8> {
    let one = |x: &f32| match dtype {
        "F64" => f64::from(*x).to_le_bytes().to_vec(),
        "F32" => x.to_le_bytes().to_vec(),
        "F16" => half::f16::from_f32(*x).to_le_bytes().to_vec(),
        "BF16" => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
        other => panic!("{other}"),
    };
    values.iter().flat_map(one).collect()
}

#[test]
fn heads_that_repeat_the_table_pass() {
    for dtype in ["BF16", "F16", "F32", "F64"] {
        for name in ["lm_head.weight", "language_model.lm_head.weight"] {
            let with = |change: &dyn Fn(&mut Vec<f32>), tied: bool| {
                let mut parts = Parts::small();
                let mut values = table(&mut parts);
                change(&mut values);
                parts.push(name, dtype, &[32, 8], &encoded(&values, dtype));
                let dir = TempDir::new().unwrap();
                fs::write(dir.path().join("model.safetensors"), parts.bytes()).unwrap();
                let mut config = small();
                config.tie_word_embeddings = tied;
                Checkpoint::open(dir.path(), &config)
            };
            let checkpoint = with(&|_| (), true).unwrap();
            assert!(checkpoint.tensor("lm_head.weight").is_none() && checkpoint.warning().is_none());
            let found = message(with(&|v| v[7] += 0.5, true));
            assert!(found.contains(&format!("tensor {name:?}: expected a copy of {EMBEDDING}")), "{found}");
            // Where the file says that it is not tied, only an equal one is as good as tied.
            let exact = dtype != "F16";
            assert_eq!(
                with(&|_| (), false).is_ok(),
                exact
                    || table(&mut Parts::small()).iter().all(|x| { half::f16::from_f32(*x).to_f32() == *x })
            );
        }
    }
    let mut config = small();
    config.tie_word_embeddings = false;
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("model.safetensors"), Parts::small().bytes()).unwrap();
    let found = message(Checkpoint::open(dir.path(), &config));
    assert!(
        found.contains("\"lm_head.weight\": expected a head of its own, as tie_word_embeddings is false"),
        "{found}"
    );
}

#[test]
fn a_table_may_be_stored_as_the_head() {
    let theirs = Parts::small().open().unwrap();
    for (prefix, head) in [("model.", "lm_head.weight"), ("model.language_model.", "lm_head.weight")] {
        let parts = renamed(|n| if n == EMBEDDING { head.into() } else { n.replacen("model.", prefix, 1) });
        let ours = parts.open().unwrap();
        assert_eq!(ours.tensor(EMBEDDING), theirs.tensor(EMBEDDING));
    }
}

#[test]
fn buffers_that_trainers_leave_pass() {
    let mut parts = Parts::small();
    for name in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.1.self_attn.masked_bias",
        "model.layers.1.attn.masked_bias",
        "local_freqs_cis",
        "model.causal_mask",
        "model.layers.0.self_attn.k_scale",
        "model.layers.0.mlp.up_proj.input_quantizer._amax",
        "v_head.summary.weight",
    ] {
        parts.push(name, "F32", &[2], &[7; 8]);
    }
    let scale = half::bf16::from_f32(8f32.sqrt()).to_le_bytes();
    parts.push("model.embed_tokens.embed_scale", "BF16", &[], &scale);
    let c = parts.open().unwrap();
    assert!(c.names().eq(Parts::small().open().unwrap().names()));
}

/// The small model with each name changed.
fn renamed(change: impl Fn(&str) -> String) -> Parts {
    let mut parts = Parts::small();
    parts.header.iter_mut().filter(|(n, _)| n != "__metadata__").for_each(|(n, _)| *n = change(n));
    parts
}

#[test]
fn prefixes() {
    let whole = Parts::small().open().unwrap();
    let bare = |n: &str| n.strip_prefix("model.").unwrap().to_string();
    for prefix in [
        "",
        "model.",
        "language_model.model.",
        "model.language_model.",
        "_orig_mod.model.",
        "module.model.",
        "base_model.model.model.",
        "transformer.",
    ] {
        let parts = renamed(|n| format!("{prefix}{}", bare(n)));
        let c = parts.open().unwrap_or_else(|e| panic!("{prefix}: {e}"));
        assert!(c.names().all(|n| c.tensor(n) == whole.tensor(n)) && c.names().eq(whole.names()), "{prefix}");
    }
    // What wrappers put between.
    for (part, with) in
        [("layers.0.", "layers.0._checkpoint_wrapped_module."), (".weight", ".base_layer.weight")]
    {
        let parts = renamed(|n| n.replace(part, with));
        let c = parts.open().unwrap_or_else(|e| panic!("{with}: {e}"));
        assert!(c.names().all(|n| c.tensor(n) == whole.tensor(n)), "{with}");
    }
    // One tensor under another prefix: nothing is certain.
    let parts = renamed(|n| if n == UP { format!("x.{n}") } else { n.into() });
    assert!(
        message(parts.open())
            .contains(&format!("tensor {UP:?}: expected shape [12, 8], found no such tensor"))
    );
    // Two models, neither under the published prefix.
    let mut parts = renamed(|n| format!("a.{n}"));
    for (name, entry) in renamed(|n| format!("b.{n}")).header.into_iter().filter(|(n, _)| n != "__metadata__")
    {
        let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        parts.push(&name, "BF16", &shape, &bytes);
    }
    let found = message(parts.open());
    assert!(
        found.contains("expected one model, found it under \"a.model.\" and under \"b.model.\""),
        "{found}"
    );
    // The same tensor twice, once wrapped.
    let mut parts = Parts::small();
    parts.push(&UP.replace("layers", "_orig_mod.layers"), "BF16", &[12, 8], &[0; 192]);
    assert!(message(parts.open()).contains("expected one tensor of this meaning"));
}

/// A quantised checkpoint is refused by the name of its format.
#[test]
fn quantised_tensors_are_named() {
    /// Tensors beside (or in place of) a matrix: the end of the name, dtype, elements, bytes of one.
    type Beside = &'static [(&'static str, &'static str, usize, usize)];
    let cases: &[(&str, Beside, bool)] = &[
        (
            "GPTQ",
            &[
                ("qweight", "I32", 4, 4),
                ("qzeros", "I32", 1, 4),
                ("scales", "F16", 4, 2),
                ("g_idx", "I32", 8, 4),
            ],
            false,
        ),
        ("AWQ", &[("qweight", "I32", 4, 4), ("qzeros", "I32", 1, 4), ("scales", "F16", 4, 2)], false),
        ("bitsandbytes (8 bits)", &[("weight", "I8", 96, 1), ("SCB", "F32", 12, 4)], false),
        (
            "bitsandbytes (4 bits)",
            &[
                ("weight", "U8", 48, 1),
                ("weight.absmax", "U8", 2, 1),
                ("weight.quant_state.bitsandbytes__nf4", "U8", 8, 1),
            ],
            false,
        ),
        ("FP8", &[("weight", "F8_E4M3", 96, 1), ("weight_scale", "F32", 1, 4)], false),
        ("FP8", &[("weight", "F8_E4M3", 96, 1)], false),
        ("compressed-tensors", &[("weight_packed", "I32", 12, 4), ("weight_scale", "BF16", 12, 2)], false),
        ("MLX", &[("weight", "U32", 12, 4), ("scales", "BF16", 12, 2), ("biases", "BF16", 12, 2)], false),
        ("HQQ", &[("W_q", "U8", 48, 1), ("meta", "U8", 4, 1)], false),
        // Beside plain weights, too: they may stand for others.
        ("AWQ or GPTQ", &[("qweight", "I32", 4, 4)], true),
    ];
    for (format, beside, keep) in cases {
        let mut parts = Parts::small();
        if !keep {
            // The data stay, so that there is no hole; the name is of no account.
            parts.header.iter_mut().find(|(n, _)| n == UP).unwrap().0 = "rotary_emb.inv_freq".into();
        }
        // The widest first, so that all are aligned.
        let mut beside = beside.to_vec();
        beside.sort_by_key(|(_, _, _, size)| std::cmp::Reverse(*size));
        for (end, dtype, elements, size) in beside {
            parts.push(&UP.replace("weight", end), dtype, &[elements], &vec![0; elements * size]);
        }
        let found = message(parts.open());
        assert!(found.contains(format) && found.contains("model.layers.1.mlp.up_proj"), "{format}: {found}");
    }
}
