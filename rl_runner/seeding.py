"""One root seed, many independent named streams."""

import zlib

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """A 32-bit seed that depends on the root seed and on every element of the path."""
    key = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    return int(np.random.SeedSequence([seed, *key]).generate_state(1)[0])


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The stream `name` of a run; streams of different names never touch each other."""
    return torch.Generator(device).manual_seed(derive(seed, name))
