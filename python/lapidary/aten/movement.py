"""Movement: the same elements elsewhere."""

from .._errors import Error
from .translator import OPERATORS, operator


@operator("view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "squeeze.dim", "squeeze.dims",
          "squeeze.default", "flatten.using_ints", "unflatten.int")
def _reshape(c, x, *_):
    return c.reshape(x, c.shape)


@operator("permute.default")
def _permute(c, x, order):
    return c.permute(x, order)


@operator("transpose.int")
def _transpose(c, x, a, b):
    order = list(range(x.ndim))
    order[a], order[b] = order[b], order[a]
    return c.permute(x, order)


@operator("t.default")
def _t(c, x):
    return c.permute(x, range(x.ndim)[::-1])


@operator("expand.default")
def _expand(c, x, *_, **__):
    return c.expand(x, c.shape)


@operator("repeat.default")
def _repeat(c, x, times):
    lead = len(times) - x.ndim
    x = c.reshape(x, [1] * lead + list(x.shape))
    split = [d for t, n in zip(times, x.shape) for d in (1, n)]
    whole = [d for t, n in zip(times, x.shape) for d in (t, n)]
    return c.reshape(c.op("broadcast", c.reshape(x, split), whole), c.shape)


def _narrow(c, x, axis, start, length):
    whole = start == 0 and length == x.shape[axis]
    return x if whole else c.op("slice", x, axis, start, length)


@operator("slice.Tensor")
def _slice(c, x, axis=0, start=None, end=None, step=1):
    if step != 1:
        raise Error(f"a step of {step}: expected 1")
    axis, start = axis % x.ndim, start or 0
    start = max(start + x.shape[axis], 0) if start < 0 else start
    return _narrow(c, x, axis, start, c.shape[axis])


@operator("select.int")
def _select(c, x, axis, index):
    axis = axis % x.ndim
    return c.reshape(_narrow(c, x, axis, index % x.shape[axis], 1), c.shape)


@operator("split.Tensor", "split_with_sizes.default", "chunk.default")
def _split(c, x, sizes, axis=0):
    axis, at, parts = axis % x.ndim, 0, []
    for shape in c.shape:
        parts.append(_narrow(c, x, axis, at, shape[axis]))
        at += shape[axis]
    return parts


for _assertion in ["_assert_tensor_metadata.default", "_assert_async.msg", "_assert_scalar.default"]:
    OPERATORS[f"aten.{_assertion}"] = lambda c, *_, **__: None

OPERATORS["aten.sym_size.int"] = lambda c, x, axis: x.shape[axis]
OPERATORS["getitem"] = lambda c, parts, index: parts[index]


@operator("cat.default")
def _cat(c, parts, axis=0):
    whole = parts[0]
    for part in parts[1:]:
        whole = c.op("concat", whole, part, axis % whole.ndim)
    return whole


@operator("stack.default")
def _stack(c, parts, axis=0):
    axis = axis % len(c.shape)
    one = [1 if a == axis else n for a, n in enumerate(c.shape)]
    return _cat(c, [c.reshape(p, one) for p in parts], axis)


@operator("constant_pad_nd.default", "pad.default")
def _pad(c, x, amounts, *value, mode="constant", **_):
    value = next((v for v in value if isinstance(v, int | float)), 0)
    if mode != "constant":
        raise Error(f"padding of mode {mode}: expected constant")
    for at in range(len(amounts) // 2):
        axis, (before, after) = x.ndim - 1 - at, amounts[2 * at: 2 * at + 2]
        if before < 0 or after < 0:
            start, length = max(-before, 0), x.shape[axis] + min(before, 0) + min(after, 0)
            x, before, after = _narrow(c, x, axis, start, length), max(before, 0), max(after, 0)
        if before or after:
            x = c.op("pad", x, axis, before, after, c.number(value))
    return x
