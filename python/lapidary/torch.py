"""PyTorch modules as functions of the tensor language, and the backend ``lapidary`` of ``torch.compile``."""

import operator
import os

import torch

from . import aten
from ._errors import Error, UsageError

_TORCH = os.path.dirname(torch.__file__)

__all__ = ["Exported", "backend", "export", "from_torch", "graph_of"]


def export(module, example_inputs, kwargs=None, dynamic_shapes=None):
    """A module as ``torch.export`` has it, down to the operators that map."""
    decompositions = torch.export.default_decompositions()
    for name in aten.PRESERVED:
        packet, overload = name.removeprefix("aten.").rsplit(".", 1)
        decompositions.pop(getattr(getattr(torch.ops.aten, packet), overload), None)
    with torch.no_grad():
        program = torch.export.export(module, tuple(example_inputs), kwargs, dynamic_shapes=dynamic_shapes)
        return program.run_decompositions(decompositions)


def graph_of(program, name="f"):
    """An exported program as a graph (``lapidary.aten``), and its weights: tensors by name."""
    signature = program.graph_signature
    for output in signature.output_specs:
        if output.kind.name != "USER_OUTPUT":
            raise Error(f"the module writes to `{output.target}`: expected one that changes nothing")
    tensors = {**dict(program.named_parameters()), **dict(program.named_buffers()), **program.constants}
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    graph = {"name": name, "inputs": [], "weights": [], "nodes": [], "outputs": []}
    weights, rows = {}, _Rows()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _placeholder(node, specs[node.name], tensors, graph, weights, rows)
        elif node.op == "call_function":
            graph["nodes"].append(_node(node, rows))
        elif node.op == "output":
            results = node.args[0]
            if not all(isinstance(r, torch.fx.Node) for r in results):
                raise Error(f"the module returns {results}: expected tensors")
            graph["outputs"] = [r.name for r in results]
        else:
            raise Error(f"`{node.name}` is a {node.op}: expected operators alone")
    return graph, weights


class _Rows:
    """The one dim that may be of any length: ``T``."""

    def __init__(self):
        self.name = None

    def type(self, value, what, place=None):
        """Element type and axes of a tensor."""
        shape = []
        for n in value.shape:
            if not isinstance(n, int):
                name = str(n)
                self.name = self.name or (name if name.isidentifier() else None)
                if name != self.name:
                    where = f" ({place})" if place else ""
                    known = f"fixed lengths and `{self.name}`" if self.name else "fixed lengths and one dynamic one"
                    raise Error(f"`{what}`{where} has an axis of length {name}: expected {known}")
                n = "T"
            shape.append(n)
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def _placeholder(node, spec, tensors, graph, weights, rows):
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        raise Error(f"input `{node.name}` is {value!r}: expected a tensor")
    weight = spec.kind.name != "USER_INPUT"
    name = spec.target if weight else node.name
    declared = {"name": name, "node": node.name, **rows.type(value, name)}
    graph["weights" if weight else "inputs"].append(declared)
    if weight:
        weights[name] = tensors[spec.target].detach()


def _node(node, rows):
    value, place = node.meta.get("val"), _place(node)
    if isinstance(value, torch.Tensor):
        ty = rows.type(value, node.name, place)
    elif isinstance(value, list | tuple):
        types = [rows.type(v, node.name, place) for v in value]
        ty = {"dtype": types[0]["dtype"], "shape": [t["shape"] for t in types]}
    else:
        ty = {"dtype": "none", "shape": []}
    target = "getitem" if node.target is operator.getitem else str(node.target)
    return {
        "name": node.name,
        "target": target,
        "args": [_operand(a) for a in node.args],
        "kwargs": {k: _operand(v) for k, v in node.kwargs.items()},
        **ty,
        "place": place,
    }


def _operand(operand):
    if isinstance(operand, torch.fx.Node):
        return {"node": operand.name}
    if isinstance(operand, torch.dtype):
        return {"dtype": str(operand).removeprefix("torch.")}
    if isinstance(operand, list | tuple):
        return [_operand(o) for o in operand]
    if operand is None or isinstance(operand, bool | int | float | str):
        return operand
    # Devices, layouts and memory formats: where a tensor lies, not what it is.
    return None


