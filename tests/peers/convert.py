"""Converts a Gemma 2 checkpoint for peers: GGUF for llama.cpp, OpenVINO's IR, mistral.rs's UQFF. torch reads the
checkpoint as it is, mistral.rs a folder that links to it.

In: a Hugging Face folder with bf16 matrices. Out: a file or folder whose name holds the format, made under another name
and renamed once it is whole, so what is there is reused. GGUF is written tensor by tensor; an export to OpenVINO holds
the whole model.
"""
import json, os, pathlib, shutil, subprocess, sys

SHARDS = "*.safetensors"


def bytes_of(path):
    """Bytes of the weights of a file or folder. Beside a UQFF lies the embedding, of which a token reads one row."""
    path = pathlib.Path(path)
    if path.is_file():
        return path.stat().st_size
    files = list(path.glob("*.uqff")) or [f for s in (SHARDS, "*.bin") for f in path.glob(s)]
    return sum(f.stat().st_size for f in files)


def convert(peer, model, to, work):
    """Where the checkpoint lies in the peer's format `to`; raises RuntimeError with one line if that fails."""
    if peer == "torch":
        return model
    target = work / f"{to}.gguf" if peer == "llama" else work / f"{peer}-{to}"
    if peer == "mistralrs" and to != "f16":
        model = convert(peer, model, "f16", work)
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    print(f"{peer}: writing {target}", file=sys.stderr, flush=True)
    {"llama": write_gguf, "openvino": export_openvino, "mistralrs": for_mistralrs}[peer](model, part, to)
    os.replace(part, target)
    return target


def tensors(model):
    """(name, its array mapped from the file: u16 for bf16) of every tensor, in the files' order."""
    import numpy

    for file in sorted(model.glob(SHARDS)):
        with open(file, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise RuntimeError(f"{file}: tensor {name} is {entry['dtype']}: expected BF16")
            start, end = entry["data_offsets"]
            yield name, numpy.memmap(file, numpy.uint16, "r", 8 + size + start, tuple(entry["shape"]))


def write_gguf(model, target, to):
    """llama.cpp's file, every matrix in the format `to` (BF16, Q8_0, Q4_0), the embedding too; norms in f32 with
    Gemma's 1 added."""
    import gguf
    import numpy

    config = json.loads((model / "config.json").read_text())
    architecture = gguf.MODEL_ARCH.GEMMA2
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[to]
    out = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    out.add_final_logit_softcapping(config["final_logit_softcapping"])
    out.add_sliding_window(config["sliding_window"])
    out.add_vocab_size(config["vocab_size"])
    out.add_file_type(gguf.LlamaFileType[f"MOSTLY_{to}"])
    out.add_tokenizer_model("no_vocab")

    def data(array):
        if array.ndim == 1:
            return (array.astype(numpy.uint32) << 16).view(numpy.float32) + 1, None
        if to == "BF16":
            return array.view(numpy.uint8), kind
        return gguf.quants.quantize((array.astype(numpy.uint32) << 16).view(numpy.float32), kind), kind

    for name, array in tensors(model):
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if theirs is None:
            raise RuntimeError(f"tensor {name} has no name in GGUF")
        if array.ndim == 1:
            out.add_tensor_info(theirs, array.shape, numpy.dtype(numpy.float32), 4 * array.size)
        else:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            shape = (array.shape[0], array.shape[1] // block * size)
            out.add_tensor_info(theirs, shape, numpy.dtype(numpy.uint8), shape[0] * shape[1], kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    out.write_padding(out.fout[0], out.fout[0].tell())
    # In parts of 16 Ki rows: the embedding in f32 would be 2.4 GB.
    for name, array in tensors(model):
        written = 0
        for start in range(0, array.shape[0], 16384):
            piece = data(array[start:start + 16384])[0]
            piece.tofile(out.fout[0])
            written += piece.nbytes
        out.write_padding(out.fout[0], written)
    out.close()


def export_openvino(model, target, to):
    """OpenVINO's IR through optimum-intel, its own defaults for embedding and head (int8 beside int4)."""
    how = {"bf16": ["--weight-format", "fp16"], "int8": ["--weight-format", "int8"],
           "int4": ["--weight-format", "int4", "--group-size", "128", "--ratio", "1.0", "--sym"]}[to]
    command = [str(pathlib.Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "-m", str(model),
               "--task", "text-generation-with-past", "--disable-convert-tokenizer", *how, str(target)]
    run(command)


def for_mistralrs(model, target, to):
    """mistral.rs's own file, by its own command; in f16, to which it converts as it loads, the checkpoint itself, by
    links, its configuration in the dialect that mistral.rs reads."""
    if to != "f16":
        run(["mistralrs", "quantize", "--cpu", "-m", str(model), "--isq", to.lower(), "-o", str(target), "--no-readme"])
        return
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).symlink_to(file.absolute())
    config = json.loads((model / "config.json").read_text())
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta", 10000.0))
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def run(command):
    """Runs a converter; RuntimeError with the last line that it said if that fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = [l.strip() for l in done.stderr.splitlines() if l.strip()]
        name = pathlib.Path(command[0]).name
        raise RuntimeError(f"{name} ended with {done.returncode}: {said[-1][:300] if said else 'it said nothing'}")
