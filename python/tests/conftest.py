"""What several tests need."""

import os
import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def command():
    """The command `lapidary`: $LAPIDARY, what `cargo build` left, or what is installed."""
    built = [ROOT / "target" / profile / "lapidary" for profile in ("release", "debug")]
    found = [os.environ.get("LAPIDARY"), *(str(b) for b in built if b.exists()), shutil.which("lapidary")]
    found = [f for f in found if f]
    if not found:
        missing = pytest.fail if os.environ.get("LAPIDARY_REQUIRE_TOOLS") else pytest.skip
        missing("no command `lapidary`: build it, or set LAPIDARY")
    return found[0]
