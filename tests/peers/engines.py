"""One peer in a process of its own: `engines.py NAME PATH THREADS CONTEXT`.

On stdin one JSON object a line, on stdout one in answer; first, unasked, {"version"}:
    {"phase": "prefill", "tokens": N, "depth": 0}   {"seconds"}: N tokens from position 0 in one call, logits of the
                                                    last
    {"phase": "decode", "tokens": N, "depth": D, "sequences": S}
                                                    {"seconds"}: N tokens of each of S sequences (1 if not
                                                    given), a token of each at a time, each the likeliest, after
                                                    D that are not timed
    {"phase": "memory"}                             {"rss"}: resident bytes, the mapped weights included
What libraries and servers print goes to stderr.
"""
import atexit, json, os, pathlib, sys, time


def prompt(tokens):
    """Token ids that every vocabulary has, the built-in model's 4,096 too, none of them special."""
    return [300 + (7919 * i) % 3001 for i in range(tokens)]


class Stepped:
    """An engine that is called with tokens: `reset` forgets all, `call` appends tokens to the one sequence, `fork`
    makes more of it, `step` appends a token to each. `call` and `step` return the likeliest next ids."""

    def prefill(self, tokens):
        self.reset()
        ids = prompt(tokens)
        start = time.perf_counter()
        self.call(ids)
        return time.perf_counter() - start

    def decode(self, tokens, depth, sequences):
        self.reset()
        token = self.call(prompt(depth))
        if sequences > 1:
            self.fork(sequences)
        found = [token] * sequences
        start = time.perf_counter()
        for at in range(tokens):
            found = self.step(found, depth + at) if sequences > 1 else [self.call(found)]
        return time.perf_counter() - start

    def resident(self):
        return resident("self")


class Batched(Stepped):
    """One whose `rows` appends ids to each sequence in one call, and returns the likeliest next id of each."""

    def call(self, ids):
        return self.rows([ids])[0]

    def step(self, tokens, position):
        return self.rows([[token] for token in tokens])


class Torch(Batched):
    """transformers on torch: bf16, eager attention (Gemma 2's softcap needs it)."""

    def __init__(self, path, threads, context):
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True).eval()
        self.reset()

    def reset(self):
        self.past = None

    def rows(self, ids):
        ids = self.torch.tensor(ids)
        out = self.model(input_ids=ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1].argmax(-1).tolist()

    def fork(self, sequences):
        self.past.batch_repeat_interleave(sequences)


class OpenVino(Batched):
    """OpenVINO's CPU plugin on a stateful model, with its own defaults for precision and KV cache."""

    def __init__(self, path, threads, context):
        import numpy
        import openvino
        from openvino import opset13 as op

        self.numpy = numpy
        core = openvino.Core()
        model = core.read_model(pathlib.Path(path) / "openvino_model.xml")
        last_row_only(model, op, numpy)
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        compiled = core.compile_model(model, "CPU", options)
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        cache = compiled.get_property("KV_CACHE_PRECISION").to_string()
        self.version = f"openvino {openvino.__version__.split('-')[0]}, {precision}, KV cache {cache}"
        self.request = compiled.create_infer_request()
        self.inputs = {name for port in compiled.inputs for name in port.get_names()}
        self.reset()

    def reset(self):
        self.request.reset_state()
        self.position = 0
        self.beams = self.numpy.zeros(1, self.numpy.int32)

    def rows(self, ids):
        """`beams` is each sequence's row of the cache as the call before left it."""
        count, n, p = len(ids), len(ids[0]), self.position
        ints = lambda values: self.numpy.array(values, self.numpy.int64)
        given = {"input_ids": ints(ids), "attention_mask": ints([[1] * (p + n)] * count),
                 "position_ids": ints([range(p, p + n)] * count), "beam_idx": self.beams}
        self.request.infer({k: v for k, v in given.items() if k in self.inputs})
        self.position += n
        self.beams = self.numpy.arange(count, dtype=self.numpy.int32)
        return self.request.get_tensor("logits").data[:, -1].argmax(-1).tolist()

    def fork(self, sequences):
        self.beams = self.numpy.zeros(sequences, self.numpy.int32)


def last_row_only(model, op, numpy):
    """Puts a slice of the last row before the head's product, as openvino-genai does."""
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        # Through the softcap: its data is the first input throughout.
        node = node.input_value(0).get_node()
    rows = node.input_value(0)
    ints = lambda n: op.constant(numpy.array([n], numpy.int64))
    node.input(0).replace_source_output(op.slice(rows, ints(-1), ints(2**31 - 1), ints(1), ints(1)).output(0))
    model.validate_nodes_and_infer_types()


