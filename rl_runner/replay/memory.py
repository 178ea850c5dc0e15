"""How much memory a replay takes, said and refused before any is taken."""

import shutil
from bisect import bisect_right
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from rl_runner.envs import Spec
from rl_runner.errors import UserError


class Sized(Protocol):
    """A replay class that can tell what it takes."""

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, **keys: Any) -> int: ...


def bytes_per_transition(replay: type[Sized], spec: Spec, num_envs: int, **keys: Any) -> float:
    """Everything that a replay with these config keys takes, divided by its capacity."""
    return replay.nbytes(spec, num_envs, **keys) / keys["capacity"]


def check_memory(
    replay: type[Sized],
    spec: Spec,
    num_envs: int,
    *,
    device: torch.device | str,
    directory: Path | None,
    **keys: Any,
) -> None:
    """UserError if a replay with these config keys does not fit in what is free, naming a capacity that does."""
    free, place = _free(torch.device(device), directory if keys.get("storage") == "memmap" else None)
    needed = replay.nbytes(spec, num_envs, **keys)
    if needed <= free:
        return

    def bytes_at(capacity: int) -> int:
        return replay.nbytes(spec, num_envs, **keys | {"capacity": capacity})

    fits = bisect_right(range(keys["capacity"]), free, key=bytes_at) - 1
    rounded = fits // (digit := 10 ** max(0, len(str(fits)) - 2)) * digit
    raise UserError(
        f"replay.capacity={keys['capacity']} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free {place}: "
        f"replay.capacity={rounded} would fit"
    )


def _free(device: torch.device, directory: Path | None) -> tuple[int, str]:
    """Bytes that can be had, and where."""
    if directory is not None:
        existing = next(parent for parent in [directory, *directory.resolve().parents] if parent.exists())
        return shutil.disk_usage(existing).free, f"on the disk of {directory}"
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], f"on {device}"
    return psutil.virtual_memory().available, "in memory"
