#!/usr/bin/env python3
"""Cycles of the inner loops that Lapidary makes for AArch64, by LLVM's models of its CPUs (llvm-mca), on any machine.

    cargo build --release
    python3 tests/peers/loops.py --work /tmp/loops [--mca llvm-mca-22] [--ggml LLAMA.CPP/ggml] [--kleidiai FILE]

Objects of a layer of Gemma 2 2B's shape are compiled for each CPU and disassembled; of each raw microkernel the loop
with the most multiply-adds counts, as it is in the file. `--ggml` compiles ggml's own loops for the same CPUs
(aarch64-linux-gnu-gcc) and reads them in the same way; `--kleidiai` reads KleidiAI's out of a file that has them, which
torch's package for AArch64 does (`pip download --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 torch`,
torch/lib/libtorch_cpu.so in it), weights of 4 bits with a scale every 32. A figure is multiply-adds a cycle of one
core with everything in its first cache; `peak` is what the model gives for the loop's own multiply instruction alone,
24 times with different registers. LLVM knows Neoverse N1, N2 and V1 since version 17; its model of Cortex-A72 is
Cortex-A57's.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

# CPUs that code is made for, and the models it is tried on.
CPUS = [
    ("cortex-a72", ["cortex-a72"]),
    ("neoverse-n1", ["neoverse-n1"]),
    ("neoverse-v1", ["neoverse-n2", "neoverse-v1"]),
]
FORMATS = ["q4", "q8", "bf16"]
# Multiply-adds of an instruction: of integers and bf16, which come before those of f32 that scale their sums.
PRODUCTS = {"sdot": 16, "smmla": 32, "bfmmla": 16, "bfdot": 8, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}
FLOATS = {"fmla": 4}
BRANCH = re.compile(r"^(?:b\.\w+|cbn?z \w+,|tbn?z \w+, #\d+,)\s*([0-9a-f]+)\b")
# ggml's functions: of weights of 4 bits, 8 bits and bf16.
GGML = {
    "q4": ["ggml_vec_dot_q4_0_q8_0", "ggml_gemv_q4_0_4x4_q8_0", "ggml_gemv_q4_0_4x8_q8_0",
           "ggml_gemm_q4_0_4x4_q8_0", "ggml_gemm_q4_0_4x8_q8_0"],
    "q8": ["ggml_vec_dot_q8_0_q8_0", "ggml_gemv_q8_0_4x4_q8_0", "ggml_gemv_q8_0_4x8_q8_0",
           "ggml_gemm_q8_0_4x4_q8_0", "ggml_gemm_q8_0_4x8_q8_0"],
    "bf16": ["ggml_vec_dot_bf16"],
}
# KleidiAI's, and the CPUs that have what they ask for.
KLEIDIAI = {
    "kai_kernel_matmul_clamp_f32_qai8dxp1x8_qsi4c32p8x8_1x8x32_neon_dotprod": ["neoverse-n1", "neoverse-v1"],
    "kai_kernel_matmul_clamp_f32_qai8dxp4x8_qsi4c32p8x8_4x8x32_neon_i8mm": ["neoverse-v1"],
}


def run(*command, **options):
    """Output of a command that must succeed."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {result.returncode}\n{result.stderr}")
    return result.stdout


def functions(binary, *options):
    """Functions of an object: (name, [(address, text of the instruction)])."""
    found, name, lines = [], None, []
    for line in run("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", *options, binary).splitlines():
        head = re.match(r"^[0-9a-f]+ <(.+)>:$", line)
        body = re.match(r"^\s*([0-9a-f]+):\s*(.+?)\s*(//.*)?$", line)
        if head:
            name, lines = head[1], []
            found.append((name, lines))
        elif body and name:
            lines.append((int(body[1], 16), body[2].replace("\t", " ")))
    return found


def multiplies(text):
    """Multiply-adds of an instruction: (of products, of floats)."""
    word = text.split()[0]
    if word in FLOATS and ".4s" not in text:
        return 0, 0
    return PRODUCTS.get(word, 0), FLOATS.get(word, 0)


def loop(lines, outer=False):
    """The loop of a function with the most multiply-adds and no other inside: (instructions, multiply-adds). Or the
    one around it, with each instruction once.
    """
    at = {address: index for index, (address, _) in enumerate(lines)}
    loops = []
    for index, (_, text) in enumerate(lines):
        branch = BRANCH.match(text)
        start = at.get(int(branch[1], 16)) if branch else None
        if start is not None and start <= index:
            loops.append((start, index))
    best = ([], 0)
    for start, end in loops:
        if any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops):
            continue
        body = [text for _, text in lines[start:end]]
        products, floats = (sum(column) for column in zip(*map(multiplies, body), (0, 0)))
        if (products or floats) > best[1]:
            best, inner = (body, products or floats), (start, end)
    around = [l for l in loops if outer and best[1] and l[0] <= inner[0] and inner[1] < l[1]]
    if around:
        start, end = min(around, key=lambda l: l[1] - l[0])
        best = ([text for _, text in lines[start:end] if not BRANCH.match(text)], best[1])
    return best


