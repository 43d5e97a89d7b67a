#!/usr/bin/env python3
"""Small random Gemma 1, 2 and 3 as GGUF files, written by the package gguf, and their logits by transformers in
float32.

usage: make_models.py FOLDER

Leaves FAMILY.gguf and FAMILY.safetensors: `ids`, and `logits` (ids, vocabulary) of the weights as they were rounded.
Each role has a format of its own; in FAMILY-mixed.gguf two roles have another in some layers, as the files have that
people hold.
transformers 5, torch on a CPU; in float32 its scale of embeddings is not rounded, as llama.cpp's is not.
"""
import pathlib
import sys

import numpy
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file

VOCAB, HIDDEN, INNER, HEADS, KV, HEAD_DIM, WINDOW = 160, 64, 96, 4, 2, 32, 8
FORMATS = {
    "token_embd": Type.Q8_0, "attn_q": Type.Q5_0, "attn_k": Type.F16, "attn_v": Type.BF16, "attn_output": Type.Q4_0,
    "ffn_gate": Type.Q4_0, "ffn_up": Type.Q8_0, "ffn_down": Type.F32,
}
MIXED = {"attn_v": Type.Q8_0, "ffn_down": Type.Q4_1}
ROLES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
SIZES = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "head_dim": HEAD_DIM, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
    "attn_implementation": "eager", "hidden_activation": "gelu_pytorch_tanh",
}


def gemma() -> tuple:
    config = transformers.GemmaConfig(num_hidden_layers=2, hidden_act="gelu_pytorch_tanh", **SIZES)
    return "gemma", config, transformers.GemmaForCausalLM, {}


def gemma2() -> tuple:
    config = transformers.Gemma2Config(
        num_hidden_layers=3, query_pre_attn_scalar=HEAD_DIM, sliding_window=WINDOW, attn_logit_softcapping=5.0,
        final_logit_softcapping=7.0, **SIZES,
    )
    keys = {
        "attention.sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0,
    }
    return "gemma2", config, transformers.Gemma2ForCausalLM, keys


def gemma3() -> tuple:
    layers = 7
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    config = transformers.Gemma3TextConfig(
        num_hidden_layers=layers, query_pre_attn_scalar=HEAD_DIM, sliding_window=WINDOW, layer_types=kinds,
        final_logit_softcapping=None, attn_logit_softcapping=None,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        **SIZES,
    )
    keys = {
        "attention.sliding_window": WINDOW, "rope.freq_base": 1e6, "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
    }
    return "gemma3", config, transformers.Gemma3ForCausalLM, keys


def stored_name(architecture: str, name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, role = name.removesuffix(".weight").split(".", 3)
    # Its one norm before the MLP has the name of another norm of its successors.
    stored = "ffn_norm" if (architecture, role) == ("gemma", "post_attention_layernorm") else ROLES[role]
    return f"blk.{layer}.{stored}.weight"


def format_of(stored: str, mixed: bool) -> Type:
    role = stored.split(".")[-2]
    if mixed and stored.startswith("blk.") and int(stored.split(".")[1]) % 3 == 0:
        return MIXED.get(role, FORMATS[role])
    return FORMATS[role]


def write(folder: pathlib.Path, family, mixed: bool) -> None:
    architecture, config, model_class, keys = family()
    generator = torch.Generator().manual_seed(1)
    model = model_class(config).to(torch.float32).eval()
    stem = architecture + ("-mixed" if mixed else "")
    writer = GGUFWriter(str(folder / f"{stem}.gguf"), architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("llama")
    bytes_ = [f"<0x{b:02X}>" for b in range(100)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + bytes_ + [f"t{i}" for i in range(VOCAB - 104)]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(VOCAB)])
    writer.add_token_types([3, 3, 3, 2] + [6] * 100 + [1] * (VOCAB - 104))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_add_space_prefix(False)
    rounded = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stored = stored_name(architecture, name)
        values = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1:
            values = (0.3 * values).numpy()
            writer.add_tensor(stored, values + numpy.float32(1))
            rounded[name] = torch.from_numpy((values + numpy.float32(1)) - numpy.float32(1))
            continue
        values = (values * weight.shape[1] ** -0.5).numpy().astype(numpy.float32)
        kind = format_of(stored, mixed)
        raw = quantize(values, kind)
        writer.add_tensor(stored, raw, raw_dtype=kind)
        rounded[name] = torch.from_numpy(dequantize(raw, kind).astype(numpy.float32).reshape(values.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    missing, unexpected = model.load_state_dict(rounded, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    ids = torch.randint(3, VOCAB, (40,), generator=generator)
    ids[0] = 2
    logits = model(ids[None]).logits[0]
    save_file({"ids": ids.to(torch.int32), "logits": logits.contiguous()}, folder / f"{stem}.safetensors")
    print(stem, [round(x, 3) for x in logits[-1][:4].tolist()], float(logits.abs().max()))


def main() -> None:
    torch.set_grad_enabled(False)
    folder = pathlib.Path(sys.argv[1])
    for family in [gemma, gemma2, gemma3]:
        for mixed in [False, True]:
            write(folder, family, mixed)


main()
