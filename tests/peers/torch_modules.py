#!/usr/bin/env python3
"""Lapidary beside torch on the seven modules of python/tests/modules.py: eager, torch.compile (inductor, which needs a
C++ compiler), and lapidary.from_torch, on the same threads, weights and inputs, in turns.

    pip install ./python torch
    python3 tests/peers/torch_modules.py --threads 2 --width 512 --rows 1,16,512

A figure is the median time of a call; what is compared is called in turns, so that all meet the same noise. `kernels`
is how many Lapidary's function has, `unfused` without any rule. The last columns are the times of eager and of
torch.compile over Lapidary's, their geometric mean at the end; above 1 Lapidary is faster. Before it is timed, each
result is held to within 1e-4 of eager's.
"""
import argparse
import math
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python" / "tests"))


def calls(run, inputs, seconds):
    """Seconds of a call, over as many calls as take about so long."""
    start = time.perf_counter()
    count = 0
    while True:
        run(*inputs)
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed > seconds:
            return elapsed / count


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", default="1,16,512")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a turn of one of them")
    parser.add_argument("--only", default="", help="names of modules, separated by commas")
    parser.add_argument("--no-inductor", action="store_true", help="leave torch.compile out")
    parser.add_argument("--activations", default="f32", help="f32, or auto, which rounds operands of products")
    args = parser.parse_args()

    import torch
    from modules import MODULES, make

    import lapidary

    torch.set_num_threads(args.threads)
    names = args.only.split(",") if args.only else list(MODULES)
    ratios = {"eager": [], "inductor": []}
    print(f"torch {torch.__version__}, {args.threads} threads, width {args.width}, float32; milliseconds")
    heads = ["lapidary", "eager", "inductor", "eager/l", "ind/l"]
    print(f"{'module':12} {'rows':>5} {'unfused':>7} {'kernels':>7}" + "".join(f" {head:>9}" for head in heads))
    for name in names:
        for rows in [int(r) for r in args.rows.split(",")]:
            module, inputs = make(name, args.width, rows)
            own = lapidary.from_torch(module, inputs, threads=args.threads, activations=args.activations)
            runs = {"lapidary": own, "eager": module}
            if not args.no_inductor:
                torch._dynamo.reset()
                runs["inductor"] = torch.compile(module, dynamic=False)
            with torch.inference_mode():
                expected = module(*inputs)
                far = distance(own(*inputs), expected)
                if not far <= 1e-4:
                    raise SystemExit(f"{name}, {rows} rows: {far:.1e} from torch's, expected 1e-4 at most")
                times = {who: [] for who in runs}
                for run in runs.values():
                    calls(run, inputs, args.seconds / 2)
                for _ in range(args.turns):
                    for who, run in runs.items():
                        times[who].append(calls(run, inputs, args.seconds))
            median = {who: 1e3 * statistics.median(t) for who, t in times.items()}
            unfused = own.function.compile(own.weights, threads=1, passes="none")
            counts = [len(c.report()["kernels"]) for c in (unfused, own.compiled)]
            line = f"{name:12} {rows:5} {counts[0]:7} {counts[1]:7}"
            line += "".join(f" {median[who]:9.3f}" if who in median else f" {'-':>9}" for who in heads[:3])
            for who in ("eager", "inductor"):
                if who in times:
                    ratio = statistics.median(a / b for a, b in zip(times[who], times["lapidary"]))
                    ratios[who].append(ratio)
                    line += f" {ratio:9.2f}"
            print(line, flush=True)
    for who, all_of in ratios.items():
        if all_of:
            mean = math.exp(statistics.fmean(map(math.log, all_of)))
            print(f"geometric mean, {who} / lapidary: {mean:.2f}")


def distance(found, expected):
    """The largest distance of an element."""
    import torch

    found, expected = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (found, expected))
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


if __name__ == "__main__":
    main()
