"""Gemma, and any graph, compiled for CPUs by an e-graph compiler.

``Model`` opens models; ``lapidary.ir`` builds, compiles and explains functions of the tensor language;
``from_torch`` makes one of a PyTorch module.
"""

from typing import Any

from . import ir
from ._errors import Error, UsageError, Warning
from ._lapidary import __VERSION__ as __version__
from .model import Generation, Model

__all__ = ["Error", "Generation", "Model", "UsageError", "Warning", "__version__", "from_torch", "ir"]


def from_torch(module: Any, example_inputs: Any, **options: Any) -> Any:
    """Compiles a PyTorch module for inputs of the shapes of ``example_inputs``: see ``lapidary.torch.from_torch``."""
    from .torch import from_torch

    return from_torch(module, example_inputs, **options)
