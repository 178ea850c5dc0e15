"""Which rows a ring holds, of what a row consists, and what that takes: known before any memory is taken."""

import math
import shutil
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import torch
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.errors import UserError

Storage = Literal["memory", "memmap"]


@dataclass(frozen=True)
class Layout:
    """The sizes of a ring for `num_envs` environments; a time row is one row of each of them.

    `capacity` is rounded up to whole time rows. With `deduplicate` each observation, or each frame of a stack, is
    stored once: a row's successor is the next row of its environment, and final observations have a table of their own.
    """

    spec: Spec
    num_envs: int
    capacity: int
    deduplicate: bool

    @cached_property
    def window(self) -> int:
        """How many of the newest rows can be drawn."""
        return self._whole(self.capacity)

    @property
    def history(self) -> int:
        """Rows before the window that its oldest stacks are rebuilt from."""
        return (self.spec.frame_stack - 1) * self.num_envs if self.deduplicate else 0

    @property
    def pending(self) -> int:
        """Rows after the window that hold the newest successors, until those become rows of their own."""
        return self.num_envs if self.deduplicate else 0

    @cached_property
    def rows(self) -> int:
        return self.history + self.window + self.pending

    @property
    def finals(self) -> int:
        """Final observations that there is room for at first; the table grows as short episodes need it."""
        return max(64, self.window // 256)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of what is stored once: a single frame where stacks are deduplicated, else a whole observation."""
        stacked = self.deduplicate and self.spec.frame_stack > 1
        return self.spec.obs_shape[1:] if stacked else self.spec.obs_shape

    def columns(self) -> dict[str, Tensor]:
        """Shape and dtype of the ring's columns, as tensors without memory."""
        discrete = self.spec.action_dim is None
        columns = {
            "obs": self._column(self.spec.obs_dtype, *self.frame_shape),
            "action": self._column(torch.int64) if discrete else self._column(torch.float32, self.spec.action_dim or 0),
            "reward": self._column(torch.float32),
            "terminated": self._column(torch.bool),
            "truncated": self._column(torch.bool),
        }
        return columns if self.deduplicate else columns | {"next_obs": columns["obs"]}

    def final_columns(self) -> dict[str, Tensor]:
        """The same of the table of final observations."""
        return {
            "row": torch.empty(self.finals, dtype=torch.int64, device="meta"),
            "obs": torch.empty(self.finals, *self.frame_shape, dtype=self.spec.obs_dtype, device="meta"),
        }

    def at(self, row: int) -> slice:
        """Where the ring holds the time row that begins with `row`, counted since the run's start."""
        start = row % self.rows
        return slice(start, start + self.num_envs)

    @property
    def nbytes(self) -> int:
        """What the ring takes when it is made."""
        columns = [*self.columns().values(), *(self.final_columns().values() if self.deduplicate else ())]
        return sum(column.nbytes for column in columns)

    def _whole(self, rows: int) -> int:
        return math.ceil(rows / self.num_envs) * self.num_envs

    def _column(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(self.rows, *shape, dtype=dtype, device="meta")


class Columns:
    """Tensors by name whose first axis is the ring's rows; zeros at first.

    `shapes`: shape and dtype of each. `directory`: the run's; with `memmap` the files lie in its `replay`.
    """

    def __init__(self, shapes: dict[str, Tensor], storage: Storage, device: torch.device, directory: Path | None):
        if storage == "memmap":
            self.tensors = _mapped(shapes, device, directory)
        else:
            self.tensors = {name: torch.zeros(t.shape, dtype=t.dtype, device=device) for name, t in shapes.items()}
        # Writing a few numbers through numpy takes half the time of a tensor's slice.
        self._arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()} if device.type == "cpu" else {}

    def write(self, name: str, rows: slice, values: Tensor) -> None:
        """Put values [N, ...] into N rows."""
        if self._arrays:
            self._arrays[name][rows] = values.numpy()
        else:
            self.tensors[name][rows] = values

    def take(self, name: str, rows: Tensor) -> Tensor:
        """The values of rows [...] as [..., *column]."""
        column = self.tensors[name]
        if rows.ndim == 1:
            return column.index_select(0, rows)
        return column.index_select(0, rows.flatten()).view(*rows.shape, *column.shape[1:])

    def ended(self, rows: Tensor) -> Tensor:
        """Whether an episode ended in rows [...], in either way."""
        return self.take("terminated", rows) | self.take("truncated", rows)


def _mapped(shapes: dict[str, Tensor], device: torch.device, directory: Path | None) -> dict[str, Tensor]:
    if device.type != "cpu":
        raise UserError(f"replay.storage=memmap works with device=cpu only; with device={device} use storage=memory")
    if directory is None:
        raise UserError("replay.storage=memmap needs a run directory to put its files in; use storage=memory")
    files = directory / "replay"
    files.mkdir(parents=True, exist_ok=True)
    return {name: _mapped_file(files / f"{name}.bin", shape) for name, shape in shapes.items()}


def _mapped_file(path: Path, shape: Tensor) -> Tensor:
    path.unlink(missing_ok=True)  # what an earlier process left is not zero
    flat = torch.from_file(str(path), shared=True, size=shape.numel(), dtype=shape.dtype)
    path.unlink()  # the mapping stays, and however this process ends, nothing is left behind
    return flat.view(shape.shape)


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
