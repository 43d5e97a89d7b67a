"""Rewrite rules of a text or of a file, and the options that name them."""

from __future__ import annotations

import os
from typing import Any

from . import _lapidary
from ._errors import Error


class Rules:
    """Rewrite rules of a text or of a file, beside the built-in ones (``docs/rules.md``)."""

    __slots__ = ("_rules",)

    def __init__(self, source: str | os.PathLike):
        """``source`` is rules' text, or a path of a file."""
        name = "rules"
        if not isinstance(source, str) or "{" not in source:
            name = os.fspath(source)
            try:
                with open(name, encoding="utf-8") as file:
                    source = file.read()
            except OSError as error:
                raise Error(f"cannot read {name}: {error.strerror}") from error
        self._rules = _lapidary.Rules(source, name)

    @property
    def names(self) -> list[str]:
        """The names of the text's rules."""
        return self._rules.names

    def check(self, cases: int = 100, seed: int = 0) -> list[dict[str, Any]]:
        """Holds each rule against the reference interpreter on functions made for it: a dict a rule, whose ``verdict``
        is ``sound`` where nothing was found against it, with the ``reason`` and a ``counterexample`` otherwise."""
        return self._rules.check(cases, seed)

    def __str__(self):
        return str(self._rules)


def builtin_rules() -> list[tuple[str, str, str, str]]:
    """The built-in rules: name, group, class and algebra of each."""
    return _lapidary.Rules.builtin().all()


def options(given):
    """Options as the extension takes them."""
    rules = given.get("rules")
    if rules is None:
        return dict(given)
    return {**given, "rules": (rules if isinstance(rules, Rules) else Rules(rules))._rules}


def options_of_function(given):
    """The same of a function, whose products round nothing unless asked to."""
    return options({"activations": "f32", **given})
