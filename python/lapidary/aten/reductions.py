"""Reductions, softmax and norms."""

from .._errors import Error
from .translator import OPERATORS, count, operator


def _reduce(c, name, x, axes, keep):
    axes = [a % x.ndim for a in ([axes] if isinstance(axes, int) else axes or range(x.ndim))]
    for axis in sorted(axes, reverse=True):
        x = c.op(name, x, axis)
    return x if keep else c.reshape(x, c.shape)


for _aten, _ir in [("sum.dim_IntList", "sum"), ("mean.dim", "mean"), ("amax.default", "max"), ("amin.default", "min"),
                   ("prod.dim_int", "prod"), ("argmax.default", "argmax")]:
    OPERATORS[f"aten.{_aten}"] = lambda c, x, axes=None, keep=False, name=_ir, **_: _reduce(
        c, name, c.float(x), axes, keep)


for _name in ["sum", "mean"]:
    OPERATORS[f"aten.{_name}.default"] = lambda c, x, name=_name, **_: _reduce(c, name, c.float(x), None, False)


@operator("var.correction")
def _var(c, x, dim=None, correction=1, keepdim=False):
    axes = [a % x.ndim for a in ([dim] if isinstance(dim, int) else dim or range(x.ndim))]
    n = count(x.shape[a] for a in axes)
    centred = c.op("sub", x, _reduce_kept(c, "mean", x, axes))
    sum_ = _reduce_kept(c, "sum", c.op("mul", centred, centred), axes)
    return c.reshape(c.op("mul", sum_, 1 / (n - correction)), c.shape)


def _reduce_kept(c, name, x, axes):
    for axis in sorted(axes, reverse=True):
        x = c.op(name, x, axis)
    return x


@operator("softmax.int", "_softmax.default")
def softmax(c, x, axis, *_, **__):
    axis = axis % x.ndim
    shifted = c.op("exp", c.op("sub", x, c.op("max", x, axis)))
    return c.op("div", shifted, c.op("sum", shifted, axis))


@operator("_log_softmax.default", "log_softmax.int")
def _log_softmax(c, x, axis, *_, **__):
    axis = axis % x.ndim
    shifted = c.op("sub", x, c.op("max", x, axis))
    return c.op("sub", shifted, c.op("log", c.op("sum", c.op("exp", shifted), axis)))


def affine(c, x, weight, bias):
    x = x if weight is None else c.op("mul", x, weight)
    return x if bias is None else c.op("add", x, bias)


@operator("layer_norm.default")
def _layer_norm(c, x, shape, weight=None, bias=None, eps=1e-5, *_):
    rows, flat = list(x.shape), list(x.shape[: x.ndim - len(shape)]) + [count(shape)]
    x = c.reshape(x, flat)
    weight, bias = (w if w is None else c.reshape(w, [count(shape)]) for w in (weight, bias))
    axis = len(flat) - 1
    centred = c.op("sub", x, c.op("mean", x, axis))
    scale = c.op("rsqrt", c.op("add", c.op("mean", c.op("mul", centred, centred), axis), float(eps)))
    return c.reshape(affine(c, c.op("mul", centred, scale), weight, bias), rows)


@operator("rms_norm.default")
def _rms_norm(c, x, shape, weight=None, eps=None):
    if len(shape) != 1:
        raise Error(f"a norm over {len(shape)} axes: expected the last one")
    eps = 1.1920929e-07 if eps is None else float(eps)
    scale = c.op("rsqrt", c.op("add", c.op("mean", c.op("mul", x, x), x.ndim - 1), eps))
    return affine(c, c.op("mul", x, scale), weight, None)
