"""The tensor language: functions built, parsed, printed, interpreted, compiled, explained.

Each operator of the language is a function of this module (``lapidary.ops``), over values of a ``Builder``;
``operators()`` lists them.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _lapidary
from ._errors import Error, UsageError
from ._rules import Rules, builtin_rules, options, options_of_function  # noqa: F401
from .ops import *  # noqa: F403

#: Axes: numbers, ``"T"`` or ``"S"``.
Shape = Sequence[int | str]
#: A tensor's name, element type, axes and kind.
Declared = tuple[str, str, tuple[int | str, ...], str]

#: Rows (tokens) of a call.
T = "T"
#: Keys in the cache once the call's rows are appended.
S = "S"


def operators() -> list[tuple[str, str, list[str]]]:
    """Every operator: its name in text, where it comes from (``primitive``, ``fused``, ``derived``), and what each
    operand may be."""
    return _lapidary.operators()


def _dims(shape):
    return "[" + ",".join(str(d) for d in shape) + "]"


class Value:
    """A value of a function that is being built. Operators of Python are those of the language."""

    __slots__ = ("_node", "builder")
    __array_ufunc__ = None

    def __init__(self, builder, node):
        self.builder = builder
        self._node = node

    @property
    def dtype(self) -> str | None:
        """Element type, ``f32``; of what is no tensor None."""
        return self._node.dtype

    @property
    def shape(self) -> tuple[int | str, ...] | None:
        """Axes: numbers, ``"T"`` or ``"S"``; of what is no tensor None."""
        shape = self._node.shape
        return None if shape is None else tuple(shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._node.shape)

    def _axis(self, axis):
        if isinstance(axis, int):
            return axis + self.ndim if axis < 0 else axis
        return tuple(sorted(self._axis(a) for a in axis))

    def _reduce(self, name, axis):
        return self.builder.op(name, self, self._axis(axis))

    def sum(self, axis: int | Iterable[int] = -1) -> "Value":
        """The sum over an axis, or several, which keep length 1."""
        return self._reduce("sum", axis)

    def mean(self, axis: int | Iterable[int] = -1) -> "Value":
        """The mean over an axis, or several, which keep length 1."""
        return self._reduce("mean", axis)

    def max(self, axis: int | Iterable[int] = -1) -> "Value":
        """The largest element along an axis, or several, which keep length 1."""
        return self._reduce("max", axis)

    def min(self, axis: int | Iterable[int] = -1) -> "Value":
        """The smallest element along an axis, or several, which keep length 1."""
        return self._reduce("min", axis)

    def prod(self, axis: int | Iterable[int] = -1) -> "Value":
        """The product over an axis, or several, which keep length 1."""
        return self._reduce("prod", axis)

    def argmax(self, axis: int = -1) -> "Value":
        """The index of the largest element along an axis, which keeps length 1."""
        return self._reduce("argmax", axis)

    def reshape(self, *shape: Any) -> "Value":
        """The same elements in another shape."""
        listed = len(shape) == 1 and not isinstance(shape[0], int | str)
        return self.builder.op("reshape", self, shape[0] if listed else shape)

    def transpose(self, *axes: Any) -> "Value":
        """The axes in another order: axis i of the result is axis ``axes[i]``."""
        axes = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return self.builder.op("transpose", self, [self._axis(a) for a in axes])

    @property
    def mT(self) -> "Value":
        """The last two axes swapped."""
        order = list(range(self.ndim))
        order[-2:] = order[-1], order[-2]
        return self.transpose(order)

    def astype(self, dtype: str) -> "Value":
        """A cast."""
        return self.builder.op("cast", self, dtype)

    def __getitem__(self, index: slice | tuple[slice, ...]) -> "Value":
        """A slice ``[a:b]`` along each axis; of a fixed axis, or the last row ``[-1:]`` of a named one."""
        x = self
        for axis, one in enumerate(index if isinstance(index, tuple) else (index,)):
            if one == builtins.slice(None):
                continue
            if not isinstance(one, builtins.slice) or one.step is not None:
                raise UsageError(f"expected slices of step 1, found {one!r}")
            length = x.shape[axis]
            if isinstance(length, str):
                if (one.start, one.stop) != (-1, None):
                    raise UsageError(f"axis {axis} is {length}: only its last row, [-1:], is sure to be there")
                x = x.builder.op("slice", x, axis, -1, 1)
                continue
            start, stop, _ = one.indices(length)
            x = x.builder.op("slice", x, axis, start, stop - start)
        return x

    def __bool__(self):
        raise UsageError("a value is known when the function is called, not when it is built: `select` chooses by one")

    def __repr__(self):
        return f"<{self._node.ty}>"


class Builder:
    """Builds a function: inputs are declared, operators applied to values, results named.

    >>> b = Builder("double")
    >>> x = b.rows("x", ["T", 4])
    >>> b.output("y", x * 2)
    """

    def __init__(self, name: str = "f"):
        self._builder = _lapidary.Builder(name)

    def rows(self, name: str, shape: Shape, dtype: str = "f32") -> Value:
        """Declares an input that each call has anew."""
        return Value(self, self._builder.input(name, dtype + _dims(shape), "rows"))

    def weight(self, name: str, shape: Shape, dtype: str = "f32") -> Value:
        """Declares an input that stays the same: ``compile`` takes it."""
        return Value(self, self._builder.input(name, dtype + _dims(shape), "weight"))

    def cache(self, name: str, shape: Shape, dtype: str = "f32", window: int | None = None) -> Value:
        """Declares a cache (G, "S", D): ``append`` writes to it, and a result of its name is that."""
        return Value(self, self._builder.input(name, dtype + _dims(shape), "cache", window))

    def op(self, name: str, *operands: Any) -> Value:
        """Applies an operator by its name. Operands are values, numbers, shapes (lists) and words (``"none"``)."""
        return Value(self, self._builder.op(name, [self._operand(o) for o in operands]))

    def _operand(self, operand):
        if isinstance(operand, Value):
            if operand.builder is not self:
                raise UsageError("expected values of one builder")
            return operand._node
        if isinstance(operand, list | tuple):
            return _dims(operand)
        if isinstance(operand, np.integer):
            return int(operand)
        if isinstance(operand, np.floating):
            return float(operand)
        return operand

    def output(self, name: str, value: Value) -> None:
        """Names a result."""
        self._builder.output(name, self._operand(value))

    def function(self) -> "Function":
        """The function so far, verified."""
        return Function(self._builder.function())


class Function:
    """A function of the tensor language, verified. ``Builder`` builds one, ``parse`` reads one."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    @property
    def name(self) -> str:
        """Its name."""
        return self._function.name

    @property
    def inputs(self) -> list[Declared]:
        """Its inputs in order: name, element type, axes, and ``rows``, ``weight`` or ``cache``."""
        return [(name, dtype, tuple(shape), kind) for name, dtype, shape, kind in self._function.inputs]

    @property
    def outputs(self) -> list[Declared]:
        """Its results in order, as ``inputs``; a result that is a cache's has the kind ``cache``."""
        return [(name, dtype, tuple(shape), kind) for name, dtype, shape, kind in self._function.outputs]

    def squeezed(self):
        """The same function without axes of length 1, as those of a batch of one: what rules know best."""
        return Function(self._function.squeezed())

    def __str__(self):
        return str(self._function)

    def __repr__(self):
        return f"<lapidary.ir.Function {self.name}>"

    def verify(self) -> "Function":
        """Every invariant holds: a function that is there was verified when it was made. Returns it."""
        return self

    def interpret(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, np.ndarray]:
        """What the reference interpreter makes of arrays by the inputs' names, weights included: arrays by the results'
        names."""
        given = {**(inputs or {}), **named}
        results = self._function.interpret(_in_order(self, self.inputs, given))
        return {
            name: np.frombuffer(data, dtype).reshape(shape) for name, dtype, shape, data in results
        }

    def compile(self, weights: Mapping[str, Any] | str | os.PathLike | None = None, **options: Any) -> "Compiled":
        """Compiles it to machine code, for each length that it is called with when it first is.

        ``weights`` are arrays by name, which are read where they lie and must not go away, or the path of a safetensors
        file. Options: ``threads``, ``cpu``, ``activations`` (``auto`` rounds products' operands where that is faster,
        ``f32`` does not; here ``f32`` unless asked otherwise), and which rules run: ``rules`` (text, a path or
        ``Rules``), ``passes``, ``disable``, ``only``.
        """
        weights = {} if weights is None else weights
        weights = dict(weights) if isinstance(weights, Mapping) else os.fspath(weights)
        return Compiled(self, self._function.compile(weights, options_of_function(options)))

    def explain(self, kernel: str | None = None, *, rows: int = 1, steps: bool = False, **options: Any) -> str:
        """How each kernel for calls of so many rows, or the one of this name, came about: its operators, the rewrites,
        and what it was chosen over."""
        return self._function.explain(kernel, rows, steps, options_of_function(options))

    def why_not(self, rule: str, **options: Any) -> str:
        """Whether a rule fired, and if not, what stood in its way."""
        return self._function.why_not(rule, options_of_function(options))


