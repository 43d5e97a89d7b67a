"""Modules from PyTorch, where it is installed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lapidary  # noqa: E402
import lapidary.torch  # noqa: E402
from modules import MODULES, make  # noqa: E402


def close(found, expected):
    found, expected = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (found, expected))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize("name", MODULES)
def test_exported(name, rows):
    module, inputs = make(name, 32, rows)
    compiled = lapidary.from_torch(module, inputs, threads=2)
    with torch.no_grad():
        close(compiled(*inputs), module(*inputs))
    arrays = compiled(*(x.numpy() for x in inputs))
    assert isinstance(arrays[0] if isinstance(arrays, tuple) else arrays, np.ndarray)


@pytest.mark.parametrize("name", MODULES)
def test_backend(name):
    compiled = torch.compile(make(name, 32, 4)[0], backend="lapidary")
    for rows in (4, 8) if name != "vit" else (4,):
        module, inputs = make(name, 32, rows)
        with torch.no_grad():
            close(compiled(*inputs), make(name, 32, 4)[0](*inputs))


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama"])
def test_any_number_of_rows(name):
    module, inputs = make(name, 32, 8)
    shapes = ({1: torch.export.Dim("rows", min=2, max=512)},)
    compiled = lapidary.from_torch(module, inputs, dynamic_shapes=shapes, threads=2)
    assert compiled.function.inputs[0][2] == (1, "T", 32)
    for rows in (2, 8, 33, 70):
        _, inputs = make(name, 32, rows)
        with torch.no_grad():
            close(compiled(*inputs), module(*inputs))


class Doubled(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x], dim=0).sum(dim=0)


def test_other_dynamic_lengths_are_named():
    shapes = ({0: torch.export.Dim("rows", min=2, max=64)},)
    with pytest.raises(lapidary.Error, match=r"length 2\*.*: expected fixed lengths|concat.*test_torch\.py line"):
        lapidary.from_torch(Doubled(), torch.randn(4, 3), dynamic_shapes=shapes)


def test_weights_are_not_copied():
    module, inputs = make("mlp", 32, 2)
    compiled = lapidary.from_torch(module, inputs)
    for name, parameter in module.named_parameters():
        assert compiled.weights[name].__array_interface__["data"][0] == parameter.data_ptr()


def test_saved(tmp_path):
    module, inputs = make("mlp", 32, 2)
    compiled = lapidary.from_torch(module, inputs)
    compiled.save(tmp_path / "mlp")
    again = lapidary.ir.load(tmp_path / "mlp.ir").compile(tmp_path / "mlp.safetensors")
    np.testing.assert_array_equal(again(inputs[0].numpy()), compiled(inputs[0].numpy()))


class Strange(torch.nn.Module):
    def forward(self, x):
        y = x + 1
        return torch.fft.fft(y).real


def test_what_does_not_map_is_named():
    with pytest.raises(lapidary.Error, match=r"aten\._fft_r2c.* test_torch\.py line \d+: return torch\.fft\.fft"):
        lapidary.from_torch(Strange(), torch.randn(4))


def test_gradients_are_refused():
    module, inputs = make("mlp", 32, 2)
    with pytest.raises(lapidary.Error, match="no_grad"):
        torch.compile(module, backend="lapidary")(*inputs)
