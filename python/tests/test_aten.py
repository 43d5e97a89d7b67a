"""Stored exports of PyTorch modules, translated without torch and held against what torch made of the same inputs."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

import lapidary
from lapidary import aten

EXPORTS = pathlib.Path(__file__).resolve().parent / "exports"
NAMES = sorted(p.stem for p in EXPORTS.glob("*.json"))


def stored(name):
    tensors = load_file(EXPORTS / f"{name}.safetensors")

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    inputs, outputs = part("input."), part("output.")
    graph = json.loads((EXPORTS / f"{name}.json").read_text())
    return graph, part("weight."), [inputs[str(i)] for i in range(len(inputs))], outputs


def test_there_are_seven():
    assert NAMES == ["bert", "gated_conv", "gpt2", "llama", "mlp", "recurrent", "vit"]


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torch(name):
    graph, weights, inputs, outputs = stored(name)
    function = aten.translate(graph)
    compiled = function.compile(weights, threads=2)
    results = compiled(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    of_interpreter = function.interpret(weights, **dict(zip([i[0] for i in function.inputs], inputs)))
    assert len(results) == len(outputs)
    for at, (result, interpreted) in enumerate(zip(results, of_interpreter.values())):
        expected = outputs[str(at)]
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(interpreted, expected, atol=1e-4, rtol=0)
        np.testing.assert_allclose(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_any_rule_may_be_left_out(name):
    graph, weights, inputs, outputs = stored(name)
    function = aten.translate(graph)
    fused = function.compile(weights, threads=1)
    rules = fused.report()["rules"]
    for rule in rules:
        result = function.compile(weights, threads=1, disable=rule)(*inputs)
        first = result[0] if isinstance(result, tuple) else result
        np.testing.assert_allclose(first, outputs["0"], atol=1e-4, rtol=0, err_msg=rule)


@pytest.mark.parametrize("rows", [5, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_few_rows_and_of_many(rows, masked):
    random = np.random.default_rng(rows)
    batch, heads, groups, head = 2, 4, 2, 8
    q = random.standard_normal((batch, heads, rows, head), np.float32)
    k, v = (random.standard_normal((batch, groups, rows, head), np.float32) for _ in range(2))
    mask = random.standard_normal((batch, 1, rows, rows), np.float32)
    arrays = {"q": q, "k": k, "v": v, **({"mask": mask} if masked else {})}
    node = {
        "name": "y", "target": "aten.scaled_dot_product_attention.default",
        "args": [{"node": "q"}, {"node": "k"}, {"node": "v"}, {"node": "mask"} if masked else None, 0.0, not masked],
        "kwargs": {"enable_gqa": True}, "dtype": "float32", "shape": list(q.shape), "place": None,
    }
    inputs = [{"name": n, "node": n, "dtype": "float32", "shape": list(x.shape)} for n, x in arrays.items()]
    graph = {"name": "attention", "inputs": inputs, "weights": [], "nodes": [node], "outputs": ["y"]}
    k, v = (np.repeat(x, heads // groups, axis=1).astype(np.float64) for x in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(2, 3) / np.sqrt(head)
    scores = scores + mask if masked else np.where(np.tri(rows, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    result = aten.translate(graph).compile(threads=2)(*arrays.values())
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


def test_what_does_not_map_is_named():
    graph, *_ = stored("mlp")
    graph["nodes"][1]["target"] = "aten.fft_fft.default"
    place = r"linear`, modules\.py line \d+: return x"
    with pytest.raises(lapidary.Error, match=rf"^aten\.fft_fft\.default \(`{place}.* maps onto no operator"):
        aten.translate(graph)
    graph, *_ = stored("mlp")
    graph["nodes"][1]["args"][1] = {"node": "x"}
    with pytest.raises(lapidary.Error, match=rf"^aten\.linear\.default \(`{place}"):
        aten.translate(graph)
    graph, *_ = stored("mlp")
    graph["inputs"][0]["dtype"] = "complex64"
    with pytest.raises(lapidary.Error, match="tensor `x` is complex64: expected one of float32"):
        aten.translate(graph)


def test_the_documentation_lists_what_maps():
    text = (EXPORTS.parents[2] / "docs" / "python.md").read_text()
    names = {name.removeprefix("aten.").split(".")[0] for name in aten.OPERATORS if name.startswith("aten.")}
    hidden = {name for name in names if name.startswith("_") or name in ("lift_fresh_copy", "detach_", "alias")}
    missing = [name for name in sorted(names - hidden) if f"`{name}`" not in text]
    assert not missing, missing