class Compiled:
    """A compiled function: called on arrays, by the buffer protocol, where they lie."""

    __slots__ = ("_compiled", "_takes", "function")

    def __init__(self, function, compiled):
        self.function = function
        self._compiled = compiled
        self._takes = [i for i in function.inputs if i[3] != "weight"]

    def __call__(self, *arrays: Any, out: Any = None, **named: Any) -> Any:
        """Calls it on arrays in the order of the inputs that are no weights, or by their names; ``T`` and ``S`` are
        what the shapes say. Returns the result, or of several a tuple in their order.

        Arrays that are dense and of the input's type are not copied. ``out`` are arrays for the results, or one.
        Element types are numpy's of the same name; bf16 is held in uint16, blocks in uint8. A cache is written to in
        place.
        """
        if named:
            arrays = _in_order(self.function, self._takes, dict(zip([i[0] for i in self._takes], arrays)) | named)
        if out is not None and not isinstance(out, list | tuple):
            out = [out]
        results = self._compiled.call(list(arrays), None if out is None else list(out))
        return results[0] if len(results) == 1 else tuple(results)

    def report(self, rows: int = 1, keys: int | None = None) -> dict[str, Any]:
        """What the compiler did for calls of so many rows: ``kernels`` (name and node), ``launches``, ``rules`` that
        fired and how often, ``predicted_ms``, ``compile_ms``, and the ``fused`` function's text."""
        return self._compiled.report(rows, rows if keys is None else keys)

    def __repr__(self):
        return f"<lapidary.ir.Compiled {self.function.name}>"


