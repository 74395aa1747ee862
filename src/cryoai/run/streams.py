"""Named streams of random numbers: each purpose has its own, so that none depends on what the others drew."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream_seed(seed: int, *name: str | int) -> int:
    """A seed for one purpose, such as ``stream_seed(seed, "bootstrap", 2)``; 0 to 2⁶³ - 1."""
    # Not Python's own hash of a string, which differs from process to process.
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in name]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> 1)


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(stream_seed(seed, *name))


def torch_stream(seed: int, *name: str | int) -> torch.Generator:
    """A torch generator, on the CPU, for one purpose."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))