def _place(node):
    """The line that made a node, the last one that is not torch's own: its file, its number and its text."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    frames = [i for i, line in enumerate(lines) if line.startswith('File "')]
    own = [i for i in frames if not lines[i].split('"')[1].startswith(_TORCH)]
    if not frames:
        return None
    at = (own or frames)[-1]
    file, number = lines[at].split('"')[1], lines[at].split("line ")[1].split(",")[0]
    text = lines[at + 1] if at + 1 < len(lines) else ""
    return f"{os.path.basename(file)} line {number}: {text}".rstrip(": ")


class Exported:
    """A module compiled for inputs of some shapes. Calls take tensors, or numpy arrays, and give back the same."""

    def __init__(self, graph, weights, module=None, **options):
        self.graph = graph
        #: The function of the tensor language.
        self.function = aten.translate(graph)
        #: Its weights, numpy arrays by name, which lie where the module has them.
        self.weights = {name: _array(w) for name, w in weights.items()}
        #: The compiled function.
        self.compiled = self.function.compile(self.weights, **options)
        # Weights are read where they lie: as long as they are read, they are.
        self._kept = (module, weights)

    def __call__(self, *inputs):
        given = [_array(x) for x in inputs]
        results = self.compiled(*given)
        if not any(isinstance(x, torch.Tensor) for x in inputs):
            return results
        if isinstance(results, tuple):
            return tuple(torch.from_numpy(r) for r in results)
        return torch.from_numpy(results)

    def save(self, path):
        """Writes ``path.ir``, the function, and ``path.safetensors``, its weights: what ``lapidary call`` takes."""
        from safetensors.numpy import save_file

        path = os.fspath(path)
        with open(path + ".ir", "w", encoding="utf-8") as file:
            file.write(str(self.function))
        save_file(self.weights, path + ".safetensors")

    def __repr__(self):
        return f"<lapidary.torch.Exported {self.function.name}>"


def _array(tensor):
    """A tensor's memory as a numpy array."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    if tensor.device.type != "cpu":
        raise UsageError(f"expected tensors on the CPU, found one on {tensor.device}")
    return tensor.detach().contiguous().numpy()


def from_torch(module, example_inputs, kwargs=None, *, name=None, dynamic_shapes=None, **options):
    """Compiles a module for inputs of the shapes of ``example_inputs`` (a tensor, or a tuple).

    ``dynamic_shapes`` is ``torch.export``'s. One dim may be dynamic, the rows: it is ``T`` in the function, and calls
    may have any number of them. Code is made for each when it first comes.

    The module is exported by ``torch.export`` as it is: ``module.eval()`` first, if it is not to be trained. Its
    weights stay where they are and are not copied. Options are those of ``lapidary.ir.Function.compile``.

    Raises ``Error`` for an aten operator that maps onto none, which names it and the line of its source.
    """
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    program = export(module, example_inputs, kwargs, dynamic_shapes)
    graph, weights = graph_of(program, name or type(module).__name__)
    return Exported(graph, weights, module, **options)


def backend(module, example_inputs, **options):
    """The backend ``lapidary`` of ``torch.compile``, for inference: code is made for each set of shapes when it first
    comes. Parameters and buffers are read where they lie."""
    is_weight = [isinstance(x, torch.nn.Parameter | torch.nn.Buffer) for x in example_inputs]
    codes = {}

    def call(*args):
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            raise Error("the backend lapidary makes no gradients: call the module under torch.no_grad()")
        key = tuple(
            (a.data_ptr() if weight else (a.shape, a.dtype)) if isinstance(a, torch.Tensor) else a
            for a, weight in zip(args, is_weight)
        )
        code = codes.get(key)
        if code is None:
            code = codes[key] = _compiled(module, args, is_weight, options)
        return code(args)

    return call


def _compiled(module, args, is_weight, options):
    """Code for arguments like these: a function from arguments to a tuple of tensors."""
    if not any(isinstance(a, torch.Tensor) for a in args):
        raise Error("expected a graph that takes tensors")
    program = export(_Plain(module, args), [a for a in args if isinstance(a, torch.Tensor)])
    graph, weights = graph_of(program, "graph")
    tensors = [(i, a) for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    # What is exported as an input, and is a parameter here, is a weight.
    taken = []
    inputs, graph["inputs"] = graph["inputs"], []
    for declared, (at, tensor) in zip(inputs, tensors):
        if is_weight[at]:
            graph["weights"].append(declared)
            weights[declared["name"]] = tensor.detach()
        else:
            graph["inputs"].append(declared)
            taken.append(at)
    exported = Exported(graph, weights, module, **options)

    def call(args):
        results = exported(*(args[at] for at in taken))
        return results if isinstance(results, tuple) else (results,)

    return call


class _Plain(torch.nn.Module):
    """A graph's module whose numbers among the arguments are fixed."""

    def __init__(self, module, args):
        super().__init__()
        self.module = module
        self.fixed = [None if isinstance(a, torch.Tensor) else a for a in args]

    def forward(self, *tensors):
        rest = iter(tensors)
        return self.module(*(next(rest) if f is None else f for f in self.fixed))