class Llama(Stepped):
    """llama.cpp through the C functions that llama-cpp-python exposes; weights mapped, flash attention on, F16 KV
    cache."""

    def __init__(self, path, threads, context):
        import llama_cpp

        self.lib = lib = llama_cpp
        self.version = f"llama-cpp-python {lib.__version__}, {lib.llama_print_system_info().decode().strip(' |')}"
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        options = lib.llama_context_default_params()
        options.n_ctx = (context + 255) // 256 * 256
        options.n_batch = options.n_ctx
        options.n_ubatch = 512
        # One cache for all sequences, as long as the context.
        options.n_seq_max, options.kv_unified = SEQUENCES, True
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def reset(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def call(self, ids):
        import ctypes

        import numpy

        tokens = (self.lib.llama_token * len(ids))(*ids)
        status = self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = ctypes.cast(self.lib.llama_get_logits_ith(self.context, -1), ctypes.POINTER(ctypes.c_float))
        return int(numpy.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())

    def fork(self, sequences):
        """Sequences 1 and on begin as sequence 0 is."""
        memory = self.lib.llama_get_memory(self.context)
        for sequence in range(1, sequences):
            self.lib.llama_memory_seq_cp(memory, 0, sequence, -1, -1)

    def step(self, tokens, position):
        """A token of each sequence: the likeliest next ones."""
        import ctypes

        import numpy

        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 1
            batch.seq_id[i][0] = i
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = (self.lib.llama_get_logits_ith(self.context, i) for i in range(len(tokens)))
        rows = (ctypes.cast(row, ctypes.POINTER(ctypes.c_float)) for row in rows)
        return [int(numpy.ctypeslib.as_array(row, (self.vocabulary,)).argmax()) for row in rows]


class MistralRs:
    """`mistralrs serve` as a child, its prefix cache off, asked over loopback. A prompt's time is that of a request
    for one token; decode's is the server's own, from the prompt's end to the last token
    (`total_completion_time_sec`)."""

    def __init__(self, path, threads, context):
        import socket
        import subprocess

        import tokenizers

        quantised = sorted(pathlib.Path(path).glob("*.uqff"))
        options = ["--from-uqff", quantised[0].name] if quantised else []
        version = subprocess.run(["mistralrs", "--version"], capture_output=True, text=True, check=True)
        self.version = version.stdout.strip()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(path) / "tokenizer.json"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = ["mistralrs", "serve", "--cpu", "--dtype", "f16", "-m", path, "--host", "127.0.0.1",
                   "--port", str(self.port), "--prefix-cache-n", "0", "--max-seqs", str(SEQUENCES), *options]
        threaded = {name: str(threads) for name in ("RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS")}
        self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=os.environ | threaded)
        atexit.register(self.server.kill)
        while True:
            try:
                self.ask(self.text(1), 1, 1, 1)
                break
            except ConnectionRefusedError:
                if self.server.poll() is not None:
                    raise RuntimeError(f"mistralrs ended with {self.server.returncode}") from None
                time.sleep(0.2)

    def ask(self, text, prompt_tokens, tokens, sequences):
        """What the server says it used for `sequences` answers of `tokens` tokens to a text of `prompt_tokens`."""
        import http.client

        asked = {"prompt": text, "max_tokens": tokens, "temperature": 0, "n": sequences}
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        said = response.read().decode()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"mistralrs answers {response.status}: {said[:200]}")
        said = json.loads(said)
        # It counts the tokens of one answer alone.
        usage, answers = said["usage"], len(said["choices"])
        if (usage["prompt_tokens"], usage["completion_tokens"], answers) != (prompt_tokens, tokens, sequences):
            raise RuntimeError(f"mistralrs gave {answers} answers, {usage}: expected {sequences} of {tokens} tokens "
                               f"after {prompt_tokens}")
        return usage

    def text(self, tokens):
        """A text of so many tokens, with the one that begins it."""
        words = "".join(f" {chr(ord('a') + 7919 * i % 26)}" for i in range(tokens))
        least, most = 0, len(words)
        while least < most:
            middle = (least + most) // 2
            least, most = (middle + 1, most) if self.count(words[:middle]) < tokens else (least, middle)
        if self.count(words[:least]) != tokens:
            raise RuntimeError(f"no text of {tokens} tokens was found")
        return words[:least]

    def count(self, text):
        return len(self.tokenizer.encode(text).ids)

    def prefill(self, tokens):
        text = self.text(tokens)
        start = time.perf_counter()
        self.ask(text, tokens, 1, 1)
        return time.perf_counter() - start

    def decode(self, tokens, depth, sequences):
        return self.ask(self.text(depth), depth, tokens + 1, sequences)["total_completion_time_sec"]

    def resident(self):
        return resident(self.server.pid)


# The most that are decoded at once.
SEQUENCES = 32

ENGINES = {"torch": Torch, "openvino": OpenVino, "llama": Llama, "mistralrs": MistralRs}


def resident(process):
    """Resident bytes of a process."""
    pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def answer(engine, request):
    """What one request asks for."""
    if request["phase"] == "memory":
        return {"rss": engine.resident()}
    if request["phase"] == "prefill":
        return {"seconds": engine.prefill(request["tokens"])}
    return {"seconds": engine.decode(request["tokens"], request["depth"], request.get("sequences", 1))}


def main():
    name, path, threads, context = sys.argv[1:]
    # Libraries print to descriptor 1: answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = ENGINES[name](path, int(threads), int(context))
    # Weights come into memory, code and packed copies into being.
    answer(engine, {"phase": "decode", "tokens": 2, "depth": 16})
    print(json.dumps({"version": engine.version}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
