"""The table of operators, and what goes through a graph by it."""

import math

from .. import ir
from .._errors import Error

#: Element types that map, by torch's names.
DTYPES = {"float32": "f32", "int64": "i32", "int32": "i32", "bool": "bool"}

#: Overloads by name: what each makes of a translator, its node, and operands.
OPERATORS = {}

#: Operators that torch would take apart, and that are translated whole.
PRESERVED = [
    "aten.linear.default", "aten.layer_norm.default", "aten.rms_norm.default", "aten.gelu.default", "aten.silu.default",
    "aten.scaled_dot_product_attention.default", "aten.softmax.int", "aten._softmax.default", "aten.split.Tensor",
    "aten.split_with_sizes.default", "aten.chunk.default", "aten.matmul.default", "aten.addmm.default",
    "aten.embedding.default", "aten.var.correction", "aten.where.self", "aten.masked_fill.Scalar", "aten.stack.default",
    "aten.conv2d.default", "aten.convolution.default", "aten.square.default", "aten.unflatten.int",
]


def operator(*names):
    """Registers a translation for overloads by their names."""

    def register(function):
        for name in names:
            OPERATORS[f"aten.{name}"] = function
        return function

    return register


class Translator:
    """A graph on its way to a function."""

    def __init__(self, graph):
        self.graph = graph
        self.builder = ir.Builder(graph["name"])
        self.values = {}
        # Of what was made by a movement, what it moved: so that one movement after another is one.
        self.reshaped, self.permuted = {}, {}

    def translate(self):
        """The function: inputs and weights by their names, results ``y``, or ``y0``, ``y1``, ... ."""
        for kind, declare in [("inputs", self.builder.rows), ("weights", self.builder.weight)]:
            for tensor in self.graph[kind]:
                dtype = DTYPES.get(tensor["dtype"])
                if dtype is None:
                    known = ", ".join(DTYPES)
                    raise Error(f"tensor `{tensor['name']}` is {tensor['dtype']}: expected one of {known}")
                self.values[tensor["node"]] = declare(tensor["name"], tensor["shape"], dtype)
        for node in self.graph["nodes"]:
            self.values[node["name"]] = self.node(node)
        outputs = self.graph["outputs"]
        for at, name in enumerate(outputs):
            value = self.values[name]
            self.builder.output("y" if len(outputs) == 1 else f"y{at}", value)
        return self.builder.function().squeezed()

    def node(self, node):
        """The value of one node; errors name it and its line."""
        target = node["target"]
        place = f", {node['place']}" if node.get("place") else ""
        translate = OPERATORS.get(target)
        if translate is None:
            raise Error(f"{target} (`{node['name']}`{place}) maps onto no operator")
        try:
            args = [self.operand(a) for a in node["args"]]
            kwargs = {k: self.operand(v) for k, v in node["kwargs"].items() if v is not None}
            return translate(Context(self, node), *args, **kwargs)
        except (Error, TypeError, IndexError) as error:
            raise Error(f"{target} (`{node['name']}`{place}): {error}") from error

    def operand(self, operand):
        """An operand: values of nodes, element types, lists and numbers."""
        if isinstance(operand, dict):
            return self.values[operand["node"]] if "node" in operand else DTYPES.get(operand["dtype"], operand["dtype"])
        if isinstance(operand, list):
            return [self.operand(o) for o in operand]
        return operand


class Context:
    """What a translation may ask for beside its operands."""

    def __init__(self, translator, node):
        self.op = translator.builder.op
        self._reshaped, self._permuted = translator.reshaped, translator.permuted
        self.shape = node["shape"]
        self.dtype = DTYPES.get(node["dtype"], node["dtype"])

    def float(self, x):
        """A value as f32."""
        return self.cast(x, "f32")

    def cast(self, x, dtype):
        """A value as another element type."""
        if not isinstance(x, ir.Value) or x.dtype == dtype:
            return x
        if x.dtype == "bool":
            return self.op("select", x, *((1.0, 0.0) if dtype == "f32" else (1, 0)))
        if (x.dtype, dtype) == ("i32", "f32"):
            return x.astype("f32")
        if dtype == "bool":
            return self.op("not", self.op("eq", x, 0))
        raise Error(f"there is no cast from {x.dtype} to {dtype}")

    def reshape(self, x, shape):
        """A value in another shape."""
        x, shape = self._reshaped.get(x, x), list(shape)
        if list(x.shape) == shape:
            return x
        y = x.reshape(shape)
        self._reshaped[y] = x
        return y

    def permute(self, x, order):
        """A value with its axes in another order."""
        x, before = self._permuted.get(x, (x, range(x.ndim)))
        order = [before[a % x.ndim] for a in order]
        if order == list(range(x.ndim)):
            return x
        y = x.transpose(order)
        self._permuted[y] = x, order
        return y

    def is_turned(self, x):
        """Whether the second to last axis of a value is the last of what it was made of by moving axes alone."""
        _, order = self._permuted.get(x, (x, range(x.ndim)))
        return x.ndim > 1 and list(order)[-2] == x.ndim - 1

    def expand(self, x, shape):
        """A value stretched as numpy does."""
        shape = list(shape)
        x = self.reshape(x, [1] * (len(shape) - x.ndim) + list(x.shape))
        return x if list(x.shape) == shape else self.op("broadcast", x, shape)

    def number(self, value):
        """A number in the result's element type."""
        return float(value) if self.dtype == "f32" else int(value)

    def pair(self, a, b):
        """Two operands, promoted to one element type."""
        kinds = {o.dtype for o in (a, b) if isinstance(o, ir.Value)}
        floats = "f32" in kinds or isinstance(a, float) or isinstance(b, float) or self.dtype == "f32"
        to = "f32" if floats else "i32"
        if kinds == {"bool"} and isinstance(a, ir.Value) and isinstance(b, ir.Value):
            to = "bool"

        def one(x):
            return self.cast(x, to) if isinstance(x, ir.Value) else (float(x) if to == "f32" else int(x))

        return one(a), one(b)


def count(shape):
    """Elements of a shape; ``T`` alone of one that has it."""
    shape = list(shape)
    named = [n for n in shape if isinstance(n, str)]
    fixed = math.prod(n for n in shape if not isinstance(n, str))
    if not named:
        return fixed
    if len(named) > 1 or fixed != 1:
        shown = " x ".join(map(str, shape))
        raise Error(f"{shown} elements, one after the other: the rows, T, stay an axis of their own")
    return named[0]