def parse_module(source: str, name: str = "text") -> list[Function]:
    """The functions of a text; ``name`` is what errors call it."""
    return [Function(f) for f in _lapidary.parse(source, name)]


def parse(source: str, name: str = "text") -> Function:
    """The one function of a text."""
    functions = parse_module(source, name)
    if len(functions) != 1:
        raise UsageError(f"{name}: expected one function, found {', '.join(f.name for f in functions)}")
    return functions[0]


def load(path: str | os.PathLike) -> Function:
    """The one function of a file."""
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file.read(), path)
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}") from error


def _in_order(function, declared, given):
    """Arrays in the order of the inputs."""
    names = [name for name, *_ in declared]
    for name in given:
        if name not in names:
            raise UsageError(f"function `{function.name}`: no input `{name}`: expected {', '.join(names)}")
    for name, dtype, shape, _ in declared:
        if name not in given:
            raise UsageError(f"function `{function.name}`: no array for `{name}`: expected {dtype}{_dims(shape)}")
    return [given[name] for name in names]


def _reflected(name):
    return lambda x, other: x.builder.op(name, other, x)


def _binary(name):
    return lambda x, other: x.builder.op(name, x, other)


def _unary(name):
    return lambda x: x.builder.op(name, x)


for _python, _name in [
    ("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div"), ("pow", "pow"), ("matmul", "matmul"),
    ("and", "and"), ("or", "or"),
]:
    setattr(Value, f"__{_python}__", _binary(_name))
    setattr(Value, f"__r{_python}__", _reflected(_name))
for _python in ["lt", "le", "gt", "ge", "eq", "ne"]:
    setattr(Value, f"__{_python}__", _binary(_python))
for _python, _name in [("neg", "neg"), ("abs", "abs"), ("invert", "not")]:
    setattr(Value, f"__{_python}__", _unary(_name))
Value.__hash__ = object.__hash__