def cycles(mca, model, body):
    """Cycles of an iteration."""
    rounds = 200
    source = "\n".join(re.sub(r" <.*>$", "", text) for text in body)
    out = run(mca, "-march=aarch64", f"-mcpu={model}", "-mattr=+dotprod,+i8mm,+bf16", f"-iterations={rounds}",
              "-instruction-info=0", "-resource-pressure=0", input=source)
    return int(re.search(r"Total Cycles:\s*(\d+)", out)[1]) / rounds


def peak(mca, model, body):
    """Multiply-adds a cycle of the loop's most frequent multiply instruction alone."""
    words = [text.split()[0] for text in body]
    product = max(PRODUCTS, key=words.count)
    product = product if words.count(product) else "fmla"
    lanes = {"bfmmla": "8h", "bfdot": "8h", "fmla": "4s"}.get(product, "16b")
    if product[:4] in ("smul", "smla"):
        line = "smlal v{}.8h, v30.8b, v31.8b"
    else:
        line = product + " v{}.4s, v30." + lanes + ", v31." + lanes
    return (PRODUCTS | FLOATS)[product] * 24 / cycles(mca, model, [line.format(i) for i in range(24)])


def ours(lapidary, work, weights, cpu):
    """Objects' raw microkernels: (name, body, multiply-adds), each different loop once."""
    model = work / f"2b-{weights}"
    if not model.exists():
        run(lapidary, "synth", "--preset", "gemma2-2b", "--layers", 1, "--weights", weights, "-o", model)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        run(lapidary, "compile", "-m", model, "--weights", weights, "--emit", "object", "--target",
            "aarch64-unknown-linux-gnu", "--cpu", cpu, "--batch", 32, "--context", 1024, "-o", folder)
        code = functions(pathlib.Path(folder) / "model.o")
    seen = set()
    for name, lines in code:
        name = re.match(r"^model\.(neon_.+)_\d+$", name)
        body, count = loop(lines) if name else ([], 0)
        shape = (name and name[1], tuple(text.split()[0] for text in body))
        if count and shape not in seen:
            seen.add(shape)
            yield name[1], body, count


def theirs(ggml, work, weights, cpu):
    """ggml's loops, likewise."""
    cpu_folder = ggml / "src" / "ggml-cpu"
    include = [f"-I{folder}" for folder in (ggml / "include", ggml / "src", cpu_folder)]
    for source in ("arch/arm/quants.c", "arch/arm/repack.cpp", "vec.cpp"):
        target = work / f"{source.replace('/', '-')}.{cpu}.o"
        if not target.exists():
            compiler = "aarch64-linux-gnu-gcc" if source.endswith(".c") else "aarch64-linux-gnu-g++"
            run(compiler, "-O3", f"-mcpu={cpu}", "-DNDEBUG", *include, "-c", cpu_folder / source, "-o", target)
        for name, lines in functions(target):
            known = next((f for f in GGML[weights] if re.search(rf"(^|\d){f}(P|$)", name)), None)
            body, count = loop(lines) if known else ([], 0)
            if count:
                yield known, body, count


def kleidiai(binary, weights, cpu):
    """KleidiAI's loops over blocks, likewise: the loop inside goes round once a block."""
    for name in [name for name, cpus in KLEIDIAI.items() if weights == "q4" and cpu in cpus]:
        for _, lines in functions(binary, f"--disassemble={name}"):
            body, count = loop(lines, outer=True)
            if count:
                yield name, body, count


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lapidary", default="target/release/lapidary")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--mca", default="llvm-mca")
    parser.add_argument("--ggml", type=pathlib.Path, help="llama.cpp's folder `ggml`")
    parser.add_argument("--kleidiai", type=pathlib.Path, help="a file with KleidiAI's functions in it")
    parser.add_argument("--weights", default=",".join(FORMATS))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print("| loop | weights | CPU | multiply-adds a turn | cycles | a cycle | peak |\n|---|---|---|---|---|---|---|")
    for weights in args.weights.split(","):
        for cpu, models in CPUS:
            loops = list(ours(args.lapidary, args.work, weights, cpu))
            if args.ggml:
                loops += theirs(args.ggml, args.work, weights, cpu)
            if args.kleidiai:
                loops += kleidiai(args.kleidiai, weights, cpu)
            for name, body, count in loops:
                for model in models:
                    took = cycles(args.mca, model, body)
                    most = peak(args.mca, model, body)
                    figures = f"{count} | {took:.1f} | {count / took:.1f} | {most:.0f}"
                    print(f"| `{name}` | {weights} | {model} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
