"""The memory of a ring: one tensor per column, in memory or mapped from files."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rl_runner.errors import UserError

Storage = Literal["memory", "memmap"]


class Columns:
    """Tensors by name whose first axis is the ring's rows; zeros at first.

    `shapes`: shape and dtype of each. `directory`: the run's; with `memmap` the files lie in its `replay`.
    """

    def __init__(self, shapes: dict[str, Tensor], storage: Storage, device: torch.device, directory: Path | None):
        if storage == "memmap":
            self.tensors = _mapped(shapes, device, directory)
        else:
            self.tensors = {name: torch.zeros_like(shape, device=device) for name, shape in shapes.items()}
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
