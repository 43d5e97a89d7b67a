"""The operators of the tensor language as functions over values, made from the language's table.

What the language calls ``and``, ``or`` and ``not`` is ``and_``, ``or_`` and ``not_``.
"""

import keyword

from . import _lapidary
from ._errors import UsageError


def python_name(name):
    """An operator's name as Python can have it."""
    return name + "_" if keyword.iskeyword(name) else name


def _function(name, origin, operands):
    def apply(*given):
        builder = next((o.builder for o in given if hasattr(o, "builder")), None)
        if builder is None:
            raise UsageError(f"{name}: expected a value among the operands; Builder.op takes none too")
        return builder.op(name, *given)

    apply.__name__ = apply.__qualname__ = python_name(name)
    apply.__doc__ = f"The {origin} operator ``{name}`` over: {'; '.join(operands)}."
    return apply


__all__ = [python_name(name) for name, *_ in _lapidary.operators()]

globals().update({python_name(row[0]): _function(*row) for row in _lapidary.operators()})
