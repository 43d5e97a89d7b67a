"""Graphs of aten operators as functions of the tensor language.

A graph is plain data, so that it can be kept as JSON and translated without torch:

``name``; ``inputs`` and ``weights``, each ``{"name", "node", "dtype", "shape"}``; ``nodes``, each ``{"name", "target",
"args", "kwargs", "dtype", "shape", "place"}`` in an order in which operands come first; ``outputs``, a list of nodes'
names. An operand that is a node is ``{"node": name}``, an element type ``{"dtype": name}``; ``place`` is the line of
the module's source. Shapes are fixed. ``lapidary.torch`` makes graphs of modules.

``OPERATORS`` has a function for each operator that maps, ``PRESERVED`` those that are not to be decomposed before.
"""

from . import elementwise, made, movement, products, reductions  # noqa: F401: they fill the table
from .translator import DTYPES, OPERATORS, PRESERVED, Context, Translator, operator

__all__ = ["DTYPES", "OPERATORS", "PRESERVED", "Context", "Translator", "operator", "translate"]


def translate(graph):
    """The function of a graph: its inputs and weights have the graph's names, its results are ``y``, or of several
    ``y0``, ``y1``, ... .

    Raises ``Error`` for an operator that maps onto none, which names it, its node and the line of its source.
    """
    return Translator(graph).translate()
