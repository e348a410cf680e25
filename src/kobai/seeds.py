"""One integer becomes many named, independent random generators.

Adding a consumer never shifts the numbers another consumer sees, because every generator is derived
from the pair (seed, name) and not from a shared stream.
"""

import hashlib

import numpy as np
import torch

__all__ = ["generator", "integer"]


def integer(seed: int, name: str) -> int:
    """Derive a 63-bit integer from a seed and a name.

    Args:
        seed: Any non-negative integer; 0 is a seed like any other.
        name: What the stream is for, such as "init", "shuffle", "probes" or "labels".

    Returns:
        An integer in [0, 2⁶³), the same on every platform.

    Raises:
        ValueError: If the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
    sequence = np.random.SeedSequence([seed, *(int(word) for word in words)])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, name: str) -> torch.Generator:
    """Make the CPU generator that belongs to a seed and a name.

    Random numbers are drawn on the CPU and moved, so that CPU and GPU runs see equal numbers.

    Args:
        seed: Any non-negative integer.
        name: What the stream is for.

    Returns:
        A fresh `torch.Generator` on the CPU; equal arguments give equal streams.
    """
    return torch.Generator().manual_seed(integer(seed, name))
