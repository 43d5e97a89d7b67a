"""Writes `expected.txt`: what the package gguf makes of 10,000 random blocks of each format.

A line has the name, elements and bytes of a block, and the SHA-256 of the blocks and of their elements (f32, little
endian). Blocks are drawn as `formats.rs` draws them. Needs: pip install gguf numpy. Use: python3 make.py
"""

import hashlib
from pathlib import Path

import gguf
import numpy as np

BLOCKS = 10_000
# Where a block has its halves.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}


def random_bytes(seed: int, count: int) -> np.ndarray:
    """SplitMix64 from a seed."""
    z = np.uint64(seed) + np.arange(1, count // 8 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).astype("<u8").view(np.uint8)[:count]


def main() -> None:
    lines = []
    for name, halves in HALVES.items():
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random_bytes(int(kind), BLOCKS * size).reshape(BLOCKS, size).copy()
        for at in halves:
            # An exponent of all ones loses its highest bit: no infinity, no NaN.
            high = blocks[:, at + 1]
            high[(high & 0x7C) == 0x7C] &= 0xBF
        values = gguf.quants.dequantize(blocks, kind).astype("<f4")
        assert values.shape == (BLOCKS, elements) and np.isfinite(values).all()
        sums = [hashlib.sha256(x.tobytes()).hexdigest() for x in (blocks, values)]
        lines.append(f"{name.lower()} {elements} {size} {sums[0]} {sums[1]}\n")
    Path(__file__).with_name("expected.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
