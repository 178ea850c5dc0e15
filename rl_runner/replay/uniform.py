"""Experience replay (Lin 1992; Mnih et al. 2015): every stored transition is equally likely."""

from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.replay.layout import Layout, Storage
from rl_runner.replay.ring import Batch, Ring
from rl_runner.seeding import generator


class UniformReplay:
    """The newest `capacity` transitions, drawn uniformly with replacement.

    `n_step`: learn from the discounted sum of so many rewards, fewer where an episode ends or the newest row is near.
    `deduplicate`: store each observation, or each frame of a stack, once instead of twice.
    `storage`: `memory`, the device's, or `memmap`, files in the run directory.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        num_envs: int,
        gamma: float,
        total_steps: int,
        seed: int,
        device: torch.device | str,
        directory: Path | None,
        capacity: PositiveInt,
        n_step: PositiveInt = 1,
        deduplicate: bool = False,
        storage: Storage = "memory",
    ):
        self._device = torch.device(device)
        layout = Layout(spec, num_envs, capacity, deduplicate)
        self.grows = deduplicate  # the table of final observations is moved when it is full
        self.ring = Ring(layout, gamma, n_step, storage, self._device, directory)
        self._generator = generator(seed, "replay", self._device)

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, *, capacity: int, deduplicate: bool = False, **_: Any) -> int:
        """Bytes that a replay with these keys takes when it is made."""
        return Layout(spec, num_envs, capacity, deduplicate).nbytes

    @property
    def size(self) -> int:
        """How many transitions can be drawn."""
        return self.ring.size

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Store one step of each environment, [N, ...]; `next_obs` is the true successor at an episode's end too."""
        self.ring.add(obs, action, reward, terminated, truncated, next_obs)

    def cut(self) -> None:
        """Truncate the running episodes: the environments were reset in the middle of them."""
        self.ring.cut()

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, ...]:
        """What is random in a batch: rows [B], counted since the run's start."""
        oldest, end, stream = self.ring.window_start, self.ring.head, self._generator
        return (torch.randint(oldest, end, (batch_size,), generator=stream, device=self._device),)

    def gather(self, row: Tensor) -> Batch:
        """The transitions that `draw` chose; traceable."""
        return self.ring.batch(row % self.ring.layout.rows, torch.ones(row.shape, device=self._device))

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Nothing: all transitions are equal."""

    def state_dict(self) -> dict[str, Any]:
        """All but the ring's columns; see `Ring` for what an exact restoration needs."""
        return {"ring": self.ring.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ring.load_state_dict(state["ring"])
        self._generator.set_state(state["generator"])
