#!/usr/bin/env python3
"""References of gemma-3-270m-q4_k_m.gguf, by transformers in float32 on weights that the package gguf dequantised.

usage: make_references.py FILE.gguf TOKENIZER OUT.json

TOKENIZER is a folder of Gemma 3's tokenizer. For each of prompts.json: its ids, and at each position (of the long one,
at some) the 12 largest logits and the logarithm of the sum of exponentials; the mean negative log likelihood; 24 greedy
tokens.
transformers 5, torch on a CPU. In float32 its scale of embeddings is the root of the width, not rounded, as in a GGUF.
"""
import json
import pathlib
import sys

import numpy
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

# Tokens up to which every position is kept, and which positions of a longer prompt: around the window of 512 too.
SHORT = 48
KEPT = [0, 1, 255, 511, 512, 513, 514, 600, -2, -1]
ROLES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name_of(stored: str) -> str:
    """A tensor's name in a folder."""
    stored = stored.removesuffix(".weight")
    if stored == "token_embd":
        return "model.embed_tokens.weight"
    if stored == "output_norm":
        return "model.norm.weight"
    _, layer, role = stored.split(".")
    return f"model.layers.{layer}.{ROLES[role]}.weight"


def model_of(path: str) -> Gemma3ForCausalLM:
    reader = GGUFReader(path)
    key = lambda name: reader.fields[f"gemma3.{name}"].contents()
    layers, head_dim = key("block_count"), key("attention.key_length")
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    config = Gemma3TextConfig(
        vocab_size=int(reader.tensors[1].shape[1]), hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"), num_hidden_layers=layers,
        num_attention_heads=key("attention.head_count"), num_key_value_heads=key("attention.head_count_kv"),
        head_dim=head_dim, query_pre_attn_scalar=head_dim, sliding_window=key("attention.sliding_window"),
        layer_types=kinds, max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"), final_logit_softcapping=None,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": key("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0, attn_implementation="eager",
    )
    weights = {}
    for tensor in reader.tensors:
        name = name_of(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        # transformers adds the 1 that a GGUF has added already.
        weights[name] = torch.from_numpy(numpy.ascontiguousarray(values - 1.0 if "norm" in name else values))
    model = Gemma3ForCausalLM(config).to(torch.float32).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def main() -> None:
    path, folder, out = sys.argv[1:]
    torch.set_grad_enabled(False)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), model_of(path)
    rows = []
    for name, text in json.loads(pathlib.Path(__file__).with_name("prompts.json").read_text()).items():
        ids = tokenizer(text).input_ids
        logits = model(torch.tensor([ids])).logits[0].double()
        short = len(ids) <= SHORT
        positions = []
        for at in range(len(ids)) if short else sorted({at % len(ids) for at in KEPT}):
            row = logits[at]
            values, best = row.topk(12)
            positions.append({
                "position": at, "ids": best.tolist(), "logits": [round(x, 5) for x in values.tolist()],
                "logsumexp": round(torch.logsumexp(row, 0).item(), 6),
            })
        nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False) if short else None
        greedy = greedy[0][len(ids):].tolist() if short else None
        rows.append({
            "name": name, "text": text, "ids": ids, "nll": round(nll, 6), "positions": positions, "greedy": greedy,
            "greedy_text": tokenizer.decode(greedy) if short else None,
        })
        print(name, len(ids), repr(rows[-1]["greedy_text"]), file=sys.stderr)
    with open(out, "w") as file:
        json.dump(rows, file, ensure_ascii=False)


main()
