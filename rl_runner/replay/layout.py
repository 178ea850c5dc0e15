"""Which rows a ring holds and of what a row consists: all that is known before any memory is taken."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rl_runner.envs import Spec


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
