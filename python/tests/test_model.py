"""Models from Python beside the command."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import lapidary

PROMPT = "It is a truth universally acknowledged"


@pytest.fixture(scope="module")
def model():
    return lapidary.Model.open(threads=1, context=512)


def test_text_is_the_commands(model, command):
    for flags, options in [
        (["--temp", "0"], {}),
        (["--temp", "0.8", "--seed", "7"], {"temperature": 0.8, "seed": 7, "top_k": 40, "top_p": 0.95}),
    ]:
        run = [command, "run", "-n", "24", "--context", "512", "--threads", "1", *flags, PROMPT]
        expected = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert model.generate(PROMPT, max_tokens=24, **options).rstrip("\n") == expected.rstrip("\n"), flags


def test_answer_is_the_commands(model, command):
    run = [command, "run", "--chat", "-n", "12", "--temp", "0", "--context", "512", "--threads", "1", "Who are you?"]
    expected = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    messages = [{"role": "user", "content": "Who are you?"}]
    assert model.chat(messages, max_tokens=12).rstrip("\n") == expected.rstrip("\n")
    assert model.chat("Who are you?", max_tokens=12) == model.generate(model.encode_chat(messages), max_tokens=12)
    with pytest.raises(lapidary.UsageError, match="message 0: no other fields"):
        model.chat([{"role": "user", "text": "Hi"}])


def test_pieces_are_the_text(model):
    text = model.generate(PROMPT, max_tokens=12)
    assert text.startswith(", and the whole world is")
    pieces = model.generate(PROMPT, max_tokens=12, stream=True)
    assert "".join(pieces) == text == pieces.text
    assert pieces.end == "length" or pieces.end
    assert len(pieces.tokens) == 12
    called = []
    assert model.generate(model.encode(PROMPT), max_tokens=12, stream=called.append) == text
    assert "".join(called) == text
    assert model.generate(PROMPT, max_tokens=12, stop=" whole") == ", and the"


def test_logits_predict_what_is_generated(model):
    tokens = model.encode(PROMPT)
    logits = model.logits(PROMPT)
    assert logits.shape == (len(tokens), model.vocab_size) and logits.dtype == np.float32
    first = model.generate(PROMPT, max_tokens=1, stream=True)
    text = "".join(first)
    assert model.decode([int(logits[-1].argmax())]) == text
    out = np.full_like(logits, np.nan)
    assert model.logits(tokens, out=out) is out
    assert np.array_equal(out, logits)
    # The reference interpreter's neighbour: every row is finite and no two are alike.
    assert np.isfinite(logits).all() and not np.array_equal(logits[0], logits[1])


def test_errors_are_exceptions(model, tmp_path):
    with pytest.raises(ValueError, match="option `threads`: expected 1 to 1024, found 0"):
        lapidary.Model.open(threads=0)
    with pytest.raises(lapidary.UsageError, match="unknown option `thread`.*threads"):
        lapidary.Model.open(thread=1)
    with pytest.raises(lapidary.UsageError, match="q4"):
        lapidary.Model.open(weights="q5")
    (tmp_path / "config.json").write_text('{"model_type": "gemma2", "hidden_size": "x"}')
    with pytest.raises(lapidary.Error, match=r"config\.json.*hidden_size"):
        lapidary.Model.open(tmp_path)
    with pytest.raises(lapidary.UsageError, match="temperature"):
        model.generate("a", temperature=-1.0)
    with pytest.raises(lapidary.UsageError, match="heat"):
        model.generate("a", heat=1.0)
    with pytest.raises(lapidary.Error):
        model.generate([])
    with pytest.raises(lapidary.Error, match="out"):
        model.logits([1, 2], out=np.empty((1, 2), np.float32))
    with pytest.raises(lapidary.UsageError, match="found 99999999"):
        model.decode([99999999])


def test_ctrl_c_stops():
    program = (
        "import lapidary, sys\n"
        "model = lapidary.Model.open(context=4096)\n"
        "try:\n"
        "    for _ in range(1000):\n"
        "        model.generate('She', max_tokens=4000, stop_tokens=[], stream=lambda p: print('.', flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(7)\n"
    )
    # What runs in the background of a shell ignores the signal, and so would its child.
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, preexec_fn=default)
    assert process.stdout.readline() == b".\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.wait(timeout=30) == 7
    assert time.monotonic() - start < 10
