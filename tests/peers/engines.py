"""One peer in a process of its own: `engines.py NAME PATH THREADS CONTEXT`.

On stdin one JSON object a line, on stdout one in answer; first, unasked, {"version"}:
    {"phase": "prefill", "tokens": N, "depth": 0}   {"seconds"}: N tokens from position 0 in one call, logits of the
                                                    last
    {"phase": "decode", "tokens": N, "depth": D, "sequences": S}
                                                    {"seconds"}: N tokens of each of S sequences (1 if not
                                                    given), a token of each at a time, each the likeliest, after
                                                    D that are not timed
    {"phase": "memory"}                             {"rss"}: resident bytes, the mapped weights included
What libraries print goes to stderr.
"""
import json, os, pathlib, sys, time


def prompt(tokens):
    """Token ids that every vocabulary has, the built-in model's 4,096 too, none of them special."""
    return [300 + (7919 * i) % 3001 for i in range(tokens)]


class Torch:
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

    def call(self, ids):
        ids = self.torch.tensor([ids])
        out = self.model(input_ids=ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return int(out.logits[0, -1].argmax())


class OpenVino:
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

    def call(self, ids):
        n, p = len(ids), self.position
        ints = lambda values: self.numpy.array([values], self.numpy.int64)
        given = {"input_ids": ints(ids), "attention_mask": ints([1] * (p + n)), "position_ids": ints(range(p, p + n)),
                 "beam_idx": self.numpy.zeros(1, self.numpy.int32)}
        self.request.infer({k: v for k, v in given.items() if k in self.inputs})
        self.position += n
        return int(self.request.get_tensor("logits").data[0, -1].argmax())


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


class Llama:
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


# The most that are decoded at once.
SEQUENCES = 32

ENGINES = {"torch": Torch, "openvino": OpenVino, "llama": Llama}


def resident():
    """Resident bytes of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def answer(engine, request):
    """What one request asks for."""
    if request["phase"] == "memory":
        return {"rss": resident()}
    engine.reset()
    if request["phase"] == "prefill":
        ids = prompt(request["tokens"])
        start = time.perf_counter()
        engine.call(ids)
        return {"seconds": time.perf_counter() - start}
    token, sequences = engine.call(prompt(request["depth"])), request.get("sequences", 1)
    if sequences > 1:
        engine.fork(sequences)
        tokens = [token] * sequences
        start = time.perf_counter()
        for at in range(request["tokens"]):
            tokens = engine.step(tokens, request["depth"] + at)
        return {"seconds": time.perf_counter() - start}
    start = time.perf_counter()
    for _ in range(request["tokens"]):
        token = engine.call([token])
    return {"seconds": time.perf_counter() - start}


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
