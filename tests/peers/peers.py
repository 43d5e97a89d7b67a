#!/usr/bin/env python3
"""Lapidary beside other engines: the same random weights, the same threads, in turns.

Makes a checkpoint of random weights (`lapidary synth`) or takes one, converts it for each peer, and measures prefill
and decode. A pair of engines takes turns, phase by phase and who is first alternating, so that both meet the same
noise; figures are medians, ratios are medians of the ratios of the turns. The head is computed for the last position
only, of each of --sequences where they are decoded together. With --gguf both read the same file as it is stored,
llama.cpp being the only peer.

    pip install torch transformers             # bf16, eager attention
    pip install openvino optimum-intel nncf    # bf16, int8 a channel, int4 in groups of 128
    pip install llama-cpp-python gguf          # BF16, Q8_0, Q4_0; GCC 12 miscompiles its AMX code: CC=clang CXX=clang++
    pip install tokenizers                     # mistral.rs: f16, Q8_0, Q4K; --prepare builds it by cargo into --work
    python3 tests/peers/peers.py --lapidary target/release/lapidary --model 2b --work /tmp/peers
    python3 tests/peers/peers.py --gguf gemma-2-2b-it-Q4_K_M.gguf --sequences 1,8 --depth 128,4096 --work /tmp/peers

A peer that is not installed is said to be absent and left out. Converted checkpoints stay in --work (13 GB for 2B, all
formats).
"""
import argparse, contextlib, json, os, pathlib, select, shutil, signal, statistics, subprocess, sys

import convert

HERE = pathlib.Path(__file__).resolve().parent

# peer: (modules that it needs, what to install, the nearest format of its own to each of ours); mistral.rs also needs
# its program (`programs`).
PEERS = {
    "torch": (("torch", "transformers"), "torch transformers", {"bf16": "bf16"}),
    "openvino": (("openvino", "optimum.intel", "nncf"), "openvino optimum-intel nncf",
                 {"bf16": "bf16", "q8": "int8", "q4": "int4"}),
    "llama": (("llama_cpp", "gguf"), "llama-cpp-python gguf", {"bf16": "BF16", "q8": "Q8_0", "q4": "Q4_0"}),
    "mistralrs": (("tokenizers",), "tokenizers", {"bf16": "f16", "q8": "Q8_0", "q4": "Q4K"}),
}
FORMATS = ("bf16", "q8", "q4")
# The most that engines.py decodes at once.
SEQUENCES = 32
# The newest version of mistralrs-cli among crates.
MISTRALRS = "0.8.1"
# Seconds that a peer may take to answer: a prompt of thousands of tokens on two cores.
PATIENCE = 900


class Failure(Exception):
    """What keeps one measurement from being made."""


