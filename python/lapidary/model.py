"""Models: opened, text from them, their logits."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import _lapidary, ir
from ._errors import UsageError

__all__ = ["Generation", "Model"]

Generation = _lapidary.Generation

#: What the user says, or who says what.
Messages = str | Iterable[dict[str, Any]]


class Model:
    """A model. ``Model.open`` makes one."""

    __slots__ = ("_model",)

    def __init__(self, model):
        if not isinstance(model, _lapidary.Model):
            raise UsageError("Model.open opens a model")
        self._model = model

    @classmethod
    def open(cls, path: str | os.PathLike | None = None, **options: Any) -> "Model":
        """Opens a Hugging Face folder, a GGUF, an artifact (``NAME.lap``) or a model of the hub by its name; without a
        path the tiny model that is built in.

        Options, of which the library's pages say more: ``threads``, ``context``, ``chunk``, ``cpu``, ``weights`` and
        ``head_weights`` (``q8``, ``q4``, ``bf16``, ``f16``, ``f32``), ``activations`` (``auto``, ``f32``),
        ``kv_cache``, ``sliding_window``, ``lora`` (a folder), ``cache``, ``mmap``, ``trust`` (a public key's file),
        ``verify``, and which rules run: ``rules`` (text, a path or ``ir.Rules``), ``passes``, ``disable``, ``only``.

        Raises ``UsageError`` for options that cannot be, ``Error`` for files that are not as they should be.
        """
        path = None if path is None else os.fspath(path)
        return cls(_lapidary.Model.open(path, ir.options(options)))

    @property
    def path(self) -> str:
        """The folder or the file; of the built-in model its name."""
        return str(self._model.path)

    @property
    def context(self) -> int:
        """The most tokens of a text."""
        return self._model.context

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self._model.vocab_size

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that end a text."""
        return self._model.stop_tokens

    @property
    def is_instruction_tuned(self) -> bool:
        """Whether it was tuned to take turns, as ``chat`` does."""
        return self._model.is_instruction_tuned

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, BOS first."""
        return self._model.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens."""
        return self._model.decode(list(tokens))

    def encode_chat(self, messages: Messages) -> list[int]:
        """The tokens of a conversation, by the chat template, up to where the model's turn begins: a text of the user,
        or ``{"role": ..., "content": ...}`` one after the other, of which the first may be the system's."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        messages = list(messages)
        system = None
        if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
            system = messages.pop(0).get("content")
            if not isinstance(system, str):
                raise UsageError(f"message 0: expected a text of the system, found {system!r}")
        return self._model.encode_chat(json.dumps(messages), system)

    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        max_tokens: int = 128,
        stop: str | Iterable[str] = (),
        stop_tokens: Iterable[int] | None = None,
        stream: bool | Callable[[str], object] | None = None,
        **sampler: Any,
    ) -> Any:
        """Continues a prompt, which is a text or tokens, and returns the new text.

        With ``stream=True`` it returns an iterator of pieces, ``Generation``; a callable ``stream`` is called with each
        piece. ``stop`` are texts and ``stop_tokens`` tokens that end it [the model's own]. How tokens are chosen:
        ``temperature`` (0: the most likely one), ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
        ``repeat_last_n``, ``seed``. A KeyboardInterrupt stops it within a token.
        """
        tokens = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._generate(tokens, max_tokens, stop, stop_tokens, stream, sampler)

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int = 1024,
        stop: str | Iterable[str] = (),
        stop_tokens: Iterable[int] | None = None,
        stream: bool | Callable[[str], object] | None = None,
        **sampler: Any,
    ) -> Any:
        """Answers in a conversation (``encode_chat``); the rest is as of ``generate``."""
        return self._generate(self.encode_chat(messages), max_tokens, stop, stop_tokens, stream, sampler)

    def _generate(self, tokens, max_tokens, stop, stop_tokens, stream, sampler):
        stop = [stop] if isinstance(stop, str) else list(stop)
        stop_tokens = None if stop_tokens is None else list(stop_tokens)
        generation = self._model.generate(tokens, max_tokens, sampler, stop, stop_tokens)
        if stream is True:
            return generation
        for piece in generation:
            if stream:
                stream(piece)
        return generation.text

    def logits(self, tokens: str | Iterable[int], *, out: Any = None) -> np.ndarray:
        """The logits after each token of a text or of tokens: float32 (tokens, vocabulary)."""
        tokens = self.encode(tokens) if isinstance(tokens, str) else [int(t) for t in tokens]
        if out is None:
            out = np.empty((len(tokens), self.vocab_size), np.float32)
        self._model.logits(tokens, out)
        return out

    def __repr__(self):
        return f"<lapidary.Model {self.path}>"
