"""Makes the stored exports beside this file: of each module its graph (NAME.json), and its weights, inputs and what
torch made of them (NAME.safetensors, under ``weight.``, ``input.`` and ``output.``).

Needs torch and the package itself: ``python3 python/tests/exports/make.py``.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from lapidary.torch import export, graph_of  # noqa: E402
from modules import MODULES, make  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, ROWS = 32, 8


def main():
    """Writes the files."""
    for name in MODULES:
        module, inputs = make(name, WIDTH, ROWS)
        graph, weights = graph_of(export(module, inputs), name)
        with torch.no_grad():
            outputs = module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        lines = ",\n".join(
            f' {json.dumps(key)}: ' + (
                "[\n  " + ",\n  ".join(json.dumps(one) for one in value) + "]"
                if isinstance(value, list) and value else json.dumps(value))
            for key, value in graph.items()
        )
        (HERE / f"{name}.json").write_text("{\n" + lines + "\n}\n")
        tensors = {f"weight.{k}": w.contiguous().clone() for k, w in weights.items()}
        tensors |= {f"input.{at}": x.contiguous() for at, x in enumerate(inputs)}
        tensors |= {f"output.{at}": y.contiguous().clone() for at, y in enumerate(outputs)}
        save_file(tensors, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main()
