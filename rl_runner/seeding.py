"""One root seed, many independent named streams."""

import zlib

import numpy as np
import torch

EPISODES = ("train", "eval", "probe", "spec", "export")  # sets of environments, each episode of which has a seed


def derive(seed: int, name: str, *episode: int) -> int:
    """A 32-bit seed for a stream by its name, or for an episode of a set by its environment's and its own number.

    NumPy takes trailing zeros for nothing: (name) and (name, 0, 0) give the same, so no name may be both.
    """
    if len(episode) != 2 * (name in EPISODES):
        raise ValueError(f"{name}: a set of environments takes two numbers, any other stream none")
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *episode]).generate_state(1)[0])


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The stream `name` of a run; streams of different names never touch each other."""
    return torch.Generator(device).manual_seed(derive(seed, name))
