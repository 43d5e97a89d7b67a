"""Writes ``lapidary/ops.pyi``, a stub for each operator of the language's table: ``python3 python/tools/stubs.py``."""

import pathlib

from lapidary import ir
from lapidary.ops import python_name

PATH = pathlib.Path(__file__).resolve().parent.parent / "lapidary" / "ops.pyi"

HEAD = '''# Made by tools/stubs.py of the language's table.
from typing import Any

from .ir import Value

def python_name(name: str) -> str: ...
'''


def stubs():
    """The file's text."""
    lines = [HEAD]
    for name, _, operands in ir.operators():
        many = operands[-1] == "..."
        parameters = [f"{letter}: Any" for letter, _ in zip("abcdefgh", operands)] + ["/"]
        lines.append(f"def {python_name(name)}({'*operands: Any' if many else ', '.join(parameters)}) -> Value: ...\n")
    return "".join(lines)


if __name__ == "__main__":
    PATH.write_text(stubs())
