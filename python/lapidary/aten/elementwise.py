"""Elementwise operators."""

import math

from .. import ir
from .translator import OPERATORS, operator


for _aten, _ir in [
    ("neg", "neg"), ("reciprocal", "recip"), ("sqrt", "sqrt"), ("rsqrt", "rsqrt"), ("exp", "exp"), ("log", "log"),
    ("tanh", "tanh"), ("cos", "cos"), ("sin", "sin"), ("abs", "abs"), ("floor", "floor"), ("relu", "relu"),
    ("sigmoid", "sigmoid"), ("silu", "silu"),
]:
    OPERATORS[f"aten.{_aten}.default"] = lambda c, x, name=_ir: c.op(name, c.float(x))

for _aten, _ir in [("maximum.default", "maximum"), ("minimum.default", "minimum"), ("mul.Tensor", "mul"),
                   ("mul.Scalar", "mul")]:
    OPERATORS[f"aten.{_aten}"] = lambda c, a, b, name=_ir: c.op(name, *c.pair(a, b))

for _name in ["lt", "le", "gt", "ge", "eq", "ne"]:
    for _overload in ["Tensor", "Scalar"]:
        OPERATORS[f"aten.{_name}.{_overload}"] = lambda c, a, b, name=_name: c.op(name, *c.pair(a, b))

for _aten, _ir in [("logical_and.default", "and"), ("bitwise_and.Tensor", "and"), ("logical_or.default", "or"),
                   ("bitwise_or.Tensor", "or")]:
    OPERATORS[f"aten.{_aten}"] = lambda c, a, b, name=_ir: c.op(name, c.cast(a, "bool"), c.cast(b, "bool"))


@operator("logical_not.default", "bitwise_not.default")
def _not(c, x):
    return c.op("not", c.cast(x, "bool"))


@operator("add.Tensor", "add.Scalar")
def _add(c, a, b, alpha=1):
    a, b = c.pair(a, b)
    return c.op("add", a, b if alpha == 1 else c.op("mul", b, c.number(alpha)))


@operator("sub.Tensor", "sub.Scalar")
def _sub(c, a, b, alpha=1):
    a, b = c.pair(a, b)
    return c.op("sub", a, b if alpha == 1 else c.op("mul", b, c.number(alpha)))


@operator("rsub.Scalar", "rsub.Tensor")
def _rsub(c, a, b, alpha=1):
    return _sub(c, b, a, alpha)


@operator("div.Tensor", "div.Scalar")
def _div(c, a, b):
    a, b = c.float(a), c.float(b)
    # By a power of two a product is the same number.
    if not isinstance(b, ir.Value) and math.frexp(b)[0] == 0.5:
        return c.op("mul", a, 1 / b)
    return c.op("div", a, b if isinstance(b, ir.Value) else float(b))


@operator("pow.Tensor_Scalar", "pow.Tensor_Tensor")
def _pow(c, x, exponent):
    x = c.float(x)
    if not isinstance(exponent, ir.Value) and exponent == 2:
        return c.op("mul", x, x)
    return c.op("pow", x, c.float(exponent) if isinstance(exponent, ir.Value) else float(exponent))


@operator("square.default")
def _square(c, x):
    return c.op("mul", x, x)


@operator("clamp.default")
def _clamp(c, x, low=None, high=None):
    x = x if low is None else c.op("maximum", *c.pair(x, low))
    return x if high is None else c.op("minimum", *c.pair(x, high))


@operator("erf.default")
def _erf(c, x):
    size = c.op("abs", x)
    return c.op("select", c.op("lt", x, 0.0), c.op("neg", _erf_of_positive(c, size)), _erf_of_positive(c, size))


def _erf_of_positive(c, z):
    """erf of numbers of 0 or more, to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26)."""
    t = c.op("recip", c.op("add", c.op("mul", z, 0.3275911), 1.0))
    sum_ = 1.061405429
    for factor in [-1.453152027, 1.421413741, -0.284496736, 0.254829592]:
        sum_ = c.op("add", c.op("mul", t, sum_), factor)
    tail = c.op("mul", c.op("mul", t, sum_), c.op("exp", c.op("neg", c.op("mul", z, z))))
    return c.op("sub", 1.0, tail)


@operator("gelu.default")
def _gelu(c, x, approximate="none"):
    if approximate == "tanh":
        inner = c.op("add", x, c.op("mul", 0.044715, c.op("pow", x, 3.0)))
        inner = c.op("tanh", c.op("mul", math.sqrt(2 / math.pi), inner))
        return c.op("mul", c.op("mul", 0.5, x), c.op("add", 1.0, inner))
    # erf is odd, so x erf(x / sqrt 2) is |x| erf(|x| / sqrt 2).
    size = c.op("abs", x)
    erf = _erf_of_positive(c, c.op("mul", size, math.sqrt(0.5)))
    return c.op("mul", 0.5, c.op("add", x, c.op("mul", size, erf)))


@operator("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(c, condition, a, b):
    return c.op("select", c.cast(condition, "bool"), *c.pair(a, b))


@operator("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(c, x, mask, value):
    value = value if isinstance(value, ir.Value) else c.number(value)
    return c.op("select", mask, value, x)


@operator("clone.default", "contiguous.default", "alias.default", "detach.default", "dropout.default",
          "lift_fresh_copy.default", "detach_.default")
def _same(c, x, *_, **__):
    return x


@operator("_to_copy.default", "to.dtype", "to.dtype_layout")
def _cast(c, x, *_, **__):
    return c.cast(x, c.dtype)
