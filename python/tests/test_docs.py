"""The sessions of docs/python.md."""

import doctest
import pathlib


def test_sessions():
    path = pathlib.Path(__file__).resolve().parents[2] / "docs" / "python.md"
    failed, tried = doctest.testfile(str(path), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 20 and failed == 0