class Peer:
    """A worker process that holds a converted model and measures on demand (engines.py)."""

    def __init__(self, name, path, threads, context, log):
        self.log = open(log, "w+")
        command = [sys.executable, str(HERE / "engines.py"), name, str(path), str(threads), str(context)]
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, env=env, start_new_session=True)
        try:
            self.about = self.answer()
        except Failure:
            self.close()
            raise

    def answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.log.flush(), self.log.seek(0)
        said = [l.strip() for l in self.log.read().splitlines() if l.strip()]
        what = f"no answer in {PATIENCE} s" if not ready else f"ended with status {self.process.wait()}"
        raise Failure(f"{what}: {said[-1][:300] if said else 'it said nothing'}")

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() tells why
        return self.answer()

    def close(self):
        # With a server that it may have started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def lapidary(binary, *arguments):
    """stdout of a command, and the most bytes that were resident."""
    command = [str(binary), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        out, errors = child.stdout.read(), child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        reason = errors.strip().splitlines()[-1] if errors.strip() else child.returncode
        raise Failure(f"lapidary {arguments[0]}: {reason}")
    return out, usage.ru_maxrss * 1024


def bench(args, weights, phase):
    """Tokens a second of one phase, and read bandwidth in bytes a second, by `lapidary bench`."""
    kind, tokens, depth, sequences = phase
    which = (["--prompt-tokens", tokens, "--gen-tokens", 0] if kind == "prefill"
             else ["--gen-tokens", tokens, "--depth", depth, "--sequences", sequences, "--prompt-tokens", 1])
    out, _ = lapidary(args.lapidary, "bench", "-m", args.model, *as_held(weights), "--threads", args.threads,
                      "--repeat", 1, "--json", *which)
    found = json.loads(out)
    rate = next(r["tokens_per_s"] for r in found["results"] if r["phase"] == kind)
    return rate, found["machine"]["read_gbps"] * 1e9


def as_held(weights):
    """The option that has them held so; none for those of a file as it is."""
    return ["--weights", weights] if weights in FORMATS else []


def compare(args, peer, weights, path, phases):
    """Rows of the table for one peer and one format of ours."""
    longest = max(tokens + depth for _, tokens, depth, _ in phases)
    # What is appended to each sequence has a place of its own.
    room = max(depth + sequences * tokens for _, tokens, depth, sequences in phases)
    worker = Peer(peer, path, args.threads, room + 1, args.work / f"{peer}.log")
    try:
        turns = {phase: [] for phase in phases}
        for turn in range(args.repeat):
            for phase in phases:
                kind, tokens, depth, sequences = phase

                def theirs():
                    asked = worker.ask(phase=kind, tokens=tokens, depth=depth, sequences=sequences)
                    return sequences * tokens / asked["seconds"]

                if turn % 2 == 0:
                    ours, other = bench(args, weights, phase), theirs()
                else:
                    other, ours = theirs(), bench(args, weights, phase)
                turns[phase].append((*ours, other))
        about = worker.about | worker.ask(phase="memory")
    finally:
        worker.close()
    # Ours in a process that has seen as many positions: `bench` holds the buffer that it measures bandwidth with. A
    # letter is a token of the tokenizer that `synth` writes, and at most one of any other.
    out, resident = lapidary(args.lapidary, "run", "-m", args.model, *as_held(weights), "--threads", args.threads,
                             "--raw", "--json", "--tokens", 1, "x" * (longest - 2))
    held = json.loads(out)["stats"]["weight_bytes"]
    stored = convert.bytes_of(path)
    rows = []
    for (kind, tokens, depth, sequences), found in turns.items():
        of = statistics.median
        row = {
            "phase": kind, "tokens": tokens, "depth": depth, "sequences": sequences, "threads": args.threads,
            "turns": len(found), "weights": weights, "peer": peer, "peer_version": about["version"],
            "peer_format": PEERS[peer][2].get(weights, "the same file"),
            "tokens_per_s": of(f[0] for f in found), "peer_tokens_per_s": of(f[2] for f in found),
            "ratio": of(f[0] / f[2] for f in found), "ratios": [f[0] / f[2] for f in found],
            "read_gbps": of(f[1] for f in found) / 1e9, "rss_bytes": resident, "peer_rss_bytes": about["rss"],
            "weight_bytes": held, "peer_weight_bytes": stored,
        }
        if kind == "decode" and sequences == 1:
            row["bandwidth_share"] = of(f[0] * held / f[1] for f in found)
            row["peer_bandwidth_share"] = of(f[2] * stored / f[1] for f in found)
        rows.append(row)
    return rows


def table(rows):
    """Rows as Markdown."""
    lines = ["| ours | peer | phase | ours, tok/s | peer, tok/s | ratio (range) | of read: ours, peer | weights, GB "
             "| resident, GB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        phase = f"prefill {r['tokens']}" if r["phase"] == "prefill" else f"decode at {r['depth']}"
        phase += f", {r['sequences']} sequences" if r["sequences"] > 1 else ""
        share = f"{r['bandwidth_share']:.2f}, {r['peer_bandwidth_share']:.2f}" if "bandwidth_share" in r else ""
        lines.append(
            f"| {r['weights']} | {r['peer']} {r['peer_format']} | {phase} "
            f"| {r['tokens_per_s']:.2f} | {r['peer_tokens_per_s']:.2f} "
            f"| {r['ratio']:.2f} ({min(r['ratios']):.2f} - {max(r['ratios']):.2f}) | {share} "
            f"| {r['weight_bytes'] / 1e9:.2f}, {r['peer_weight_bytes'] / 1e9:.2f} "
            f"| {r['rss_bytes'] / 1e9:.2f}, {r['peer_rss_bytes'] / 1e9:.2f} |")
    return "\n".join(lines)


def programs(work):
    """Adds what is built in --work to where programs are looked for."""
    os.environ["PATH"] = os.pathsep.join((str(work.absolute() / "mistralrs/bin"), os.environ.get("PATH", "")))


def build_mistralrs(work):
    """mistral.rs by cargo for this very CPU: a quarter of an hour on two cores."""
    print("mistralrs: building it with cargo", file=sys.stderr, flush=True)
    root, target = work.absolute() / "mistralrs", work.absolute() / "mistralrs-target"
    env = os.environ | {"RUSTFLAGS": "-C target-cpu=native", "CARGO_TARGET_DIR": str(target)}
    command = ["cargo", "install", "--locked", "--root", str(root), f"mistralrs-cli@{MISTRALRS}"]
    if subprocess.run(command, env=env, stdout=sys.stderr).returncode != 0:
        raise Failure("cargo cannot build mistralrs-cli")
    shutil.rmtree(target, ignore_errors=True)


def missing(peer):
    """What of a peer is not installed. Modules are asked of the interpreter that the workers run in."""
    if peer == "mistralrs" and not shutil.which(peer):
        return "no program mistralrs (--prepare builds it)"
    probe = "import importlib.util, sys\nfor m in sys.argv[1:]:\n try: found = importlib.util.find_spec(m)\n" \
            " except ImportError: found = None\n if found is None: print(m)"
    done = subprocess.run([sys.executable, "-c", probe, *PEERS[peer][0]], capture_output=True, text=True)
    absent = done.stdout.split()
    return absent and f"no module {', '.join(absent)} (pip install {PEERS[peer][1]})"


def whole(least):
    def parse(text):
        try:
            n = int(text)
        except ValueError:
            n = None
        if n is None or n < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        return n
    return parse


def several(of):
    """Values separated by commas, none twice; an empty string is none."""
    def parse(text):
        found = [of(part.strip()) for part in text.split(",")] if text else []
        return list(dict.fromkeys(found))
    return parse


def one_of(names):
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected {', '.join(names)}, found {text!r}")
        return text
    return parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--lapidary", type=pathlib.Path, default=HERE.parent.parent / "target/release/lapidary", metavar="FILE",
        help="the command [target/release/lapidary]")
    add("--model", type=pathlib.Path, metavar="DIR", help="a Gemma 2 in bf16 [made with `lapidary synth` in --work]")
    add("--gguf", type=pathlib.Path, metavar="FILE",
        help="a GGUF that both read as it is, in the place of --model and --formats")
    add("--preset", choices=("2b", "9b", "27b"), default="2b", help="size of the model made without --model [2b]")
    add("--work", type=pathlib.Path, required=True, metavar="DIR", help="where converted checkpoints are kept")
    add("--peers", type=several(one_of(tuple(PEERS))), default=list(PEERS), metavar="NAME,..",
        help=f"[{','.join(PEERS)}]")
    add("--formats", type=several(one_of(FORMATS)), default=list(FORMATS), metavar="FORMAT,..",
        help=f"ours; each peer runs its nearest [{','.join(FORMATS)}]")
    add("--prompt-tokens", type=several(whole(1)), default=[128, 512], metavar="N,..", help="[128,512]; '' for none")
    add("--gen-tokens", type=whole(1), default=16, metavar="N", help="tokens to decode [16]")
    add("--depth", type=several(whole(1)), default=[128], metavar="N,..",
        help="tokens before decode starts [128]; '' for none")
    add("--sequences", type=several(whole(1)), default=[1], metavar="N,..",
        help="sequences that are decoded at once [1]")
    add("--threads", type=whole(1), default=len(os.sched_getaffinity(0)), metavar="N", help="[one a CPU]")
    add("--repeat", type=whole(1), default=5, metavar="N", help="turns of each engine [5]")
    add("--prepare", action="store_true", help="only make and convert checkpoints")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the rows, every turn's ratio with them")
    args = parser.parse_args()
    if not os.access(args.lapidary, os.X_OK) or args.lapidary.is_dir():
        parser.error(f"--lapidary: {args.lapidary} is no program: expected the release build of `lapidary`")
    if args.model and not (args.model / "config.json").is_file():
        parser.error(f"--model: {args.model} has no config.json: expected a Hugging Face folder")
    if args.gguf:
        if not args.gguf.is_file():
            parser.error(f"--gguf: {args.gguf} is no file")
        if args.model:
            parser.error("--gguf and --model: expected one of them")
        args.model, args.peers, args.formats = args.gguf, ["llama"], [args.gguf.name.removesuffix(".gguf")]
    if any(n > SEQUENCES for n in args.sequences):
        parser.error(f"--sequences: expected at most {SEQUENCES}")
    if not args.peers or not args.formats:
        parser.error("--peers and --formats: expected at least one name each")
    if not args.prompt_tokens and not args.depth:
        parser.error("--prompt-tokens and --depth are both empty: nothing to measure")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json: {args.json.absolute().parent} is no folder")
    try:
        args.work.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        parser.error(f"--work: {args.work}: {e.strerror}")
    return args


def main():
    args = arguments()
    phases = [("prefill", n, 0, 1) for n in args.prompt_tokens]
    phases += [("decode", args.gen_tokens, d, n) for d in args.depth for n in args.sequences]
    rows, failures = [], []
    if not args.model:
        args.model = args.work / args.preset
        if not (args.model / "config.json").is_file():
            print(f"lapidary: writing {args.model}", file=sys.stderr, flush=True)
            lapidary(args.lapidary, "synth", "--preset", args.preset, "-o", args.model)
    programs(args.work)
    for peer in args.peers:
        if args.prepare and peer == "mistralrs" and not shutil.which(peer):
            try:
                build_mistralrs(args.work)
            except (Failure, OSError) as e:
                failures.append(f"{peer}: failed: {e}")
                continue
        if absent := missing(peer):
            failures.append(f"{peer}: absent, {absent}")
            continue
        for weights in (w for w in args.formats if args.gguf or w in PEERS[peer][2]):
            theirs = PEERS[peer][2].get(weights, weights)
            try:
                path = args.gguf or convert.convert(peer, args.model, theirs, args.work)
                if not args.prepare:
                    # Ours converts and caches its weights outside of what is timed.
                    lapidary(args.lapidary, "run", "-m", args.model, *as_held(weights), "--tokens", 1, "--raw", "x")
                    print(f"{peer} {theirs}: measuring", file=sys.stderr, flush=True)
                    rows += compare(args, peer, weights, path, phases)
            except (Failure, RuntimeError, OSError) as e:
                failures.append(f"{peer} {theirs}: failed: {e}")
    for failure in failures:
        print(failure, file=sys.stderr)
    if args.prepare:
        sys.exit(1 if any("failed:" in f for f in failures) else 0)
    if not rows:
        sys.exit("error: nothing was compared")
    for version in dict.fromkeys(f"{r['peer']} {r['peer_format']}: {r['peer_version']}" for r in rows):
        print(version)
    read = statistics.median(r["read_gbps"] for r in rows)
    print(f"reads: {read:.1f} GB/s; {args.threads} threads; medians of {args.repeat} turns\n")
    print(table(rows))
    if args.json:
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(part, args.json)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
