"""Tensors made of nothing, and by index."""

from .translator import count, operator


@operator("full.default", "scalar_tensor.default", "full_like.default")
def _full(c, *args, **_):
    value = next(a for a in reversed(args) if isinstance(a, int | float))
    return c.op("broadcast", c.op("reshape", c.number(value), [1] * len(c.shape)), c.shape)


@operator("zeros.default", "zeros_like.default")
def _zeros(c, *_, **__):
    return _full(c, 0)


@operator("ones.default", "ones_like.default")
def _ones(c, *_, **__):
    return _full(c, 1)


@operator("arange.default", "arange.start", "arange.start_step")
def _arange(c, *args, **_):
    start, step = (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)
    x = c.op("iota", c.shape, c.dtype)
    x = x if step == 1 else c.op("mul", x, c.number(step))
    return x if start == 0 else c.op("add", x, c.number(start))


@operator("embedding.default")
def _embedding(c, table, ids, *_, **__):
    return c.reshape(c.op("gather", table, c.reshape(ids, [count(ids.shape)])), c.shape)


@operator("index_select.default")
def _index_select(c, x, axis, ids):
    return c.op("take", x, ids, axis % x.ndim)
